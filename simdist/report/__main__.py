"""Summarize runs in tables and a page: `python -m simdist.report RUN… --out DIR`.

Runs that differ only in the seed are one row, with mean and standard deviation. The columns that tell rows apart are
found by comparing configurations. Imports no torch.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from io import StringIO
from pathlib import Path
from typing import Any, Literal

from rich.console import Console
from rich.progress import track

from simdist.config.parser import Parser
from simdist.core.console import run
from simdist.core.errors import EXIT_OK, InputError
from simdist.core.files import write_text
from simdist.report.analysis_tables import analysis_sections, difference_sections
from simdist.report.collect import Divergence, RunContent, RunRecord, find_runs, read_run, unique_names
from simdist.report.exports import as_latex, as_markdown, as_rich, measurements_csv, summary_csv
from simdist.report.files import UnreadableFile
from simdist.report.selection import MOST_DETAILED, Selection, select
from simdist.report.summary import Cell, Statistic, compare, group_keys, summarize
from simdist.report.tables import Section, sections

DESCRIPTION = """\
Summarize runs in tables, and in a page with curves, figures and audio. Runs that differ only in the seed are one row:
mean ± sample standard deviation.

Examples:
  python -m simdist.report runs
  python -m simdist.report runs/sim-1dafb3c5 runs/gim-7a0e11b2 --out report
  python -m simdist.report runs --out report --detail sim-1dafb3c5,gim-7a0e11b2 --title "SIM and GIM"
  python -m simdist.report runs --metric balanced_accuracy

Writes to --out: report.html (one file, no network needed to read it), report.md, report.tex (booktabs), report.txt (as
printed), summary.csv (one row per mean), results.csv (one row per measurement). See docs/tasks/report.md.

