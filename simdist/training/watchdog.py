"""A watchdog that ends a run without progress: it dumps all stacks and exits with the code for "run it again".

A collective that waits for a lost rank, or a file system that hangs, would otherwise hold GPUs until the time limit.
The watching thread needs the GIL, which torch and the loader release while they wait.
"""

from __future__ import annotations

import contextlib
import faulthandler
import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from simdist.core.errors import EXIT_PREEMPTED
from simdist.core.output import write_error


class Watchdog:
    """Ends this process after a time without progress.

    Args:
        timeout: seconds without progress. 0 disables the watchdog.
        stacks: file for the stacks of all threads.
    """

    def __init__(self, timeout: float, stacks: Path) -> None:
        self._timeout, self._stacks = timeout, stacks
        self._last = time.monotonic()
        self._ended = threading.Event()

    def progress(self) -> None:
        """Report progress: a step, a validation batch, a shard."""
        self._last = time.monotonic()

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Watch inside the context."""
        self.progress()
        if self._timeout > 0:
            threading.Thread(target=self._watch, daemon=True, name="watchdog").start()
        try:
            yield
        finally:
            self._ended.set()

    def _watch(self) -> None:
        while not self._ended.wait(min(self._timeout / 4, 5.0)):
            if time.monotonic() - self._last > self._timeout:
                self._end()

    def _end(self) -> None:
        with contextlib.suppress(OSError), self._stacks.open("w") as file:
            faulthandler.dump_traceback(file)
        with contextlib.suppress(OSError, ValueError):
            faulthandler.dump_traceback(sys.stderr.fileno())
        text = (
            f"error: no progress in {self._timeout:.0f} s (train.hang_timeout). All stacks are above and in "
            f"{self._stacks}. Exiting; the same command resumes from the last checkpoint"
        )
        write_error(text)
        os._exit(EXIT_PREEMPTED)
