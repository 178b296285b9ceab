"""Stopping long work between two units of it: a signal sets a flag, and the work asks where it may end.

Nothing is saved inside a handler: it may run in the middle of a collective or of a write. The same signal a second
time, or Ctrl-C after another, ends the process at once; whatever was complete before stays complete. Another signal
than the first is not impatience: SLURM sends SIGUSR2 and SIGTERM together, launchers answer Ctrl-C with SIGTERM; and a
signal may arrive twice within a moment when both the launcher and the group get it.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType

from simdist.core.errors import EXIT_INTERRUPTED, EXIT_PREEMPTED

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
PREEMPTION = ("SIGTERM", "SIGUSR2")  # SLURM's end of time or preemption; what submitit asks SLURM for
ECHO = 0.5  # seconds within which a signal that comes again is the same one


class StoppedError(Exception):
    """The work was asked to end, and did so where it can be continued."""

    def __init__(self, signal_number: int) -> None:
        super().__init__(signal_number)
        self.signal_number = signal_number


class SignalHandler:
    """Whether, and by which signal, this process was asked to stop. One that was never `installed` never is.

    Args:
        preemption: names of the signals, beside SIGINT, that ask for it.
    """

    def __init__(self, preemption: Sequence[str] = PREEMPTION) -> None:
        self.signal_number = 0
        self._since = 0.0
        self._preemption = [signal.Signals[name] for name in preemption]

    def check(self) -> None:
        """Raise `StoppedError` if a signal has come."""
        if self.signal_number:
            raise StoppedError(self.signal_number)

    @contextmanager
    def installed(self, interrupt: bool = True) -> Iterator[SignalHandler]:
        """Answer to the signals while inside; only in a process's main thread.

        Args:
            interrupt: Ctrl-C too; otherwise it ends at once what has nothing to save yet.
        """
        numbers = [*self._preemption, *([signal.SIGINT] if interrupt else [])]
        before = {number: signal.signal(number, self._receive) for number in numbers}
        try:
            yield self
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        del frame
        name = signal.Signals(number).name
        if not self.signal_number:
            self.signal_number, self._since = number, time.monotonic()
            _log(f"{name}: stopping where it is safe; again to end at once")
        elif number in (self.signal_number, signal.SIGINT) and time.monotonic() - self._since > ECHO:
            _log(f"{name} again: ending at once")
            os._exit(128 + number)


def exit_code(signal_number: int) -> int:
    """What a process that saved and stopped returns: 130 after Ctrl-C, 75 (run me again) after a preemption."""
    return EXIT_INTERRUPTED if signal_number == signal.SIGINT else EXIT_PREEMPTED


def ignore_signals() -> None:
    """For a process's children: a signal to the whole group reaches them first, and the parent decides."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def _log(text: str) -> None:
    if os.environ.get("LOCAL_RANK", "0") == "0":
        os.write(sys.stderr.fileno(), f"\n{text}\n".encode())
