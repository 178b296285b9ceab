"""LaTeX tables: structure and escaping; no TeX is needed."""

from __future__ import annotations

import re

import pytest

from simdist.report.exports import LONG, as_latex, escape
from simdist.report.tables import Section

SECTION = Section(
    "probes", "Probes in %", ["run_name", "seeds", "module 0"], [["a&b", "3", "61.2 ± 0.4 *"]], 1, "x < y"
)


def test_a_table_is_booktabs_with_numbers_to_the_right() -> None:
    text = as_latex([SECTION])
    assert r"\begin{tabular}{lrr}" in text
    lines = text.splitlines()
    places = [lines.index(rule) for rule in (r"\toprule", r"\midrule", r"\bottomrule")]
    assert places == sorted(places)
    assert lines[places[0] + 1] == r"run\_name & seeds & module 0 \\"
    assert lines[places[1] + 1] == r"a\&b & 3 & 61.2 $\pm$ 0.4 * \\"
    assert r"\caption{Probes in \%. x \textless{} y}" in text
    assert r"\label{tab:probes}" in text


def test_every_environment_is_closed_and_every_row_has_all_cells() -> None:
    rows = [[f"r{number}", "1", "2"] for number in range(LONG + 1)]
    long = Section("long", "Long", ["a", "b", "c"], rows, 1)
    text = as_latex([SECTION, long])
    assert r"\begin{longtable}" in text
    opened, closed = re.findall(r"\\begin{(\w+)}", text), re.findall(r"\\end{(\w+)}", text)
    assert sorted(opened) == sorted(closed)
    assert all(
        len(re.findall(r"(?<!\\)&", line)) == 2 for line in text.splitlines() if line.endswith(r"\\") and "&" in line
    )


@pytest.mark.parametrize(
    ("text", "escaped"),
    [
        (r"50 % of $x_1 & {y}#", r"50 \% of \$x\_1 \& \{y\}\#"),
        ("a\\b^c~d", r"a\textbackslash{}b\textasciicircum{}c\textasciitilde{}d"),
        ("– 3 ↓ dB²", r"-- 3 $\downarrow$ dB$^2$"),
    ],
)
def test_special_characters_are_printed_as_they_are(text: str, escaped: str) -> None:
    assert escape(text) == escaped
