"""Submit the missing jobs of a sweep as arrays, after their parents, from a snapshot of the code.

What is submitted is what has no place in the queue and is not done; so the same command again repairs whatever broke.
A job that was preempted asks for its requeue itself (`launch.endings`). Where compute nodes have no scontrol, a
successor comes from here, when the command is run again, or at once with `--wait`.

Where the queue limits the jobs of a user, the rest is held back: a file in the sweep's folder lists them, and `--wait`,
the same command, and each job that ends submit what fits by then.
"""

from __future__ import annotations

import functools
import time
import uuid
from collections.abc import Collection, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import filelock
from rich.console import Console

from simdist.cluster.choice import Choice, chosen_profile
from simdist.cluster.discovery import Limits
from simdist.cluster.profile import Profile
from simdist.core.errors import EXIT_FAILED, EXIT_OK, InputError, counted

from .endings import progress_of
from .naming import CODE, command
from .options import CLUSTER_FILE
from .plan import SWEEPS, Job, Plan, read_plan
from .records import HELD, LOCK, Held, Record, Records, last_lines
from .scheduler import (
    JobArray,
    JobId,
    LimitReachedError,
    NoAnswerError,
    Scheduler,
    SchedulerError,
    arrays,
    parts,
    shares,
)
from .slurm import SlurmScheduler, has_slurm
from .snapshot import CODE_COPIES, left_out, take_snapshot
from .states import ALIVE, JobState, done_jobs, find_states

LOOK_SECONDS = 30.0  # between two looks of --wait at the queue
LONGEST_PAUSE = 600.0  # after looks that failed
pause = time.sleep


def submit_sweep(
    plan: Plan,
    cluster: str,
    console: Console,
    prune: bool = False,
    wait: bool = False,
    choice: Choice | None = None,
    every: float = LOOK_SECONDS,
) -> int:
    """Submit the missing jobs of a sweep; returns the exit code.

    Args:
        plan: the graph.
        cluster: `slurm`, a profile's name or file.
        console: for the person.
        prune: cancel jobs that an earlier version of the sweep submitted and this one does not ask for.
        wait: stay until all is done or nothing more can be, and submit successors meanwhile.
        choice: what jobs request, and the limits of the cluster; None finds it by `cluster`.
        every: seconds between two looks at the queue while waiting.

    Raises:
        InputError: no SLURM here, a wrong profile or resource, or sbatch refuses.
    """
    submitter = connect(plan, cluster, choice, console)
    if prune:
        submitter.prune()
    states = submitter.wait(every) if wait else submitter.submit(retry=True)
    explain(plan, states, submitter.records.latest(), console)
    if not wait:
        sweeps = [] if plan.folder.parent == SWEEPS else ["--sweeps", plan.folder.parent]
        console.print(f"watch it: {command('status', plan.name, '--watch', *sweeps)}", markup=False)
    return EXIT_FAILED if wait and any(state.status != "done" for state in states.values()) else EXIT_OK


def connect(plan: Plan, cluster: str, choice: Choice | None, console: Console) -> Submitter:
    """The submitter of a sweep for the scheduler of a cluster.

    Args:
        plan: the graph.
        cluster: `slurm`, a profile's name or file.
        choice: what that is; None finds out.
        console: for the person.

    Raises:
        InputError: no SLURM here, or the sweep's resources do not fit the profile.
    """
    from .batch_scripts import BatchContext, stage_profiles  # submitit takes half a second to import

    if not has_slurm():
        raise InputError("there is no SLURM on this machine (no squeue); go to a login node, or use --cluster local")
    choice = choice or chosen_profile(cluster)
    stage_profiles(plan, choice.profile)  # raises for a wrong resource of any stage
    code = functools.cache(lambda: _copied_code(plan, console))
    scheduler = SlurmScheduler(BatchContext(plan.name, plan.folder, choice.profile, code), choice.limits)
    return Submitter(plan, cluster, choice.profile, scheduler, console)


