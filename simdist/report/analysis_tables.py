"""Tables of decoders and analyses, and of the differences between encoders."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from simdist.report.measurement import Family
from simdist.report.significance import FEWEST_SEEDS, MOST_GROUPS, Comparison
from simdist.report.summary import Cell, Statistic, telling_keys
from simdist.report.tables import EMPTY, FIXED, Section, count_of, headings, most_of, plain, text_of

HEADINGS = {"estimate": "estimator", "width": "dimensions"}  # of keys that are called otherwise than their columns
OVER_SEEDS = "mean ± standard deviation over seeds"


@dataclass(frozen=True)
class Column:
    """How a metric is shown."""

    metric: str
    heading: str
    scale: float = 1
    digits: int = 2
    is_count: bool = False


@dataclass(frozen=True)
class Kind:
    """A table of one analysis: a row for each group and module, and for each value of the keys."""

    name: str
    title: str
    family: Family
    columns: tuple[Column, ...]
    keys: tuple[str, ...] = ()
    """Of what was measured; columns of their own, in front of the module."""
    across: str = ""
    """A key whose values are columns instead, of a single metric."""


KINDS = (
    Kind("distributions", f"Distributions of the latent: {OVER_SEEDS}", "analysis", (
        Column("active_units", "active dimensions", is_count=True),
        Column("collapsed_dimensions", "collapsed", is_count=True),
        Column("dimensions", "of dimensions", is_count=True), Column("kl_nats_per_frame", "KL (nats a frame)"),
        Column("ks_distance_median", "KS to N(0, 1), median", digits=3),
        Column("ks_distance_largest", "KS, largest", digits=3),
    )),
    Kind("weights", f"Weights of linear probes without bias: {OVER_SEEDS}", "analysis", (
        Column("small_share", "below a tenth, %", 100, 1), Column("kurtosis", "excess kurtosis"),
        Column("dimensions_for_90_percent", "dimensions for 90 %", is_count=True),
        Column("dimensions", "of dimensions", is_count=True), Column("accuracy", "probe's accuracy, %", 100, 1),
    ), ("label",)),
    Kind("contribution", f"Contribution: remaining error by dimensions replaced, medians, {OVER_SEEDS}", "analysis", (
        Column("median", "", digits=3),
    ), across="replaced"),
    Kind("total-correlation", f"Total correlation: {OVER_SEEDS}", "analysis", (
        Column("total_correlation", "nats"), Column("shuffled", "nats, shuffled"),
        Column("excess", "difference", digits=3),
    ), ("estimate", "width")),
    Kind("disentanglement", f"Disentanglement: {OVER_SEEDS}", "analysis", (
        Column("mig", "MIG", digits=3), Column("sap", "SAP", digits=3), Column("disentanglement", "DCI D", digits=3),
        Column("completeness", "DCI C", digits=3), Column("informativeness", "DCI I", digits=3),
    ), ("factors",)),
    Kind("robustness", f"Robustness: accuracy in % by signal-to-noise ratio in dB, {OVER_SEEDS}", "analysis", (
        Column("accuracy", "", 100, 1),
    ), ("label", "noise"), across="snr_db"),
    Kind("decoders", f"Decoders: quality on test clips, {OVER_SEEDS}", "decoder", (
        Column("mse", "MSE ↓", digits=4), Column("mel", "mel ↓ (dB²)", digits=1), Column("stft", "STFT ↓"),
        Column("fft", "FFT ↓"), Column("si_sdr", "SI-SDR ↑ (dB)", digits=1), Column("mcd", "MCD ↓ (dB)"),
    ), ("loss", "features")),
)  # fmt: skip


def analysis_sections(cells: Mapping[Cell, Statistic], keys: Sequence[str]) -> list[Section]:
    """Every table of decoders and analyses that has a row.

    Args:
        cells: what `summarize` found.
        keys: the configuration keys that its groups have values of.
    """
    made = (_table(kind, cells, headings(keys)) for kind in KINDS)
    return [section for section in made if section.rows]


def _table(kind: Kind, cells: Mapping[Cell, Statistic], heads: list[str]) -> Section:
    said = {cell: json.loads(cell.what) for cell in cells if cell.family == kind.family}
    own = {c: w for c, w in said.items() if kind.family == "decoder" or w["analysis"] == kind.name}
    columns = _columns(kind, own.values())
    lines: dict[tuple[tuple[Any, ...], tuple[Any, ...], int | None], dict[str, Statistic]] = {}
    for cell, what in own.items():
        row = (tuple(what.get(key) for key in kind.keys), cell.group, cell.module)
        name = f"{cell.metric} {what[kind.across]}" if kind.across else cell.metric
        lines.setdefault(row, {})[name] = cells[cell]
    most = most_of({cell: cells[cell] for cell in own})
    rows = []
    for (what, group, module), values in lines.items():
        texts = [_text_of(column, values.get(column.metric), most) for column in columns]
        rows.append([*map(plain, group), *map(plain, what), str(module), str(most_of(values)), *texts])
    named = [
        *heads,
        *(HEADINGS.get(key, key) for key in kind.keys),
        "module",
        "seeds",
        *(column.heading for column in columns),
    ]
    return Section(kind.name, kind.title, named, rows, len(heads) + len(kind.keys) + 1)


def _text_of(column: Column, value: Statistic | None, most: int) -> str:
    return count_of(value, most) if column.is_count else text_of(value, most, column.scale, column.digits)


def _columns(kind: Kind, said: Iterable[Mapping[str, Any]]) -> list[Column]:
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
    settings = _telling_settings(comparisons)
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


def _telling_settings(comparisons: Sequence[Comparison]) -> list[str]:
    said = [json.loads(what) for what in dict.fromkeys(item.what for item in comparisons)]
    return [*FIXED, *(key for key in telling_keys(said, first=FIXED, never=["chance"]) if key not in FIXED)]


def group_label(group: Sequence[object], keys: Sequence[str]) -> str:
    """`sim, beta 0.01`: a group of runs in a legend or a sentence."""
    parts = [
        plain(value) if key == "name" else f"{key.rpartition('.')[2]} {plain(value)}"
        for key, value in zip(keys, group, strict=True)
    ]
    return ", ".join(parts)
