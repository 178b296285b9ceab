"""Charts as SVG drawn by matplotlib, within the page: readable without JavaScript, on paper, light and dark.

Text stays text in the page's own font, and what matplotlib draws in black takes the page's text colour.
"""

from __future__ import annotations

import io
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure

from simdist.report.charts import OTHER, Line, Panel

SIZE = (4.2, 2.5)  # inches
FEW_POINTS = 40  # of a grey line; there may be hundreds
MANY_LINES = 60  # from so many on, grey and faint ones are drawn as pixels
STYLE: dict[Any, Any] = {
    "font.size": 8,
    "axes.labelsize": 8,
    "xtick.labelsize": 7.5,
    "ytick.labelsize": 7.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "svg.fonttype": "none",
}


def as_svg(panel: Panel, name: str) -> str:
    """One panel as an `<svg>` element.

    Args:
        panel: what is drawn.
        name: makes the ids in the SVG its own: several share a page.
    """
    style: dict[Any, Any] = {**STYLE, "svg.hashsalt": name}
    with mpl.rc_context(style):
        figure = Figure(figsize=SIZE, layout="constrained")
        axes = figure.subplots()
        behind = [line for line in panel.lines if line.place == OTHER or line.is_faint]
        _draw_behind(axes, behind)
        for line in panel.lines:
            if line.place != OTHER and not line.is_faint:
                _draw(axes, line)
        if panel.reference is not None:
            axes.axhline(panel.reference[0], color="0.5", linewidth=0.8, linestyle=":")
        axes.set(xlabel=panel.xlabel, ylabel=panel.ylabel)
        axes.grid(alpha=0.25, linewidth=0.5)
        if panel.is_log:
            axes.set_xscale("log", base=2)
            axes.xaxis.set_major_formatter(lambda value, place: f"{value:g}")
            axes.minorticks_off()
        if panel.at_points:
            axes.set_xticks(sorted({float(x) for line in panel.lines for x in line.x}))
        if panel.from_zero:
            axes.set_ylim(bottom=min(0, axes.get_ylim()[0]))
        text = io.StringIO()
        figure.savefig(text, format="svg", transparent=True, dpi=100, metadata={"Date": None, "Creator": None})
    return _themed(text.getvalue(), panel)


def _draw_behind(axes: Axes, lines: list[Line]) -> None:
    """Runs of several, and encoders that are not in colour; hundreds of them as pixels."""
    many = len(lines) > MANY_LINES
    step = max(1, max((len(line.x) for line in lines), default=0) // FEW_POINTS) if many else 1
    segments = [np.column_stack([line.x[::step], line.y[::step]]) for line in lines]
    axes.add_collection(
        LineCollection(segments, colors=[line.colour for line in lines], linewidths=0.6, alpha=0.35, rasterized=many)
    )
    axes.autoscale_view()


def _draw(axes: Axes, line: Line) -> None:
    axes.plot(
        line.x,
        line.y,
        color=line.colour,
        linewidth=1.5,
        dashes=line.dash or (None, None),
        marker="o" if len(line.x) <= 12 else None,
        markersize=3,
    )
    if line.low is not None and line.high is not None:
        axes.fill_between(line.x, line.low, line.high, color=line.colour, alpha=0.15, linewidth=0)


def _themed(svg: str, panel: Panel) -> str:
    """Without the XML head, with a title for screen readers, and with the page's colour instead of black."""
    body = svg[svg.index("<svg") :].replace("#000000", "currentColor")
    label = (
        f"{panel.title}: {panel.ylabel} against {panel.xlabel}".replace("&", "and").replace('"', "").replace("<", "")
    )
    return body.replace("<svg ", f'<svg role="img" aria-label="{label}" ', 1)
