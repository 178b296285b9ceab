"""Stopping long work between two units of it: a signal sets a flag, and the work asks where it may end.

Nothing is saved inside a handler: it may run in the middle of a collective or of a write. A second signal ends the
process at once; whatever was complete before stays complete.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from simdist.errors import EXIT_INTERRUPTED, EXIT_PREEMPTED

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2)  # Ctrl-C; SLURM's end of time; its preemption


class StoppedError(Exception):
    """The work was asked to end, and did so where it can be continued."""

    def __init__(self, signal_number: int) -> None:
        super().__init__(signal_number)
        self.signal_number = signal_number


class Stop:
    """Whether, and by which signal, this process was asked to stop. One that was never `installed` never is."""

    def __init__(self) -> None:
        self.signal_number = 0

    def check(self) -> None:
        """Raise `StoppedError` if a signal has come."""
        if self.signal_number:
            raise StoppedError(self.signal_number)

    @contextmanager
    def installed(self) -> Iterator[Stop]:
        """Answer to the signals while inside; only in a process's main thread."""
        before = {number: signal.signal(number, self._receive) for number in SIGNALS}
        try:
            yield self
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        del frame
        name = signal.Signals(number).name
        if self.signal_number:
            _say(f"{name} again: ending at once")
            os._exit(128 + number)
        self.signal_number = number
        _say(f"{name}: stopping where it is safe; again to end at once")


def exit_code(signal_number: int) -> int:
    """What a process that saved and stopped returns: 130 after Ctrl-C, 75 (run me again) after a preemption."""
    return EXIT_INTERRUPTED if signal_number == signal.SIGINT else EXIT_PREEMPTED


def ignore_signals() -> None:
    """For a process's children: a signal to the whole group reaches them first, and the parent decides."""
    for number in (*SIGNALS, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)


def _say(text: str) -> None:
    if os.environ.get("LOCAL_RANK", "0") == "0":
        os.write(sys.stderr.fileno(), f"\n{text}\n".encode())
