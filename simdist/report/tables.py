"""Tables of runs, their settings, encoders and probes."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from simdist.analyze.registry import OVER_SEEDS
from simdist.report.collect import ENCODER_METRICS, RunContent
from simdist.report.measurements import LAYER
from simdist.report.selection import Selection
from simdist.report.summary import EMPTY, Cell, Comparison, Statistic, key_of, plain, telling_keys, winners

FIXED = ("label", "features", "probe.probe")  # columns that every table of probes has
PERCENT = ("accuracy", "balanced_accuracy", "accuracy_without_silence")
HEADINGS = {"nce": "InfoNCE", "kl": "KL", "accuracy": "accuracy %", "active_units": "active dimensions"}
KL_MEANS = {
    "sum": "summed over the frames of a crop, averaged over channels and crops",
    "mean": "averaged over frames, channels and crops",
}
"""What the KL of training is, by loss.kl_reduction."""
KINDS_OF_LOSS = {"train": "training step logged", "validation": "validation"}
INTERVAL_MEANS = "behind a single seed, its 95 % bootstrap interval over test utterances"
PROBES, PROBES_MEANS = (
    ", probes ± ",
    "an encoder's value is the mean of its repeated probes; probes ± is their standard deviation, averaged over seeds",
)
WHOLE_MEANS = "whole: features that have no modules, such as MFCC"
STAR, STAR_MEANS = " *", "* above every other encoder on this probe and module (Welch's t-test, Holm, 5 %)"


@dataclass(frozen=True)
class Section:
    """One table."""

    name: str
    """A word: its anchor on the page, its label in LaTeX."""
    title: str
    columns: list[str]
    rows: list[list[str]]
    num_text: int
    """Columns from the left that are text, the rest are numbers."""
    note: str = ""
    """A sentence under the table."""


def sections(
    cells: Mapping[Cell, Statistic],
    keys: Sequence[str],
    metric: str = "accuracy",
    comparisons: Sequence[Comparison] = (),
    reductions: Sequence[str] = (),
) -> list[Section]:
    """Every table of encoders and probes that has a row: encoders, probes, few labels.

    Args:
        cells: what `summarize` found.
        keys: the configuration keys that its groups have values of.
        metric: of the probes.
        comparisons: of the probes' accuracies; groups that are above all others get a star.
        reductions: each `loss.kl_reduction` of the runs.
    """
    heads = headings(keys)
    every = (
        _encoders(cells, heads, reductions),
        _probes(cells, heads, metric, winners(comparisons)),
        _few_labels(cells, heads),
    )
    return [section for section in every if section.rows]


def headings(keys: Sequence[str]) -> list[str]:
    """What the configuration keys that tell groups apart are called at the head of a column."""
    return [key.rpartition(".")[2] if key != "name" else "encoder" for key in keys]


def _encoders(cells: Mapping[Cell, Statistic], heads: list[str], reductions: Sequence[str]) -> Section:
    own = {cell: value for cell, value in cells.items() if cell.family == "encoder"}
    splits = {json.loads(cell.what)["split"] for cell in own}
    split = "validation" if "validation" in splits else "train"
    own = {cell: value for cell, value in own.items() if json.loads(cell.what)["split"] == split}
    most = most_of(own)
    metrics = [metric for metric in ENCODER_METRICS if any(cell.metric == metric for cell in own)]
    rows = []
    for group, module in dict.fromkeys((cell.group, cell.module) for cell in own):
        values = {cell.metric: value for cell, value in own.items() if (cell.group, cell.module) == (group, module)}
        cells_of_row = [_text_of_metric(metric, values.get(metric), most) for metric in metrics]
        rows.append([*map(plain, group), str(module), str(most_of(values)), *cells_of_row])
    names = [HEADINGS.get(metric, metric) for metric in metrics]
    title = over_seeds(f"Encoders: last {KINDS_OF_LOSS[split]} of each greedy module, {OVER_SEEDS}", most)
    note = _kl_note(reductions) if "kl" in metrics else ""
    return Section("encoders", title, [*heads, "module", "seeds", *names], rows, len(heads) + 1, note)


def _text_of_metric(metric: str, value: Statistic | None, most: int) -> str:
    if metric == "active_units":
        return count_of(value, most)
    return text_of(value, most, 100 if metric in PERCENT else 1)


def _kl_note(reductions: Sequence[str]) -> str:
    """What the KL of training is, which is not the KL that `analyze distributions` measures."""
    said = [f"{KL_MEANS[name]} (loss.kl_reduction {name})" for name in KL_MEANS if name in reductions]
    if not said:
        return ""
    return f"KL in nats, {', or '.join(said)}; under Distributions it is a frame's, summed over dimensions."


def _probes(cells: Mapping[Cell, Statistic], heads: list[str], metric: str, best: Collection[Any]) -> Section:
    own = {cell: value for cell, value in cells.items() if cell.family == "probe" and cell.metric == metric}
    modules = _modules(own)
    keys = _settings(own)
    most = most_of(own)
    rows = []
    for (what, values, _), groups in _lines(own).items():
        said, of_module = json.loads(what), dict(values)
        numbers = [
            _accuracy(of_module.get(module), most) + STAR * any((what, module, group) in best for group in groups)
            for module in modules
        ]
        named = [plain(found[0]) if len(set(found)) == 1 else EMPTY for found in zip(*groups, strict=True)]
        settings = [plain(said.get(key)) for key in keys]
        rows.append([*named, *settings, str(most_of(of_module)), *numbers, f"{100 * said['chance']:.1f}"])
    named = [key.rpartition(".")[2] for key in keys]
    columns = ["whole" if module is None else f"module {module}" for module in modules]
    title = over_seeds(f"Probes: test {metric.replace('_', ' ')} in %, {OVER_SEEDS}", most)
    texts = [text for row in rows for text in row]
    marks = {STAR_MEANS: STAR, INTERVAL_MEANS: "[", PROBES_MEANS: PROBES}
    notes = {meaning: any(mark in text for text in texts) for meaning, mark in marks.items()}
    notes[WHOLE_MEANS] = "whole" in columns
    note = "; ".join(text for text, is_needed in notes.items() if is_needed)
    return Section("probes", title, [*heads, *named, "seeds", *columns, "chance"], rows, len(heads) + len(named), note)


Values = tuple[tuple[int | None, Statistic], ...]
"""Accuracies by module."""


def _lines(own: Mapping[Cell, Statistic]) -> dict[tuple[str, Values, Any], list[tuple[Any, ...]]]:
    """The groups of each row: one, or of MFCC, which no encoder changes, all that measured the very same."""
    found: dict[tuple[str, tuple[Any, ...]], list[tuple[int | None, Statistic]]] = {}
    for cell in _by_label(own):
        found.setdefault((cell.what, cell.group), []).append((cell.module, own[cell]))
    lines: dict[tuple[str, Values, Any], list[tuple[Any, ...]]] = {}
    for (what, group), values in found.items():
        of_encoder = None if json.loads(what)["features"] == "mfcc" else group
        lines.setdefault((what, tuple(values), of_encoder), []).append(group)
    return lines


def _accuracy(value: Statistic | None, most: int) -> str:
    """In %: `61.2 ± 0.4`, of repeated probes `61.2 ± 0.4, probes ± 0.3`, of a single seed `61.2 [57.9, 64.4]`."""
    if value is not None and value.deviation_of_probes is not None:
        return f"{text_of(value, most, 100)}{PROBES}{100 * value.deviation_of_probes:.1f}"
    if value is None or value.interval is None:
        return text_of(value, most, 100)
    low, high = value.interval
    return f"{text_of(value, value.count, 100)} [{100 * low:.1f}, {100 * high:.1f}]"


def _few_labels(cells: Mapping[Cell, Statistic], heads: list[str]) -> Section:
    own = {cell: value for cell, value in cells.items() if cell.family == "few-labels"}
    sizes = sorted({json.loads(cell.what)["examples"] for cell in own})
    keys = _settings(own, never=("examples", "probe.examples_per_class"))
    most = most_of(own)
    lines: dict[tuple[str, ...], dict[int, Statistic]] = {}
    for cell in _by_label(own):
        said = json.loads(cell.what)
        module = EMPTY if cell.module is None else str(cell.module)
        row = (*map(plain, cell.group), *(plain(said.get(key)) for key in keys), module)
        lines.setdefault(row, {})[said["examples"]] = own[cell]
    rows = [
        [*row, str(most_of(values)), *(text_of(values.get(size), most, 100) for size in sizes)]
        for row, values in lines.items()
    ]
    named = [key.rpartition(".")[2] for key in keys]
    title = over_seeds(f"Few labels: test accuracy in % by labeled examples per class, {OVER_SEEDS}", most)
    columns = [*heads, *named, "module", "seeds", *map(str, sizes)]
    return Section("few-labels", title, columns, rows, len(heads) + len(named) + 1)


def _settings(cells: Mapping[Cell, Statistic], never: Sequence[str] = ()) -> list[str]:
    """The probe settings to show: the fixed ones, and those in which probes of one kind differ."""
    said = [json.loads(what) for what in dict.fromkeys(cell.what for cell in cells)]
    return shown_keys(said, never)


def shown_keys(said: Sequence[Mapping[str, Any]], never: Sequence[str] = ()) -> list[str]:
    """The fixed keys, the layer where one was probed, and those in which probes of one kind differ."""
    first = [*FIXED, *([LAYER] if any(LAYER in one for one in said) else [])]
    told = telling_keys(said, first=first, never=["chance", *never])
    return [*first, *(key for key in told if key not in first)]


def _by_label(cells: Mapping[Cell, Statistic]) -> list[Cell]:
    """Rows that are compared with each other stand together: by label and settings, then by group in order."""
    groups = list(dict.fromkeys(cell.group for cell in cells))
    return sorted(
        cells, key=lambda cell: (cell.what, groups.index(cell.group), -1 if cell.module is None else cell.module)
    )


def _modules(cells: Mapping[Cell, Statistic]) -> list[int | None]:
    found = {cell.module for cell in cells}
    numbers = sorted(module for module in found if module is not None)
    return [*numbers, *([None] if None in found else [])]


def most_of(values: Mapping[Any, Statistic]) -> int:
    """The largest number of seeds among some statistics."""
    return max((value.count for value in values.values()), default=0)


def over_seeds(title: str, most: int) -> str:
    """A table's title, where no value is of more than one seed, without a mean over seeds."""
    return title if most > 1 else title.replace(OVER_SEEDS, "one seed")


