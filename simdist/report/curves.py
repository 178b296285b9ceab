"""The charts of the page: losses, probes over training, few labels, distributions, weights, contribution."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from simdist.report.charts import MOST_POINTS, OTHER, Chart, Line, Panel, lines_of
from simdist.report.collect import RunContent
from simdist.report.files import SHAPELESS, UnreadableFile, finite, read_table, reason_of
from simdist.report.measurements import LAYER
from simdist.report.selection import Selection
from simdist.report.summary import Cell, Statistic, plain, telling_keys
from simdist.runs.records import MetricsRecord, is_finite

LOSSES = {
    "loss": ("Loss", "loss (nats)"),
    "nce": ("InfoNCE", "InfoNCE (nats)"),
    "kl": ("KL to the prior", "KL (nats{})"),
    "accuracy": ("Accuracy of the contrastive task", "accuracy (share)"),
    "active_units": ("Active dimensions", "active dimensions"),
}
KL_UNITS = {"sum": " per crop and channel", "mean": " per frame and channel"}  # by loss.kl_reduction
Curve = tuple[list[float], list[float]]
MANY_RUNS = 60  # from so many on, a line has fewer points
POINTS_OF_MANY = 60
MOST_WEIGHTS = 5000  # of a density; evenly chosen


def loss_charts(runs: Sequence[RunContent], selection: Selection) -> list[Chart]:
    """One chart per metric, one panel per module with both training and validation."""
    most = POINTS_OF_MANY if len(runs) > MANY_RUNS else MOST_POINTS
    read = {run.record.name: _logged(run.metrics, 2 * most) for run in runs}
    series = sorted({key for found in read.values() for key in found})
    reductions = {str(run.record.config.get("loss.kl_reduction")) for run in runs}
    unit = KL_UNITS.get(reductions.pop(), "") if len(reductions) == 1 else ""
    made = []
    for metric, (title, ylabel) in LOSSES.items():
        if metric == "nce" and not _differs_from_loss(read):
            continue
        panels = []
        for module in sorted({module for _, name, module in series if name == metric}):
            kinds = [kind for kind, name, number in series if (name, number) == (metric, module)]
            is_validated = any(len(found.get(("validation", metric, module), [()])[0]) > 1 for found in read.values())
            lines: list[Line] = []
            for kind, (group, own) in itertools.product(sorted(kinds), selection.runs_of(runs).items()):
                what = f", {kind}" if len(kinds) > 1 else ""
                curves = [
                    (f"{r.record.name}{what}", *read[r.record.name].get((kind, metric, module), ([], []))) for r in own
                ]
                label = f"{selection.label(group)}{what}"
                of_group = lines_of(selection.place(group), label, curves, most)
                if kind == "train" and is_validated and selection.place(group) != OTHER:
                    of_group = [replace(line, is_thin=True, low=None, high=None) for line in of_group[-1:]]
                lines += of_group
            if metric == "kl" and not any(line.y.any() for line in lines):
                continue  # of modules without a prior
            panels.append(Panel(f"module {module}", lines, "step (optimizer updates)", ylabel.format(unit)))
        if panels:
            made.append(Chart(f"curve-{metric}", title, panels))
    return made


def _logged(records: Sequence[MetricsRecord], most: int) -> dict[tuple[str, str, int], Curve]:
    """(kind, metric, module) -> steps and values, finite ones, of about `most` records of each kind and stage."""
    found: dict[tuple[str, str, int], Curve] = {}
    by_kind: dict[tuple[str, int | None], list[MetricsRecord]] = {}
    for record in records:
        stage = next(iter(record.by_module()), None)
        by_kind.setdefault((record.kind, stage), []).append(record)
    for record in (record for own in by_kind.values() for record in own[:: -max(1, -(-len(own) // most))][::-1]):
        for number, module in record.by_module().items():
            for metric in LOSSES:
                value = getattr(module, metric)
                if is_finite(value):
                    steps, values = found.setdefault((record.kind, metric, number), ([], []))
                    steps.append(record.step)
                    values.append(value)
    return found


def _differs_from_loss(read: Mapping[str, Mapping[tuple[str, str, int], Curve]]) -> bool:
    """Without a KL the loss is InfoNCE, and one chart is enough."""
    return any(
        found[kind, metric, module][1] != found.get((kind, "loss", module), ([], []))[1]
        for found in read.values()
        for kind, metric, module in found
        if metric == "nce"
    )


def module_charts(runs: Sequence[RunContent], selection: Selection) -> list[Chart]:
    """Accuracy of linear probes by module, one panel per label; untrained encoders in gray, unless others are gray."""
    is_grey_free = all(selection.place(group) != OTHER for group in selection.groups.values())
    kinds = ("untrained", "trained") if is_grey_free else ("trained",)
    found = {kind: _by_module(runs, kind) for kind in kinds}
    panels = []
    for what in sorted(found["trained"]):
        lines: list[Line] = []
        for kind, (group, own) in itertools.product(kinds, selection.runs_of(runs).items()):
            there = [(run.record.name, found[kind].get(what, {}).get(run.record.name, {})) for run in own]
            curves = [(f"{name}, {kind}", sorted(by), [by[module] for module in sorted(by)]) for name, by in there]
            lines += lines_of(selection.place(group) if kind == "trained" else OTHER, selection.label(group), curves)
        if any(len(line.x) > 1 for line in lines):
            said = json.loads(what)
            panel = _accuracy_panel(_called(said, list(found["trained"])), lines, "module", said["chance"])
            panels.append(replace(panel, at_points=True))
    has_grey = any(line.place == OTHER for panel in panels for line in panel.lines) and is_grey_free
    note = "Grey: the same encoders before training." if has_grey else ""
    return [Chart("modules", "Linear probes by module", panels, note)] if panels else []


def _by_module(runs: Sequence[RunContent], features: str) -> dict[str, dict[str, dict[int, float]]]:
    """Test accuracies in % of linear probes: what was probed (as of trained features), the run, the module."""
    found: dict[str, dict[str, dict[int, float]]] = {}
    for item in (item for run in runs for item in run.measurements):
        is_linear = item.what.get("probe.probe") == "linear" and item.what["features"] == features
        if item.family == "probe" and item.metric == "accuracy" and item.module is not None and is_linear:
            what = json.dumps({**item.what, "features": "trained"}, sort_keys=True)
            found.setdefault(what, {}).setdefault(item.run, {})[item.module] = 100 * item.value
    return found


def trajectory_charts(runs: Sequence[RunContent], selection: Selection) -> list[Chart]:
    """Accuracy of probes over the encoder's training, where several checkpoints were probed."""
    whats = dict.fromkeys(json.dumps(t.what, sort_keys=True) for run in runs for t in run.trajectories)
    panels = []
    for what in whats:
        said = json.loads(what)
        modules = {t.module for run in runs for t in run.trajectories if json.dumps(t.what, sort_keys=True) == what}
        for module in sorted(modules):
            lines: list[Line] = []
            for group, own in selection.runs_of(runs).items():
                found = [(run.record.name, t) for run in own for t in run.trajectories]
                same = [(n, t) for n, t in found if t.module == module and json.dumps(t.what, sort_keys=True) == what]
                curves = [(name, t.steps, [100 * value for value in t.accuracies]) for name, t in same]
                lines += lines_of(selection.place(group), selection.label(group), curves)
            title = f"{_called(said, list(whats))}, module {module}"
            panels.append(_accuracy_panel(title, lines, "step (optimizer updates)", said["chance"]))
    return [Chart("trajectories", "Probes over training", panels)] if panels else []


