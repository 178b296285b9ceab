"""Tables for a paper: LaTeX with booktabs, one `table` (or `longtable`) each."""

from __future__ import annotations

from collections.abc import Sequence

from simdist.report.tables import Section

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
