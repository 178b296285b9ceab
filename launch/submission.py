"""Which jobs to submit, which to take back, and in which groups. Pure functions over states."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from .plan import Job, Plan
from .records import Record
from .states import ALIVE, State

GROUP_SIZE = 1000  # SLURM's default MaxArraySize allows task numbers up to 1,000


@dataclass(frozen=True)
class Submission:
    """What is to be done to make a sweep complete."""

    submit: tuple[str, ...]
    """Jobs without a place in the queue."""
    cancel: tuple[str, ...]
    """Jobs of `submit` that have one, but wait for a parent that was submitted anew, or have other options now."""


@dataclass(frozen=True)
class Group:
    """Jobs of one stage that wait for the same parents: one `sbatch`, an array if they are several."""

    stage: str
    jobs: tuple[Job, ...]
    parents: tuple[str, ...]
    """Those that are not done."""

    @property
    def takes_what_there_is(self) -> bool:
        return self.jobs[0].takes_what_there_is


def what_is_missing(
    plan: Plan, states: Mapping[str, State], records: Mapping[str, Record], retry: bool = True
) -> Submission:
    """Jobs to submit so that the sweep becomes complete.

    Args:
        plan: the graph.
        states: of every job.
        records: where each was submitted last.
        retry: submit jobs again that failed or were cancelled; otherwise only those that can go on by themselves, and
            what depends on them.
    """
    submit: dict[str, None] = {}
    cancel: dict[str, None] = {}
    for job in plan.jobs.values():  # parents stand before their children
        word = states[job.name].word
        if word == "done":
            continue
        open_parents = [parent for parent in job.parents if states[parent].word != "done"]
        moved = any(parent in submit or _has_moved(parent, job.name, records) for parent in open_parents)
        moved = moved or (job.name in records and records[job.name].identity != job.identity)
        if word in ALIVE and (not moved or _has_begun(word, job)):
            continue
        by_hand = job.name in records and records[job.name].cancelled
        if word in ("failed", "cancelled") and not retry and (by_hand or not moved):
            continue  # moved: SLURM cancels what waits for a job that ended
        hopeless = [p for p in open_parents if p not in submit and states[p].word not in ALIVE]
        if hopeless and not (job.takes_what_there_is and word not in ALIVE):
            continue
        if states[job.name].in_queue:
            cancel[job.name] = None
        submit[job.name] = None
    return Submission(tuple(submit), tuple(cancel))


def _has_begun(word: str, job: Job) -> bool:
    """Whether a job runs because its parents were done; a report begins when they are gone."""
    return word == "running" and not job.takes_what_there_is


def _has_moved(parent: str, child: str, records: Mapping[str, Record]) -> bool:
    """Whether the child waits for another number than its parent has now."""
    if child not in records or parent not in records or records[child].cluster == "local":
        return False
    return records[child].parents.get(parent, records[parent].id) != records[parent].id


def groups(plan: Plan, names: Iterable[str], done: Iterable[str]) -> list[Group]:
    """The jobs as arrays, parents first."""
    finished = set(done)
    found: dict[tuple[str, tuple[str, ...]], list[Job]] = {}
    for name in names:
        job = plan.jobs[name]
        parents = tuple(parent for parent in job.parents if parent not in finished)
        found.setdefault((job.stage, parents), []).append(job)
    stages = list(dict.fromkeys(job.stage for job in plan.jobs.values()))
    ordered = sorted(found.items(), key=lambda item: stages.index(item[0][0]))
    return [
        Group(stage, tuple(jobs[begin : begin + GROUP_SIZE]), parents)
        for (stage, parents), jobs in ordered
        for begin in range(0, len(jobs), GROUP_SIZE)
    ]


def dependency(group: Group, ids: Mapping[str, str]) -> str | None:
    """SLURM's text for what a group waits for, as `afterok:17:18_3`; None for nothing.

    Args:
        group: the jobs.
        ids: SLURM's numbers of parents that are on their way; others are not waited for.
    """
    waited = [ids[parent] for parent in group.parents if parent in ids]
    if not waited:
        return None
    if not group.takes_what_there_is:
        return "afterok:" + ":".join(waited)
    return "afterany:" + ":".join(dict.fromkeys(number.partition("_")[0] for number in waited))  # whole arrays: short
