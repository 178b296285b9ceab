"""The interface of a scheduler: submit, look, cancel, limits; inside a job, requeue and hosts. Jobs as arrays for it.

SLURM (`launch.slurm`) implements all of it, this machine (`launch.local`) is the second. Another system, such as PBS,
LSF or Flux, is one more file and a line in `launch.submit.connect`. Two things that a training asks by itself, without
the launcher, need that system, too: its requeue (`simdist.core.requeue`) and its ranks (`simdist.training.world`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple, Protocol

from simdist.cluster.discovery import Limits
from simdist.core.errors import InputError

from .plan import Job, Plan

Phase = Literal["queued", "running", "blocked", "completed", "failed", "interrupted", "cancelled", "gone"]
"""`blocked`: in the queue, and what it waits for will never be. `interrupted`: ended by the system, not by its own
fault: preempted, out of time, its node died. `gone`: left the queue, and the system does not know it any more."""
ALIVE: tuple[Phase, ...] = ("queued", "running", "blocked")
USUAL_ARRAY_SIZE = 1000  # where the cluster does not say its MaxArraySize, which is 1001 by default


class JobId(NamedTuple):
    """A job as its scheduler knows it."""

    number: str
    """`17`, or `17_3` for task 3 of array 17."""
    cluster: str = ""
    """Name of the cluster that gave the number; empty where there is only one."""

    @property
    def array(self) -> JobId:
        """The array of a task; a job that is not a task is its own array."""
        return JobId(self.number.partition("_")[0], self.cluster)

    @property
    def task(self) -> int | None:
        """A task's index in its array; None for a job that is not a task."""
        _, underscore, index = self.number.partition("_")
        return int(index) if underscore and index.isdigit() else None


@dataclass(frozen=True)
class JobStatus:
    """Status of a job."""

    phase: Phase
    reason: str = ""
    """Why it waits, or how it ended."""
    nodes: str = ""
    code: int | None = None
    """Exit code of a job that ended; None where the system does not say."""

    @property
    def is_alive(self) -> bool:
        """Whether the job is queued or running."""
        return self.phase in ALIVE


@dataclass(frozen=True)
class JobArray:
    """Jobs of one stage that are submitted together."""

    jobs: tuple[Job, ...]
    indices: tuple[int, ...] = ()
    """Index of each job in the array; () for a single job that is no array."""
    after_success: tuple[JobId, ...] = ()
    """Jobs that must succeed before any of these begins."""
    after_same_index: tuple[JobId, ...] = ()
    """Arrays: task i of this one begins when task i of each of them has succeeded."""
    after_end: tuple[JobId, ...] = ()
    """Jobs that must have ended, in whatever way."""
    throttle: int = 16
    """Tasks that run at the same time."""

    @property
    def stage(self) -> str:
        """Name of the stage in the sweep file."""
        return self.jobs[0].stage

    def first(self, count: int) -> JobArray:
        """The same with its first `count` jobs only."""
        return replace(self, jobs=self.jobs[:count], indices=self.indices[:count])


class SchedulerError(InputError):
    """The scheduler did not answer, or refuses.

    Args:
        reason: what it said.
        where: more to read, which may differ from try to try.
    """

    def __init__(self, reason: str, where: str = "") -> None:
        super().__init__(f"{reason}. {where}" if where else reason)
        self.reason = reason


class NoAnswerError(SchedulerError):
    """The scheduler did not answer; it may later."""


class LimitReachedError(SchedulerError):
    """The limit of submitted jobs is reached for now."""


class Scheduler(Protocol):
    """A system that runs jobs."""

    def submit(self, array: JobArray, tag: str) -> list[JobId]:
        """Submit the jobs of an array.

        Args:
            array: the jobs, and what they wait for.
            tag: a word that can be found again in the queue, so that a submission which was cut off can be taken back.

        Raises:
            LimitReachedError: there are as many as may be.
            SchedulerError: it is refused.
        """
        ...

    def look(self, ids: Iterable[JobId]) -> dict[JobId, JobStatus]:
        """The status of these jobs, with as few queries as possible.

        Raises:
            NoAnswerError: the system does not answer.
        """
        ...

    def cancel(self, ids: Sequence[JobId]) -> None:
        """Cancel these jobs; jobs that have ended are ignored."""
        ...

    def limits(self) -> Limits:
        """The limits of this user."""
        ...

    def num_submitted(self) -> int:
        """Number of tasks of this user in the queue, including other sweeps."""
        ...

    def tagged(self, tags: Collection[str]) -> list[JobId]:
        """Jobs in the queue that were submitted with one of these tags."""
        ...

    def requeue(self, requeues: int, limit: int) -> tuple[bool, str]:
        """Inside a job: request a requeue; returns whether it was granted, and a sentence."""
        ...

    def hosts(self) -> list[str]:
        """Inside a job: the names of its nodes, the first one's first."""
        ...


