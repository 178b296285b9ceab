"""A run that makes no step ends by itself: with all stacks written down, and a code that says: run me again.

A collective that waits for a rank that is gone, a file system that hangs: such a run would hold its GPUs until the time
limit. The thread that watches needs Python's lock, which torch and the loader give away while they wait.
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


class Watchdog:
    """Ends this process when nothing was reported to it for a while.

    Args:
        timeout: seconds without progress; 0 never ends it.
        stacks: file for the stacks of all threads.
    """

    def __init__(self, timeout: float, stacks: Path) -> None:
        self._timeout, self._stacks = timeout, stacks
        self._last = time.monotonic()
        self._ended = threading.Event()

    def progress(self) -> None:
        """Something was done: a step, a batch of a validation, a shard."""
        self._last = time.monotonic()

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Watch while inside."""
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
        faulthandler.dump_traceback(sys.stderr)
        text = (
            f"error: no step in {self._timeout:.0f} s (train.hang_timeout); all stacks are above and in "
            f"{self._stacks}; ending, the same command continues from the last checkpoint\n"
        )
        os.write(sys.stderr.fileno(), text.encode())
        os._exit(EXIT_PREEMPTED)
