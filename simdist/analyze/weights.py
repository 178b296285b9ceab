"""Weights of linear probes: which latent dimensions say what (arXiv 2408.12936, interpretability).

A probe without bias on time-averaged latents gives each class one weight a dimension. Each class's weights are divided
by the largest of them in magnitude, so that they lie in [-1, 1], zero stays zero and signs stay. The paper's plots
(`--definition paper`) stretch each class from its minimum to its maximum instead.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from simdist.analyze import weights_plots as plots
from simdist.analyze.encoder_under_test import EncoderUnderTest, open_encoder
from simdist.analyze.probes import (
    TrainedProbe,
    Wanted,
    check_same_classes,
    has_one_weight_a_dimension,
    named_probe,
    newest_by_label,
)
from simdist.analyze.registry import WeightsSettings
from simdist.analyze.result_writer import AnalysisResult, ResultWriter
from simdist.analyze.settings import PAPER, Definition, layer_of
from simdist.config.schema import place_name
from simdist.core.errors import InputError
from simdist.probe.settings import names_in

Matrix = npt.NDArray[np.float64]
SMALL = 0.1  # a rescaled weight below it hardly counts
_SCALE = {"simdist": "of a class's largest", PAPER: "of half a class's range from its middle"}
GRID = 201  # points per side of a decision map
REACH = 3.0  # of a decision map, in units of the latent: three standard deviations of the prior


def rescaled(weights: Matrix, definition: Definition = "simdist") -> Matrix:
    """(K, C) weights, each class in [-1, 1]: over its largest magnitude, or as the paper, from minimum to maximum."""
    if definition == PAPER:
        low, high = weights.min(axis=1, keepdims=True), weights.max(axis=1, keepdims=True)
        return np.where(high > low, 2 * (weights - low) / np.where(high > low, high - low, 1.0) - 1, 0.0)
    largest = np.abs(weights).max(axis=1, keepdims=True)
    return weights / np.where(largest > 0, largest, 1.0)


def importance(weights: Matrix, definition: Definition = "simdist") -> Matrix:
    """(C,) a dimension's mean magnitude over the classes of (K, C) weights, rescaled."""
    return np.abs(rescaled(weights, definition)).mean(axis=0)


def concentration(weights: Matrix, definition: Definition = "simdist") -> dict[str, float]:
    """How much a few dimensions decide.

    Returns:
        `small_share` of rescaled weights below 0.1 in magnitude, their excess `kurtosis` (0: Gaussian), and
        `dimensions_for_90_percent` of the sum of importances.
    """
    scaled, important = rescaled(weights, definition), np.sort(importance(weights, definition))[::-1]
    enough = np.cumsum(important) >= 0.9 * important.sum()
    return {
        "small_share": float((np.abs(scaled) < SMALL).mean()),
        "kurtosis": _excess_kurtosis(scaled),
        "dimensions_for_90_percent": int(enough.argmax()) + 1,
    }


def _excess_kurtosis(values: Matrix) -> float:
    """0 for Gaussian values, and where all are equal."""
    deviation = values - values.mean()
    variance = (deviation**2).mean()
    return float((deviation**4).mean() / variance**2 - 3) if variance > 0 else 0.0


def decisions(probe: TrainedProbe, pair: tuple[int, int], origin: str) -> npt.NDArray[np.int64]:
    """The class that a probe answers over two latent dimensions, (GRID, GRID): rows are the second one, ascending.

    Args:
        pair: the dimensions that move over [-3, 3].
        origin: `zero` or `mean` (of the probe's training features): where all others stand.
    """
    network = probe.load()
    place = network.mean.clone() if origin == "mean" else torch.zeros_like(network.mean)
    axis = torch.linspace(-REACH, REACH, GRID)
    grid = place.expand(GRID, GRID, -1).clone()
    grid[:, :, pair[0]] = axis[None, :]
    grid[:, :, pair[1]] = axis[:, None]
    with torch.no_grad():
        return network(grid.flatten(0, 1)).argmax(1).view(GRID, GRID).numpy()