Exit codes: 0 finished; 1 failed (such as a full disk); 2 wrong input.
"""
COLUMNS = 200  # width of a table in a file
MOST_PROBLEMS = 10  # named on the terminal
PACKAGES = ("jinja2", "markupsafe", "bokeh", "scipy", "PIL", "matplotlib")
INSTALL = "pip install 'simdist[report]'"


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    parser = Parser(prog="python -m simdist.report", description=DESCRIPTION)
    parser.add_argument("RUN", type=str, nargs="+", help="Run folders, or folders of runs.")
    parser.add_argument(
        "--out", type=Path | None, default=None, help="Folder for the files. Without it, the tables are only printed."
    )
    metrics = Literal["accuracy", "balanced_accuracy", "accuracy_without_silence"]
    parser.add_argument("--metric", type=metrics, default="accuracy", help="Metric in the table of probes.")
    parser.add_argument(
        "--detail",
        type=str,
        default="",
        help="Which runs the page shows with figures and audio (tables and curves show all): their names, separated by "
        "commas, or how many. A number selects one run of each encoder, first those with analyses and high accuracies. "
        f"Default: {MOST_DETAILED}.",
    )
    parser.add_argument("--title", type=str, default="", help="Title of the page. Default: the names of the encoders.")
    parsed = parser.parse_args(argv)
    report([Path(path) for path in parsed.RUN], parsed.out, parsed.metric, parsed.detail, parsed.title)
    return EXIT_OK


def report(
    paths: Sequence[Path], out: Path | None = None, metric: str = "accuracy", detail: str = "", title: str = ""
) -> None:
    """Print the tables of these runs, and write them and the page to `out`.

    Args:
        paths: run folders, or folders of runs; those that do not exist are named and left out, if others do.
        out: where report.html, report.md, report.tex, report.txt, summary.csv and results.csv go.
        metric: of the probes.
        detail: which runs are shown with figures and sounds; see `select`.
        title: heading of the page; empty takes the encoders' names.

    Raises:
        InputError: none of the paths is or holds a run that can be read; `out` cannot be written; `detail` names a run
            that is not there.
    """
    console = Console(highlight=False, soft_wrap=True)
    if not console.is_terminal:
        console.width = COLUMNS
    there = [path for path in paths if path.exists()]
    missing = [path for path in paths if not path.exists()]
    runs, problems = _read(find_runs(there or paths))
    records = [run.record for run in runs]
    measurements = [item for run in runs for item in run.measurements]
    keys = group_keys(records)
    cells = summarize(records, measurements, keys)
    selection = select(runs, cells, keys, detail)
    comparisons = compare(cells, metric)
    reductions = [str(record.config.get("loss.kl_reduction")) for record in records]
    made = sections(cells, keys, metric, comparisons, reductions)
    made += [*difference_sections(comparisons, keys), *analysis_sections(cells, keys)]
    notes = [*_notes(records, missing), *dict.fromkeys(text for run in runs for text in run.warnings)]
    said = [*notes, *_passed_over(problems)]
    text = _as_text(made, said)
    if console.is_terminal:
        _show(console, made, said)
    else:
        console.out(text, end="")
    if out is None:
        return
    _write(out, {
        "report.txt": text,
        "report.md": "\n".join([as_markdown(section) for section in made] + [*said, ""]),
        "report.tex": as_latex(made),
        "summary.csv": summary_csv(cells, keys),
        "results.csv": measurements_csv(records, measurements, keys),
    })  # fmt: skip
    title = title or f"Report: {', '.join(dict.fromkeys(record.config['name'] for record in records))}"
    is_whole = _write_page(out, title, runs, cells, selection, made, notes, problems)
    files = f"{'report.html, ' * is_whole}report.md, report.tex, report.txt, summary.csv, results.csv"
    console.print(f"written to {out}: {files}", markup=False)
    if not is_whole:
        console.print(f"report.html is missing because a package is not installed: {INSTALL}", markup=False)


def _read(folders: Sequence[Path]) -> tuple[list[RunContent], list[UnreadableFile]]:
    """Every run that can be read, under names that tell them apart, and the files that cannot."""
    runs, problems = [], []
    called = unique_names(folders)
    for folder in _track(folders, "reading runs", len(folders)):
        found = read_run(folder, called[folder])
        if isinstance(found, UnreadableFile):
            problems.append(found)
        else:
            runs.append(found)
            problems += found.problems
    if not runs:
        raise InputError(f"none of the runs can be read: {problems[0]}. Is it a run of simdist?")
    return runs, problems


def _write_page(
    out: Path,
    title: str,
    runs: Sequence[RunContent],
    cells: Mapping[Cell, Statistic],
    selection: Selection,
    made: Sequence[Section],
    notes: Sequence[str],
    problems: list[UnreadableFile],
) -> bool:
    """Write report.html; False where a package that it needs is not installed."""
    try:
        from simdist.report.page import Contents, render
    except ImportError as error:
        if (error.name or "").partition(".")[0] not in PACKAGES:
            raise
        return False
    page = render(Contents(title, runs, cells, selection, made, notes, problems), _track)
    with _naming(out):
        write_text(out / "report.html", page)
    return True


def _track(items: Iterable[Any], what: str, total: int) -> Iterable[Any]:
    """A progress bar on a terminal; nothing elsewhere."""
    console = Console(stderr=True)
    return track(items, what, total, console=console, transient=True, disable=not console.is_terminal)


def _show(console: Console, made: Sequence[Section], notes: Sequence[str]) -> None:
    for section in made:
        console.print(as_rich(section))
        console.print()
    if not made:
        console.print("none of these runs has results yet")
    for note in notes:
        console.print(note, markup=False)


def _as_text(made: Sequence[Section], notes: Sequence[str]) -> str:
    """What a terminal without a width shows."""
    text = StringIO()
    _show(Console(file=text, width=COLUMNS, soft_wrap=True, highlight=False), made, notes)
    return text.getvalue()


def _write(out: Path, files: dict[str, str]) -> None:
    with _naming(out):
        out.mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            write_text(out / name, content)


@contextmanager
def _naming(out: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise InputError(f"--out {out} cannot be written ({error.strerror}). Choose another folder") from error


def _passed_over(problems: Sequence[UnreadableFile]) -> list[str]:
    """One line for each of the first problems; the page lists all."""
    lines = [f"skipped: {problem}" for problem in problems[:MOST_PROBLEMS]]
    return lines + [f"and {len(problems) - MOST_PROBLEMS} more"] * (len(problems) > MOST_PROBLEMS)


def _divergence(item: Divergence) -> str:
    shown = f"means include its last finite values, of step {item.finite_step}"
    if item.finite_step is None:
        shown = "it has no finite values"
    return f"module {item.module} diverged at step {item.step}: its metrics are not finite since then; {shown}"


def _notes(records: Sequence[RunRecord], missing: Sequence[Path]) -> list[str]:
    """Runs that are unfinished or missing, or have collapsed or diverged modules."""
    notes = [f"{record.name} is not finished: step {record.step}" for record in records if not record.finished]
    notes += [
        f"{record.name}: module {m} has collapsed (InfoNCE at chance, no active dimension); all means include it"
        for record in records
        for m in record.idle
    ]
    notes += [f"{record.name}: {_divergence(item)}" for record in records for item in record.diverged]
    return notes + [f"{path.name} is missing: {path} does not exist" for path in missing]


if __name__ == "__main__":
    run(main)
