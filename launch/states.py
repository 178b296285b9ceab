"""Which jobs of a sweep are done, and the state of every job: from run folders, then the queue, then the accounting.

A run's folder is the truth about what is done. The queue says what is on its way. The accounting is asked last, about
jobs that are neither, for it is slow, lags behind, and calls a job PREEMPTED long after it has gone on.
"""

from __future__ import annotations

import socket
import subprocess
import time
from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from simdist.core.errors import EXIT_INTERRUPTED, EXIT_OK, EXIT_PREEMPTED, counted
from simdist.runs.reader import is_held

from .naming import JOB_MODULE
from .plan import Job, Plan
from .records import Record
from .scheduler import JobStatus, Scheduler
from .slurm import NEVER, SlurmScheduler, has_slurm

Status = Literal["done", "running", "queued", "missing", "stopped", "failed", "cancelled", "blocked"]
"""`stopped` resumes when it is started again; `blocked`: a parent failed or was cancelled."""
ALIVE = ("running", "queued")


# --- the graph: what is done, what is blocked -------------------------------------------------------------------------


def done_jobs(plan: Plan) -> set[str]:
    """Jobs that are done.

    A packing whose every run is trained is not asked for again, although the corpus may be gone. A report is done only
    if it is younger than what it reports on.
    """
    own = {job.name for job in plan.jobs.values() if all(path.exists() for path in job.done)}
    children = plan.children()
    for job in plan.jobs.values():
        if job.kind == "pack" and all(
            child in own or plan.jobs[child].runs_after_failure for child in children[job.name]
        ):
            own.add(job.name)
    for job in plan.jobs.values():
        if job.runs_after_failure and not (own.issuperset(job.parents) and is_younger(plan, job, job.parents)):
            own.discard(job.name)
    return own


def is_younger(plan: Plan, report: Job, parents: Collection[str]) -> bool:
    """Whether a report was made after all that these jobs left."""
    newest = 0.0
    for parent in parents:
        for path in plan.jobs[parent].done:
            with suppress(FileNotFoundError):
                newest = max(newest, path.stat().st_mtime)
    try:
        return min(path.stat().st_mtime for path in report.done) >= newest
    except FileNotFoundError:
        return False


def blocked_by(plan: Plan, failed: Collection[str]) -> dict[str, str]:
    """Jobs that can never run, each with the failed job that blocks it."""
    found: dict[str, str] = {}
    for job in plan.jobs.values():  # parents stand before their children
        if job.runs_after_failure or job.name in failed:
            continue
        for parent in job.parents:
            root = parent if parent in failed else found.get(parent)
            if root is not None:
                found[job.name] = root
                break
    return found


# --- states -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class JobState:
    """Status of a job."""

    status: Status
    reason: str = ""
    nodes: str = ""
    in_queue: bool = False
    """Whether SLURM still has it, running, waiting, or waiting for what will never be."""


def find_states(
    plan: Plan,
    done: Collection[str],
    records: Mapping[str, Record],
    scheduler: Scheduler | None = None,
    now: float | None = None,
) -> dict[str, JobState]:
    """The state of every job.

    Args:
        plan: the graph.
        done: jobs that are done.
        records: where each was started last.
        scheduler: is asked about jobs that were submitted; None is SLURM, where this machine has it.
        now: unix time.

    Raises:
        SchedulerError: jobs were submitted, and the scheduler does not answer.
    """
    left = {name: records[name] for name in plan.jobs if name not in done and name in records}
    submitted = [record for record in left.values() if record.cluster != "local"]
    if scheduler is None and submitted and has_slurm():
        scheduler = SlurmScheduler()
    statuses = scheduler.look([record.job_id for record in submitted]) if scheduler and submitted else None
    moment = time.time() if now is None else now
    found: dict[str, JobState] = {}
    for name, job in plan.jobs.items():
        if name in done:
            found[name] = JobState("done")
        elif name not in left:
            found[name] = JobState("missing")
        elif left[name].cluster == "local":
            found[name] = _local(left[name])
        elif statuses is None:
            found[name] = JobState("queued", "there is no SLURM on this machine to ask")
        else:
            found[name] = _on_cluster(left[name], statuses[left[name].job_id])
        if name in left and left[name].identity != job.identity and found[name].status not in ALIVE:
            found[name] = JobState("missing", "its options have changed")
        if job.kind == "train" and found[name].status not in ("done", *ALIVE) and is_held(job.folder, moment):
            found[name] = JobState("running", "by a process that this sweep did not start")
    return _with_reports(plan, _with_blocked(plan, found))


