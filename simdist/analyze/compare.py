"""Compare two runs module by module: density of probe weights, contribution curves, total correlation.

Both runs are analyzed first where they were not, with the same settings. What one of them cannot give is left out of
the figures and named in the result.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from rich.markup import escape

from simdist.analyze import style
from simdist.analyze.command import AnalyzeCommand, finish
from simdist.analyze.contribution import draw_curves
from simdist.analyze.encoder_under_test import EncoderUnderTest, analysis_folder, open_encoder
from simdist.analyze.registry import ContributionSettings, TotalCorrelationSettings, WeightsSettings
from simdist.analyze.result_writer import AnalysisResult, ResultWriter, read_result
from simdist.analyze.settings import AnalysisSettings, CompareSettings
from simdist.analyze.total_correlation import ESTIMATES, draw_estimate
from simdist.analyze.weights import rescaled
from simdist.analyze.weights_plots import WEIGHT, draw_densities
from simdist.config.decoder import DEFAULT_LOSS
from simdist.config.schema import place_name
from simdist.core.errors import InputError, counted
from simdist.loading import decoder_losses
from simdist.probe.settings import Place, places_in

Results = dict[str, dict[str, Any]]
"""Name of a run -> the result of one analysis of one module."""


def compare(command: AnalyzeCommand, first: Path, second: Path, settings: CompareSettings) -> Path:
    """Analyze two runs and overlay their plots; returns the folder, which is in the first run's.

    Raises:
        InputError: a folder is no run, both are one, or nothing can be compared.
        StoppedError: a signal came; the same command resumes.
    """
    if first.resolve() == second.resolve():
        raise InputError(f"{first} and {second} are one run; name two")
    encoders = [open_encoder(AnalysisSettings(run=run, device=settings.device)) for run in (first, second)]
    names = _names(encoders)
    begin, missing = time.monotonic(), []
    found: dict[Place, dict[str, Results]] = {}
    for place in _places(encoders, settings):
        found[place] = {}
        for which, asked in _analyses(settings, place, (first, second)).items():
            folders = _results(command, which, asked, place, (first, second), missing)
            if folders is not None:
                found[place][which] = dict(zip(names, map(_read, folders), strict=True))
    if not any(found.values()):
        raise InputError("; ".join(dict.fromkeys(missing)))
    identity = _identity(encoders, settings, found)
    digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:8]
    folder = analysis_folder(encoders[0]) / f"compare-{second.resolve().name}-{digest}"
    writer = command.writer(folder)
    values = {
        place_name(*place).removeprefix("module "): _overlay(place, results, writer)
        for place, results in found.items()
        if results
    }
    result = AnalysisResult({"modules": values, "left_out": missing}, _summary(values))
    finish(writer, encoders[0].run, identity, result, time.monotonic() - begin)
    _tell(command, folder, result, writer)
    return folder


def _names(encoders: list[EncoderUnderTest]) -> list[str]:
    """What the runs are called in figures: their folders, with the folder above where these are alike."""
    paths = [encoder.run.folder.resolve() for encoder in encoders]
    if paths[0].name != paths[1].name:
        return [path.name for path in paths]
    return [f"{path.parent.name}/{path.name}" for path in paths]


def _places(encoders: list[EncoderUnderTest], settings: CompareSettings) -> list[Place]:
    """The modules to compare, or the layers inside them: of all, those that both have."""
    models = sorted((encoder.run.config.model for encoder in encoders), key=lambda model: len(model.modules))
    of_fewer = places_in(settings.module, settings.layer, models[0])
    if settings.layer is None:
        return of_fewer
    modules = ",".join(dict.fromkeys(str(module) for module, _ in of_fewer))
    of_more = places_in(modules, settings.layer, models[1])
    both = [place for place in of_fewer if place in of_more]
    if not both:
        raise InputError(f"the runs share no layer of --module {settings.module} --layer {settings.layer}")
    return both


def _analyses(settings: CompareSettings, place: Place, runs: tuple[Path, Path]) -> dict[str, AnalysisSettings]:
    """The settings of each analysis to overlay; `run` is filled in later."""
    module, number = place
    layer = None if number is None else str(number)
    same: dict[str, Any] = {
        "module": str(module),
        "data_root": settings.data_root,
        "seed": settings.seed,
        "device": settings.device,
    }
    analyses: dict[str, AnalysisSettings] = {
        "weights": WeightsSettings(label=settings.label, layer=layer, **same),
        "contribution": ContributionSettings(
            loss=settings.loss or _shared_loss(runs, place), clips=settings.clips, layer=layer, **same
        ),
    }
    if layer is None:
        analyses["total-correlation"] = TotalCorrelationSettings(clips=settings.clips, **same)
    return analyses


def _shared_loss(runs: tuple[Path, Path], place: Place) -> str:
    """A loss that both have a decoder of: two decoders of different losses have curves of different things."""
    ours, theirs = (decoder_losses(run, place[0], layer=place[1]) for run in runs)
    shared = [loss for loss in ours if loss in theirs]
    return next(iter([*shared, *ours, *theirs]), DEFAULT_LOSS)


def _results(
    command: AnalyzeCommand,
    which: str,
    asked: AnalysisSettings,
    place: Place,
    runs: tuple[Path, Path],
    missing: list[str],
) -> list[Path] | None:
    """Run one analysis of one module of both runs; None, and the reason in `missing`, if impossible."""
    both = [dataclasses.replace(asked, run=run) for run in runs]
    try:
        for one in both:  # first, so that nothing is computed in vain
            command.check(which, one)
        return [command.work(which, one)[0] for one in both]
    except InputError as error:
        missing.append(f"{which}, {place_name(*place)}: {error}")
        command.console.print(f"skipped: {escape(missing[-1])}")
        return None


def _read(folder: Path) -> dict[str, Any]:
    return read_result(folder) | {"folder": folder}


def _overlay(place: Place, results: dict[str, Results], writer: ResultWriter) -> dict[str, Any]:
    """Draw each analysis of a module, or of a layer, for both runs; returns what is compared as numbers."""
    drawing: dict[str, Callable[[Place, Results, ResultWriter], dict[str, Any]]] = {
        "weights": _weights,
        "contribution": _contribution,
        "total-correlation": _total_correlation,
    }
    return {which: drawing[which](place, found, writer) for which, found in results.items()}


def _stem(kind: str, place: Place) -> str:
    """Name of a figure: `weights-vowel-module0`, of a layer `weights-vowel-module0-layer3`."""
    module, layer = place
    return f"{kind}-module{module}" + ("" if layer is None else f"-layer{layer}")


def _weights(place: Place, found: Results, writer: ResultWriter) -> dict[str, Any]:
    labels = [set(result["values"]["labels"]) for result in found.values()]
    values: dict[str, Any] = {}
    for label in sorted(set.intersection(*labels)):
        scaled = {run: rescaled(_weight_table(result, label)) for run, result in found.items()}
        figure = style.new_figure(6, 3.6)
        axes = figure.subplots()
        draw_densities(axes, scaled)
        style.finish(axes, WEIGHT, "density", f"probe weights: {label}, {place_name(*place)}")
        writer.figure(_stem(f"weights-{label}", place), figure)
        kept = ("accuracy", "small_share", "kurtosis", "dimensions_for_90_percent")
        values[label] = {
            run: {key: result["values"]["labels"][label][key] for key in kept} for run, result in found.items()
        }
    return values


def _weight_table(result: dict[str, Any], label: str) -> np.ndarray:
    """(K, C) weights as the analysis of one run wrote them."""
    with (result["folder"] / f"weights-{label}.csv").open() as file:
        columns = file.readline().strip().split(",")
        rows = np.loadtxt(file, delimiter=",", ndmin=2)
    chosen = [place for place, name in enumerate(columns) if name.startswith("weight_")]
    return rows[:, chosen].T


def _contribution(place: Place, found: Results, writer: ResultWriter) -> dict[str, Any]:
    figure = style.new_figure(6, 3.8)
    axes = figure.subplots()
    curves = {run: result["values"]["curve"] for run, result in found.items()}
    draw_curves(axes, curves)
    loss = next(iter(found.values()))["settings"]["loss"]
    axes.set_title(f"interpolation contribution, {place_name(*place)}, decoder {loss}")
    writer.figure(_stem("contribution", place), figure)
    return curves


def _total_correlation(place: Place, found: Results, writer: ResultWriter) -> dict[str, Any]:
    values = {run: {name: result["values"][name] for name in ESTIMATES} for run, result in found.items()}
    figure: Figure = style.new_figure(11, 3.6)
    for axes, name in zip(figure.subplots(1, len(ESTIMATES)), ESTIMATES, strict=True):
        draw_estimate(axes, name, {run: estimates[name] for run, estimates in values.items()})
    figure.suptitle(f"total correlation, {place_name(*place)}", fontsize=10)
    writer.figure(_stem("total-correlation", place), figure)
    return values


def _identity(
    encoders: list[EncoderUnderTest], settings: CompareSettings, found: dict[Place, dict[str, Results]]
) -> dict[str, Any]:
    inputs = [r["name"] for analyses in found.values() for results in analyses.values() for r in results.values()]
    keys = ("module", *(() if settings.layer is None else ("layer",)), "label", "loss", "clips", "seed")
    chosen = {key: getattr(settings, key) for key in keys}
    return {
        "analysis": "compare",
        "module": settings.module,
        "step": encoders[0].step,
        "weights": [encoder.extractor.identity for encoder in encoders],
        "runs": [str(encoder.run.folder) for encoder in encoders],
        "settings": chosen,
        "inputs": inputs,
    }


def _summary(values: dict[str, Any]) -> list[str]:
    lines = []
    for module, found in values.items():
        for label, runs in found.get("weights", {}).items():
            shares = ", ".join(f"{run} {100 * v['small_share']:.0f} %" for run, v in runs.items())
            lines.append(f"module {module}, {label} weights below a tenth of a class's largest: {shares}")
        curves = found.get("contribution", {})
        if curves:
            halves = ", ".join(f"{run} {_half(curve)}" for run, curve in curves.items())
            lines.append(f"module {module}, dimensions that carry half of the difference between sounds: {halves}")
        correlations = found.get("total-correlation", {})
        if correlations:
            last = {run: v["gaussian"][-1]["total_correlation"] for run, v in correlations.items()}
            shown = ", ".join(f"{run} {'infinite' if v is None else f'{v:.1f}'}" for run, v in last.items())
            lines.append(f"module {module}, Gaussian total correlation in nats: {shown}")
    return lines


def _half(curve: list[dict[str, Any]]) -> int | None:
    return next((point["dimensions"] for point in curve if point["median"] <= 0.5), None)


def _tell(command: AnalyzeCommand, folder: Path, result: AnalysisResult, writer: ResultWriter) -> None:
    command.console.print("compared:")
    for line in result.summary:
        command.console.print(f"  {escape(line)}")
    command.console.print(f"  {counted(len(writer.files), 'file')} in {escape(str(folder))}")
