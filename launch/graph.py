"""Which jobs of a plan are done, missing or blocked: pure functions of files and states."""

from __future__ import annotations

from collections.abc import Callable, Collection
from contextlib import suppress
from pathlib import Path

from .plan import Job, Plan


def exists(path: Path) -> bool:
    """Whether a file exists."""
    return path.exists()


def done_jobs(plan: Plan, is_there: Callable[[Path], bool] = exists) -> set[str]:
    """Jobs that are done.

    A packing whose every run is trained is not asked for again, although the corpus may be gone. A report is done only
    if it is younger than what it reports on.
    """
    own = {job.name for job in plan.jobs.values() if all(is_there(path) for path in job.done)}
    children = plan.children()
    for job in plan.jobs.values():
        if job.kind == "pack" and all(child in own for child in children[job.name] if not _is_report(plan, child)):
            own.add(job.name)
    for job in plan.jobs.values():
        if job.runs_after_failure and job.name in own and not _is_fresh(plan, job, own):
            own.discard(job.name)
    return own


def _is_report(plan: Plan, name: str) -> bool:
    return plan.jobs[name].runs_after_failure


def _is_fresh(plan: Plan, report: Job, done: Collection[str]) -> bool:
    return all(parent in done for parent in report.parents) and is_younger(plan, report, report.parents)


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


def ready(plan: Plan, name: str, done: Collection[str], blocked: Collection[str]) -> bool:
    """Whether a job's parents are done; for a report, whether they are done or blocked."""
    job = plan.jobs[name]
    if job.runs_after_failure:
        return all(parent in done or parent in blocked for parent in job.parents)
    return all(parent in done for parent in job.parents)


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