def _local(record: Record) -> JobState:
    if record.code is None:
        if record.host == socket.gethostname() and process_runs(int(record.id), JOB_MODULE):
            return JobState("running", nodes=record.host)
        return JobState("stopped", "its process was killed")
    if record.code in (EXIT_PREEMPTED, EXIT_INTERRUPTED):
        return JobState("stopped", "saved; the sweep was stopped")
    return JobState("failed", f"exit code {record.code}")


def process_runs(pid: int, word: str) -> bool:
    """Whether a process lives and has `word` in its command, because process numbers are reused."""
    try:
        return word.encode() in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        if Path("/proc/self").exists():
            return False
    listed = subprocess.run(["ps", "-p", str(pid), "-o", "command="], capture_output=True, text=True, check=False)
    return word in listed.stdout


def _on_cluster(record: Record, status: JobStatus) -> JobState:
    if status.phase == "blocked" or status.reason == NEVER:
        return JobState("blocked", "what it depends on failed", in_queue=status.is_alive)
    if status.phase in ("running", "queued"):
        return JobState(status.phase, status.reason, status.nodes, in_queue=True)
    if record.cancelled:
        return JobState("cancelled", "cancelled")
    if status.phase == "interrupted":
        return JobState("stopped", f"{status.reason}, and not requeued", status.nodes)
    if status.phase == "cancelled":
        return JobState("cancelled", "cancelled", status.nodes)
    ending = record.ending.read()
    if status.phase == "gone" and not ending:
        return JobState("cancelled", "left the queue before it began")
    return _ended(status if ending.get("code") is None else replace(status, code=ending["code"]))


def _ended(status: JobStatus) -> JobState:
    """The state of a job that ended, or that the scheduler no longer knows."""
    if status.code in (EXIT_PREEMPTED, EXIT_INTERRUPTED):
        return JobState("stopped", "preempted, and not requeued", status.nodes)
    if status.phase == "failed" and status.reason != "failed":  # out of memory
        return JobState("failed", status.reason, status.nodes)
    if status.code == EXIT_OK or (status.code is None and status.phase == "completed"):
        return JobState("failed", "exited without writing its outputs", status.nodes)
    if status.code is not None:
        return JobState("failed", f"exit code {status.code}", status.nodes)
    if status.phase == "gone":
        return JobState("stopped", status.reason)
    return JobState("failed", status.reason, status.nodes)


def _with_blocked(plan: Plan, states: dict[str, JobState]) -> dict[str, JobState]:
    """Mark jobs below a failed one as blocked, whatever SLURM calls them."""
    failed = {
        name
        for name, state in states.items()
        if state.status in ("failed", "cancelled") and _is_root(plan, name, states)
    }
    for name, root in blocked_by(plan, failed).items():
        if states[name].status not in ("done", "running"):
            states[name] = JobState("blocked", f"{root} {states[root].status}", in_queue=states[name].in_queue)
    return states


def _with_reports(plan: Plan, states: dict[str, JobState]) -> dict[str, JobState]:
    """Mark a report as done if it is newer than its finished parents and the others are blocked."""
    for job in plan.jobs.values():
        if not job.runs_after_failure or states[job.name].status in ("done", *ALIVE):
            continue
        done = [parent for parent in job.parents if states[parent].status == "done"]
        others = [parent for parent in job.parents if states[parent].status in ("failed", "blocked", "cancelled")]
        if others and len(done) + len(others) == len(job.parents) and is_younger(plan, job, done):
            states[job.name] = JobState("done", f"without {counted(len(others), 'job')}, failed or cancelled")
    return states


def _is_root(plan: Plan, name: str, states: Mapping[str, JobState]) -> bool:
    """Whether a job ended by itself; SLURM cancels the children of those that failed."""
    parents = [states[parent].status for parent in plan.jobs[name].parents]
    return states[name].status == "failed" or all(word in ("done", *ALIVE) for word in parents)
