"""Stopping at safe points: a signal sets a flag, and the work checks it between two units.

Nothing is saved inside a handler, which may run in the middle of a collective or a write. A second signal of the same
kind, or Ctrl-C after another signal, ends the process immediately. A different second signal does not: SLURM sends
SIGUSR2 and SIGTERM together, and launchers answer Ctrl-C with SIGTERM. Repeats within `ECHO` seconds count as one
signal, because the launcher and the process group may both deliver it.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType

from simdist.core.errors import EXIT_INTERRUPTED, EXIT_PREEMPTED
from simdist.core.output import write_error

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
PREEMPTION = ("SIGTERM", "SIGUSR2")  # sent by SLURM at the time limit or a preemption; submitit requests SIGUSR2
ECHO = 0.5  # seconds


class StoppedError(Exception):
    """The work was asked to stop, and did so at a point from which it can resume."""

    def __init__(self, signal_number: int) -> None:
        super().__init__(signal_number)
        self.signal_number = signal_number


class SignalHandler:
    """Records the first signal that asks this process to stop. Does nothing until it is `installed`.

    Args:
        preemption: names of the signals that ask to stop, in addition to SIGINT.
    """

    def __init__(self, preemption: Sequence[str] = PREEMPTION) -> None:
        self.signal_number = 0
        self._since = 0.0
        self._preemption = [signal.Signals[name] for name in preemption]

    def check(self) -> None:
        """Raise `StoppedError` if a signal was received."""
        if self.signal_number:
            raise StoppedError(self.signal_number)

    @contextmanager
    def installed(self, interrupt: bool = True) -> Iterator[SignalHandler]:
        """Handle the signals inside the context. Only works in the main thread.

        Args:
            interrupt: whether to handle Ctrl-C, too; otherwise it ends the process immediately.
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
            _log(f"{name}: stopping at the next safe point. Send it again to end immediately")
        elif number in (self.signal_number, signal.SIGINT) and time.monotonic() - self._since > ECHO:
            _log(f"{name} again: ending immediately")
            os._exit(128 + number)


def exit_code(signal_number: int) -> int:
    """Exit code of a process that saved and stopped: 130 after Ctrl-C, 75 (run it again) after a preemption."""
    return EXIT_INTERRUPTED if signal_number == signal.SIGINT else EXIT_PREEMPTED


def ignore_signals() -> None:
    """Ignore stop signals, for child processes: their parent receives the same signal and decides."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def _log(text: str) -> None:
    if os.environ.get("LOCAL_RANK", "0") == "0":
        write_error(f"\n{text}")