# --- jobs as arrays ---------------------------------------------------------------------------------------------------


def parts(plan: Plan, names: Iterable[str]) -> list[list[Job]]:
    """The jobs in the order in which they are submitted: parents first, and what can be one array together.

    Of several runs, each part of a stage (`speaker-module3` of a probe) is a list of its own, so that a task and the
    tasks that it waits for can have the same index; of a single run, the whole stage is one. Jobs that wait for others
    of their own stage, as trainings do for those of shared modules, come in lists after those.
    """
    jobs = [plan.jobs[name] for name in names]
    together = len({job.run for job in jobs if job.run is not None}) <= 1
    found: dict[tuple[str, int, str], list[Job]] = {}
    for job in jobs:
        part = "" if together or job.run is None else job.name.removeprefix(f"{job.stage}/{job.run}")
        found.setdefault((job.stage, _level(plan, job), part), []).append(job)
    stages = list(dict.fromkeys(job.stage for job in plan.jobs.values()))
    return [found[key] for key in sorted(found, key=lambda key: (stages.index(key[0]), key[1]))]  # else as they came


def _level(plan: Plan, job: Job) -> int:
    """How many jobs of its own stage must be done one after the other before this one."""
    parents = (plan.jobs[name] for name in job.parents)
    return max((1 + _level(plan, parent) for parent in parents if parent.stage == job.stage), default=0)


def arrays(jobs: Sequence[Job], ids: Mapping[str, JobId], limits: Limits, throttle: int) -> list[JobArray]:
    """Jobs of one part as arrays, each with what it waits for.

    Where every job waits for tasks of one index, they are matched index by index (`aftercorr`): one array for all runs,
    in which each run's job begins when its own parents are done. Otherwise jobs that wait for the same are one array.

    Args:
        jobs: of one part.
        ids: jobs that are on their way, by name; parents that are not there are not waited for.
        limits: of the scheduler.
        throttle: tasks of this part that run at the same time; divided among its arrays.
    """
    waits = {job.name: tuple(dict.fromkeys(ids[parent] for parent in job.parents if parent in ids)) for job in jobs}
    matches = {job.name: _matched(job, waits[job.name]) for job in jobs}
    several = Counter(match for match in matches.values() if match is not None)
    size = limits.max_array_size or USUAL_ARRAY_SIZE
    found: dict[tuple[bool, tuple[JobId, ...]], list[tuple[Job, int]]] = {}
    for job in jobs:
        match = matches[job.name]
        if match is not None and several[match] == 1:
            found.setdefault((True, match[0]), []).append((job, match[1]))
        else:
            own = found.setdefault((False, waits[job.name]), [])
            own.append((job, len(own) % size))
    pieces = [
        (entries[begin : begin + size], matched, parents)
        for (matched, parents), entries in found.items()
        for begin in range(0, len(entries), size)
    ]
    own = throttles(throttle, max(1, len(pieces)))
    return [_array(*piece, share) for piece, share in zip(pieces, own, strict=False)]


def _matched(job: Job, waits: tuple[JobId, ...]) -> tuple[tuple[JobId, ...], int] | None:
    """The arrays that a job depends on, and their common index; None if there is none."""
    indices = {id.task for id in waits}
    index = next(iter(indices)) if len(indices) == 1 else None
    if index is None or job.runs_after_failure:
        return None
    return tuple(dict.fromkeys(id.array for id in waits)), index


def _array(entries: Sequence[tuple[Job, int]], matched: bool, waits: tuple[JobId, ...], throttle: int) -> JobArray:
    jobs = tuple(job for job, _ in entries)
    indices = tuple(index for _, index in entries) if matched or len(entries) > 1 else ()
    if matched:
        return JobArray(jobs, indices, after_same_index=waits, throttle=throttle)
    if jobs[0].runs_after_failure:
        return JobArray(jobs, indices, after_end=waits, throttle=throttle)
    return JobArray(jobs, indices, after_success=waits, throttle=throttle)


def shares(made: Sequence[Sequence[Job]], throttle: int) -> list[int]:
    """Each part's share of its stage's throttle."""
    of_stage = Counter(part[0].stage for part in made)
    left = {stage: throttles(throttle, number) for stage, number in of_stage.items()}
    return [left[part[0].stage].pop(0) for part in made]


def throttles(throttle: int, number: int) -> list[int]:
    """A throttle divided into `number` shares of at least one task each."""
    return [max(1, throttle // number + (index < throttle % number)) for index in range(number)]
