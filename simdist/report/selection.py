"""Choose the encoders with a color, and the runs with audio and figures, so that a page of hundreds stays usable."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from simdist.core.errors import InputError
from simdist.report.charts import COLORS, OTHER
from simdist.report.collect import RunContent
from simdist.report.summary import Cell, Statistic, group_label, group_of

Group = tuple[Any, ...]
MOST_DETAILED = 4  # runs, where --detail does not say


@dataclass(frozen=True)
class Selection:
    """The encoders in color, and the runs in detail."""

    keys: list[str]
    groups: dict[str, Group]
    """Of every run, by its name."""
    colored: list[Group]
    """At most six; their places are their colors."""
    detailed: list[RunContent]
    reason: str
    """Why these, in a sentence."""

    def place(self, group: Group) -> int:
        """Of an encoder in the legend."""
        return self.colored.index(group) if group in self.colored else OTHER

    def label(self, group: Group) -> str:
        """What an encoder is called."""
        return group_label(group, self.keys) or str(self.detailed[0].record.config["name"])

    def runs_of(self, runs: Sequence[RunContent]) -> dict[Group, list[RunContent]]:
        """Runs by encoder: those in color last, so that they are drawn on top."""
        found: dict[Group, list[RunContent]] = {}
        for run in runs:
            found.setdefault(self.groups[run.record.name], []).append(run)
        return dict(sorted(found.items(), key=lambda item: self.place(item[0])))


def select(
    runs: Sequence[RunContent], cells: Mapping[Cell, Statistic], keys: Sequence[str], detail: str = ""
) -> Selection:
    """Choose encoders and runs.

    Args:
        runs: all of them.
        cells: what `summarize` found.
        keys: the configuration keys that tell encoders apart.
        detail: a number of runs, or names of runs, comma-separated; empty takes `MOST_DETAILED`.

    Raises:
        InputError: `detail` names a run that is not among them.
    """
    groups = {run.record.name: group_of(run.record, keys) for run in runs}
    named = _named(runs, detail)
    ranked = list(dict.fromkeys([*(groups[run.record.name] for run in named), *_ranked(runs, groups, cells)]))
    colored = [group for group in dict.fromkeys(groups.values()) if group in ranked[: len(COLORS)]]
    most = int(detail) if _is_number(detail, runs) else MOST_DETAILED
    detailed = named or [_richest(runs, groups, group) for group in ranked[:most]]
    detailed.sort(key=lambda run: list(groups).index(run.record.name))
    return Selection(list(keys), groups, colored, detailed, _reason(bool(named), len(runs), len(ranked)))


def _is_number(detail: str, runs: Sequence[RunContent]) -> bool:
    return detail.isdigit() and detail not in {run.record.name for run in runs}


def _named(runs: Sequence[RunContent], detail: str) -> list[RunContent]:
    if not detail or _is_number(detail, runs):
        return []
    by_name = {run.record.name: run for run in runs}
    wanted = [name.strip() for name in detail.split(",") if name.strip()]
    for name in wanted:
        if name not in by_name:
            some = ", ".join(list(by_name)[:5]) + (", …" if len(by_name) > 5 else "")
            raise InputError(f"--detail names {name!r}, which is not among the runs ({some}); or give a number of runs")
    return [by_name[name] for name in dict.fromkeys(wanted)]


def _ranked(runs: Sequence[RunContent], groups: Mapping[str, Group], cells: Mapping[Cell, Statistic]) -> list[Group]:
    """Encoders with decoders or analyses first, then by mean accuracy over their own probes of trained features."""
    rich = {groups[run.record.name] for run in runs if run.findings}
    accuracies: dict[Group, list[float]] = {}
    for cell, value in cells.items():
        if cell.family == "probe" and cell.metric == "accuracy" and '"features": "trained"' in cell.what:
            accuracies.setdefault(cell.group, []).append(value.mean)
    mean = {group: sum(values) / len(values) for group, values in accuracies.items()}
    return sorted(dict.fromkeys(groups.values()), key=lambda group: (group not in rich, -mean.get(group, 0.0)))


def _richest(runs: Sequence[RunContent], groups: Mapping[str, Group], group: Group) -> RunContent:
    """Of an encoder's runs the one with most analyses; of equal ones the lowest seed."""
    own = [run for run in runs if groups[run.record.name] == group]
    return max(own, key=lambda run: (len(run.findings), run.record.finished, -run.record.seed))


def _reason(is_named: bool, num_runs: int, num_groups: int) -> str:
    if is_named:
        return "named by --detail"
    if num_groups <= MOST_DETAILED and num_runs == num_groups:
        return "all there are"
    return "of each encoder the run with most analyses; encoders with analyses first, then by their probes' accuracy"
