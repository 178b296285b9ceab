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
from typing import Any

from rich.console import Console
from submitit import SlurmExecutor
from submitit.core.utils import FailedJobError

from launch.graph import done_jobs
from launch.job import Task
from launch.plan import Job, Plan
from launch.profiles import Profile, load_profile, replaced, sbatch_parameters
from launch.queue import cancel, has_slurm, read_queue, said
from launch.records import Record, Records, last_lines
from launch.snapshot import take_snapshot
from launch.states import ALIVE, State, find_states
from launch.submission import Group, Submission, dependency, groups, what_is_missing
from simdist.errors import EXIT_FAILED, EXIT_OK, InputError

ROOT = Path(__file__).parent.parent  # the code
WITHOUT_GPU = ("pack", "report")
LOOK_SECONDS = 30.0  # between two looks of --wait at the queue
pause = time.sleep


def profile_named(cluster: str) -> Profile:
    """`slurm` is the cluster's defaults; otherwise a profile's name or file."""
    return Profile() if cluster == "slurm" else load_profile(cluster)


def submit_sweep(plan: Plan, cluster: str, console: Console, prune: bool = False, wait: bool = False) -> int:
    """Submit what is missing of a sweep; returns the exit code.

    Args:
        plan: the graph.
        cluster: `slurm`, a profile's name or file.
        console: for the person.
        prune: cancel jobs that an earlier version of the sweep submitted and this one does not ask for.
        wait: stay until all is done or nothing more can be, and submit successors meanwhile.

    Raises:
        InputError: no SLURM here, a wrong profile or resource, or sbatch refuses.
    """
    if not has_slurm():
        raise InputError("there is no SLURM on this machine (no squeue); go to a login node, or use --cluster local")
    profile = profile_named(cluster)
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


# --- what sbatch is told ----------------------------------------------------------------------------------------------


def task_of(job: Job, profile: Profile) -> Task:
    """The job as submitit pickles it; a training's limit of requeues is the profile's."""
    words = job.command
    if job.kind == "train":
        words = (*words, "--train.max_requeues", str(profile.max_requeues if profile.requeue else 0))
    return Task(words, str(job.marker.absolute()) if job.marker else None)


def resources_of(job: Job, profile: Profile) -> dict[str, Any]:
    """Fields of the profile that this job has otherwise: all of it is for training, one process does the rest."""
    if job.kind == "train":
        return job.resources
    gpus = 0 if job.kind in WITHOUT_GPU else min(1, profile.gpus_per_node)
    usual: dict[str, Any] = {"nodes": 1, "gpus_per_node": gpus, "tasks_per_node": 1}
    if "gpus_per_node" in job.resources:
        usual["tasks_per_node"] = None  # one a GPU
    return usual | job.resources


def job_profile(job: Job, profile: Profile) -> Profile:
    """The profile as this job has it.

    Raises:
        InputError: the sweep's resources name a field that a profile does not have, or a value that cannot be.
    """
    try:
        return replaced(profile, resources_of(job, profile))
    except (ValueError, TypeError) as error:
        raise InputError(f"stage {job.stage}: resources: {error}") from error


def parameters_of_all(plan: Plan, profile: Profile) -> dict[str, Profile]:
    """The profile of every stage, so that a mistake is found before anything is submitted."""
    return {job.stage: job_profile(job, profile) for job in plan.jobs.values()}


def parameters(
    plan: Plan, job: Job, profile: Profile, code: Path, comment: str, waits_for: str | None
) -> dict[str, Any]:
    """Everything that submitit writes into the batch script of a group that `job` belongs to."""
    made = sbatch_parameters(job_profile(job, profile))
    path = f"{code}${{PYTHONPATH:+:$PYTHONPATH}}"
    environment = f'export PYTHONPATH="{path}" PYTHONSAFEPATH=1 SIMDIST_SWEEP={plan.name}'
    extra = {**made["additional_parameters"], "comment": comment}
    if waits_for is not None:
        extra |= {"dependency": waits_for, "kill-on-invalid-dep": "yes"}
    return made | {
        "job_name": f"{plan.name}.{job.stage}",
        "additional_parameters": extra,
        "setup": [*made["setup"], environment],
        "teardown": requeue_lines(job_profile(job, profile)),
        "stderr_to_stdout": True,
        "wckey": None,  # submitit's own would be refused where keys must be known
    }


def group_executor(
    plan: Plan, group: Group, profile: Profile, folder: Path, code: Path, comment: str, waits_for: str | None
) -> SlurmExecutor:
    """A new executor for each group: submitit lets one submit five times a second only."""
    executor = _Executor(folder)
    executor.update_parameters(**parameters(plan, group.jobs[0], profile, code, comment, waits_for))
    return executor


class _Executor(SlurmExecutor):
    """Writes batch scripts where there is no SLURM, too: for --dry-run."""

    @classmethod
    def affinity(cls) -> int:
        return 1


def requeue_lines(profile: Profile) -> list[str]:
    """Shell that ends the batch script: a command that asks to be run again, and has not been requeued, is.

    So is one that a warning (USR1, USR2, TERM) killed before it could listen.
    """
    if not profile.requeue:
        return []
    return [
        "code=$?",
        "case $code in 75|138|140|143)",
        f'    if [ "${{SLURM_RESTART_COUNT:-0}}" -lt {profile.max_requeues} ] &&',
        '       [ "$(squeue --noheader --jobs="$SLURM_JOB_ID" --format=%T)" = RUNNING ]; then',
        '        scontrol requeue "$SLURM_JOB_ID" && sleep 60  # until SLURM ends this script',
        "    fi",
        "esac",
        "exit $code",
    ]


def explain(plan: Plan, states: Mapping[str, State], records: Mapping[str, Record], console: Console) -> None:
    """Every job that failed with its log's last lines, and every job that therefore never runs."""
    for name, state in states.items():
        if state.word == "failed":
            console.print(f"{name} failed: {state.reason}", style="bold red", markup=False)
            record = records.get(name)
            for line in last_lines([record.log] if record else [], 5):
                console.print(f"    {line}", markup=False)
    for name, state in states.items():
        if state.word == "never":
            console.print(f"{name} will never run: {state.reason}", markup=False)
