"""Sharing work between ranks and jobs through the file system: who holds the lock does it.

No collective is involved, so one process or eight, of one job or of several, may work through the same list: each unit
is claimed by a lock, its result appears atomically, and a process that dies frees its claim. Locks only save work:
where a file system has none (ENOLCK, ENOSYS), two processes may do the same unit, and write the same result.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from simdist.core.signals import SignalHandler

POLL_SECONDS = 0.2
Unit = TypeVar("Unit")


class Hold:
    """A lock on a file, held until `release` or the process's end.

    Args:
        path: is created.
        shared: several may hold it together, but not with an exclusive one.
    """

    def __init__(self, path: Path, shared: bool = False) -> None:
        self._path, self._mode = path, fcntl.LOCK_SH if shared else fcntl.LOCK_EX
        self._descriptor: int | None = None

    def take(self) -> bool:
        """Take the lock if nobody stands in the way; whether it is held now."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(descriptor, self._mode | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            return False
        except OSError:  # this file system has no locks
            pass
        self._descriptor = descriptor
        return True

    def release(self) -> None:
        """Give the lock back; does nothing if it is not held."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


@contextmanager
def claimed(path: Path) -> Iterator[bool]:
    """Try to claim what the lock file `path` stands for; yields whether it is ours."""
    hold = Hold(path)
    try:
        yield hold.take()
    finally:
        hold.release()


def share(
    units: Sequence[Unit],
    is_done: Callable[[Unit], bool],
    lock: Callable[[Unit], Path],
    do: Callable[[Unit], None],
    stop: SignalHandler,
    first: int = 0,
) -> None:
    """Do every unit that nobody has done or is doing, then wait until others have done the rest.

    Args:
        units: in the order in which they are tried.
        is_done: whether a unit's result is there.
        lock: a unit's lock file.
        do: makes the result appear, atomically.
        stop: asked before each unit and while waiting.
        first: where in the list to begin, so that ranks seldom meet.

    Raises:
        StoppedError: a signal came.
    """
    left = [*units[first:], *units[:first]]
    while left:
        progressed = False
        for unit in list(left):
            stop.check()
            if is_done(unit):
                left.remove(unit)
                continue
            with claimed(lock(unit)) as ours:
                if ours and not is_done(unit):
                    do(unit)
                progressed = progressed or ours
        if left and not progressed:
            time.sleep(POLL_SECONDS)
