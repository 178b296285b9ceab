"""Where every job of a sweep stands: from the run folders first, then the queue, then the accounting.

A run's folder is the truth about what is done. The queue says what is on its way. The accounting is asked last, about
jobs that are neither, for it is slow, lags behind, and calls a job PREEMPTED long after it has gone on.
"""

from __future__ import annotations

import socket
import subprocess
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from simdist.errors import EXIT_INTERRUPTED, EXIT_PREEMPTED

from .graph import blocked_by
from .plan import Plan
from .records import Record
from .squeue import Account, Command, Entry, call, has_slurm, read_accounts, read_queue

Word = Literal["done", "running", "queued", "missing", "stopped", "failed", "cancelled", "never"]
"""`stopped` goes on when it is started again; `never`: a parent failed."""
ALIVE = ("running", "queued")
GOES_ON = ("PREEMPTED", "NODE_FAIL", "TIMEOUT", "BOOT_FAIL", "DEADLINE", "REQUEUED", "REVOKED")
LEASE = "lease.json"
FRESH = 30.0  # seconds: a lease touched since then is that of a living process


@dataclass(frozen=True)
class State:
    """Where a job stands."""

    word: Word
    reason: str = ""
    nodes: str = ""
    in_queue: bool = False
    """Whether SLURM still has it, running, waiting, or waiting for what will never be."""


def find_states(
    plan: Plan, done: Collection[str], records: Mapping[str, Record], run: Command = call, now: float | None = None
) -> dict[str, State]:
    """The state of every job.

    Args:
        plan: the graph.
        done: jobs that are done.
        records: where each was started last.
        run: asks SLURM.
        now: unix time.

    Raises:
        InputError: jobs were submitted to SLURM, and squeue cannot be asked.
    """
    left = {name: records[name] for name in plan.jobs if name not in done and name in records}
    submitted = [record for record in left.values() if record.cluster != "local"]
    can_ask = run is not call or has_slurm()
    queue = read_queue(run) if submitted and can_ask else {}
    gone = [record.id for record in submitted if record.id not in queue] if can_ask else []
    accounts = read_accounts(gone, run) if gone else {}
    moment = time.time() if now is None else now
    found: dict[str, State] = {}
    for name, job in plan.jobs.items():
        if name in done:
            found[name] = State("done")
        elif name not in left:
            found[name] = State("missing")
        elif left[name].cluster == "local":
            found[name] = _local(left[name])
        elif not can_ask:
            found[name] = State("queued", "there is no SLURM on this machine to ask")
        else:
            found[name] = _on_cluster(left[name], queue, accounts)
        if name in left and left[name].identity != job.identity and found[name].word not in ALIVE:
            found[name] = State("missing", "its options have changed")
        if job.kind == "train" and found[name].word not in ("done", *ALIVE) and _is_held(job.folder, moment):
            found[name] = State("running", "by a process that this sweep did not start")
    return _with_blocked(plan, found)


def _local(record: Record) -> State:
    if record.code is None:
        return State("running", nodes=record.host) if is_alive(record) else State("stopped", "its process was killed")
    if record.code in (EXIT_PREEMPTED, EXIT_INTERRUPTED):
        return State("stopped", "saved; the sweep was stopped")
    return State("failed", f"exit code {record.code}")


def is_alive(record: Record) -> bool:
    """Whether a local job's process lives on this machine."""
    return record.host == socket.gethostname() and process_runs(int(record.id), "launch.job")


def process_runs(pid: int, word: str) -> bool:
    """Whether a process lives and has `word` in its command; numbers of processes are used again."""
    try:
        return word.encode() in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        if Path("/proc/self").exists():
            return False
    listed = subprocess.run(["ps", "-p", str(pid), "-o", "command="], capture_output=True, text=True, check=False)
    return word in listed.stdout


def _on_cluster(record: Record, queue: Mapping[str, Entry], accounts: Mapping[str, Account]) -> State:
    entry = queue.get(record.id)
    if entry is not None:
        if entry.will_never_run:
            return State("never", "what it depends on failed", in_queue=True)
        return State("running" if entry.is_running else "queued", entry.shown_reason, entry.nodes, in_queue=True)
    if record.cancelled:
        return State("cancelled", "cancelled")
    account = accounts.get(record.id)
    if account is None:
        return State("stopped", "it left the queue, and the accounting does not know it")
    if account.state == "FAILED" and account.exit_code == EXIT_PREEMPTED:
        return State("stopped", "preempted, and not requeued", account.nodes)
    if account.state in GOES_ON:
        return State("stopped", f"{account.state.lower().replace('_', ' ')}, and not requeued", account.nodes)
    if account.state == "CANCELLED":
        return State("cancelled", "cancelled", account.nodes)
    if account.state == "OUT_OF_MEMORY":
        return State("failed", "out of memory: give the stage more `mem` in its resources", account.nodes)
    if account.state == "COMPLETED":
        return State("failed", "ended without writing what it was to write", account.nodes)
    if account.state in ("RUNNING", "PENDING"):  # the accounting lags behind
        return State("queued", "leaving the queue")
    return State("failed", f"exit code {account.exit_code}", account.nodes)


def _is_held(folder: Path, now: float) -> bool:
    age = heartbeat_age(folder, now)
    return age is not None and age < FRESH


def heartbeat_age(folder: Path, now: float) -> float | None:
    """Seconds since a run's process last touched its lease; None if none holds it."""
    try:
        return max(0.0, now - (folder / LEASE).stat().st_mtime)
    except OSError:
        return None


def _with_blocked(plan: Plan, states: dict[str, State]) -> dict[str, State]:
    """Jobs below a failed one will never run, whatever SLURM calls them."""
    failed = {
        name for name, state in states.items() if state.word in ("failed", "cancelled") and _is_root(plan, name, states)
    }
    for name, root in blocked_by(plan, failed).items():
        if states[name].word not in ("done", "running"):
            states[name] = State("never", f"{root} {states[root].word}", in_queue=states[name].in_queue)
    return states


def _is_root(plan: Plan, name: str, states: Mapping[str, State]) -> bool:
    """Whether a job ended by itself; SLURM cancels the children of those that failed."""
    parents = [states[parent].word for parent in plan.jobs[name].parents]
    return states[name].word == "failed" or all(word in ("done", *ALIVE) for word in parents)
