"""Check what a sweep needs beyond the base installation, before anything starts."""

from __future__ import annotations

import importlib.util

from simdist.core.errors import InputError

from .naming import IN_WHEEL
from .plan import MANIFEST, Plan

PACKAGES: dict[tuple[str, ...], tuple[str, str]] = {
    ("pack", "synthetic"): ("espeakng_loader", "demo"),
    ("analyze",): ("sklearn", "analysis"),  # which brings scipy, too
}
"""By the first word or words of a job's command: a module that it imports, and the extra that installs it."""


def require_commands(plan: Plan) -> None:
    """Check that this simdist has the command of every stage.

    Raises:
        InputError: one does not exist.
    """
    for job in plan.jobs.values():
        if importlib.util.find_spec(f"simdist.{job.command[0]}") is None:
            raise InputError(f"stage {job.stage}: this simdist has no command {job.command[0]!r}. Remove the stage")


def missing_packages(plan: Plan, done: set[str]) -> str | None:
    """One sentence about the packages that jobs need and this Python does not have; None if it has them all.

    Args:
        plan: the graph.
        done: jobs that need nothing any more.
    """
    missing: dict[tuple[str, str], str] = {}
    for job in plan.jobs.values():
        need = PACKAGES.get(job.command[:2]) or PACKAGES.get(job.command[:1])
        if need is not None and job.name not in done and importlib.util.find_spec(need[0]) is None:
            missing.setdefault(need, " ".join(job.command[:2]))
    if not missing:
        return None
    whats = ", ".join(f"{module} (for {work})" for (module, _), work in missing.items())
    extras = ",".join(sorted({extra for _, extra in missing}))
    install = f"pip install 'simdist[{extras}]'" if IN_WHEEL else f"pip install -e '.[{extras}]'"
    return f"missing packages: {whats}. Install: {install}"


def missing_corpus(plan: Plan, done: set[str]) -> str | None:
    """One sentence about a training's corpus that is not packed, and not by this sweep either; None if there is none.

    Args:
        plan: the graph.
        done: jobs that need nothing any more.
    """
    for job in plan.jobs.values():
        if job.kind != "train" or job.run is None or job.name in done or job.parents:
            continue
        split = plan.runs[job.run].length.data
        if not (split / MANIFEST).is_file():
            return (
                f"{job.name}: data.root is {split.parent}, which has no packed split {split.name!r} (no "
                f"{split / MANIFEST}). Pack a corpus: python -m simdist.pack CORPUS SOURCE {split.parent}"
            )
    return None
