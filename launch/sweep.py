"""Plan a sweep and run what of it is missing: `python launch/sweep.py --cluster NAME SWEEP.yaml [key=value …]`."""

from __future__ import annotations

import importlib.util
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path

if __name__ == "__main__" and not __package__:  # run as a script: relative imports need the package (PEP 366)
    sys.path[0] = str(Path(__file__).resolve().parent.parent)
    __package__ = "launch"

import filelock
from rich.console import Console

from simdist.cli import Parser, run
from simdist.errors import EXIT_OK, InputError
from simdist.stopping import Stop

from .cancel import OWNER, write_owner
from .cluster_options import add_cluster_options, choose_cluster, write_choice
from .debug import run_here
from .dry_run import show
from .graph import blocked_by
from .listing import write_plan
from .local import LocalExecutor, Outcome, visible_gpus
from .plan import RUNS, SWEEPS, Plan, build
from .records import Records, last_lines
from .sweep_file import read_sweep

DESCRIPTION = """\
Run a sweep: every combination of its variants, grids and seeds is packed for, trained, probed and reported on.

The same command again does only what is neither done nor on its way; a changed file adds what is new.

Examples:
  python launch/sweep.py --cluster local configs/sweeps/smoke.yaml
  python launch/sweep.py --cluster local --jobs 4 configs/sweeps/smoke.yaml seeds=[0,1,2,3] train.max_steps=100
  python launch/sweep.py --cluster gpu configs/sweeps/beta_librispeech.yaml --dry-run
  python launch/sweep.py --cluster slurm --partition gpu --gpus-per-node a100:4 configs/sweeps/beta_librispeech.yaml
  python launch/sweep.py --cluster slurm/profiles/mine.yaml configs/sweeps/beta_librispeech.yaml --wait

--cluster is `local` (processes on this machine), `debug` (in this process), `slurm`, a profile of slurm/profiles/, or a
profile's file. `slurm` takes the profile in SIMDIST_CLUSTER (a name or file), else ~/.config/simdist/cluster.yaml, else
what SLURM says of its partitions, GPUs and limits. Options such as --partition win over all of them.

Then: launch/status.py, launch/logs.py, launch/cancel.py.

Exit codes: 0 submitted, or finished; 1 jobs failed; 2 wrong input; 75 and 130 stopped, the same command continues.
"""
LOCK_SECONDS = 2.0
OVERRIDE = re.compile(r"[A-Za-z_][\w.]*=")


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    overrides = [word for word in words if OVERRIDE.match(word)]  # they may stand anywhere among the options
    parsed = _parser().parse_args([word for word in words if word not in overrides])
    try:
        plan, configs = build(read_sweep(parsed.SWEEP, overrides), parsed.runs, parsed.sweeps)
    except InputError as error:
        text = str(error)
        raise InputError(text if text.startswith(parsed.SWEEP) else f"{parsed.SWEEP}: {text}") from error
    require_commands(plan)
    console = Console(soft_wrap=True, highlight=False)
    choice = choose_cluster(parsed, parsed.cluster)
    for line in choice.lines() if choice else ():
        console.print(line, markup=False)
    if parsed.dry_run:
        show(plan, configs, parsed.cluster, console, choice.profile if choice else None)
        return EXIT_OK
    with sole_owner(plan.folder):
        write_plan(plan, configs)
        if choice is None:
            return _run_on_this_machine(plan, parsed.cluster, parsed.jobs, console)
        from .slurm import submit_sweep  # needs submitit, which takes a while to import

        write_choice(plan, choice)
        return submit_sweep(plan, parsed.cluster, console, prune=parsed.prune, wait=parsed.wait, profile=choice.profile)


def _parser() -> Parser:
    parser = Parser(prog="python launch/sweep.py", description=DESCRIPTION)
    add = parser.add_argument
    add("SWEEP", type=str, help="The sweep's YAML file.")
    add(
        "overrides",
        type=str,
        nargs="*",
        default=[],
        metavar="key=value",
        help="Keys of the sweep or of the configuration.",
    )
    add("--cluster", type=str, required=True, help="local, debug, slurm, or a profile.")
    add("--dry-run", action="store_true", help="Show the graph, the sbatch scripts and the GPU-hours; do nothing.")
    add(
        "--jobs",
        type=int | None,
        default=None,
        help="local: processes at a time; null is one for each GPU, or else for every two cores.",
    )
    add("--prune", action="store_true", help="SLURM: cancel jobs of this sweep that the file no longer asks for.")
    add("--wait", action="store_true", help="SLURM: stay, and submit successors for jobs that could not requeue.")
    add("--runs", type=Path, default=RUNS, help="Folder of the runs.")
    add("--sweeps", type=Path, default=SWEEPS, help="Folder of the sweeps' logs and reports.")
    add_cluster_options(parser)
    return parser


def require_commands(plan: Plan) -> None:
    """Raise `InputError` if a stage needs a command that this simdist does not have."""
    for job in plan.jobs.values():
        if importlib.util.find_spec(f"simdist.{job.command[0]}") is None:
            raise InputError(f"stage {job.stage}: this simdist has no command {job.command[0]!r}; leave the stage out")


def sole_owner(folder: Path) -> filelock.BaseFileLock:
    """A lock on the sweep's folder.

    Raises:
        InputError: another process holds it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock = filelock.FileLock(folder / ".sweep.lock")
    try:
        return lock.acquire(timeout=LOCK_SECONDS).lock
    except filelock.Timeout as error:
        raise InputError(f"another process is running or submitting {folder.name}; wait for it, or stop it") from error


def _run_on_this_machine(plan: Plan, cluster: str, jobs: int | None, console: Console) -> int:
    def say(text: str) -> None:
        console.print(text, markup=False)

    write_owner(plan.folder)
    say(f"{plan.name}: {len(plan.runs)} runs, {len(plan.jobs)} jobs; logs in {plan.folder}/logs")
    if cluster == "debug":
        outcome = run_here(plan, say)
    else:
        devices = visible_gpus(os.environ)
        number = jobs or len(devices) or max(1, (os.cpu_count() or 1) // 2)
        stop = Stop()
        with stop.installed():
            outcome = LocalExecutor(plan, number, say, stop, devices).run()
    (plan.folder / OWNER).unlink(missing_ok=True)
    _conclude(plan, outcome, console)
    return outcome.code


def _conclude(plan: Plan, outcome: Outcome, console: Console) -> None:
    """What failed and why, what therefore never ran, and the table."""
    records = Records(plan.folder).latest()
    for name, code in outcome.failed.items():
        console.print(f"{name} failed with exit code {code}:", style="bold red")
        record = records.get(name)
        for line in last_lines(record, 5):
            console.print(f"    {line}", markup=False)
    for name, root in blocked_by(plan, outcome.failed).items():
        console.print(f"{name} will never run: {root} failed", markup=False)
    table = plan.folder / "report" / "report.txt"
    report = next((job.name for job in plan.jobs.values() if job.kind == "report"), None)
    if report in outcome.done and table.is_file():
        console.print(table.read_text(), markup=False)
    if outcome.signal_number:
        console.print("stopped; what was finished is kept, and the same command continues")
    else:
        console.print(f"{len(outcome.done)} of {len(plan.jobs)} jobs are done")


if __name__ == "__main__":
    run(main)
