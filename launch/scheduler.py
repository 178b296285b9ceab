"""What a sweep asks of the system that runs its jobs: submit, look, cancel, limits; inside a job, requeue and hosts.

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
        """The array that a task belongs to; a job that is no task is its own."""
        return JobId(self.number.partition("_")[0], self.cluster)

    @property
    def task(self) -> int | None:
        """A task's index in its array; None for a job that is no task."""
        _, underscore, index = self.number.partition("_")
        return int(index) if underscore and index.isdigit() else None


@dataclass(frozen=True)
class JobStatus:
    """Where a job stands."""

    phase: Phase
    reason: str = ""
    """Why it waits, or how it ended."""
    nodes: str = ""
    code: int | None = None
    """Exit code of a job that ended; None where the system does not say."""

    @property
    def is_alive(self) -> bool:
        """Whether the system still has it."""
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
    """No more jobs may be submitted now; some may when others have ended."""


class Scheduler(Protocol):
    """A system that runs jobs."""

    def submit(self, array: JobArray, tag: str) -> list[JobId]:
        """Put the jobs of an array into the queue.

        Args:
            array: the jobs, and what they wait for.
            tag: a word that can be found again in the queue, so that a submission which was cut off can be taken back.

        Raises:
            LimitReachedError: there are as many as may be.
            SchedulerError: it is refused.
        """
        ...

    def look(self, ids: Iterable[JobId]) -> dict[JobId, JobStatus]:
        """Where each of these jobs stands, with as few questions as possible.

        Raises:
            NoAnswerError: the system does not answer.
        """
        ...

    def cancel(self, ids: Sequence[JobId]) -> None:
        """End these jobs or take them out of the queue; those that have ended are no error."""
        ...

    def limits(self) -> Limits:
        """How much this user may submit."""
        ...

    def num_submitted(self) -> int:
        """Tasks of this user that are in the queue, those of other sweeps included."""
        ...

    def tagged(self, tags: Collection[str]) -> list[JobId]:
        """Jobs in the queue that were submitted with one of these tags."""
        ...

    def requeue(self, requeues: int, limit: int) -> tuple[bool, str]:
        """Inside a job: ask for it to be run again; whether that was granted, and a sentence."""
        ...

    def hosts(self) -> list[str]:
        """Inside a job: the names of its nodes, the first one's first."""
        ...