def few_label_charts(cells: Mapping[Cell, Statistic], selection: Selection) -> list[Chart]:
    """Accuracy against labeled examples per class: mean ± standard deviation over seeds, one panel per module."""
    own = {cell: value for cell, value in cells.items() if cell.family == "few-labels"}
    points: dict[tuple[str, int | None], dict[tuple[Any, ...], list[tuple[int, Statistic]]]] = {}
    for cell, value in own.items():
        said = json.loads(cell.what)
        size = said.pop("examples")
        key = (json.dumps(said, sort_keys=True), cell.module)
        points.setdefault(key, {}).setdefault(cell.group, []).append((size, value))
    whats = list(dict.fromkeys(what for what, _ in points))
    panels = []
    for (what, module), groups in sorted(points.items(), key=lambda item: (item[0][0], str(item[0][1]))):
        said = json.loads(what)
        lines = [_few_labels_of(selection, group, found) for group, found in groups.items()]
        lines.sort(key=lambda line: line.place)
        where = "" if module is None else f", module {module}"
        title = f"{_called(said, whats)}{where}"
        panels.append(_accuracy_panel(title, lines, "labeled examples per class", said["chance"], is_log=True))
    return [Chart("few-labels", "Few labels", panels)] if panels else []


def _few_labels_of(selection: Selection, group: tuple[Any, ...], found: list[tuple[int, Statistic]]) -> Line:
    found.sort(key=lambda pair: pair[0])
    x = np.array([float(size) for size, _ in found])
    mean = np.array([100 * value.mean for _, value in found])
    deviation = np.array([100 * (value.deviation or 0.0) for _, value in found])
    seeds = max(value.count for _, value in found)
    band = (mean - deviation, mean + deviation) if seeds > 1 else (None, None)
    place = selection.place(group)
    return Line(place, selection.label(group), x, mean, *(band if place != OTHER else (None, None)))


