"""Tables of decoders and analyses, and of the differences between encoders."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from simdist.analyze.registry import ANALYSES, OVER_SEEDS, Column, Table
from simdist.report.measurements import DEFINITION, LAYER
from simdist.report.summary import (
    EMPTY,
    FEWEST_SEEDS,
    MOST_GROUPS,
    Cell,
    Comparison,
    Statistic,
    group_label,
    plain,
)
from simdist.report.tables import Section, count_of, headings, most_of, over_seeds, shown_keys, text_of

HEADINGS = {"estimate": "estimator", "width": "dimensions"}  # of keys that are called otherwise than their columns


DECODERS = Table(
    f"Decoders: quality on test clips, {OVER_SEEDS}",
    (
        Column("mse", "MSE ↓", digits=4),
        Column("mel", "mel ↓ (dB²)", digits=1),
        Column("stft", "STFT ↓"),
        Column("fft", "FFT ↓"),
        Column("si_sdr", "SI-SDR ↑ (dB)", digits=1),
        Column("mcd", "MCD ↓ (dB)"),
    ),
    ("loss", "features"),
)


def analysis_sections(cells: Mapping[Cell, Statistic], keys: Sequence[str]) -> list[Section]:
    """Every table of decoders and analyses that has a row.

    Args:
        cells: what `summarize` found.
        keys: the configuration keys that its groups have values of.
    """
    tables = {name: entry.table for name, entry in ANALYSES.items() if entry.table is not None}
    made = (_table(name, table, cells, headings(keys)) for name, table in {**tables, "decoders": DECODERS}.items())
    return [section for section in made if section.rows]


def _table(name: str, kind: Table, cells: Mapping[Cell, Statistic], heads: list[str]) -> Section:
    family = "decoder" if kind is DECODERS else "analysis"
    said = {cell: json.loads(cell.what) for cell in cells if cell.family == family}
    own = {c: w for c, w in said.items() if kind is DECODERS or w["analysis"] == name}
    columns = _columns(kind, own.values())
    keys = [*kind.keys, *(key for key in (LAYER, DEFINITION) if any(key in what for what in own.values()))]
    lines: dict[tuple[tuple[Any, ...], tuple[Any, ...], int | None], dict[str, Statistic]] = {}
    for cell, what in own.items():
        row = (tuple(what.get(key) for key in keys), cell.group, cell.module)
        metric = f"{cell.metric} {what[kind.across]}" if kind.across else cell.metric
        lines.setdefault(row, {})[metric] = cells[cell]
    most = most_of({cell: cells[cell] for cell in own})
    rows = []
    for (what, group, module), values in lines.items():
        texts = [_text_of(column, values.get(column.metric), most) for column in columns]
        rows.append([*map(plain, group), *map(plain, what), str(module), str(most_of(values)), *texts])
    named = [
        *heads,
        *(HEADINGS.get(key, key) for key in keys),
        "module",
        "seeds",
        *(column.heading for column in columns),
    ]
    return Section(name, over_seeds(kind.title, most), named, rows, len(heads) + len(keys) + 1)


def _text_of(column: Column, value: Statistic | None, most: int) -> str:
    return count_of(value, most) if column.is_count else text_of(value, most, column.scale, column.digits)


def _columns(kind: Table, said: Iterable[Mapping[str, Any]]) -> list[Column]:
    """Those of the kind; where one key lies across, one for each of its values."""
    if not kind.across:
        return list(kind.columns)
    (one,) = kind.columns
    values = dict.fromkeys(what[kind.across] for what in said)
    return [replace(one, metric=f"{one.metric} {value}", heading=plain(value)) for value in values]


def difference_sections(comparisons: Sequence[Comparison], keys: Sequence[str]) -> list[Section]:
    """The table of differences between encoders; [] where nothing could be compared."""
    if not comparisons:
        return []
    settings = shown_keys([json.loads(what) for what in dict.fromkeys(item.what for item in comparisons)])
    rows = []
    for item in comparisons:
        said = json.loads(item.what)
        module = EMPTY if item.module is None else str(item.module)
        named = [group_label(group, keys) for group in (item.first, item.second)]
        points = f"{100 * item.difference:+.1f}", f"[{100 * item.low:+.1f}, {100 * item.high:+.1f}]"
        marked = f"{item.p_holm:.2g}" + " *" * item.is_significant
        rows.append([*(plain(said.get(key)) for key in settings), module, *named, *points, f"{item.p:.2g}", marked])
    names = [key.rpartition(".")[2] for key in settings]
    columns = [*names, "module", "A", "B", "A - B (points)", "95 % interval", "p", "p (Holm)"]
    note = (
        f"Welch's t-test over seeds where both have {FEWEST_SEEDS} or more; p corrected by Holm's method over all "
        f"comparisons of one label; * below 5 %. Of more than {MOST_GROUPS} encoders the best is compared with each."
    )
    title = "Differences between encoders: test accuracy in points"
    return [Section("differences", title, columns, rows, len(names) + 3, note)]
