"""A sweep on SLURM: groups of jobs through submitit, after their parents, from a snapshot of the code.

What is submitted is what has no place in the queue and is not done; so the same command again repairs whatever broke.
A job that was preempted asks for its requeue itself (`simdist.requeue`). For commands that do not, and for containers
without scontrol, the batch script asks on the host once they have ended with 75. Where the host has no scontrol either,
it has no sbatch: a successor then comes from here, when the command is run again, or at once with `--wait`.
"""

from __future__ import annotations

import subprocess
import time
import uuid
from collections.abc import Mapping
from pathlib import Path

from rich.console import Console
from submitit.core.utils import FailedJobError

from simdist.errors import EXIT_FAILED, EXIT_OK, InputError

from .batch_scripts import group_executor, task_of
from .graph import done_jobs
from .plan import Plan
from .profiles import Profile, parameters_of_all, profile_named
from .records import Record, Records, last_lines
from .snapshot import take_snapshot
from .squeue import cancel, has_slurm, read_queue, said
from .states import ALIVE, State, find_states
from .submission import Group, Submission, dependency, groups, what_is_missing

ROOT = Path(__file__).parent.parent  # the code
LOOK_SECONDS = 30.0  # between two looks of --wait at the queue
pause = time.sleep


def submit_sweep(
    plan: Plan,
    cluster: str,
    console: Console,
    prune: bool = False,
    wait: bool = False,
    profile: Profile | None = None,
) -> int:
    """Submit what is missing of a sweep; returns the exit code.

    Args:
        plan: the graph.
        cluster: `slurm`, a profile's name or file.
        console: for the person.
        prune: cancel jobs that an earlier version of the sweep submitted and this one does not ask for.
        wait: stay until all is done or nothing more can be, and submit successors meanwhile.
        profile: what jobs request; None takes it from `cluster`.

    Raises:
        InputError: no SLURM here, a wrong profile or resource, or sbatch refuses.
    """
    if not has_slurm():
        raise InputError("there is no SLURM on this machine (no squeue); go to a login node, or use --cluster local")
    profile = profile or profile_named(cluster)
    parameters_of_all(plan, profile)
    submitter = Submitter(plan, cluster, profile, console)
    submitter.take_back_lost()
    if prune:
        submitter.prune()
    states = submitter.submit(retry=True)
    while wait and not _is_over(states):
        pause(LOOK_SECONDS)
        states = submitter.submit(retry=False)
    explain(plan, states, Records(plan.folder).latest(), console)
    if not wait:
        console.print(f"watch it: python launch/status.py {plan.name} --watch", markup=False)
    return EXIT_FAILED if wait and any(state.word != "done" for state in states.values()) else EXIT_OK


def _is_over(states: Mapping[str, State]) -> bool:
    """Whether nothing is on its way; what could go on was submitted just before."""
    return not any(state.word in ALIVE for state in states.values())


class Submitter:
    """Submits parts of one sweep."""

    def __init__(self, plan: Plan, cluster: str, profile: Profile, console: Console) -> None:
        self._plan, self._cluster, self._profile, self._console = plan, cluster, profile, console
        self._records = Records(plan.folder)
        self._code: Path | None = None

    def submit(self, retry: bool) -> dict[str, State]:
        """Submit what is missing; returns where every job stood, those submitted now as queued."""
        done, records = done_jobs(self._plan), self._records.latest()
        states = find_states(self._plan, done, records)
        if not retry:
            states = self._spent(states, records)
        wanted = what_is_missing(self._plan, states, records, retry)
        self._say_what(states, wanted, retry)
        if wanted.cancel:
            cancel([records[name].id for name in wanted.cancel])
        ids = {name: record.id for name, record in records.items() if states_alive(states, name, record)}
        for group in groups(self._plan, wanted.submit, done):
            for job in group.jobs:
                ids.pop(job.name, None)
            ids |= self._submit_group(group, ids)
            states |= {job.name: State("queued", "submitted") for job in group.jobs}
        return states

    def _spent(self, states: dict[str, State], records: Mapping[str, Record]) -> dict[str, State]:
        """Jobs that had as many successors as the profile allows have failed."""
        limit = self._profile.max_requeues + 1 if self._profile.requeue else 1
        spent = {n for n, s in states.items() if s.word == "stopped" and records[n].starts >= limit}
        return {
            name: State("failed", f"{state.reason}, {records[name].starts} times") if name in spent else state
            for name, state in states.items()
        }

    def _say_what(self, states: Mapping[str, State], wanted: Submission, retry: bool) -> None:
        counts = {word: sum(state.word == word for state in states.values()) for word in ("done", "running", "queued")}
        if retry or wanted.submit:
            self._console.print(
                f"{self._plan.name}: {len(self._plan.jobs)} jobs; {counts['done']} done, {counts['running']} running, "
                f"{counts['queued']} queued; submitting {len(wanted.submit)}",
                markup=False,
            )

    def _submit_group(self, group: Group, ids: Mapping[str, str]) -> dict[str, str]:
        """One `sbatch`; SLURM's number of each job."""
        uid = uuid.uuid4().hex[:8]
        folder = self._plan.folder / "slurm" / uid
        waits = dependency(group, ids)
        executor = group_executor(self._plan, group, self._profile, folder, self._snapshot(), uid, waits)
        self._records.announce(uid, [job.name for job in group.jobs])
        try:
            submitted = executor.submit_array([task_of(job, self._profile) for job in group.jobs])
        except (FailedJobError, OSError, subprocess.SubprocessError) as error:
            raise InputError(f"sbatch refuses stage {group.stage}: {said(error)}; see {folder}") from error
        found = {job.name: made.job_id for job, made in zip(group.jobs, submitted, strict=True)}
        for job in group.jobs:
            log = folder / f"{found[job.name]}_0_log.out"
            parents = {parent: ids[parent] for parent in group.parents if parent in ids}
            record = Record(job.name, self._cluster, found[job.name], log, parents=parents, identity=job.identity)
            self._records.started(record)
        self._records.numbered(uid)
        return found

    def _snapshot(self) -> Path:
        if self._code is None:
            self._code = take_snapshot(ROOT, self._plan.folder / "code")
        return self._code

    def take_back_lost(self) -> None:
        """Cancel jobs whose submission was killed before their numbers were written down."""
        lost = self._records.lost_groups()
        if not lost:
            return
        cancel([entry.id for entry in read_queue().values() if entry.comment in lost])
        for group in lost:
            self._records.numbered(group)

    def prune(self) -> None:
        """Cancel jobs that are no longer asked for; what they have done stays."""
        queue = read_queue()
        ids = [r.id for n, r in self._records.latest().items() if n not in self._plan.jobs and r.id in queue]
        cancel(ids)
        self._console.print(f"cancelled {len(ids)} jobs that {self._plan.name} no longer asks for", markup=False)


def states_alive(states: Mapping[str, State], name: str, record: Record) -> bool:
    """Whether a job is on its way on the cluster, so that others can wait for it."""
    return name in states and states[name].word in ALIVE and record.cluster != "local"


def explain(plan: Plan, states: Mapping[str, State], records: Mapping[str, Record], console: Console) -> None:
    """Every job that failed with its log's last lines, and every job that therefore never runs."""
    for name, state in states.items():
        if state.word == "failed":
            console.print(f"{name} failed: {state.reason}", style="bold red", markup=False)
            record = records.get(name)
            for line in last_lines(record, 5):
                console.print(f"    {line}", markup=False)
    for name, state in states.items():
        if state.word == "never":
            console.print(f"{name} will never run: {state.reason}", markup=False)
