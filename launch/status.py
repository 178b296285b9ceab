"""Show the progress of sweeps and runs: `python launch/status.py [SWEEP] [--watch] [--json]`."""

from __future__ import annotations

import dataclasses
import json
import math
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

if __name__ == "__main__" and not __package__:  # run as a script: relative imports need the package (PEP 366)
    sys.path[0] = str(Path(__file__).resolve().parent.parent)
    __package__ = "launch"

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from simdist.config.parser import Parser
from simdist.core.console import run
from simdist.core.errors import EXIT_OK, InputError, counted

from .naming import as_typed, command
from .overview import WORST_FIRST, Overview, Row, loose_runs, overview
from .plan import RUNS, SWEEPS, find_sweeps, read_plan
from .records import last_lines
from .scheduler import Scheduler, SchedulerError
from .slurm import SlurmScheduler, has_slurm

DESCRIPTION = """\
Show a table of all runs: stage, state, step, time left, loss of each module, restarts, node, age of the heartbeat. The
sources are the run folders, squeue and sacct, in this order.

States: done; running; queued; missing (not started, or its options have changed); stopped (interrupted; the sweep's
command resumes it); failed; cancelled; blocked (a job that it needs failed or was cancelled).

Examples:
  python launch/status.py
  python launch/status.py smoke --watch
  python launch/status.py configs/sweeps/smoke.yaml --json

Exit codes: 0 shown, whatever the states are; 2 wrong input, or SLURM does not answer.
"""
COLORS = {"failed": "bold red", "running": "green", "queued": "cyan", "done": "dim", "stopped": "yellow"}
LOG_LINES = 5
LONGEST_PAUSE = 300.0  # of --watch, after looks that failed
SHOWN_FAILURES = 10
FILE_COLUMNS = 240  # of a table that goes to a file or a pipe


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    parser = Parser(prog=command("status"), description=as_typed(DESCRIPTION))
    parser.add_argument(
        "SWEEP", type=str | None, nargs="?", default=None, help="Name or file of a sweep. Default: all sweeps and runs."
    )
    parser.add_argument("--watch", action="store_true", help="Refresh the table until Ctrl-C.")
    parser.add_argument("--every", type=float, default=5.0, help="With --watch: seconds between refreshes.")
    parser.add_argument(
        "--rows", type=int, default=200, help="Maximum number of runs to show per sweep, failed ones first."
    )
    parser.add_argument("--json", action="store_true", help="Print all runs and jobs as JSON instead.")
    parser.add_argument("--runs", type=Path, default=RUNS, help="Folder of the runs.")
    parser.add_argument("--sweeps", type=Path, default=SWEEPS, help="Folder of the sweeps.")
    parsed = parser.parse_args(argv)
    if parsed.rows < 1:
        raise InputError(f"--rows is {parsed.rows}; it must be at least 1")
    if parsed.every <= 0:
        raise InputError(f"--every is {parsed.every:g}; it must be more than 0 seconds")
    if parsed.watch and parsed.json:
        raise InputError("--watch and --json cannot be combined. Call --json repeatedly instead")
    if parsed.watch:
        return _watch(parsed.SWEEP, parsed.runs, parsed.sweeps, parsed.every)
    found = look(parsed.SWEEP, parsed.runs, parsed.sweeps)
    if parsed.json:
        print(json.dumps([as_json(one) for one in found], indent=1))
        return EXIT_OK
    console = Console(soft_wrap=True, highlight=False)
    if not console.is_terminal:
        console.width = FILE_COLUMNS
    for one in found:
        console.print(as_renderable(one, parsed.rows))
    return EXIT_OK


def look(name: str | None, runs: Path, sweeps: Path, scheduler: Scheduler | None = None) -> list[Overview]:
    """One sweep, or all sweeps and the runs outside of them.

    Args:
        name: of the sweep; None is all.
        runs: folder of the runs.
        sweeps: folder of the sweeps.
        scheduler: one that remembers what is final, for looks that are repeated.

    Raises:
        InputError: there is neither a sweep nor a run.
    """
    try:
        plans = [read_plan(folder) for folder in find_sweeps(sweeps, name)]
    except InputError:
        if name is not None or not runs.is_dir():
            raise
        plans = []
    found = [overview(plan, scheduler) for plan in plans]
    if name is None:
        known = {run.folder.resolve() for plan in plans for run in plan.runs.values()}
        loose = loose_runs(runs, known)
        found += [loose] if loose.rows else []
    if not found:
        raise InputError(f"there is no sweep in {sweeps} and no run in {runs}; start one, or name other folders")
    return found


def _watch(name: str | None, runs: Path, sweeps: Path, every: float) -> int:
    console = Console(highlight=False)
    scheduler = SlurmScheduler() if has_slurm() else None
    found, seconds, note = look(name, runs, sweeps, scheduler), every, ""
    try:
        with Live(_live(found), console=console, screen=console.is_terminal, auto_refresh=False) as live:
            while True:
                time.sleep(seconds)
                try:
                    found, seconds, note = look(name, runs, sweeps, scheduler), every, ""
                except SchedulerError as error:
                    seconds = min(2 * seconds, LONGEST_PAUSE)
                    note = f"{error}; the table shows the last answer; retrying in {seconds:.0f} s"
                live.update(_live(found, note), refresh=True)
    except KeyboardInterrupt:
        return EXIT_OK