class Weights:
    """See the module's docstring; an `Analysis`."""

    def __init__(self, encoder: EncoderUnderTest, module: int, settings: WeightsSettings) -> None:
        self._settings = settings
        self._probes = _find(encoder, module, settings)
        self._others: dict[str, dict[str, TrainedProbe]] = {}
        for folder in names_in(settings.others):
            other = open_encoder(WeightsSettings(run=Path(folder), device="cpu"))
            for label, probe in self._probes.items():
                found = newest_by_label(other, module, label, _wanted(settings), layer_of(settings))[label]
                check_same_classes(probe, found)
                self._others.setdefault(label, {})[other.run.folder.name] = found
        self._name, self._where = encoder.run.folder.name, place_name(module, layer_of(settings))
        self.inputs = [probe.name for probe in self._probes.values()]
        self.inputs += [f"{run}/{p.name}" for found in self._others.values() for run, p in found.items()]

    def work(self, writer: ResultWriter) -> AnalysisResult:
        """See `Analysis`."""
        values, summary = {}, []
        for label, probe in self._probes.items():
            writer.stop.check()
            found = self._one(label, probe, writer)
            values[label] = found
            top = ", ".join(str(number) for number in found["most_important"][:5])
            summary.append(
                f"{label}: most important dimensions {top}; {100 * found['small_share']:.0f} % of weights below "
                f"{SMALL} {_SCALE[self._settings.definition]}; 90 % of the importance in "
                f"{found['dimensions_for_90_percent']} of {found['dimensions']} dimensions"
            )
        return AnalysisResult({"labels": values}, summary)

    def _one(self, label: str, probe: TrainedProbe, writer: ResultWriter) -> dict[str, Any]:
        weights = probe.weights()
        definition = self._settings.definition
        scaled, important = rescaled(weights, definition), importance(weights, definition)
        order = np.argsort(-important, kind="stable")
        rows = [
            {"dimension": int(d), "importance": float(important[d])}
            | {f"weight_{name}": float(weights[k, d]) for k, name in enumerate(probe.classes)}
            | {f"rescaled_{name}": float(scaled[k, d]) for k, name in enumerate(probe.classes)}
            for d in range(weights.shape[1])
        ]
        writer.table(f"weights-{label}", rows)
        title = f"{label}, {self._name}, {self._where}"
        writer.figure(f"heat-map-{label}", plots.heat_map(scaled, probe.classes, title))
        writer.figure(f"most-important-{label}", plots.most_important(scaled, order, probe.classes, title))
        runs = {self._name: scaled} | {
            name: rescaled(p.weights(), definition) for name, p in self._others.get(label, {}).items()
        }
        writer.figure(f"density-{label}", plots.densities(runs, f"{label}, {self._where}"))
        if len(order) > 1:
            pair = (int(order[0]), int(order[1]))
            answers = decisions(probe, pair, self._settings.origin)
            writer.figure(f"decisions-{label}", plots.decision_map(answers, probe.classes, pair, REACH, title))
        return {
            "probe": probe.name,
            "standardized": bool(probe.result["probe"]["standardize"]),
            "dimensions": int(weights.shape[1]),
            "most_important": order[:10].tolist(),
            "accuracy": probe.result["test"]["accuracy"]["value"],
            **concentration(weights, definition),
            "others": {name: concentration(p.weights(), definition) for name, p in self._others.get(label, {}).items()},
        }


def _find(encoder: EncoderUnderTest, module: int, settings: WeightsSettings) -> dict[str, TrainedProbe]:
    if not settings.folder:
        return newest_by_label(encoder, module, settings.label, _wanted(settings), layer_of(settings))
    probe = named_probe(encoder, module, settings.folder, layer_of(settings))
    if not has_one_weight_a_dimension(probe):
        raise InputError(
            f"{probe.name} has no single weight a dimension (it is an mlp, or reads flattened frames); "
            "name a linear probe with --pooling mean or max"
        )
    return {probe.label: probe}


def _wanted(settings: WeightsSettings) -> Wanted:
    return Wanted(settings.probe, settings.pooling, bias=False)