def text_of(value: Statistic | None, most: int, scale: float = 1, digits: int | None = None) -> str:
    """`61.2 ± 0.4`, with `(3)` behind it where fewer seeds than elsewhere are in."""
    if value is None:
        return EMPTY
    if digits is None:
        digits = 1 if scale == 100 else 3
    text = f"{scale * value.mean:.{digits}f}"
    if value.deviation is not None:
        text += f" ± {scale * value.deviation:.{digits}f}"
    return text if value.count == most else f"{text} ({value.count})"


def count_of(value: Statistic | None, most: int) -> str:
    """Like `text_of`, of a number of things: `64`, `25.6 ± 14.3`."""
    is_whole = value is not None and not value.deviation and value.mean.is_integer()
    return text_of(value, most, digits=0 if is_whole else 1)


def split_by(section: Section, column: str) -> list[Section]:
    """A table in parts, one for each value of a column, which then stands in the title."""
    place = section.columns.index(column)
    values = list(dict.fromkeys(row[place] for row in section.rows))
    if len(values) < 2:
        return [section]
    return [
        replace(
            section,
            name=f"{section.name}-{number}",
            title=f"{section.title}: {value}",
            columns=section.columns[:place] + section.columns[place + 1 :],
            rows=[row[:place] + row[place + 1 :] for row in section.rows if row[place] == value],
            num_text=section.num_text - 1,
        )
        for number, value in enumerate(values)
    ]