def _live(found: Sequence[Overview], note: str = "") -> Group:
    """Running jobs come before finished ones, because a terminal shows the first lines."""
    order = [
        dataclasses.replace(one, rows=sorted(one.rows, key=lambda row: WORST_FIRST.index(row.status))) for one in found
    ]
    head = [Text(time.strftime("%H:%M:%S  Ctrl-C to exit")), *([Text(note, "yellow")] if note else [])]
    return Group(*head, *(as_renderable(one) for one in order))


def as_renderable(found: Overview, num_rows: int = 200) -> RenderableType:
    """A table, failed jobs with the end of their logs, blocked jobs, and counts."""
    rows = found.rows
    if len(rows) > num_rows:
        rows = sorted(rows, key=lambda row: WORST_FIRST.index(row.status))[:num_rows]
    parts: list[RenderableType] = [_table(found.name, rows)]
    if len(rows) < len(found.rows):
        parts.append(
            Text(f"… and {counted(len(found.rows) - len(rows), 'more run')} (--rows {len(found.rows)} shows all)")
        )
    parts += [Text(sentence, "yellow") for sentence in found.damaged[:SHOWN_FAILURES]]
    warned = [(row.run, text) for row in rows for text in (row.progress.warning, row.progress.stragglers) if text]
    parts += [Text(f"{name}: {text}", "yellow") for name, text in warned[:SHOWN_FAILURES]]
    if len(warned) > SHOWN_FAILURES:
        parts.append(Text(f"… and {counted(len(warned) - SHOWN_FAILURES, 'more warning')} (--json lists all)"))
    failed = [name for name, state in found.states.items() if state.status == "failed"]
    for name in failed[:SHOWN_FAILURES]:
        parts.append(Text(f"{name} failed: {found.states[name].reason}", "bold red"))
        record = found.records.get(name)
        parts += [Text(f"    {line}") for line in last_lines(record, LOG_LINES)]
    if len(failed) > SHOWN_FAILURES:
        parts.append(Text(f"… and {counted(len(failed) - SHOWN_FAILURES, 'more failed job')} (--json lists all)"))
    blocked = [(name, state.reason) for name, state in found.states.items() if state.status == "blocked"]
    parts += [Text(f"{name} will never run: {reason}") for name, reason in blocked[:SHOWN_FAILURES]]
    if len(blocked) > SHOWN_FAILURES:
        parts.append(Text(f"… and {counted(len(blocked) - SHOWN_FAILURES, 'more job')} that will never run"))
    if found.num_held:
        fed = any(state.in_queue for state in found.states.values())
        again = "each job that ends submits some" if fed else "run the sweep's command again"
        parts.append(
            Text(f"{counted(found.num_held, 'job')} held back until there is room in the queue: {again}", "yellow")
        )
    counts = ", ".join(f"{found.count(word)} {word}" for word in reversed(WORST_FIRST) if found.count(word))
    parts.append(Text(f"{found.name}: {counted(len(found.states), 'job')}: {counts}"))
    return Group(*parts)


def _table(name: str, rows: Sequence[Row]) -> Table:
    varied = list(dict.fromkeys(key for row in rows for key in row.varied))
    table = Table(title=name, title_justify="left")
    heads = [key.rpartition(".")[2] for key in varied]
    for head in ("run", *heads, "stage", "state"):
        table.add_column(head, no_wrap=True)
    for head in ("step", "left", "losses", "restarts"):
        table.add_column(head, justify="right", no_wrap=True)
    table.add_column("node", no_wrap=True)
    table.add_column("heartbeat", justify="right", no_wrap=True)
    for row in rows:
        table.add_row(row.run, *(_plain(row.varied.get(key)) for key in varied), *_cells(row))
    return table


def _cells(row: Row) -> list[RenderableType]:
    progress = row.progress
    total = "?" if progress.total is None else f"{progress.total:,}"
    left = duration(progress.seconds_left) if row.stage.startswith("train") and row.status == "running" else ""
    reason = f" ({row.reason})" if row.reason and row.status not in ("done", "blocked", "failed") else ""
    return [
        row.stage,
        Text(f"{row.status}{reason}", COLORS.get(row.status, "")),
        f"{progress.step:,}/{total}",
        left,
        " ".join(f"{loss:.3f}" for loss in progress.losses),
        str(progress.restarts),
        row.node,
        duration(progress.heartbeat),
    ]


def duration(seconds: float | None) -> str:
    """`2 d 3 h`, `3 h 12 min`, `4 min 5 s`, `7 s`; nothing for None."""
    if seconds is None or not math.isfinite(seconds):
        return ""
    whole = round(seconds)
    units = (("d", 86_400), ("h", 3600), ("min", 60), ("s", 1))
    parts = []
    for name, size in units:
        number, whole = divmod(whole, size)
        if number:
            parts.append(f"{number} {name}")
    return " ".join(parts[:2]) or "0 s"


def _plain(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else "" if value is None else str(value)


def as_json(found: Overview) -> dict[str, Any]:
    """All information, for programs."""
    runs = [dataclasses.asdict(row) | {"seconds_left": row.progress.seconds_left} for row in found.rows]
    jobs = {name: dataclasses.asdict(state) for name, state in found.states.items()}
    for name, record in found.records.items():
        if name in jobs:
            jobs[name] |= {"id": record.id, "cluster": record.cluster, "log": str(record.log), "starts": record.starts}
    return {"sweep": found.name, "runs": runs, "jobs": jobs, "damaged": list(found.damaged)}


if __name__ == "__main__":
    run(main, is_viewer=True)
