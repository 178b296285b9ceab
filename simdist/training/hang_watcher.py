"""The process that watches another one for hangs: `python -I -S hang_watcher.py …`, started by `watchdog`.

It needs nothing of the watched process: not its GIL, which a hanging library may hold, and not its time, as it counts
its own ticks and only those in which the process was not stopped (SIGSTOP, `scontrol suspend`). Standard library only,
so that it is small and starts fast.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import re
import select
import signal
import struct
import sys
from pathlib import Path

LAYOUT = struct.Struct("=QQd64s")
STACKS_SIGNAL = getattr(signal, "SIGRTMAX", signal.SIGURG)  # answered by faulthandler, in C
END = b"end"  # the order to a process to end itself
GRACE = 3.0  # seconds that a process gets to end by itself
REPORT = re.compile(r"rank (\d+) \((.*?)\): (.*)")
MOST_NAMES = 8


class Heartbeat:
    """What a process does, in memory that it shares with its watcher.

    Args:
        descriptor: a file of `LAYOUT.size` bytes.
    """

    def __init__(self, descriptor: int) -> None:
        self._memory = mmap.mmap(descriptor, LAYOUT.size)
        self._count = 0

    def beat(self, phase: str, step: int, limit: float) -> None:
        """Report progress.

        Args:
            phase: what is done now.
            step: of the training.
            limit: seconds until the next report, after which this counts as a hang.
        """
        self._count += 1
        LAYOUT.pack_into(self._memory, 0, self._count, step, limit, phase.encode())

    def read(self) -> tuple[int, int, float, str]:
        """Number of reports, and the step, limit and phase of the last one."""
        count, step, limit, phase = LAYOUT.unpack_from(self._memory, 0)
        return count, step, limit, phase.rstrip(b"\0").decode(errors="replace")


class Watcher:
    """Watches one process.

    Args:
        pid: of the process.
        orders: descriptor of a socket to the process; it ends when the process does.
        heartbeat: of the process.
        traceback: descriptor of the file to which faulthandler writes.
        stacks: file for the stacks, `stacks-rank0.txt`, next to those of other ranks.
        rank: of the process.
        num_ranks: in the world.
        host: of this machine.
    """

    def __init__(
        self, pid: int, orders: int, heartbeat: Heartbeat, traceback: int, stacks: Path, rank: int, num_ranks: int,
        host: str,
    ) -> None:  # fmt: skip
        self._pid, self._orders, self._heartbeat, self._traceback = pid, orders, heartbeat, traceback
        self._stacks, self._rank, self._num_ranks, self._host = stacks, rank, num_ranks, host

    def watch(self) -> None:
        """Watch until the process ends, or end it."""
        last, waited = -1, 0.0
        while True:
            count, step, limit, phase = self._heartbeat.read()
            tick = min(limit / 8, 5.0)
            if count != last:
                last, waited = count, 0.0
            elif waited > limit:
                self._end(count, limit, f"{phase}, step {step}", 2 * tick + 2)
            if self._has_ended(tick):
                return
            waited += 0.0 if _is_stopped(self._pid) else tick

    def _has_ended(self, seconds: float) -> bool:
        """Wait. Returns whether the process has ended, or needs no watcher any more."""
        return bool(select.select([self._orders], [], [], seconds)[0]) or os.getppid() != self._pid

    def _end(self, count: int, limit: float, doing: str, patience: float) -> None:
        stacks = self._dump()
        where = f"above and in {self._stacks}"
        try:
            self._stacks.write_text(f"rank {self._rank} ({self._host}): {doing}\n\n{stacks}")
        except OSError as error:
            where = f"above ({self._stacks} cannot be written: {error.strerror})"
        others = self._others(patience)
        if self._heartbeat.read()[0] != count:
            return  # it was about to go on
        _write_error(stacks)
        _write_error(
            f"error: no progress in {limit:.0f} s (train.hang_timeout) of rank {self._rank} ({self._host}): {doing}"
            f"{others}. All stacks are {where}. Exiting; the same command resumes from the last checkpoint"
        )
        with contextlib.suppress(OSError):
            os.write(self._orders, END)
        if not self._has_ended(GRACE):
            _write_error(f"error: rank {self._rank} cannot end by itself, and is killed")
            os.kill(self._pid, signal.SIGKILL)

    def _dump(self) -> str:
        """The stacks of all threads of the process."""
        os.kill(self._pid, STACKS_SIGNAL)
        text, size = b"", -1
        for _ in range(20):
            if self._has_ended(0.1) or (text and len(text) == size):
                break
            size = len(text)
            text = os.pread(self._traceback, 2**24, 0)
        return text.decode(errors="replace") or "no stacks: the process does not answer signals\n"

    def _others(self, patience: float) -> str:
        """What other ranks report within `patience` seconds about the same hang, which they notice a tick later."""
        reports: dict[int, str] = {}
        missing = set(range(self._num_ranks)) - {self._rank}
        for _ in range(20):
            for rank in missing:
                path = self._stacks.with_name(f"stacks-rank{rank}.txt")
                with contextlib.suppress(OSError):
                    report = REPORT.match(path.read_text())
                    if report is not None:
                        reports[rank] = f"; rank {rank} ({report[2]}): {report[3]}"
            missing -= reports.keys()
            if not missing or self._has_ended(patience / 20):
                break
        names = [f"{rank}" for rank in sorted(missing)[:MOST_NAMES]] + ["…"] * (len(missing) > MOST_NAMES)
        told = [reports[rank] for rank in sorted(reports)[:MOST_NAMES]]
        return "".join([*told, f"; no report of rank {', '.join(names)}" if missing else ""])


def _is_stopped(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "Tt"
    except (OSError, IndexError):
        return False


def _write_error(text: str) -> None:
    with contextlib.suppress(OSError):
        os.write(2, f"{text.rstrip()}\n".encode())


def main(argv: list[str]) -> None:
    """The program. Signals to the process's group are none of its business: it ends with the process."""
    for number in set(signal.valid_signals()) - {signal.SIGKILL, signal.SIGSTOP, signal.SIGCHLD}:
        with contextlib.suppress(OSError, ValueError):
            signal.signal(number, signal.SIG_IGN)
    pid, orders, heartbeat, traceback, stacks, rank, num_ranks, host = argv
    beats = Heartbeat(int(heartbeat))
    Watcher(int(pid), int(orders), beats, int(traceback), Path(stacks), int(rank), int(num_ranks), host).watch()


if __name__ == "__main__":
    main(sys.argv[1:])
