"""Cancel a sweep or some of its runs: `python launch/cancel.py SWEEP [RUN…]`, children before their parents."""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
from collections.abc import Sequence
from pathlib import Path

if __name__ == "__main__" and not __package__:  # run as a script: relative imports need the package (PEP 366)
    sys.path[0] = str(Path(__file__).resolve().parent.parent)
    __package__ = "launch"

from simdist.config.parser import Parser
from simdist.core.console import run
from simdist.core.errors import EXIT_OK, InputError, counted

from .naming import as_typed, command
from .plan import SWEEPS, Plan, find_sweeps, read_plan
from .records import Held, Records
from .slurm import SlurmScheduler
from .states import done_jobs, find_states, process_runs

DESCRIPTION = """\
Cancel a sweep's jobs in SLURM's queue, children first, so that none starts while its parents end. Running jobs get
SIGTERM, save, and are not requeued. A sweep on this machine is asked to save and end as a whole. To resume, run the
same command of python launch/sweep.py.

Examples:
  python launch/cancel.py smoke
  python launch/cancel.py smoke smoke-90eec1de smoke-8434
  python launch/cancel.py smoke --stage probe

Exit codes: 0 cancelled, or nothing to cancel; 2 wrong input, or SLURM does not answer.
"""
OWNER = "sweep.json"  # the process that runs a sweep on this machine
OWNER_WORD = "sweep"  # in its command


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    parser = Parser(prog=command("cancel"), description=as_typed(DESCRIPTION))
    parser.add_argument("SWEEP", type=str, help="Name or YAML file of a sweep.")
    parser.add_argument(
        "RUN",
        type=str,
        nargs="*",
        default=[],
        help="Cancel only the jobs of these runs: names, such as smoke-90eec1de, or first letters of names.",
    )
    parser.add_argument(
        "--stage", type=str | None, default=None, help="Cancel only the jobs of this stage, such as probe."
    )
    parser.add_argument("--sweeps", type=Path, default=SWEEPS, help="Folder of the sweeps.")
    parsed = parser.parse_args(argv)
    (folder,) = find_sweeps(parsed.sweeps, parsed.SWEEP)
    plan = read_plan(folder)
    wanted = chosen(plan, parsed.RUN or [], parsed.stage)
    owner = local_owner(folder)
    if owner is not None:
        _end_local(plan, owner, everything=len(wanted) == len(plan.jobs))
        return EXIT_OK
    names = _cancel_on_cluster(plan, wanted)
    print(
        f"cancelled {counted(len(names), 'job')} of {plan.name}"
        if names
        else f"no job of {plan.name} is queued or running"
    )
    for name in names[:20]:
        print(f"  {name}")
    if len(names) > 20:
        print(f"  … and {len(names) - 20} more")
    return EXIT_OK


def chosen(plan: Plan, runs: Sequence[str], stage: str | None) -> list[str]:
    """Names of the selected jobs, parents first.

    Raises:
        InputError: a run or stage that the sweep does not have.
    """
    stages = list(dict.fromkeys(job.stage for job in plan.jobs.values()))
    if stage is not None and stage not in stages:
        raise InputError(f"{plan.name} has no stage {stage!r}; it has {', '.join(stages)}")
    meant: set[str] = set()
    for name in runs:
        found = {run for run in plan.runs if run.startswith(name)}
        if not found:
            raise InputError(f"{plan.name} has no run {name!r}; `{command('status', plan.name)}` lists them")
        meant |= found
    return [
        job.name
        for job in plan.jobs.values()
        if (not runs or job.run in meant) and (stage is None or job.stage == stage)
    ]


def _cancel_on_cluster(plan: Plan, wanted: Sequence[str]) -> list[str]:
    """Cancel jobs that are in the queue, children first; returns their names."""
    log = Records(plan.folder)
    records = log.latest()
    scheduler = SlurmScheduler()
    states = find_states(plan, done_jobs(plan), records, scheduler)
    names = [name for name in reversed(wanted) if states[name].in_queue]
    held = Held.read(plan.folder)
    log.cancelled([*names, *(name for name in wanted if name in held.jobs)])
    Held(held.cluster, tuple(name for name in held.jobs if name not in wanted)).write(plan.folder)
    scheduler.cancel([records[name].job_id for name in names])
    return names


def write_owner(folder: Path) -> None:
    """Record that this process runs the sweep on this machine."""
    (folder / OWNER).write_text(json.dumps({"pid": os.getpid(), "host": socket.gethostname()}))


def local_owner(folder: Path) -> int | None:
    """The living process that runs a sweep on this machine.

    Raises:
        InputError: it runs on another machine.
    """
    try:
        owner = json.loads((folder / OWNER).read_text())
    except (OSError, ValueError):
        return None
    if owner["host"] != socket.gethostname():
        raise InputError(f"{folder.name} runs on {owner['host']}, as process {owner['pid']}; cancel it there")
    return owner["pid"] if process_runs(owner["pid"], OWNER_WORD) else None


def _end_local(plan: Plan, pid: int, everything: bool) -> None:
    if not everything:
        raise InputError(f"{plan.name} runs on this machine. Cancel the whole sweep: `{command('cancel', plan.name)}`")
    os.kill(pid, signal.SIGTERM)
    print(f"asked process {pid} to save and end the jobs of {plan.name}")


if __name__ == "__main__":
    run(main)
