"""Expand a sweep into jobs and run them: `python launch/sweep.py [--cluster NAME] [SWEEP] [key=value …]`."""

from __future__ import annotations

import importlib.util
import os
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

if __name__ == "__main__" and not __package__:  # run as a script: relative imports need the package (PEP 366)
    sys.path[0] = str(Path(__file__).resolve().parent.parent)
    __package__ = "launch"

import filelock
from rich.console import Console

from simdist.cluster.profile import profile_names
from simdist.config.parser import Parser
from simdist.core.console import run
from simdist.core.errors import EXIT_OK, InputError, counted
from simdist.core.files import write_text
from simdist.core.signals import SignalHandler

from .cancel import OWNER, write_owner
from .dry_run import show
from .local import Outcome, run_here, run_locally, visible_gpus
from .naming import IN_WHEEL, as_typed, command
from .options import (
    CLUSTER_FILE,
    ON_THIS_MACHINE,
    add_cluster_options,
    choose_cluster,
    default_cluster,
    default_sweep,
    refuse,
    refuse_dashes,
    refuse_options_of_others,
    split_overrides,
)
from .plan import MANIFEST, RUNS, SWEEPS, Plan, build, write_plan
from .records import LOCK, Records, last_lines
from .states import blocked_by, done_jobs
from .submit import submit_sweep
from .sweep_file import SHIPPED, read_sweep, sweep_path

DESCRIPTION = """\
Expand a sweep into jobs (pack, train, probe, decode, analyze, report) and run the ones that are not done.

Repeat the same command to resume: it skips jobs that are done, queued or running, and adds those of a changed file.

Examples:
  python launch/sweep.py                              # the default sweep, on SLURM if available, else here
  python launch/sweep.py --cluster slurm              # the default sweep on SLURM
  python launch/sweep.py --cluster slurm --dry-run    # show the jobs, their batch scripts and the GPU-hours
  python launch/sweep.py --cluster slurm --partition gpu --gpus-per-node a100:4 beta_librispeech
  python launch/sweep.py seeds=[0,1,2]                # override keys of the sweep or of the configuration
  python launch/sweep.py --cluster local --jobs 4 configs/sweeps/smoke.yaml train.max_steps=100
  python launch/sweep.py --cluster slurm/profiles/mine.yaml configs/sweeps/beta_librispeech.yaml --wait

SWEEP is a YAML file, or the name of a shipped sweep:
  {shipped}
Without SWEEP: `default` on synthetic speech, or `default_librispeech` if data/librispeech is packed.

--cluster is `local` (processes on this machine), `debug` (in this process), `slurm`, or the name or file of a profile:
  {profiles}
`slurm` uses the profile that SIMDIST_CLUSTER names, else ~/.config/simdist/cluster.yaml, else one derived from SLURM's
partitions, GPUs and limits. Options such as --partition override it.

See also: python launch/status.py, python launch/logs.py, python launch/cancel.py.

Exit codes: 0 submitted or finished; 1 jobs failed (on SLURM only with --wait); 2 wrong input; 75 stopped by SIGTERM,
130 with Ctrl-C (run the same command again to resume).
"""
LOCK_SECONDS = 2.0
FILE_COLUMNS = 120  # of a table that goes to a file or a pipe
PACKAGES: dict[tuple[str, ...], tuple[str, str]] = {
    ("pack", "synthetic"): ("espeakng_loader", "demo"),
    ("analyze",): ("sklearn", "analysis"),  # which brings scipy, too
}
"""By the first word or words of a job's command: a module that it imports, and the extra that installs it."""


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    refuse_dashes(words)
    overrides, words = split_overrides(words)
    parsed = _parser().parse_args(words)
    refuse(parsed)
    console = Console(soft_wrap=True, highlight=False)
    if not console.is_terminal:
        console.width = FILE_COLUMNS
    file, overrides = _sweep_named(parsed.SWEEP, overrides, console)
    cluster = _cluster_named(parsed.cluster, console)
    refuse_options_of_others(parsed, cluster)
    try:
        plan, configs = build(read_sweep(file, overrides), parsed.runs, parsed.sweeps)
    except InputError as error:
        text = str(error)
        raise InputError(text if file in text else f"{file}: {text}") from error
    require_commands(plan)
    _check_requirements(plan, cluster in ON_THIS_MACHINE and not parsed.dry_run, console)
    choice = choose_cluster(parsed, cluster)
    for line in choice.lines() if choice else ():
        console.print(line, markup=False)
    if parsed.dry_run:
        show(plan, configs, cluster, console, choice)
        return EXIT_OK
    with sole_owner(plan.folder):
        write_plan(plan, configs)
        if choice is None:
            return _run_on_this_machine(plan, cluster, parsed.jobs, console)
        write_text(plan.folder / CLUSTER_FILE, choice.text())  # for jobs that submit others
        return submit_sweep(
            plan, cluster, console, prune=parsed.prune, wait=parsed.wait, choice=choice, every=parsed.every
        )


