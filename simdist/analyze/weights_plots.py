"""Figures of probe weights: heat map, density, most important dimensions, decision map."""

from __future__ import annotations

from typing import Any

import matplotlib as mpl
import numpy as np
import numpy.typing as npt
import scipy.stats
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from simdist.analyze import style

Matrix = npt.NDArray[np.float64]
NAMED_CLASSES = 60  # with more, names would overlap
TOP = 10  # dimensions of a bar chart
WEIGHT = "weight (each class's largest magnitude = 1)"


def heat_map(scaled: Matrix, classes: list[str], title: str) -> Figure:
    """Classes by dimensions, (K, C) weights in [-1, 1]."""
    figure = style.new_figure(float(np.clip(2.5 + 0.09 * scaled.shape[1], 6, 12)), 1.8 + 0.17 * len(classes))
    axes = figure.subplots()
    image = axes.imshow(scaled, cmap=style.DIVERGING, vmin=-1, vmax=1, aspect="auto", interpolation="nearest")
    figure.colorbar(image, label="weight, rescaled", pad=0.01)
    if len(classes) <= NAMED_CLASSES:
        axes.set_yticks(range(len(classes)), classes, fontsize=8 if len(classes) <= 20 else 6)
    axes.set(xlabel="latent dimension", ylabel="class")
    axes.set_title(title)
    return figure


def most_important(scaled: Matrix, order: npt.NDArray[np.int64], classes: list[str], title: str) -> Figure:
    """The weights of every class in the dimensions of the largest mean magnitude, `order` first to last."""
    top = order[:TOP]
    figure = style.new_figure(7, 3.6)
    axes = figure.subplots()
    axes.axhline(0, color=style.GREY, linewidth=0.8)
    for number, name in enumerate(classes):
        looks: dict[str, Any] = {"color": style.class_color(number), "marker": style.marker(number), "label": name}
        if len(classes) > style.MAX_CLASSES:
            looks = {"color": style.color(0), "marker": "o", "label": "one class" if number == 0 else None}
        shift = (number - (len(classes) - 1) / 2) * 0.6 / max(1, len(classes))
        axes.plot(np.arange(len(top)) + shift, scaled[number, top], linestyle="", markersize=5, **looks)
    axes.bar(range(len(top)), np.abs(scaled[:, top]).mean(0), color="0.85", width=0.9, zorder=0, label="mean magnitude")
    axes.set_xticks(range(len(top)), [str(d) for d in top])
    style.finish(axes, "latent dimension, most important first", "weight, rescaled", title, legend=False)
    axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), framealpha=0.9)
    return figure


def densities(runs: dict[str, Matrix], title: str) -> Figure:
    """Density of all classes' rescaled weights, one line per run (Gaussian kernels, Scott's bandwidth)."""
    figure = style.new_figure(6, 3.6)
    axes = figure.subplots()
    draw_densities(axes, runs)
    style.finish(axes, WEIGHT, "density", f"probe weights: {title}")
    return figure


def draw_densities(axes: Axes, runs: dict[str, Matrix]) -> None:
    """The lines of `densities`, with a faint histogram below each."""
    grid = np.linspace(-1.2, 1.2, 400)
    for number, (name, scaled) in enumerate(runs.items()):
        values = scaled.ravel()
        axes.hist(values, bins=40, range=(-1, 1), density=True, color=style.color(number), alpha=0.15)
        if values.std() > 0:
            density = scipy.stats.gaussian_kde(values)(grid)
            style_of_line = ("-", "--", "-.", ":")[number % 4]
            axes.plot(grid, density, color=style.color(number), linestyle=style_of_line, label=name)
    axes.set_xlim(-1.2, 1.2)


def decision_map(
    answers: npt.NDArray[np.int64], classes: list[str], pair: tuple[int, int], reach: float, title: str
) -> Figure:
    """Which class is answered where, over two dimensions in [-reach, reach]; (G, G) class numbers."""
    present = np.unique(answers)
    figure = style.new_figure(5.6, 4.2)
    axes = figure.subplots()
    palette = [style.class_color(n) for n in range(len(present))]
    if len(present) > len(style.CLASS_COLORS):
        palette = mpl.colormaps[style.SEQUENTIAL](np.linspace(0, 1, len(present))).tolist()
    places = np.searchsorted(present, answers)
    extent = (-reach, reach, -reach, reach)
    axes.imshow(
        places,
        origin="lower",
        extent=extent,
        cmap=ListedColormap(palette),
        vmin=-0.5,
        vmax=len(present) - 0.5,
        interpolation="nearest",
        alpha=0.75,
    )
    for place, number in enumerate(present):
        rows, columns = np.nonzero(places == place)
        size = len(answers) - 1
        x, y = (2 * reach * (np.median(index) / size) - reach for index in (columns, rows))
        if len(rows) > 0.01 * answers.size:
            box = {"boxstyle": "round,pad=0.2", "facecolor": "white", "edgecolor": "none", "alpha": 0.8}
            axes.text(x, y, classes[number], ha="center", va="center", bbox=box)
    handles = [Patch(color=palette[k], alpha=0.75, label=classes[n]) for k, n in enumerate(present)]
    axes.legend(handles=handles, loc="center left", bbox_to_anchor=(1.02, 0.5), title="answer")
    axes.set(xlabel=f"dimension {pair[0]} (latent units)", ylabel=f"dimension {pair[1]} (latent units)")
    axes.set_title(title)
    return figure
