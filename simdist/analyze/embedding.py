"""Latents in the plane: t-SNE (van der Maaten & Hinton 2008) or UMAP (McInnes et al. 2018), colored by label.

A picture of this kind shows neighborhoods, not distances or sizes of clusters; so how many of a vector's five nearest
neighbors share its label is counted in the latent and in the plane, and compared with chance.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from simdist.analyze import style
from simdist.analyze.encoder_under_test import EncoderUnderTest
from simdist.analyze.extras import optional
from simdist.analyze.labeled import LabeledAnalysis, Vectors, vectors_of
from simdist.analyze.registry import EmbeddingSettings
from simdist.analyze.result_writer import AnalysisResult, ResultWriter
from simdist.core.errors import InputError

NEIGHBORS = 5
PERPLEXITY = 30.0  # as in the reference implementation
FEWEST = 8  # vectors
OTHERS = "others"


def neighbor_agreement(points: npt.NDArray[np.float64], classes: npt.NDArray[np.int64]) -> float:
    """Mean share of the five nearest neighbors (Euclidean) of (n, d) points that have a point's own class."""
    finder = optional("sklearn.neighbors").NearestNeighbors(n_neighbors=min(NEIGHBORS, len(points) - 1)).fit(points)
    return float((classes[finder.kneighbors(return_distance=False)] == classes[:, None]).mean())


def chance_agreement(classes: npt.NDArray[np.int64]) -> float:
    """What `neighbor_agreement` is on average when neighbors are drawn at random without replacement."""
    counts = np.bincount(classes)
    return float((counts * (counts - 1)).sum() / (len(classes) * (len(classes) - 1)))


def perplexity_of(number: int, settings: EmbeddingSettings) -> float:
    """The perplexity for so many vectors: as asked for, else 30 or a quarter of them.

    Raises:
        InputError: too few vectors.
    """
    if number < FEWEST:
        raise InputError(f"{number} vectors are too few for a map; it takes {FEWEST} or more labeled test clips")
    perplexity = min(PERPLEXITY, number / 4) if settings.perplexity is None else settings.perplexity
    if number <= 3 * perplexity:
        raise InputError(
            f"{number} vectors are too few for --perplexity {perplexity:g}, which wants more than three times as many; "
            f"lower it to below {number / 3:.0f}, leave it out, or look at more --examples if there are"
        )
    return perplexity


def embed(values: npt.NDArray[np.float64], perplexity: float, settings: EmbeddingSettings) -> npt.NDArray[np.float64]:
    """(n, C) -> (n, 2), of standardized dimensions.

    Raises:
        InputError: a package is missing.
    """
    deviation = values.std(axis=0)
    scaled = (values - values.mean(axis=0)) / np.where(deviation > 0, deviation, 1)
    if settings.method == "umap":
        reducer = optional("umap").UMAP(n_neighbors=round(perplexity), random_state=settings.seed, n_jobs=1)
    else:
        reducer = optional("sklearn.manifold").TSNE(
            perplexity=perplexity, init="pca", random_state=settings.seed, n_jobs=1
        )
    return np.asarray(reducer.fit_transform(scaled), dtype=np.float64)


class Embedding(LabeledAnalysis):
    """See the module's docstring; an `Analysis`."""

    def __init__(self, encoder: EncoderUnderTest, module: int, settings: EmbeddingSettings) -> None:
        super().__init__(encoder, module, settings)
        self._settings = settings
        optional("umap" if settings.method == "umap" else "sklearn")

    def work(self, writer: ResultWriter) -> AnalysisResult:
        """See `Analysis`."""
        values, summary, settings = {}, [], self._settings
        for where in self.found:
            vectors = vectors_of(
                self.encoder, self.module, where, where.pair.test, settings.examples, settings.seed, writer.stop.check
            )
            perplexity = perplexity_of(len(vectors), settings)
            plane = embed(vectors.values, perplexity, settings)
            writer.stop.check()
            title = f"{settings.method.upper().replace('TSNE', 't-SNE')} of {len(vectors):,} vectors: {self.where}"
            writer.figure(f"{settings.method}-{'-'.join(where.labels)}", plane_figure(plane, vectors, title))
            writer.table(f"{settings.method}-{'-'.join(where.labels)}", rows_of(plane, vectors, ["x", "y"]))
            for label, classes in vectors.classes.items():
                values[label] = {
                    "vectors": len(vectors),
                    "perplexity": perplexity,
                    "neighbours_alike_in_latent": neighbor_agreement(vectors.values, classes),
                    "neighbours_alike_in_plane": neighbor_agreement(plane, classes),
                    "chance": chance_agreement(classes),
                }
                summary.append(_sentence(label, values[label]))
        return AnalysisResult({"method": settings.method, "labels": values}, summary)


def plane_figure(plane: npt.NDArray[np.float64], vectors: Vectors, title: str) -> Figure:
    """One panel a label, all with the same points."""
    figure = style.new_figure(5.4 * len(vectors.classes), 4.4)
    panels = np.atleast_1d(figure.subplots(1, len(vectors.classes)))
    for axes, (label, classes) in zip(panels, vectors.classes.items(), strict=True):
        draw_classes(axes, plane, classes, vectors.names[label], label)
        axes.set(xticks=[], yticks=[], xlabel="first coordinate (no unit)", ylabel="second coordinate (no unit)")
        axes.set_title(label)
    figure.suptitle(title, fontsize=10)
    return figure


def draw_classes(
    axes: Axes,
    points: npt.NDArray[np.float64],
    classes: npt.NDArray[np.int64],
    names: list[str],
    label: str,
    legend: bool = True,
) -> None:
    """(n, 2) or (n, 3) points, each class in its color and shape; of many classes the rarest share gray."""
    counts = np.bincount(classes, minlength=len(names))
    shown = np.flatnonzero(counts)
    if len(shown) > style.MAX_CLASSES:
        shown = np.sort(np.argsort(-counts, kind="stable")[: style.MAX_CLASSES - 1])
        rest = ~np.isin(classes, shown)
        axes.scatter(*points[rest].T, s=8, color="0.8", marker=".", label=OTHERS)
    for place, number in enumerate(shown):
        those = classes == number
        looks: dict[str, Any] = {"color": style.class_color(place), "marker": style.marker(place)}
        axes.scatter(*points[those].T, s=14, alpha=0.7, linewidths=0, label=names[number], **looks)
    if legend:
        axes.legend(title=label, loc="center left", bbox_to_anchor=(1.01, 0.5), framealpha=0.9)


def rows_of(points: npt.NDArray[np.float64], vectors: Vectors, axes: list[str]) -> list[dict[str, Any]]:
    """One row a vector: its coordinates and the names of its classes."""
    return [
        dict(zip(axes, map(float, point), strict=True))
        | {label: vectors.names[label][classes[place]] for label, classes in vectors.classes.items()}
        for place, point in enumerate(points)
    ]


def _sentence(label: str, found: dict[str, Any]) -> str:
    latent, plane, chance = (
        100 * found[key] for key in ("neighbours_alike_in_latent", "neighbours_alike_in_plane", "chance")
    )
    return (
        f"{label}: {latent:.0f} % of a vector's {NEIGHBORS} nearest neighbors share its class in the latent, "
        f"{plane:.0f} % in the plane, {chance:.0f} % by chance"
    )