def _parser() -> Parser:
    shipped = ", ".join(sorted(path.stem for path in SHIPPED.glob("*.yaml")))
    about = DESCRIPTION.format(shipped=shipped, profiles=", ".join(profile_names()))
    parser = Parser(prog=command("sweep"), description=as_typed(about))
    add = parser.add_argument
    add("SWEEP", type=str | None, nargs="?", default=None, help="YAML file, or name of a shipped sweep; see above.")
    add(
        "overrides",
        type=str,
        nargs="*",
        default=[],
        metavar="key=value",
        help="Keys of the sweep or of the configuration; `stages.NAME=false` removes a stage.",
    )
    add(
        "--cluster",
        type=str | None,
        default=None,
        help="local, debug, slurm, or a profile; see above. Default: slurm if SLURM is configured, else local.",
    )
    add("--dry-run", action="store_true", help="Print the graph, the sbatch scripts and the GPU-hours; submit nothing.")
    add(
        "--jobs",
        type=int | None,
        default=None,
        help="With --cluster local: maximum number of processes. Default: one per GPU, or else one per two cores.",
    )
    add("--prune", action="store_true", help="On SLURM: cancel jobs of this sweep that the file no longer contains.")
    add(
        "--wait",
        action="store_true",
        help="On SLURM: stay until all jobs have ended, submit again those that were interrupted and could not requeue "
        "themselves, and exit with 1 if any failed. Without it, the command ends once the jobs are in the queue.",
    )
    add("--every", type=float, default=30.0, help="With --wait: seconds between queries of the queue.")
    add("--runs", type=Path, default=RUNS, help="Folder of the runs.")
    add("--sweeps", type=Path, default=SWEEPS, help="Folder of the sweeps' logs and reports.")
    add_cluster_options(parser)
    return parser


def _sweep_named(given: str | None, overrides: list[str], console: Console) -> tuple[str, list[str]]:
    """The sweep's file and all overrides; prints the default if none was given."""
    if given is not None:
        return str(sweep_path(given)), overrides
    chosen = default_sweep(overrides)
    name = chosen.file.stem
    console.print(f"sweep: {name}, {chosen.reason} (another: `{command('sweep', 'SWEEP.yaml')}`)", markup=False)
    return str(chosen.file), [*chosen.overrides, *overrides]


def _cluster_named(given: str | None, console: Console) -> str:
    """The cluster; prints the default and its reason if none was given.

    Raises:
        InputError: there is no such cluster or profile.
    """
    if given is not None:
        known = (*ON_THIS_MACHINE, "slurm", *profile_names())
        if given not in known and not Path(given).is_file():
            listed = ", ".join(known)
            raise InputError(f"--cluster is {given!r}; it must be {listed}, or the path of a profile of your own")
        return given
    cluster, reason = default_cluster()
    console.print(f"cluster: {cluster}, because {reason} (another: `--cluster NAME`)", markup=False)
    return cluster


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


def _check_requirements(plan: Plan, needed_here: bool, console: Console) -> None:
    """Raise `InputError` for missing packages or data; only warn if no job runs here."""
    done = done_jobs(plan)
    for missing in (missing_packages(plan, done), missing_corpus(plan, done)):
        if missing is not None and needed_here:
            raise InputError(missing)
        if missing is not None:
            console.print(f"warning: {missing}", style="yellow", markup=False)


def sole_owner(folder: Path) -> filelock.BaseFileLock:
    """A lock on the sweep's folder.

    Raises:
        InputError: another process holds it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock = filelock.FileLock(folder / LOCK)
    try:
        return lock.acquire(timeout=LOCK_SECONDS).lock
    except filelock.Timeout as error:
        name = folder.name
        raise InputError(
            f"another process is running or submitting {name}. Follow it with `{command('status', name, '--watch')}`, "
            f"or stop it with `{command('cancel', name)}`."
        ) from error


def _run_on_this_machine(plan: Plan, cluster: str, jobs: int | None, console: Console) -> int:
    def log(text: str) -> None:
        console.print(text, markup=False)

    write_owner(plan.folder)
    log(f"{plan.name}: {counted(len(plan.runs), 'run')}, {counted(len(plan.jobs), 'job')}; logs in {plan.folder}/logs")
    if cluster == "debug":
        outcome = run_here(plan, log)
    else:
        devices = visible_gpus(os.environ)
        number = jobs or len(devices) or max(1, (os.cpu_count() or 1) // 2)
        stop = SignalHandler()
        with stop.installed():
            outcome = run_locally(plan, number, log, stop, devices)
    (plan.folder / OWNER).unlink(missing_ok=True)
    _conclude(plan, outcome, console)
    return outcome.code


def _conclude(plan: Plan, outcome: Outcome, console: Console) -> None:
    """Print failed jobs and their reasons, blocked jobs, and the report's table."""
    records = Records(plan.folder).latest()
    for name, code in outcome.failed.items():
        console.print(f"{name} failed with exit code {code}:", style="bold red")
        for line in last_lines(records.get(name), 5):
            console.print(f"    {line}", markup=False)
    blocked = Counter(blocked_by(plan, outcome.failed).values())
    for root, number in blocked.items():
        console.print(f"{counted(number, 'job')} will not run because {root} failed", markup=False)
    out = plan.folder / "report"
    report = next((job.name for job in plan.jobs.values() if job.kind == "report"), None)
    if report in outcome.done and (out / "report.txt").is_file():
        console.print((out / "report.txt").read_text(), markup=False)
        page = out / "report.html"
        console.print(f"report: {page if page.is_file() else out}", markup=False)
    if outcome.signal_number:
        console.print("stopped; finished work is kept, and the same command resumes")
    else:
        console.print(f"{len(outcome.done)} of {len(plan.jobs)} jobs are done")


if __name__ == "__main__":
    run(main)
