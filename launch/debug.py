"""Run a sweep in this process, one job after the other, for a debugger."""

from __future__ import annotations

import sys
from collections.abc import Callable

from simdist.core.errors import EXIT_INTERRUPTED, EXIT_OK, EXIT_PREEMPTED

from .graph import blocked_by, done_jobs, ready
from .job import work
from .local import Outcome
from .plan import Plan


def run_here(plan: Plan, log: Callable[[str], None]) -> Outcome:
    """Run the missing jobs in this process until the first preemption or Ctrl-C."""
    outcome = Outcome(done=done_jobs(plan))
    for job in plan.jobs.values():
        blocked = {*outcome.failed, *blocked_by(plan, outcome.failed)}
        if job.name in outcome.done or job.name in blocked or not ready(plan, job.name, outcome.done, blocked):
            continue
        log(f"{job.name}: python -m simdist.{' '.join(job.command)}")
        code = work(job.command, job.marker)
        _forget_processes()
        if code in (EXIT_PREEMPTED, EXIT_INTERRUPTED):
            outcome.signal_number = 2 if code == EXIT_INTERRUPTED else 15
            break
        if code == EXIT_OK:
            outcome.done.add(job.name)
        else:
            outcome.failed[job.name] = code
    return outcome


def _forget_processes() -> None:
    """Reset Accelerate, which keeps one state and precision per process."""
    state = sys.modules.get("accelerate.state")
    if state is not None:
        state.AcceleratorState._reset_state(reset_partial_state=True)
        state.GradientState._reset_state()
