"""The interface of a scheduler: submit, look, cancel, limits; inside a job, requeue and hosts.

SLURM (`launch.slurm`) implements all of it, this machine (`launch.local`) is the second. Another system, such as PBS,
LSF or Flux, is one more file and a line in `launch.submit.connect`. Two things that a training asks by itself, without
the launcher, need that system, too: its requeue (`simdist.core.requeue`) and its ranks (`simdist.training.world`).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol

from simdist.cluster.discovery import Limits
from simdist.core.errors import InputError

from .plan import Job

Phase = Literal["queued", "running", "blocked", "completed", "failed", "interrupted", "cancelled", "gone"]
"""`blocked`: in the queue, and what it waits for will never be. `interrupted`: ended by the system, not by its own
fault: preempted, out of time, its node died. `gone`: left the queue, and the system does not know it any more."""
ALIVE: tuple[Phase, ...] = ("queued", "running", "blocked")


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
        return JobArray(
            self.jobs[:count],
            self.indices[:count],
            self.after_success,
            self.after_same_index,
            self.after_end,
            self.throttle,
        )


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
