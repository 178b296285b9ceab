"""A watchdog that ends a run without progress: it dumps all stacks and exits with the code for "run it again".

A collective that waits for a lost rank, or a file system that hangs, would otherwise hold GPUs until the time limit.
The process that watches is `hang_watcher`; this is the side of the process that is watched.
"""

from __future__ import annotations

import contextlib
import faulthandler
import os
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from simdist.core.errors import EXIT_PREEMPTED
from simdist.core.output import write_error
from simdist.training import hang_watcher
from simdist.training.hang_watcher import END, LAYOUT, STACKS_SIGNAL, Heartbeat

PATIENCE_AT_START = 3.0
"""Multiple of the time without progress until the first step is complete: a corpus is checked, kernels are chosen."""


class Watchdog:
    """Ends this process after a time without progress, in which it was not stopped.

    Args:
        timeout: seconds without progress. 0 disables the watchdog.
        folder: for the stacks of all threads, `stacks-rank0.txt`.
        rank: of this process.
        num_ranks: in the world.
    """

    def __init__(self, timeout: float, folder: Path, rank: int = 0, num_ranks: int = 1) -> None:
        self._timeout, self._stacks, self._ranks = timeout, folder / f"stacks-rank{rank}.txt", (rank, num_ranks)
        self._heartbeat: Heartbeat | None = None
        self._phase, self._step, self._limit = "starting", 0, timeout * PATIENCE_AT_START

    def progress(self, phase: str = "", step: int | None = None) -> None:
        """Report progress.

        Args:
            phase: what begins now; the same as before if empty.
            step: number of completed steps; the same as before if None.
        """
        self._phase, self._step = phase or self._phase, self._step if step is None else step
        if self._heartbeat is not None:
            self._heartbeat.beat(self._phase, self._step, self._limit)

    def started(self) -> None:
        """The first step is complete: from now on the timeout is that of the configuration."""
        self._limit = self._timeout

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Watch inside the context."""
        if self._timeout <= 0:
            yield
            return
        with contextlib.suppress(OSError):  # of an earlier start; there may be none
            self._stacks.replace(self._stacks.with_suffix(".previous.txt"))
        with _memory("heartbeat") as heartbeat, _memory("stacks") as traceback:
            heartbeat.truncate(LAYOUT.size)
            self._heartbeat = Heartbeat(heartbeat.fileno())
            self.progress()
            ours, theirs = socket.socketpair()
            with ours:
                descriptors = theirs.fileno(), heartbeat.fileno(), traceback.fileno()
                words = os.getpid(), *descriptors, self._stacks, *self._ranks, socket.gethostname()
                command = [sys.executable, "-I", "-S", hang_watcher.__file__, *map(str, words)]
                faulthandler.register(STACKS_SIGNAL, traceback, all_threads=True)
                with theirs:
                    watcher = subprocess.Popen(command, pass_fds=descriptors, stdin=subprocess.DEVNULL)
                threading.Thread(target=self._obey, args=(ours,), daemon=True, name="watchdog").start()
                try:
                    yield
                finally:
                    self._heartbeat = None
                    with contextlib.suppress(OSError):
                        ours.shutdown(socket.SHUT_RDWR)
                    watcher.wait()
                    faulthandler.unregister(STACKS_SIGNAL)

    def _obey(self, orders: socket.socket) -> None:
        """End the process when its watcher says so; needs the GIL, without which the watcher kills it."""
        with contextlib.suppress(OSError):
            if orders.recv(len(END)) == END:
                os._exit(EXIT_PREEMPTED)
        if self._heartbeat is not None:
            write_error("warning: the process that watches for hangs was killed; training continues without it")


def _memory(name: str) -> IO[bytes]:
    """A file in memory, or in a temporary folder where the system has none."""
    if sys.platform == "linux":
        return os.fdopen(os.memfd_create(name), "r+b")
    return tempfile.TemporaryFile()
