"""What a run's decoders and analyses found: their results, as numbers and as folders with figures and sounds."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from simdist.report.files import SHAPELESS, Problem, read_json, reason_of
from simdist.report.measurement import Measurement

ANALYSIS, DECODERS, RESULT = "analysis", "decoders", "result.json"
COMPARISON = "compare"
MEAN_SIGNAL = "mean signal"
Values = dict[str, Any]


@dataclass(frozen=True)
class Finding:
    """A finished analysis of one module, or a decoder that was measured."""

    run: str
    folder: Path
    kind: str
    """`decoder`, or the analysis: `distributions`, `weights`, …"""
    module: int
    step: int
    """Of the encoder."""
    values: Values
    """`values` of an analysis; the whole result of a decoder."""
    summary: list[str] = field(default_factory=list)
    measurements: list[Measurement] = field(default_factory=list)


def read_findings(folder: Path, run: str, problems: list[Problem]) -> list[Finding]:
    """Decoders, and of each analysis of each module the newest one at the latest checkpoint."""
    newest: dict[tuple[str, int], tuple[tuple[int, float], Finding]] = {}
    for path in sorted(folder.glob(f"{ANALYSIS}/*")):
        if not path.is_dir() or path.name.startswith(f"{COMPARISON}-"):
            continue
        if not (path / RESULT).exists():
            problems.append(Problem(path, f"has no {RESULT}: the analysis is unfinished"))
            continue
        result = read_json(path / RESULT, problems)
        try:
            if result is not None:
                found, age = _analysis(run, path, result), (int(result["step"]), float(result["finished"]))
                key = (found.kind, found.module)
                if key not in newest or age > newest[key][0]:
                    newest[key] = (age, found)
        except SHAPELESS as error:
            problems.append(Problem(path / RESULT, f"is not the result of an analysis ({reason_of(error)})"))
    return [*_decoders(folder, run, problems), *(found for _, found in newest.values())]


def _analysis(run: str, path: Path, result: Values) -> Finding:
    kind, module, values = str(result["analysis"]), int(result["module"]), result["values"]
    numbers = NUMBERS[kind](values) if kind in NUMBERS else ()
    measured = [
        Measurement(run, "analysis", {"analysis": kind, **what}, module, metric, float(value))
        for what, metric, value in numbers
    ]
    return Finding(run, path, kind, module, int(result["step"]), values, [str(s) for s in result["summary"]], measured)


def _decoders(folder: Path, run: str, problems: list[Problem]) -> Iterator[Finding]:
    """Each decoder; the mean signal, which is the same for all of a run, with the first of its module."""
    baselines: set[int] = set()
    for path in sorted(folder.glob(f"{DECODERS}/*/{RESULT}")):
        result = read_json(path, problems)
        try:
            if result is not None:
                found = _decoder(run, path.parent, result)
                if found.module in baselines:
                    own = [item for item in found.measurements if item.what["loss"] != MEAN_SIGNAL]
                    found = replace(found, measurements=own)
                baselines.add(found.module)
                yield found
        except SHAPELESS as error:
            problems.append(Problem(path, f"is not the result of a decoder ({reason_of(error)})"))


def _decoder(run: str, path: Path, result: Values) -> Finding:
    module, measured = int(result["module"]), []
    for who, figures in result["quality"].items():
        what = {"loss": result["loss"], "features": "untrained" if result["encoder"]["untrained"] else "trained"}
        what = what if who == "decoder" else {"loss": MEAN_SIGNAL, "features": "none"}
        for metric, score in figures.items():
            if score["value"] is not None:
                measured.append(Measurement(run, "decoder", what, module, metric, float(score["value"])))
    return Finding(run, path, "decoder", module, int(result["encoder"]["step"] or 0), result, [], measured)


Number = tuple[dict[str, Any], str, float]
"""What was measured, in addition to the analysis and the module, the metric, its value."""


def _distributions(values: Values) -> Iterator[Number]:
    for metric in ("dimensions", "active_units", "collapsed_dimensions", "kl_nats_per_frame"):
        yield {}, metric, values[metric]
    for which in ("smallest", "median", "largest"):
        yield {}, f"ks_distance_{which}", values["ks_distance"][which]


def _weights(values: Values) -> Iterator[Number]:
    for label, found in values["labels"].items():
        for metric in ("small_share", "kurtosis", "dimensions_for_90_percent", "dimensions", "accuracy"):
            yield {"label": label}, metric, found[metric]


def _contribution(values: Values) -> Iterator[Number]:
    for point in values["curve"]:
        for metric in ("median", "lower_quartile", "upper_quartile"):
            yield {"replaced": point["dimensions"]}, metric, point[metric]


def _total_correlation(values: Values) -> Iterator[Number]:
    for estimate in ("kde", "kde_standardized", "gaussian"):
        for point in values[estimate]:
            for metric in ("total_correlation", "shuffled", "excess"):
                yield {"estimate": estimate, "width": point["dimensions"]}, metric, point[metric]


def _disentanglement(values: Values) -> Iterator[Number]:
    for factors, found in values["factors"].items():
        for metric in ("mig", "sap", "disentanglement", "completeness", "informativeness"):
            yield {"factors": factors}, metric, found[metric]


def _robustness(values: Values) -> Iterator[Number]:
    for label, found in values["labels"].items():
        for noise, curve in found["curves"].items():
            for point in curve:
                yield {"label": label, "noise": noise, "snr_db": point["snr_db"]}, "accuracy", point["accuracy"]


NUMBERS: dict[str, Callable[[Values], Iterator[Number]]] = {
    "distributions": _distributions,
    "weights": _weights,
    "contribution": _contribution,
    "total-correlation": _total_correlation,
    "disentanglement": _disentanglement,
    "robustness": _robustness,
}
