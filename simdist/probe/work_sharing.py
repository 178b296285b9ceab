"""Share work between ranks and jobs through the file system: whoever holds the lock does the unit.

No collective is involved, so any number of processes, of one job or several, may work through the same list: each unit
has a lock, its result appears atomically, and a process that dies frees its lock. Locks only save work: on a file
system without them (ENOLCK, ENOSYS), two processes may do the same unit and write the same result.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from simdist.core.file_locks import try_lock
from simdist.core.signals import SignalHandler

POLL_SECONDS = 0.2
Unit = TypeVar("Unit")


def share(
    units: Sequence[Unit],
    is_done: Callable[[Unit], bool],
    lock: Callable[[Unit], Path],
    do: Callable[[Unit], None],
    stop: SignalHandler,
    first: int = 0,
) -> None:
    """Do every unit that no other process has done or is doing, then wait until the others are done.

    Args:
        units: in the order in which they are tried.
        is_done: whether a unit's result exists.
        lock: a unit's lock file.
        do: makes the result appear, atomically.
        stop: checked before each unit and while waiting.
        first: index of the first unit to try, so that ranks rarely collide.

    Raises:
        StoppedError: a signal arrived.
    """
    left = [*units[first:], *units[:first]]
    while left:
        progressed = False
        for unit in list(left):
            stop.check()
            if is_done(unit):
                left.remove(unit)
                continue
            with try_lock(lock(unit)) as ours:
                if ours and not is_done(unit):
                    do(unit)
                progressed = progressed or ours
        if left and not progressed:
            time.sleep(POLL_SECONDS)
