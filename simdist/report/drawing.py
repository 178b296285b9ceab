"""Draw charts with matplotlib as SVG, readable without JavaScript and on paper, and with bokeh for zoom and hover.

In the SVG, text stays text in the page's own font, and what matplotlib draws in black takes the page's text color. The
browser draws bokeh's JSON when a chart comes into view.
"""

from __future__ import annotations

import io
import json
from typing import Any

import matplotlib as mpl
import numpy as np
from bokeh.embed import json_item
from bokeh.models import BasicTicker, ColumnDataSource, DataRange1d, HoverTool, Span
from bokeh.plotting import figure
from bokeh.resources import Resources
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure

from simdist.report.charts import GREY, OTHER, Line, Panel

SIZE = (4.2, 2.5)  # inches
FEW_POINTS = 40  # of a gray line; there may be hundreds
MANY_LINES = 60  # above this number, gray and faint lines are drawn as pixels
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
    """Runs of several, and encoders that are not in color; hundreds of them as pixels."""
    many = len(lines) > MANY_LINES
    step = max(1, max((len(line.x) for line in lines), default=0) // FEW_POINTS) if many else 1
    segments = [np.column_stack([line.x[::step], line.y[::step]]) for line in lines]
    axes.add_collection(
        LineCollection(segments, colors=[line.color for line in lines], linewidths=0.6, alpha=0.35, rasterized=many)
    )
    axes.autoscale_view()


def _draw(axes: Axes, line: Line) -> None:
    axes.plot(
        line.x,
        line.y,
        color=line.color,
        linewidth=0.8 if line.is_thin else 1.5,
        alpha=0.7 if line.is_thin else 1,
        dashes=line.dash or (None, None),
        marker="o" if len(line.x) <= 12 and not line.is_thin else None,
        markersize=3,
    )
    if line.low is not None and line.high is not None:
        axes.fill_between(line.x, line.low, line.high, color=line.color, alpha=0.15, linewidth=0)


def _themed(svg: str, panel: Panel) -> str:
    """Without the XML head, with a title for screen readers, and with the page's color instead of black."""
    body = svg[svg.index("<svg") :].replace("#000000", "currentColor")
    label = (
        f"{panel.title}: {panel.ylabel} against {panel.xlabel}".replace("&", "and").replace('"', "").replace("<", "")
    )
    return body.replace("<svg ", f'<svg role="img" aria-label="{label}" ', 1)


LIVE_HEIGHT = 250  # pixels
TOOLS = "pan,box_zoom,wheel_zoom,save,reset"


def library() -> str:
    """The JavaScript that draws them: bokeh's core, 1.3 MB, without widgets, tables and MathJax."""
    return "\n".join(Resources(mode="inline", components=["bokeh"]).js_raw)


def as_json(panel: Panel) -> str:
    """One panel, for `Bokeh.embed.embed_item`; may stand in a `<script>`."""
    plot = figure(
        height=LIVE_HEIGHT,
        sizing_mode="stretch_width",
        tools=TOOLS,
        active_drag="box_zoom",
        x_axis_label=panel.xlabel,
        y_axis_label=panel.ylabel,
        x_axis_type="log" if panel.is_log else "linear",
        outline_line_color=None,
        toolbar_location="above",
        lod_threshold=None,
    )
    for place in dict.fromkeys(line.place for line in sorted(panel.lines, key=lambda line: line.place)):
        _draw_live(plot, place, [line for line in panel.lines if line.place == place])
    if panel.reference is not None:
        plot.add_layout(Span(location=panel.reference[0], dimension="width", line_dash="dotted", line_color=GREY))
    if panel.from_zero:
        lowest = min([0.0, *(float(np.nanmin(line.y)) for line in panel.lines if len(line.y))])
        plot.y_range = DataRange1d(start=lowest)
    if panel.is_log or panel.at_points:
        plot.xaxis.ticker = sorted({float(x) for line in panel.lines for x in line.x})
    else:
        plot.xaxis.ticker = BasicTicker(desired_num_ticks=4)  # steps have many digits, and four panels stand in a row
    plot.axis.axis_label_text_font_style = "normal"
    plot.axis.axis_label_text_font_size = plot.axis.major_label_text_font_size = "12px"
    plot.axis.minor_tick_line_color = None
    plot.toolbar.logo = None
    return json.dumps(json_item(plot), separators=(",", ":")).replace("<", "\\u003c")  # pyright: ignore


def _draw_live(plot: figure, place: int, lines: list[Line]) -> None:
    """The lines of one encoder; renderers are named after it, so that the legend can hide them."""
    name, behind = f"encoder{place}", [line for line in lines if line.is_faint or place == OTHER]
    if behind:
        columns = {"x": [_small(line.x) for line in behind], "y": [_small(line.y) for line in behind]}
        source = ColumnDataSource(columns | {"name": [line.name for line in behind]})
        drawn = plot.multi_line("x", "y", source=source, line_color=behind[0].color, line_alpha=0.35, name=name)
        plot.add_tools(HoverTool(renderers=[drawn], tooltips=[("", "@name")], visible=False))
    for line in (line for line in lines if not line.is_faint and place != OTHER):
        source = ColumnDataSource({"x": _small(line.x), "y": _small(line.y)})
        if line.low is not None and line.high is not None:
            band = ColumnDataSource({"x": _small(line.x), "low": _small(line.low), "high": _small(line.high)})
            plot.varea("x", "low", "high", source=band, fill_color=line.color, fill_alpha=0.15, name=name)
        dash = list(line.dash) or "solid"
        width, alpha = (1, 0.7) if line.is_thin else (2, 1)
        drawn = plot.line(
            "x",
            "y",
            source=source,
            line_width=width,
            line_alpha=alpha,
            line_color=line.color,
            line_dash=dash,
            name=name,
        )
        if len(line.x) <= 12 and not line.is_thin:
            plot.scatter("x", "y", source=source, size=6, color=line.color, name=name)
        tips = [(line.name, ""), (plot.xaxis[0].axis_label, "@x"), (plot.yaxis[0].axis_label, "@y")]
        plot.add_tools(HoverTool(renderers=[drawn], tooltips=tips, visible=False))


def _small(values: np.ndarray) -> np.ndarray:
    """Half the bytes; seven digits are more than a screen shows."""
    return values.astype(np.float32)
