"""Print the log of a job: `python launch/logs.py NAME [--follow]`, by the name of a run or of a job."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

if __name__ == "__main__" and not __package__:  # run as a script: relative imports need the package (PEP 366)
    sys.path[0] = str(Path(__file__).resolve().parent.parent)
    __package__ = "launch"

from simdist.config.parser import Parser
from simdist.core.console import run
from simdist.core.errors import EXIT_OK, InputError

from .naming import as_typed, command
from .plan import SWEEPS, Job, find_sweeps, read_plan
from .records import Record, Records

DESCRIPTION = """\
Print the end of the log of a job, or of the latest job of a run. --follow also shows the log of the job's successor.

NAME is a run, such as smoke-90eec1de, or the first letters of one; or a job, such as train/smoke-90eec1de or
probe/smoke-90eec1de/speaker-module3. `python launch/status.py --json` lists all jobs.

Examples:
  python launch/logs.py smoke-90eec1de --follow
  python launch/logs.py train/smoke-90eec1de --lines 200
  python launch/logs.py smoke-90eec1de --list

Exit codes: 0 shown; 2 wrong input, such as a job that was not started yet.
"""
LOOK_SECONDS = 0.5
RECORD_SECONDS = 5.0  # between two looks for a successor's log


@dataclass(frozen=True)
class Found:
    """A job that was started, and the records of its sweep."""

    job: Job
    records: Records

    @property
    def record(self) -> Record:
        return self.records.latest()[self.job.name]


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    parser = Parser(prog=command("logs"), description=as_typed(DESCRIPTION))
    parser.add_argument("NAME", type=str, help="Run, first letters of a run, or job; see above.")
    parser.add_argument("--lines", type=int, default=50, help="Number of lines to print, from the end.")
    parser.add_argument("--follow", action="store_true", help="Keep printing new lines until Ctrl-C.")
    parser.add_argument("--list", action="store_true", help="Print the paths of all matching logs instead.")
    parser.add_argument("--sweeps", type=Path, default=SWEEPS, help="Folder of the sweeps.")
    parsed = parser.parse_args(argv)
    if parsed.lines < 0:
        raise InputError(f"--lines is {parsed.lines}; it must be 0 or more")
    matches = find_jobs(parsed.NAME, parsed.sweeps)
    if parsed.list:
        for found in matches:
            print(f"{found.job.name}: {found.record.log}")
        return EXIT_OK
    latest = max(matches, key=lambda found: found.record.time)
    print(f"==> {latest.job.name}: {latest.record.log}", flush=True)
    try:
        for text in contents(latest, parsed.lines, parsed.follow):
            print(text, end="", flush=True)
    except KeyboardInterrupt:
        pass
    return EXIT_OK


def find_jobs(name: str, sweeps: Path) -> list[Found]:
    """Jobs of this name, or of the one run that is called so, that were started.

    Raises:
        InputError: no job was started under that name, or the name could be that of several runs.
    """
    jobs: list[Found] = []
    runs: set[str] = set()
    for folder in find_sweeps(sweeps, None):
        plan, records = read_plan(folder), Records(folder)
        started = records.latest()
        runs |= set(plan.runs)
        jobs += [Found(job, records) for job in plan.jobs.values() if job.name in started]
    exact = [found for found in jobs if found.job.name == name]
    if exact:
        return exact
    called = {name} if name in runs else {run for run in runs if run.startswith(name)}
    if len(called) > 1:
        raise InputError(f"{name!r} is ambiguous: it begins the names of {len(called)} runs: {_some(sorted(called))}")
    matches = [found for found in jobs if found.job.run in called]
    if not matches:
        known = _some(sorted(runs)) if not called else ""
        why = f"there is no run or job {name!r}. Runs: {known}" if known else f"no job of {name!r} was started yet"
        raise InputError(f"{why} (`{command('status')}` shows them all)")
    return matches


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def contents(found: Found, lines: int, follow: bool) -> Iterator[str]:
    """The end of a log; with `follow`, then all that is added, to this log or to a successor's."""
    path = found.record.log
    position = 0
    if path.is_file():
        whole = path.read_bytes()
        last = whole.splitlines(keepends=True)[-lines:] if lines else []
        yield b"".join(last).decode(errors="replace")
        position = len(whole)
    elif not follow:
        raise InputError(f"{path} does not exist yet, because the job is waiting. `{command('status')}` shows why")
    looked = time.monotonic()
    while follow:
        if path.is_file() and path.stat().st_size > position:
            with path.open("rb") as file:
                file.seek(position)
                added = file.read()
            position += len(added)
            yield added.decode(errors="replace")
        time.sleep(LOOK_SECONDS)
        if time.monotonic() - looked > RECORD_SECONDS:
            looked = time.monotonic()
            if found.record.log != path:
                path, position = found.record.log, 0
                yield f"==> {found.job.name}: {path}\n"


if __name__ == "__main__":
    run(main, is_viewer=True)
