"""Measurements of runs become means and standard deviations over seeds, and differences between encoders get a test.

Welch's t-test (unequal variances) over seeds, p values corrected by Holm's method over all comparisons of one label.
"""

from __future__ import annotations

import itertools
import json
import statistics
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from simdist.report.collect import RunRecord
from simdist.report.measurements import Family, Measurement

EMPTY = "–"


@dataclass(frozen=True)
class Statistic:
    """Values of several seeds."""

    values: tuple[float, ...]
    interval: tuple[float, float] | None = None
    """Of a single seed, 95 %, where it was measured."""
    deviation_of_probes: float | None = None
    """Mean over seeds of the standard deviation over the repeated probes of one encoder."""

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
    """Group the values of runs that differ only in the seed."""
    groups = {run.name: group_of(run, keys) for run in runs}
    found: dict[Cell, list[Measurement]] = {}
    for item in measurements:
        what = json.dumps(item.what, sort_keys=True)
        cell = Cell(groups[item.run], item.family, what, item.module, item.metric)
        found.setdefault(cell, []).append(item)
    return {cell: _statistic(own) for cell, own in found.items()}


def _statistic(seeds: Sequence[Measurement]) -> Statistic:
    spreads = [statistics.stdev(item.repetitions) for item in seeds if item.repetitions]
    return Statistic(
        tuple(item.value for item in seeds),
        seeds[0].interval if len(seeds) == 1 else None,
        statistics.fmean(spreads) if spreads else None,
    )


def group_of(run: RunRecord, keys: Sequence[str]) -> tuple[Any, ...]:
    """The values of the keys that tell groups of runs apart."""
    return tuple(_hashable(run.config.get(key)) for key in keys)


def _hashable(value: Any) -> Any:
    """Lists and the like as text: a group is a key."""
    return value if isinstance(value, str | int | float | bool | None) else json.dumps(value, sort_keys=True)


def plain(value: Any) -> str:
    """A value of a configuration, for people."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    return EMPTY if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def group_label(group: Sequence[object], keys: Sequence[str]) -> str:
    """`sim, beta 0.01`: a group of runs in a legend or a sentence."""
    parts = [
        plain(value) if key == "name" else f"{key.rpartition('.')[2]} {plain(value)}"
        for key, value in zip(keys, group, strict=True)
    ]
    return ", ".join(parts)


LEVEL = 0.05
FEWEST_SEEDS = 3
MOST_GROUPS = 6
ROUNDING = 1e-9  # accuracies that differ by less are equal


@dataclass(frozen=True)
class Comparison:
    """Two groups' accuracies on one probe."""

    what: str
    """JSON of what was measured, as in `Cell`."""
    module: int | None
    first: tuple[Any, ...]
    second: tuple[Any, ...]
    difference: float
    """Mean of the first minus mean of the second, a share of 1."""
    low: float
    high: float
    """95 % interval of the difference (Welch)."""
    p: float
    p_holm: float

    @property
    def is_significant(self) -> bool:
        return self.p_holm < LEVEL


def compare(cells: Mapping[Cell, Statistic], metric: str = "accuracy") -> list[Comparison]:
    """Every comparison that has enough seeds; [] also where scipy is not installed.

    Args:
        cells: what `summarize` found.
        metric: of the probes.
    """
    probes: dict[tuple[str, int | None], dict[tuple[Any, ...], Statistic]] = {}
    for cell, value in cells.items():
        if cell.family == "probe" and cell.metric == metric and value.count >= FEWEST_SEEDS:
            probes.setdefault((cell.what, cell.module), {})[cell.group] = value
    asked = [(what, module, pair) for (what, module), groups in probes.items() for pair in _pairs(groups)]
    samples = [(probes[w, m][first].values, probes[w, m][second].values) for w, m, (first, second) in asked]
    families: dict[str, list[Comparison]] = {}
    for (what, module, (first, second)), found in zip(asked, welch(samples), strict=True):
        if found is not None:
            comparison = Comparison(what, module, first, second, *found, p_holm=1.0)
            families.setdefault(json.loads(what)["label"], []).append(comparison)
    return [item for family in families.values() for item in _corrected(family)]


def _pairs(groups: Mapping[tuple[Any, ...], Statistic]) -> list[tuple[tuple[Any, ...], tuple[Any, ...]]]:
    if len(groups) <= MOST_GROUPS:
        return list(itertools.combinations(groups, 2))
    best = max(groups, key=lambda group: groups[group].mean)
    return [(best, group) for group in groups if group != best]


def welch(samples: Sequence[tuple[Sequence[float], Sequence[float]]]) -> list[tuple[float, float, float, float] | None]:
    """Of each pair of samples: difference of means, its 95 % interval, and p of Welch's t-test.

    None where neither sample varies, and everywhere where scipy is not installed.
    """
    try:
        import scipy.stats
    except ImportError:
        return [None] * len(samples)
    found: list[tuple[float, float, float, float] | None] = [None] * len(samples)
    by_size: dict[tuple[int, int], list[int]] = {}
    for place, (first, second) in enumerate(samples):
        if max(first) - min(first) + max(second) - min(second) > ROUNDING:
            by_size.setdefault((len(first), len(second)), []).append(place)
    for places in by_size.values():  # samples of a size together: a call of scipy's costs milliseconds
        firsts, seconds = (np.array([samples[place][side] for place in places]) for side in (0, 1))  # (pairs, seeds)
        test: Any = scipy.stats.ttest_ind(firsts, seconds, axis=1, equal_var=False)
        interval = test.confidence_interval(1 - LEVEL)
        columns = firsts.mean(1) - seconds.mean(1), interval.low, interval.high, test.pvalue
        for place, *numbers in zip(places, *columns, strict=True):
            difference, low, high, p = map(float, numbers)
            found[place] = (difference, low, high, p)
    return found


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjusted p values (Holm 1979): the k-th smallest of n times n - k + 1, never below a smaller one's, at most 1."""
    order = sorted(range(len(p_values)), key=lambda place: p_values[place])
    adjusted, largest = [0.0] * len(p_values), 0.0
    for rank, place in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[place]))
        adjusted[place] = largest
    return adjusted


def _corrected(family: list[Comparison]) -> list[Comparison]:
    adjusted = holm([item.p for item in family])
    return [replace(item, p_holm=p) for item, p in zip(family, adjusted, strict=True)]


def winners(comparisons: Sequence[Comparison]) -> set[tuple[str, int | None, tuple[Any, ...]]]:
    """(what, module, group) of groups that are significantly above every other one on that probe."""
    against: dict[tuple[str, int | None, tuple[Any, ...]], list[bool]] = {}
    for item in comparisons:
        for group, sign in ((item.first, 1), (item.second, -1)):
            is_above = item.is_significant and sign * item.difference > 0
            against.setdefault((item.what, item.module, group), []).append(is_above)
    most = {}
    for (what, module, _), found in against.items():
        most[what, module] = max(most.get((what, module), 0), len(found))
    return {key for key, found in against.items() if all(found) and len(found) == most[key[:2]]}
