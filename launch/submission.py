"""Which jobs to submit, to cancel, and in which arrays: pure functions of states."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from simdist.cluster.discovery import Limits

from .plan import Job, Plan
from .records import Record
from .scheduler import JobArray, JobId
from .states import ALIVE, JobState

USUAL_ARRAY_SIZE = 1000  # where the cluster does not say its MaxArraySize, which is 1001 by default


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
        if status in ALIVE and (not moved or _has_begun(status, job)):
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


def _has_begun(status: str, job: Job) -> bool:
    """Whether a running job implies that its parents are done; a report does not."""
    return status == "running" and not job.runs_after_failure


def _has_moved(parent: str, child: str, records: Mapping[str, Record]) -> bool:
    """Whether the child depends on an outdated number of its parent."""
    if child not in records or parent not in records or records[child].cluster == "local":
        return False
    return records[child].parents.get(parent, records[parent].id) != records[parent].id


def parts(plan: Plan, names: Iterable[str]) -> list[list[Job]]:
    """The jobs in the order in which they are submitted: parents first, and what can be one array together.

    Of several runs, each part of a stage (`speaker-module3` of a probe) is a list of its own, so that a task and the
    tasks that it waits for can have the same index; of a single run, the whole stage is one.
    """
    jobs = [plan.jobs[name] for name in names]
    together = len({job.run for job in jobs if job.run is not None}) <= 1
    found: dict[tuple[str, str], list[Job]] = {}
    for job in jobs:
        part = "" if together or job.run is None else job.name.removeprefix(f"{job.stage}/{job.run}")
        found.setdefault((job.stage, part), []).append(job)
    stages = list(dict.fromkeys(job.stage for job in plan.jobs.values()))
    return [found[key] for key in sorted(found, key=lambda key: stages.index(key[0]))]  # stable: parts keep their order


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
