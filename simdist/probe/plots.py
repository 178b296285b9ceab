"""Plots of probes: confusion matrices, few-label curves, accuracy over training steps. Written as PNG."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

COLORS = (
    "#0072B2",
    "#D55E00",
    "#009E73",
    "#CC79A7",
    "#E69F00",
    "#56B4E9",
    "#000000",
)  # Okabe & Ito, color-blind safe
MARKERS = "osD^vPX"
NAMED_CLASSES = 60  # with more, names would overlap
WRITTEN_CLASSES = 12  # with so few, each cell says its number
DOTS = 150  # dots an inch

THESIS_SIZES = (1, 2, 4, 8, 16, 32, 64, 128)
THESIS = {  # Variational Greedy InfoMax (2023), syllables, test accuracy by examples per class; (method, module)
    ("GIM", 0): (0.228, 0.238, 0.266, 0.341, 0.359, 0.392, 0.455, 0.538),
    ("V-GIM", 0): (0.204, 0.236, 0.264, 0.304, 0.350, 0.410, 0.413, 0.486),
    ("GIM", 1): (0.143, 0.165, 0.153, 0.206, 0.215, 0.247, 0.271, 0.271),
    ("V-GIM", 1): (0.145, 0.200, 0.228, 0.290, 0.317, 0.354, 0.378, 0.417),
}


def plot_confusion(confusion: npt.NDArray[np.int64], names: list[str], label: str, title: str, path: Path) -> None:
    """Heat map of the answers per true class, without classes that never occur.

    Args:
        confusion: (K, K) counts, rows are true classes.
        path: PNG to write, whatever its name ends with.
    """
    shown = np.flatnonzero(confusion.sum(0) + confusion.sum(1))
    counts = confusion[np.ix_(shown, shown)]
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    size = float(np.clip(2.5 + 0.16 * len(shown), 4.5, 10))
    figure = Figure(figsize=(size + 0.8, size), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(shares, cmap="cividis", vmin=0, vmax=1)
    figure.colorbar(image, label="share of the true class", shrink=0.8)
    axes.set(xlabel=f"{label} answered", ylabel=f"true {label}")
    axes.set_title(f"{label}: {title}", fontsize=10)
    if len(shown) <= NAMED_CLASSES:
        shown_names = [names[number] for number in shown]
        font = 9 if len(shown) <= 20 else 6
        axes.set_xticks(range(len(shown)), shown_names, rotation=90, fontsize=font)
        axes.set_yticks(range(len(shown)), shown_names, fontsize=font)
    if len(shown) <= WRITTEN_CLASSES:
        axes.set_title(f"{label}: {title} (cells in % of the true class)", fontsize=10)
        for (row, column), share in np.ndenumerate(shares):
            color = "white" if share < 0.5 else "black"
            axes.text(column, row, f"{100 * share:.0f}", ha="center", va="center", fontsize=8, color=color)
    figure.savefig(path, format="png", dpi=DOTS)


def plot_curves(curves: list[tuple[str, list[dict[str, Any]]]], label: str, chance: float, path: Path) -> None:
    """Few labels: accuracy against examples per class, next to the thesis's table if it has one.

    Args:
        curves: for each probe its name and the `curve` of its result.
        chance: accuracy of guessing.
        path: PNG to write.
    """
    with_thesis = label == "syllable"
    figure = Figure(figsize=(11 if with_thesis else 6, 4.2), layout="constrained")
    panels = np.atleast_1d(figure.subplots(1, 2 if with_thesis else 1, sharey=True))
    for number, (name, curve) in enumerate(curves):
        sizes = [point["examples_per_class"] for point in curve]
        values = [point["accuracy"]["value"] for point in curve]
        low, high = zip(*(point["accuracy"]["interval"] for point in curve), strict=True)
        _line(panels[0], number, sizes, values, name)
        panels[0].fill_between(sizes, low, high, color=COLORS[number % len(COLORS)], alpha=0.2, linewidth=0)
    _finish_curve(panels[0], f"{label}: this run, mean and 95 % interval", chance)
    if with_thesis:
        for (method, module), values in THESIS.items():
            _line(
                panels[1], module, THESIS_SIZES, values, f"{method}, module {module}", "--" if method == "GIM" else "-"
            )
        _finish_curve(panels[1], f"{label}: thesis (V-GIM, 2023)", chance)
    panels[0].set_ylim(bottom=0)
    panels[0].set_ylabel("test accuracy (share of examples)")
    figure.savefig(path, format="png", dpi=DOTS)


def plot_trajectory(lines: list[tuple[str, list[dict[str, Any]]]], label: str, guessing: float, path: Path) -> None:
    """Accuracy of each module's probe against the encoder's training step, with 95 % intervals.

    Args:
        lines: for each module its name and its results, in order of steps.
        guessing: accuracy of always answering with the majority class.
        path: PNG to write.
    """
    figure = Figure(figsize=(6.5, 4.2), layout="constrained")
    axes = figure.subplots()
    for number, (name, results) in enumerate(lines):
        steps = [result["source"]["step"] or 0 for result in results]
        values = [result["test"]["accuracy"]["value"] for result in results]
        low, high = zip(*(result["test"]["accuracy"]["interval"] for result in results), strict=True)
        _line(axes, number, steps, values, name)
        axes.fill_between(steps, low, high, color=COLORS[number % len(COLORS)], alpha=0.15, linewidth=0)
    axes.axhline(guessing, color="0.4", linestyle=":", label="majority class")
    axes.set(xlabel="training step of the encoder (optimizer updates)", ylabel="test accuracy (share of examples)")
    axes.set_title(f"{label}: what each module knows while it is trained", fontsize=10)
    _legend(axes)
    axes.set_ylim(bottom=0)
    figure.savefig(path, format="png", dpi=DOTS)


def _line(axes: Axes, number: int, x: Any, y: Any, name: str, style: str = "-") -> None:
    color, marker = COLORS[number % len(COLORS)], MARKERS[number % len(MARKERS)]
    axes.plot(x, y, color=color, marker=marker, linestyle=style, markersize=4, label=name)


def _finish_curve(axes: Axes, title: str, chance: float) -> None:
    axes.axhline(chance, color="0.4", linestyle=":", label="chance")
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter(lambda value, place: f"{value:g}")
    axes.set_xlabel("labeled examples per class")
    axes.set_title(title, fontsize=10)
    _legend(axes)


def _legend(axes: Axes) -> None:
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, framealpha=0.9)