def overview_section(runs: Sequence[RunContent], selection: Selection, cells: Mapping[Cell, Statistic]) -> Section:
    """What a reader looks for first: one row per encoder, with its last module's loss and linear probes."""
    last: dict[tuple[str, Any], Cell] = {}
    for cell in sorted(cells, key=lambda cell: -1 if cell.module is None else cell.module):
        said = json.loads(cell.what)
        if cell.family == "encoder" and cell.metric == "loss":
            name = f"{said['split']} loss"
        elif cell.family == "probe" and cell.metric == "accuracy" and is_plain(said):
            name = f"{said['label']} (chance {100 * said['chance']:.1f} %)"
        else:
            continue
        kept = last.get((name, cell.group))
        if kept is None or kept.what == cell.what:  # of several settings of a probe the first one, of modules the last
            last[name, cell.group] = cell
    found = {name for name, _ in last}
    found -= {"train loss"} if "validation loss" in found else set()
    names = sorted(found, key=lambda name: (not name.endswith("loss"), name))
    rows = []
    for group, own in _in_order(runs, selection).items():
        config, steps = own[0].record.config, [run.record.step for run in own]
        modules = config.get("model.modules")
        about = [
            str(len(modules)) if isinstance(modules, list) else EMPTY,
            plain(config.get("model.head")),
            str(len(own)),
            f"{min(steps):,}" if min(steps) == max(steps) else f"{min(steps):,} to {max(steps):,}",
        ]
        values = [cells.get(last[name, group]) if (name, group) in last else None for name in names]
        texts = [
            text_of(value, len(own), 1 if name.endswith("loss") else 100)
            for name, value in zip(names, values, strict=True)
        ]
        rows.append([selection.label(group), *about, *texts])
    columns = ["encoder", "modules", "head", "seeds", "steps", *names]
    note = "Loss in nats; linear probes' test accuracy in %. Both are the last module's; mean ± standard deviation."
    return Section("overview", "Encoders", columns, rows, 3, note)


