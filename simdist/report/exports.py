"""Tables as text for the terminal, Markdown, LaTeX (booktabs) and CSV."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from typing import Any

from rich.markup import escape as rich_escape
from rich.table import Table

from simdist.report.collect import RunRecord
from simdist.report.measurements import Measurement
from simdist.report.summary import Cell, Statistic
from simdist.report.tables import Section


def as_rich(section: Section) -> Table:
    """For the terminal."""
    note = rich_escape(section.note) or None
    table = Table(title=rich_escape(section.title), title_justify="left", caption=note, caption_justify="left")
    for number, column in enumerate(section.columns):
        table.add_column(rich_escape(column), justify="left" if number < section.num_text else "right", no_wrap=True)
    for row in section.rows:
        table.add_row(*map(rich_escape, row))
    return table


def as_markdown(section: Section) -> str:
    """A heading and a table."""
    marks = [":--" if number < section.num_text else "--:" for number in range(len(section.columns))]
    rows = [section.columns, marks, *section.rows]
    lines = ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]
    notes = ["", section.note] if section.note else []
    return "\n".join([f"## {section.title}", "", *lines, *notes, ""])


LONG = 45  # rows that fit a page
SPECIAL = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}",
    "|": r"\textbar{}", "±": r"$\pm$", "–": "--", "↑": r"$\uparrow$", "↓": r"$\downarrow$", "²": r"$^2$", "−": "$-$",
}  # fmt: skip
HEAD = """\
% Made by python -m simdist.report. Needs \\usepackage{booktabs}, and \\usepackage{longtable} where a table is long.
"""


def escape(text: str) -> str:
    """Text that LaTeX prints as it is."""
    return "".join(SPECIAL.get(character, character) for character in text)


def as_latex(made: Sequence[Section]) -> str:
    """All tables, ready for `\\input`."""
    return HEAD + "\n".join(_table(section) for section in made)


def _table(section: Section) -> str:
    columns = "l" * section.num_text + "r" * (len(section.columns) - section.num_text)
    rows = [" & ".join(map(escape, row)) + r" \\" for row in section.rows]
    head = [r"\toprule", " & ".join(map(escape, section.columns)) + r" \\", r"\midrule"]
    caption = rf"\caption{{{escape(section.title)}.{escape(' ' + section.note) if section.note else ''}}}"
    label = rf"\label{{tab:{section.name}}}"
    if len(rows) > LONG:
        begin = [rf"\begin{{longtable}}{{{columns}}}", f"{caption}{label} " + r"\\", *head, r"\endhead"]
        return "\n".join([*begin, *rows, r"\bottomrule", r"\end{longtable}", ""])
    begin = [r"\begin{table}", r"\centering", caption, label, rf"\begin{{tabular}}{{{columns}}}", *head]
    return "\n".join([*begin, *rows, r"\bottomrule", r"\end{tabular}", r"\end{table}", ""])


def measurements_csv(runs: Sequence[RunRecord], measurements: Sequence[Measurement], keys: Sequence[str]) -> str:
    """One row per measurement."""
    configs = {run.name: run for run in runs}
    columns = ["run", *keys, "seed", "family", "label", "features", "what", "module", "metric", "value"]
    rows = []
    for item in measurements:
        run = configs[item.run]
        config = [run.config.get(key) for key in keys]
        what = [item.what.get("label", ""), item.what.get("features", ""), json.dumps(item.what, sort_keys=True)]
        rows.append([item.run, *config, run.seed, item.family, *what, item.module, item.metric, repr(item.value)])
    return _csv(columns, rows)


def summary_csv(cells: Mapping[Cell, Statistic], keys: Sequence[str]) -> str:
    """One row per mean."""
    columns = [*keys, "family", "label", "features", "what", "module", "metric", "seeds", "mean", "standard_deviation"]
    columns.append("standard_deviation_of_probes")
    rows = []
    for cell, value in cells.items():
        said = json.loads(cell.what)
        what = [said.get("label", ""), said.get("features", ""), cell.what]
        spreads = [None if spread is None else repr(spread) for spread in (value.deviation, value.deviation_of_probes)]
        numbers = [value.count, repr(value.mean), *spreads]
        rows.append([*cell.group, cell.family, *what, cell.module, cell.metric, *numbers])
    return _csv(columns, rows)


def _csv(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(["" if value is None else value for value in row] for row in rows)
    return text.getvalue()
