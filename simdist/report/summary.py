"""Measurements of single runs become means and standard deviations over seeds."""

from __future__ import annotations

import json
import statistics
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from simdist.report.collect import RunRecord
from simdist.report.measurement import Family, Measurement


@dataclass(frozen=True)
class Statistic:
    """Values of several seeds."""

    values: tuple[float, ...]
    interval: tuple[float, float] | None = None
    """Of a single seed, 95 %, where it was measured."""

    @property
    def mean(self) -> float:
        return statistics.fmean(self.values)

    @property
    def deviation(self) -> float | None:
        """The sample standard deviation (n - 1); None of a single value."""
        return statistics.stdev(self.values) if len(self.values) > 1 else None

    @property
    def count(self) -> int:
        return len(self.values)


@dataclass(frozen=True)
class Cell:
    """Where a statistic belongs."""

    group: tuple[Any, ...]
    """The values of the keys that tell groups of runs apart."""
    family: Family
    what: str
    """JSON of what was measured."""
    module: int | None
    metric: str


def telling_keys(items: Sequence[Mapping[str, Any]], first: Sequence[str] = (), never: Sequence[str] = ()) -> list[str]:
    """The fewest keys, taken in order, by whose values all different items can be told apart.

    Args:
        items: flat mappings.
        first: keys that are tried before the others.
        never: keys that do not count as a difference.
    """
    every = dict.fromkeys([*first, *(key for item in items for key in item)])
    chosen: list[str] = []
    number = 1
    for key in every:
        if key in never:
            continue
        found = len({key_of(item, [*chosen, key]) for item in items})
        if found > number:
            chosen.append(key)
            number = found
    return chosen


def key_of(item: Mapping[str, Any], keys: Sequence[str]) -> Hashable:
    """The values of `keys`, whatever they are, so that they can be compared and counted."""
    return json.dumps([item.get(key) for key in keys], sort_keys=True)


def group_keys(runs: Sequence[RunRecord]) -> list[str]:
    """Configuration keys that tell groups of seeds apart: the presets' name first, then what differs within one."""
    return telling_keys([run.config for run in runs], first=["name"], never=["seed"])


def summarize(
    runs: Sequence[RunRecord], measurements: Sequence[Measurement], keys: Sequence[str]
) -> dict[Cell, Statistic]:
    """Values of runs that differ in nothing but the seed, together."""
    groups = {run.name: group_of(run, keys) for run in runs}
    found: dict[Cell, list[Measurement]] = {}
    for item in measurements:
        what = json.dumps(item.what, sort_keys=True)
        cell = Cell(groups[item.run], item.family, what, item.module, item.metric)
        found.setdefault(cell, []).append(item)
    return {
        cell: Statistic(tuple(item.value for item in own), own[0].interval if len(own) == 1 else None)
        for cell, own in found.items()
    }


def group_of(run: RunRecord, keys: Sequence[str]) -> tuple[Any, ...]:
    """The values of the keys that tell groups of runs apart."""
    return tuple(_plain(run.config.get(key)) for key in keys)


def _plain(value: Any) -> Any:
    """Lists and the like as text: a group is a key."""
    return value if isinstance(value, str | int | float | bool | None) else json.dumps(value, sort_keys=True)
