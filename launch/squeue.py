"""What SLURM knows: `squeue` for jobs that wait or run, `sacct` for those that are gone."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from simdist.errors import InputError

Command = Callable[[Sequence[str]], str]
"""Runs a command and returns what it printed; raises OSError or CalledProcessError."""
SECONDS = 60.0  # a slurmctld that is busy with a large array may take half of it
SACCT_JOBS = 200  # asked for at once
RUNNING = ("RUNNING", "COMPLETING", "CONFIGURING", "SIGNALING", "STAGE_OUT")
NEVER = "DependencyNeverSatisfied"


@dataclass(frozen=True)
class Entry:
    """A job in the queue."""

    id: str
    state: str
    """SLURM's word: PENDING, RUNNING, …"""
    reason: str
    """Why it waits; `None` for a running job is SLURM's own text."""
    nodes: str
    comment: str

    @property
    def is_running(self) -> bool:
        return self.state in RUNNING

    @property
    def shown_reason(self) -> str:
        """Why it waits; nothing for a running job."""
        return "" if self.is_running or self.reason in ("None", "(null)") else self.reason

    @property
    def will_never_run(self) -> bool:
        return self.state == "PENDING" and self.reason == NEVER


@dataclass(frozen=True)
class Account:
    """A job that has left the queue."""

    state: str
    """SLURM's word without what follows it: `CANCELLED by 0` is CANCELLED."""
    exit_code: int
    nodes: str


def call(words: Sequence[str]) -> str:
    """Run a command of SLURM's; what it printed."""
    return subprocess.run(words, capture_output=True, text=True, timeout=SECONDS, check=True).stdout


def has_slurm() -> bool:
    """Whether SLURM's commands are on this machine."""
    return shutil.which("squeue") is not None


def read_queue(run: Command = call) -> dict[str, Entry]:
    """All jobs of this user in the queue, by id; tasks of an array as `17_3`.

    Raises:
        InputError: squeue cannot be asked.
    """
    try:
        text = run(["squeue", "--me", "--noheader", "--array", "--format=%i|%T|%r|%N|%k"])
    except (OSError, subprocess.SubprocessError) as error:
        raise InputError(f"squeue cannot be asked ({said(error)}); is this a login node, and is SLURM up?") from error
    rows = (line.split("|", 4) for line in text.splitlines() if line.count("|") >= 4)
    return {row[0]: Entry(*row) for row in rows}


def read_accounts(ids: Iterable[str], run: Command = call) -> dict[str, Account]:
    """Jobs of these ids in the accounting, by id; {} where there is none, for not every cluster has it."""
    wanted = list(dict.fromkeys(ids))
    found: dict[str, Account] = {}
    for begin in range(0, len(wanted), SACCT_JOBS):
        part = ",".join(wanted[begin : begin + SACCT_JOBS])
        words = ["sacct", "--noheader", "--parsable2", "--allocations", "--jobs", part]
        try:
            text = run([*words, "--format=JobID,State,ExitCode,NodeList"])
        except (OSError, subprocess.SubprocessError):
            return found
        for line in text.splitlines():
            job, state, code, nodes = line.split("|")
            first, _, killed = code.partition(":")
            number = int(first) or (128 + int(killed) if killed not in ("", "0") else 0)
            found[job] = Account(state.split(" ")[0], number, nodes)
    return found


def cancel(ids: Sequence[str], run: Command = call) -> None:
    """Take jobs out of the queue; those that have left it already are no error.

    Raises:
        InputError: scancel cannot be run.
    """
    for begin in range(0, len(ids), SACCT_JOBS):
        try:
            run(["scancel", "--quiet", *ids[begin : begin + SACCT_JOBS]])
        except (OSError, subprocess.SubprocessError) as error:
            raise InputError(f"scancel failed ({said(error)}); try `scancel {ids[begin]}` by hand") from error


def said(error: Exception) -> str:
    """What a command that failed said, in one line."""
    text = getattr(error, "stderr", None) or str(error)
    return re.sub(r"\s*\n\s*", " ", str(text)).strip()