def _accuracy_panel(title: str, lines: list[Line], xlabel: str, chance: float, is_log: bool = False) -> Panel:
    return Panel(title, lines, xlabel, "test accuracy (%)", is_log, from_zero=True, reference=(100 * chance, "chance"))


def _called(said: Mapping[str, Any], whats: Sequence[str]) -> str:
    """A probe in a few words: its label, features and layer, and what tells it from the others on the chart."""
    first = ["label", "features", LAYER]
    told = telling_keys([json.loads(what) for what in whats], first=first, never=["chance"])
    extra = [f"{key.rpartition('.')[2]} {plain(said.get(key))}" for key in told if key not in first]
    features = [] if said["features"] == "trained" else [said["features"]]
    layer = [f"layer {said[LAYER]}"] if LAYER in said else []
    return ", ".join([said["label"], *features, *layer, *extra])


def distribution_charts(
    runs: Sequence[RunContent], selection: Selection, problems: list[UnreadableFile]
) -> list[Chart]:
    """KL of each dimension, sorted: how many dimensions a module uses."""

    def read(folder: Path) -> Iterator[tuple[str, Curve]]:
        values = sorted((finite(row["kl"]) for row in read_table(folder / "dimensions.csv")), reverse=True)
        yield "", ([float(rank) for rank in range(1, len(values) + 1)], values)

    made = _of_analyses(runs, selection, "distributions", read, problems)
    panels = [Panel(title, lines, "dimension, by KL", "KL (nats per frame)", from_zero=True) for title, lines in made]
    return [Chart("distribution-kl", "KL of each dimension", panels)] if panels else []


def weight_charts(runs: Sequence[RunContent], selection: Selection, problems: list[UnreadableFile]) -> list[Chart]:
    """Density of the rescaled probe weights of all classes, by label and module."""
    made = _of_analyses(runs, selection, "weights", _densities, problems)
    xlabel = "weight (each class's largest magnitude = 1)"
    panels = [Panel(title, lines, xlabel, "density", from_zero=True) for title, lines in made]
    return [Chart("weight-density", "Density of probe weights", panels)] if panels else []


def _densities(folder: Path) -> Iterator[tuple[str, Curve]]:
    """Gaussian kernels of Scott's bandwidth, as `simdist.analyze weights` draws them."""
    import scipy.stats

    grid = np.linspace(-1.2, 1.2, 121)
    for path in sorted(folder.glob("weights-*.csv")):
        rows = read_table(path)
        values = [finite(value) for row in rows for key, value in row.items() if key.startswith("rescaled_") and value]
        values = values[:: -(-len(values) // MOST_WEIGHTS) or 1]
        if len(values) > 1 and np.std(values) > 0:
            yield path.stem.removeprefix("weights-"), (grid.tolist(), scipy.stats.gaussian_kde(values)(grid).tolist())


def contribution_charts(
    runs: Sequence[RunContent], selection: Selection, problems: list[UnreadableFile]
) -> list[Chart]:
    """Remaining error against the number of dimensions replaced."""

    def read(folder: Path) -> Iterator[tuple[str, Curve]]:
        rows = read_table(folder / "contribution.csv")
        yield "", ([finite(row["dimensions"]) for row in rows], [finite(row["median"]) for row in rows])

    made = _of_analyses(runs, selection, "contribution", read, problems)
    panels = [
        Panel(title, lines, "dimensions replaced, most different first", "remaining error (share, median)", True, True)
        for title, lines in made
    ]
    return [Chart("contribution-curve", "Contribution", panels)] if panels else []


def _of_analyses(
    runs: Sequence[RunContent],
    selection: Selection,
    kind: str,
    read: Callable[[Path], Iterator[tuple[str, Curve]]],
    problems: list[UnreadableFile],
) -> list[tuple[str, list[Line]]]:
    """Titles and lines of panels, one for each label and module or layer, out of the tables of one analysis."""
    found: dict[tuple[str, tuple[int, int]], dict[str, Curve]] = {}
    names: dict[tuple[int, int], str] = {}
    for run in runs:
        for finding in run.findings:
            if finding.kind != kind:
                continue
            try:
                for label, curve in read(finding.folder):
                    found.setdefault((label, finding.place), {})[run.record.name] = curve
                    names[finding.place] = finding.where
            except (OSError, *SHAPELESS) as error:
                problems.append(UnreadableFile(finding.folder, f"has a table that cannot be read ({reason_of(error)})"))
    made = []
    for (label, place), curves in sorted(found.items()):
        lines: list[Line] = []
        for group, own in selection.runs_of(runs).items():
            of_group = [(run.record.name, *curves[run.record.name]) for run in own if run.record.name in curves]
            lines += lines_of(selection.place(group), selection.label(group), of_group)
        made.append((f"{label}, {names[place]}" if label else names[place], lines))
    return made
