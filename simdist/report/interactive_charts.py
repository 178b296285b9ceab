"""Charts as bokeh's JSON: zoom, pan, point at a line to read it. The browser draws them when they come into view."""

from __future__ import annotations

import json

import numpy as np
from bokeh.embed import json_item
from bokeh.models import BasicTicker, ColumnDataSource, DataRange1d, HoverTool, Span
from bokeh.plotting import figure
from bokeh.resources import Resources

from simdist.report.charts import GREY, OTHER, Line, Panel

HEIGHT = 250  # pixels
TOOLS = "pan,box_zoom,wheel_zoom,save,reset"


def library() -> str:
    """The JavaScript that draws them: bokeh's core, 1.3 MB, without widgets, tables and MathJax."""
    return "\n".join(Resources(mode="inline", components=["bokeh"]).js_raw)


def as_json(panel: Panel) -> str:
    """One panel, for `Bokeh.embed.embed_item`; may stand in a `<script>`."""
    plot = figure(
        height=HEIGHT,
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
        _draw(plot, place, [line for line in panel.lines if line.place == place])
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


def _draw(plot: figure, place: int, lines: list[Line]) -> None:
    """The lines of one encoder; renderers are named after it, so that the legend can hide them."""
    name, behind = f"encoder{place}", [line for line in lines if line.is_faint or place == OTHER]
    if behind:
        columns = {"x": [_small(line.x) for line in behind], "y": [_small(line.y) for line in behind]}
        source = ColumnDataSource(columns | {"name": [line.name for line in behind]})
        drawn = plot.multi_line("x", "y", source=source, line_color=behind[0].colour, line_alpha=0.35, name=name)
        plot.add_tools(HoverTool(renderers=[drawn], tooltips=[("", "@name")], visible=False))
    for line in lines:
        if line in behind:
            continue
        source = ColumnDataSource({"x": _small(line.x), "y": _small(line.y)})
        if line.low is not None and line.high is not None:
            band = ColumnDataSource({"x": _small(line.x), "low": _small(line.low), "high": _small(line.high)})
            plot.varea("x", "low", "high", source=band, fill_color=line.colour, fill_alpha=0.15, name=name)
        dash = list(line.dash) or "solid"
        drawn = plot.line("x", "y", source=source, line_color=line.colour, line_width=2, line_dash=dash, name=name)
        if len(line.x) <= 12:
            plot.scatter("x", "y", source=source, size=6, color=line.colour, name=name)
        tips = [(line.name, ""), (plot.xaxis[0].axis_label, "@x"), (plot.yaxis[0].axis_label, "@y")]
        plot.add_tools(HoverTool(renderers=[drawn], tooltips=tips, visible=False))


def _small(values: np.ndarray) -> np.ndarray:
    """Half the bytes; seven digits are more than a screen shows."""
    return values.astype(np.float32)
