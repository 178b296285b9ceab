"""Three latent dimensions in space: by default those that tell a label's classes apart best, each by itself.

How well is the F of a one-way analysis of variance: the variance between class means over that within classes.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from simdist.analyze import style
from simdist.analyze.embedding import draw_classes, rows_of
from simdist.analyze.encoder_under_test import EncoderUnderTest
from simdist.analyze.labeled import LabeledAnalysis, vectors_of
from simdist.analyze.registry import ScatterSettings
from simdist.analyze.result_writer import AnalysisResult, ResultWriter
from simdist.analyze.settings import numbers
from simdist.core.errors import InputError


def variance_ratio(values: npt.NDArray[np.float64], classes: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """(C,) F of a one-way analysis of variance of (n, C) vectors by class; 0 where a dimension never changes."""
    present = np.unique(classes)
    groups = [values[classes == number] for number in present]
    between = sum(len(g) * (g.mean(axis=0) - values.mean(axis=0)) ** 2 for g in groups) / max(1, len(present) - 1)
    within = sum(((g - g.mean(axis=0)) ** 2).sum(axis=0) for g in groups) / max(1, len(values) - len(present))
    return np.where(within > 0, between / np.where(within > 0, within, 1), 0.0)


class Scatter(LabeledAnalysis):
    """See the module's docstring; an `Analysis`."""

    def __init__(self, encoder: EncoderUnderTest, module: int, settings: ScatterSettings) -> None:
        super().__init__(encoder, module, settings)
        self._settings, self._axes = settings, numbers("--dimensions", settings.dimensions)
        width = encoder.module(module).context_channels
        if self._axes and (len(set(self._axes)) != 3 or not all(0 <= d < width for d in self._axes)):
            raise InputError(
                f"--dimensions is {settings.dimensions!r}; it must be three different ones of 0 to {width - 1}"
            )
        if width < 3:
            raise InputError(f"module {module} has {width} dimensions; a scatter in space needs three")

    def work(self, writer: ResultWriter) -> AnalysisResult:
        """See `Analysis`."""
        values: dict[str, Any] = {}
        summary, settings = [], self._settings
        for where in self.found:
            vectors = vectors_of(
                self.encoder, self.module, where, where.pair.test, settings.examples, settings.seed, writer.stop.check
            )
            for label, classes in vectors.classes.items():
                ratio = variance_ratio(vectors.values, classes)
                chosen = self._axes or np.argsort(-ratio, kind="stable")[:3].tolist()
                figure = space_figure(vectors.values[:, chosen], chosen, classes, vectors.names[label], label)
                figure.suptitle(f"{len(vectors):,} vectors: {self.where}", fontsize=10)
                writer.figure(f"scatter-{label}", figure)
                names = [f"dimension_{d}" for d in chosen]
                writer.table(f"scatter-{label}", rows_of(vectors.values[:, chosen], vectors, names))
                values[label] = {"dimensions": chosen, "variance_ratios": ratio[chosen].tolist()}
                ratios = ", ".join(f"{d} (F {ratio[d]:.1f})" for d in chosen)
                summary.append(f"{label}: dimensions {ratios}")
        return AnalysisResult({"labels": values}, summary)


def space_figure(
    points: npt.NDArray[np.float64],
    dimensions: list[int],
    classes: npt.NDArray[np.int64],
    names: list[str],
    label: str,
) -> Figure:
    """(n, 3) points in space, and their shadows on its three planes."""
    figure = style.new_figure(10, 7)
    space: Any = figure.add_subplot(2, 2, 1, projection="3d")
    draw_classes(space, points, classes, names, label, legend=False)
    for axis, dimension in zip((space.xaxis, space.yaxis, space.zaxis), dimensions, strict=True):
        axis.set_label_text(f"dimension {dimension}")
        axis.set_major_locator(MaxNLocator(4))
    space.view_init(elev=20, azim=-60)
    for place, (first, second) in enumerate(((0, 1), (0, 2), (1, 2)), start=2):
        axes = figure.add_subplot(2, 2, place)
        draw_classes(axes, points[:, [first, second]], classes, names, label, legend=place == 2)
        x, y = (f"dimension {dimensions[d]} (latent units)" for d in (first, second))
        style.finish(axes, x, y, legend=False)
    return figure
