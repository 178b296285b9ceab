"""The one look of all figures: sizes, colors that the color-blind tell apart, PNG and SVG of each."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from simdist.core.files import replacing
from simdist.probe.plots import COLORS, DOTS, MARKERS

SEQUENTIAL, DIVERGING = "cividis", "PuOr"
GREY = "0.45"
STYLE: dict[Any, Any] = {
    "font.size": 9,
    "axes.titlesize": 10,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "legend.fontsize": 8,
    "svg.hashsalt": "simdist",
}
mpl.rcParams.update(STYLE)  # text takes its size when it is made, wherever that is
CLASS_COLORS = (*COLORS, "#882255", "#999933")  # wine and olive of Paul Tol's palette
MAX_CLASSES = 2 * len(CLASS_COLORS)  # two of each color, of different shape; with more, the rarest are gray together


def new_figure(width: float, height: float) -> Figure:
    """An empty figure of so many inches whose parts do not overlap."""
    return Figure(figsize=(width, height), layout="constrained")


def save(figure: Figure, path: Path) -> list[Path]:
    """Write `path` with the endings .png and .svg; the same figure gives the same bytes."""
    written = [path.with_name(f"{path.name}.{kind}") for kind in ("png", "svg")]
    for target in written:
        with replacing(target) as temporary:
            metadata = {"Date": None} if target.suffix == ".svg" else {}
            figure.savefig(temporary, format=target.suffix[1:], dpi=DOTS, metadata=metadata)
        figure.set_layout_engine("none")  # it is laid out now
    return written


def color(number: int) -> str:
    """The color of line or class `number`."""
    return COLORS[number % len(COLORS)]


def class_color(number: int) -> str:
    """The color of class `number` among the points of a scatter."""
    return CLASS_COLORS[number % len(CLASS_COLORS)]


def marker(number: int) -> str:
    """The marker of line or class `number`; with its class color it is different for `MAX_CLASSES` of them."""
    return MARKERS[(number + number // len(CLASS_COLORS)) % len(MARKERS)]


def line(axes: Axes, number: int, x: Any, y: Any, name: str, style: str = "-") -> None:
    """One of several lines, told apart by color and marker."""
    axes.plot(x, y, color=color(number), marker=marker(number), linestyle=style, markersize=4, label=name)


def finish(axes: Axes, xlabel: str, ylabel: str, title: str = "", legend: bool = True) -> None:
    """Labels, a light grid, and a legend where something has a name."""
    axes.set(xlabel=xlabel, ylabel=ylabel)
    axes.set_title(title)
    axes.grid(alpha=0.3)
    if legend and axes.get_legend_handles_labels()[0]:
        axes.legend(framealpha=0.9)
