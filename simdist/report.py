"""A folder of runs becomes tables: `python -m simdist.report RUN…`.

Runs that differ in nothing but the seed are one row, with mean and standard deviation. What tells the rows apart is
found by comparing configurations. Imports no torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from rich.console import Console

from simdist.cli import Parser, run
from simdist.durable import write_text
from simdist.errors import EXIT_OK, InputError
from simdist.reporting.collect import RunRecord, find_runs, read_run
from simdist.reporting.summary import group_keys, summarize
from simdist.reporting.tables import Section, as_markdown, as_rich, measurements_csv, sections, summary_csv

DESCRIPTION = """\
Tables of what runs have reached: losses of each greedy module, probes, few labels. Runs that differ only in their seed
are one row: mean ± sample standard deviation.

Examples:
  python -m simdist.report runs
  python -m simdist.report runs/sim-1dafb3c5 runs/gim-7a0e11b2 --out report
  python -m simdist.report runs --metric balanced_accuracy

Writes to --out: report.md, report.txt (as printed), summary.csv (a row a mean), results.csv (a row a number of a run).
"""
COLUMNS = 200  # of a table in a file, which has no width of its own


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    parser = Parser(prog="python -m simdist.report", description=DESCRIPTION)
    parser.add_argument("RUN", type=str, nargs="+", help="Run folders, or folders of runs.")
    parser.add_argument(
        "--out", type=Path | None, default=None, help="Folder for the files; nothing is written without it."
    )
    metrics = Literal["accuracy", "balanced_accuracy", "accuracy_without_silence"]
    parser.add_argument("--metric", type=metrics, default="accuracy", help="What the table of probes shows.")
    parsed = parser.parse_args(argv)
    report([Path(path) for path in parsed.RUN], parsed.out, parsed.metric)
    return EXIT_OK


def report(paths: Sequence[Path], out: Path | None = None, metric: str = "accuracy") -> None:
    """Print the tables of these runs, and write them to `out`.

    Args:
        paths: run folders, or folders of runs; those that do not exist are named and left out, if others do.
        out: where report.md, report.txt, summary.csv and results.csv go.
        metric: of the probes.

    Raises:
        InputError: none of the paths is or holds a run; `out` cannot be written.
    """
    there = [path for path in paths if path.exists()]
    missing = [path for path in paths if not path.exists()]
    folders = find_runs(there or paths)
    records, measurements = [], []
    for folder in folders:
        record, found = read_run(folder)
        records.append(record)
        measurements += found
    keys = group_keys(records)
    cells = summarize(records, measurements, keys)
    made, notes = sections(cells, keys, metric), _notes(records, missing)
    console = Console(highlight=False, soft_wrap=True)
    if not console.is_terminal:
        console.width = COLUMNS
    _show(console, made, notes)
    if out is not None:
        _write(out, made, notes, {
            "summary.csv": summary_csv(cells, keys),
            "results.csv": measurements_csv(records, measurements, keys),
        })  # fmt: skip
        console.print(f"written to {out}: report.md, report.txt, summary.csv, results.csv", markup=False)


def _show(console: Console, made: Sequence[Section], notes: Sequence[str]) -> None:
    for section in made:
        console.print(as_rich(section))
        console.print()
    if not made:
        console.print("none of these runs has measured anything yet")
    for note in notes:
        console.print(note, markup=False)


def _write(out: Path, made: Sequence[Section], notes: Sequence[str], files: dict[str, str]) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
        with (out / "report.txt").open("w", encoding="utf-8") as file:
            _show(Console(file=file, width=COLUMNS, soft_wrap=True), made, notes)
        write_text(out / "report.md", "\n".join([as_markdown(section) for section in made] + [*notes, ""]))
        for name, text in files.items():
            write_text(out / name, text)
    except OSError as error:
        raise InputError(f"--out {out} cannot be written ({error.strerror}); name another folder") from error


def _notes(records: Sequence[RunRecord], missing: Sequence[Path]) -> list[str]:
    """Runs that a reader of the tables must know to be unfinished or absent."""
    notes = [f"{record.name} is not finished: step {record.step}" for record in records if not record.finished]
    return notes + [f"{path.name} is missing: {path} does not exist" for path in missing]


if __name__ == "__main__":
    run(main)