def _copied_code(plan: Plan, console: Console) -> Path:
    """Copy the code for the jobs of a sweep, and print what is left out."""
    for line in left_out(CODE, plan.folder / CODE_COPIES):
        console.print(line, markup=False)
    return take_snapshot(CODE, plan.folder / CODE_COPIES)


def feed(folder: Path, lock_seconds: float) -> None:
    """From inside an ending job: submit jobs of its sweep that a queue limit held back.

    Args:
        folder: the sweep's folder.
        lock_seconds: for which another process may be doing the same; one that waits for the sweep does it for all.

    Raises:
        InputError: the queue cannot be asked, or refuses.
    """
    if not (folder / HELD).exists():
        return
    cluster = Held.read(folder).cluster
    with suppress(filelock.Timeout), filelock.FileLock(folder / LOCK, timeout=lock_seconds):
        plan = read_plan(folder)
        connect(plan, cluster, chosen_profile(str(folder / CLUSTER_FILE)), Console()).submit(retry=False)


@dataclass
class Submitter:
    """Submits parts of one sweep."""

    plan: Plan
    cluster: str
    profile: Profile
    scheduler: Scheduler
    console: Console
    _stops: dict[str, tuple[int, str, list[str]]] = field(default_factory=dict)
    """How each job that stopped did so: at which of its starts, why, and how far it had come."""
    _given_up: dict[str, int] = field(default_factory=dict)
    """Jobs that are left alone, with their number of starts."""

    @functools.cached_property
    def records(self) -> Records:
        return Records(self.plan.folder)

    @functools.cached_property
    def _limits(self) -> Limits:
        return self.scheduler.limits()

    def wait(self, every: float) -> Mapping[str, JobState]:
        """Submit, and poll until no job is queued, running or held back; returns the last states.

        A scheduler that does not answer is asked again, less and less often; one that refuses at once, or twice in a
        row later, ends it.
        """
        states: Mapping[str, JobState] | None = None
        refusal = ""
        seconds = every
        while states is None or any(s.status in ALIVE for s in states.values()) or self._held_file.exists():
            if states is not None or seconds > every:
                pause(seconds)
            try:
                states = self.submit(retry=states is None)
                seconds, refusal = every, ""
            except SchedulerError as error:
                text = "" if isinstance(error, NoAnswerError) else error.reason
                if text and (states is None or text == refusal):
                    raise
                refusal = text
                seconds = min(2 * seconds, LONGEST_PAUSE)
                self.console.print(f"{error}; trying again in {seconds:.0f} s", markup=False)
        return states

    def submit(self, retry: bool) -> dict[str, JobState]:
        """Submit the missing jobs; returns the state of every job, submitted ones as queued.

        Args:
            retry: those that failed or were cancelled, too.
        """
        self._take_back_lost()
        done, records = done_jobs(self.plan), self.records.latest()
        states = find_states(self.plan, done, records, self.scheduler)
        if not retry:
            states = self._without_endless(states, records)
        held = Held.read(self.plan.folder).jobs
        wanted = what_is_missing(self.plan, states, records, retry, held, self._cancelled(states, records))
        if retry or wanted.submit:
            counts = {word: sum(s.status == word for s in states.values()) for word in ("done", "running", "queued")}
            self.console.print(
                f"{self.plan.name}: {counted(len(self.plan.jobs), 'job')}; {counts['done']} done, "
                f"{counts['running']} running, {counts['queued']} queued; submitting {len(wanted.submit)}",
                markup=False,
            )
        if wanted.cancel:
            self.scheduler.cancel([records[name].job_id for name in wanted.cancel])
        ids = {  # queued or running on the cluster, so that others can depend on them
            name: record.job_id
            for name, record in records.items()
            if name in states and states[name].status in ALIVE and record.cluster != "local"
        }
        for name in wanted.submit:
            ids.pop(name, None)
        if self._limits.max_submit is not None and wanted.submit:
            Held(self.cluster, wanted.submit).write(self.plan.folder)  # jobs may end before all are submitted
        self._hold(self._submit_all(wanted.submit, states, ids))
        return states

    def _cancelled(self, states: Mapping[str, JobState], records: Mapping[str, Record]) -> set[str]:
        """Jobs that the user cancelled, with our command or SLURM's, which remembers it only for a while."""
        by_hand = [name for name, s in states.items() if s.reason == "cancelled" and not records[name].cancelled]
        self.records.cancelled(by_hand)
        return self.records.cancelled_jobs()

    def _submit_all(self, names: Iterable[str], states: dict[str, JobState], ids: dict[str, JobId]) -> list[Job]:
        """Submit jobs, parents first; returns those held back by the queue limit, and their children."""
        held: dict[str, Job] = {}
        missing = parts(self.plan, names)
        room = self._room() if missing else None
        for jobs, share in zip(missing, shares(missing, self.profile.array_throttle), strict=True):
            ready = [job for job in jobs if held.keys().isdisjoint(job.parents)]
            for array in arrays(ready, ids, self._limits, share):
                submitted, room = self._submit_what_fits(array, ids, room)
                ids |= submitted
                states |= {name: JobState("queued", "submitted") for name in submitted}
            held |= {job.name: job for job in jobs if job.name not in ids}
        return list(held.values())

    def _submit_what_fits(
        self, array: JobArray, ids: Mapping[str, JobId], room: int | None
    ) -> tuple[dict[str, JobId], int | None]:
        """The id of each submitted job, and how many more may be submitted; None means any number."""
        array = array if room is None else array.first(max(0, room))
        refused = False
        while array.jobs:
            try:
                submitted = self._submit_array(array, ids)
            except LimitReachedError:  # one that nobody told of, or others were faster
                if len(array.jobs) == 1 and self.scheduler.num_submitted() == 0:
                    raise
                refused, array = True, array.first(len(array.jobs) // 2)
            else:
                return submitted, 0 if refused else None if room is None else room - len(submitted)
        return {}, 0 if refused else room

    def _submit_array(self, array: JobArray, ids: Mapping[str, JobId]) -> dict[str, JobId]:
        """One submission, recorded before and after."""
        tag = uuid.uuid4().hex[:8]
        folder = self.plan.folder / "slurm" / tag
        self.records.announce(tag, [job.name for job in array.jobs])
        try:
            submitted = self.scheduler.submit(array, tag)
        except LimitReachedError:
            self.records.numbered(tag)
            raise
        found = {job.name: id for job, id in zip(array.jobs, submitted, strict=True)}
        for job in array.jobs:
            id = found[job.name]
            self.records.started(
                Record(
                    job.name,
                    self.cluster,
                    id.number,
                    folder / f"{id.number}_0_log.out",
                    parents={parent: ids[parent].number for parent in job.parents if parent in ids},
                    identity=job.identity,
                    cluster_name=id.cluster,
                )
            )
        self.records.numbered(tag)
        return found

    def _room(self) -> int | None:
        """Jobs that may be submitted now; None without a limit."""
        most = self._limits.max_submit
        return None if most is None else most - self.scheduler.num_submitted()

    @property
    def _held_file(self) -> Path:
        return self.plan.folder / HELD

    def _hold(self, held: list[Job]) -> None:
        """Record jobs that are held back, for ending jobs to submit."""
        if not held:
            self._held_file.unlink(missing_ok=True)
            return
        Held(self.cluster, tuple(job.name for job in held)).write(self.plan.folder)
        self.console.print(
            f"{counted(len(held), 'job')} wait{'s' * (len(held) == 1)} for room in the queue "
            f"(limit: {self._limits.max_submit or 'reached'}). Each job that ends submits what fits; so does "
            "running the same command again.",
            markup=False,
        )

    def _without_endless(self, states: dict[str, JobState], records: Mapping[str, Record]) -> dict[str, JobState]:
        """Mark jobs that repeatedly end in the same way, or have used all successors, as failed."""
        limit = self.profile.allowed_requeues + 1
        found = dict(states)
        for name, state in states.items():
            if state.status != "stopped":
                continue
            starts, progress = records[name].starts, progress_of(self.plan.jobs[name].folder)
            before = self._stops.get(name)
            if before is None or before[0] != starts:
                self._stops[name] = (starts, state.reason, progress)
                if starts >= limit or (before is not None and before[1:] == (state.reason, progress)):
                    self._given_up[name] = starts
            if self._given_up.get(name) == starts:
                found[name] = JobState("failed", f"{state.reason}, {starts} times", state.nodes)
        return found

    def _take_back_lost(self) -> None:
        """Cancel jobs whose submission was killed before their numbers were recorded."""
        lost = self.records.lost_groups()
        if lost:
            self.scheduler.cancel(self.scheduler.tagged(lost))
        for tag in lost:
            self.records.numbered(tag)

    def prune(self) -> None:
        """Cancel jobs that the sweep no longer contains; their results stay."""
        latest = self.records.latest().items()
        others = [r.job_id for name, r in latest if name not in self.plan.jobs and r.cluster != "local"]
        alive = [id for id, status in self.scheduler.look(others).items() if status.is_alive]
        self.scheduler.cancel(alive)
        self.console.print(
            f"cancelled {counted(len(alive), 'job')} that {self.plan.name} no longer asks for", markup=False
        )


def explain(plan: Plan, states: Mapping[str, JobState], records: Mapping[str, Record], console: Console) -> None:
    """Print failed jobs with the last lines of their logs, and the jobs that they block."""
    for name, state in states.items():
        if state.status == "failed":
            console.print(f"{name} failed: {state.reason}", style="bold red", markup=False)
            for line in last_lines(records.get(name), 5):
                console.print(f"    {line}", markup=False)
    for name, state in states.items():
        if state.status == "blocked":
            console.print(f"{name} will never run: {state.reason}", markup=False)


# --- which jobs -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Submission:
    """The jobs that complete a sweep."""

    submit: tuple[str, ...]
    """Jobs without a place in the queue."""
    cancel: tuple[str, ...]
    """Jobs of `submit` that have one, but wait for a parent that was submitted again, or have other options now."""


def what_is_missing(
    plan: Plan,
    states: Mapping[str, JobState],
    records: Mapping[str, Record],
    retry: bool = True,
    held: Collection[str] = (),
    cancelled: Collection[str] = (),
) -> Submission:
    """Jobs to submit so that the sweep becomes complete.

    Args:
        plan: the graph.
        states: of every job.
        records: where each was submitted last.
        retry: submit jobs again that failed or were cancelled; otherwise only those that can go on by themselves, and
            what depends on them.
        held: jobs that somebody asked to be submitted, and the queue had no room for: as if `retry` were true of them.
        cancelled: jobs that a person cancelled, some of them before they were submitted at all.
    """
    submit: dict[str, None] = {}
    cancel: dict[str, None] = {}
    for job in plan.jobs.values():  # parents stand before their children
        status = states[job.name].status
        if status == "done":
            continue
        open_parents = [parent for parent in job.parents if states[parent].status != "done"]
        moved = any(parent in submit or _has_moved(parent, job.name, records) for parent in open_parents)
        moved = moved or (job.name in records and records[job.name].identity != job.identity)
        has_begun = status == "running" and not job.runs_after_failure  # so its parents were done
        if status in ALIVE and (not moved or has_begun):
            continue
        if not retry and job.name not in held:
            if job.name in cancelled or (job.name in records and records[job.name].cancelled):
                continue
            if status in ("failed", "cancelled") and not moved:
                continue  # moved: SLURM cancels what waits for a job that ended
        blocked = [p for p in open_parents if p not in submit and states[p].status not in ALIVE]
        if blocked and not (job.runs_after_failure and status not in ALIVE):
            continue
        if states[job.name].in_queue:
            cancel[job.name] = None
        submit[job.name] = None
    return Submission(tuple(submit), tuple(cancel))


def _has_moved(parent: str, child: str, records: Mapping[str, Record]) -> bool:
    """Whether the child depends on an outdated number of its parent."""
    if child not in records or parent not in records or records[child].cluster == "local":
        return False
    return records[child].parents.get(parent, records[parent].id) != records[parent].id
