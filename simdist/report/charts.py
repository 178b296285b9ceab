"""Charts as data, which `drawing` draws with matplotlib and with bokeh.

A line belongs to an encoder (a group of runs that differ only in the seed), and an encoder has one color and one dash
pattern on the whole page. There are six of them; what is not among the encoders in color is gray.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Vector = npt.NDArray[np.float64]
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
"""Okabe and Ito's without black and yellow: told apart by the color-blind, on white and on near-black."""
DASHES: tuple[tuple[int, ...], ...] = ((), (7, 3), (2, 2), (9, 3, 2, 3), (12, 4), (5, 2, 1, 2, 1, 2))
"""Lengths of dashes and gaps; () is a solid line."""
GREY = "#8a8a8a"
OTHER = -1  # place of an encoder that is not in color
MOST_POINTS = 200  # of a line


@dataclass(frozen=True, eq=False)
class Line:
    """One line: of a run, or of the mean of an encoder's runs."""

    place: int
    """Of its encoder in the legend; `OTHER` for the rest."""
    name: str
    """What a reader sees who points at it."""
    x: Vector
    y: Vector
    low: Vector | None = None
    """Lower edge of a band around it."""
    high: Vector | None = None
    is_faint: bool = False
    """One seed of several."""
    is_thin: bool = False
    """Training batches, where validation stands in the same panel."""

    @property
    def color(self) -> str:
        return GREY if self.place == OTHER else COLORS[self.place % len(COLORS)]

    @property
    def dash(self) -> tuple[int, ...]:
        return () if self.place == OTHER else DASHES[self.place % len(DASHES)]


@dataclass(frozen=True)
class Panel:
    """Axes with lines."""

    title: str
    lines: list[Line]
    xlabel: str
    ylabel: str
    is_log: bool = False
    """x axis to the base of two."""
    from_zero: bool = False
    at_points: bool = False
    """Ticks of the x axis where lines have points, and nowhere else."""
    reference: tuple[float, str] | None = None
    """A horizontal line, such as chance, and what it is."""


@dataclass(frozen=True)
class Chart:
    """Panels that belong together, one per module."""

    name: str
    """A word; unique on the page."""
    title: str
    panels: list[Panel]
    note: str = ""


def thinned(x: Sequence[float], y: Sequence[float], most: int = MOST_POINTS) -> tuple[Vector, Vector]:
    """At most `most` of the points, evenly chosen, the first and the last among them; values stay as they are."""
    xs, ys = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    if len(xs) <= most:
        return xs, ys
    chosen = np.unique(np.linspace(0, len(xs) - 1, most).round().astype(int))
    return xs[chosen], ys[chosen]


def over_seeds(curves: Sequence[tuple[Vector, Vector]]) -> tuple[Vector, Vector, Vector | None]:
    """Mean and sample standard deviation of several runs' curves, on the longest's points that all of them reach.

    Returns:
        x, mean and deviation (None of one run). Where runs logged at other points, they are interpolated linearly.
    """
    longest = max((x for x, _ in curves), key=len)
    first, last = max(x[0] for x, _ in curves), min(x[-1] for x, _ in curves)
    grid = longest[(longest >= first) & (longest <= last)]
    grid = grid if len(grid) else longest
    values = np.stack([np.interp(grid, x, y) for x, y in curves])
    return grid, values.mean(axis=0), values.std(axis=0, ddof=1) if len(curves) > 1 else None


def lines_of(place: int, label: str, runs: Sequence[tuple[str, Any, Any]], most: int = MOST_POINTS) -> list[Line]:
    """The lines of one encoder: each of its runs, faint, and their mean ± standard deviation; of one run, that run.

    Args:
        place: of the encoder in the legend; encoders that are not in color have no mean.
        label: what the encoder is called.
        runs: name, x and y of each run.
        most: points of a line.
    """
    thin = [(name, *thinned(x, y, most)) for name, x, y in runs if len(x)]
    if not thin:
        return []
    if len(thin) == 1 or place == OTHER:
        return [Line(place, name, x, y) for name, x, y in thin]
    x, mean, deviation = over_seeds([(x, y) for _, x, y in thin])
    assert deviation is not None
    mean_line = Line(place, f"{label}: mean of {len(thin)}", x, mean, mean - deviation, mean + deviation)
    return [*(Line(place, name, x, y, is_faint=True) for name, x, y in thin), mean_line]