MOST_COLUMNS = 6  # encoders side by side; more are rows


def configuration_sections(runs: Sequence[RunContent], selection: Selection) -> list[Section]:
    """A table of the runs, and one of the settings that differ, if any do."""
    made = [_table_of_runs(runs, selection)]
    keys = differing_keys(runs)
    if keys:
        made.append(_differences(runs, selection, keys))
    return made


def differing_keys(runs: Sequence[RunContent]) -> list[str]:
    """Configuration keys that do not have the same value in all runs, without seed and name."""
    every = dict.fromkeys(key for run in runs for key in run.record.config if key not in ("seed", "name"))
    return [key for key in every if len({key_of(run.record.config, [key]) for run in runs}) > 1]


def common_settings(runs: Sequence[RunContent]) -> list[tuple[str, str]]:
    """Key and value of every setting that all runs share."""
    differing = {*differing_keys(runs), "seed", "name"}
    return [(key, _text(value)) for key, value in runs[0].record.config.items() if key not in differing]


def is_plain(said: Mapping[str, Any]) -> bool:
    """Whether a probe's settings are those of the paper: a linear probe with bias on a trained encoder's module."""
    is_linear = said["probe.probe"] == "linear" and said.get("probe.bias") is not False
    return is_linear and said["features"] == "trained" and LAYER not in said


def _table_of_runs(runs: Sequence[RunContent], selection: Selection) -> Section:
    rows = []
    for run in runs:
        record = run.record
        group = [plain(value) for value in selection.groups[record.name]]
        state = ("finished" if record.finished else "unfinished") + ", diverged" * bool(record.diverged)
        rows.append([record.name, *group, str(record.folder), state, str(record.seed), str(record.step)])
    columns = ["run", *headings(selection.keys), "folder", "state", "seed", "steps"]
    return Section("runs", "Runs", columns, rows, len(columns) - 2)


def _differences(runs: Sequence[RunContent], selection: Selection, keys: list[str]) -> Section:
    """Settings by encoders where these are few, else encoders by settings."""
    first = {group: own[0].record.config for group, own in _in_order(runs, selection).items()}
    names = [selection.label(group) for group in first]
    values = [[_text(config.get(key)) for config in first.values()] for key in keys]
    title = "Settings in which they differ"
    if len(names) <= MOST_COLUMNS:
        rows = [[key, *row] for key, row in zip(keys, values, strict=True)]
        return Section("settings", title, ["setting", *names], rows, 1 + len(names))
    rows = [[name, *(row[place] for row in values)] for place, name in enumerate(names)]
    return Section("settings", title, ["encoder", *keys], rows, 1 + len(keys))


def _in_order(runs: Sequence[RunContent], selection: Selection) -> dict[Any, list[RunContent]]:
    found: dict[Any, list[RunContent]] = {}
    for run in runs:
        found.setdefault(selection.groups[run.record.name], []).append(run)
    return found


def _text(value: Any) -> str:
    """A value on one line; modules and other lists as JSON."""
    return json.dumps(value) if isinstance(value, list | dict) else plain(value)
