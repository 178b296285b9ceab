"""Results of a run's probes, decoders and analyses: numbers, and folders with figures and audio.

A `Measurement` is the form in which everything is collected, averaged over seeds and written as CSV.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from simdist.analyze.registry import ANALYSES
from simdist.config.schema import place_name
from simdist.report.files import SHAPELESS, UnreadableFile, flat, read_result, reason_of
from simdist.runs.records import AnalysisNumber, AnalysisRecord, DecoderResult, ProbeResult, RecordError, parse

Family = Literal["encoder", "probe", "few-labels", "decoder", "analysis"]


@dataclass(frozen=True)
class Measurement:
    """One number of one module of one run."""

    run: str
    family: Family
    what: dict[str, Any]
    """What was measured: the split of a loss; a probe's label, features, settings; the examples per class; a decoder's
    loss; the name of an analysis; `layer`, where one inside the module was."""
    module: int | None
    """None for what has no module, such as MFCC."""
    metric: str
    value: float
    interval: tuple[float, float] | None = None
    """95 %, where it was measured."""
    repetitions: tuple[float, ...] = ()
    """The values of which `value` is the mean, of a probe that was repeated with several seeds."""


PROBES, RESULT = "probes", "result.json"
SEEDS = ("seed", "view.seed", "probe.seed")
LAYER, DEFINITION = "layer", "definition"  # keys of `Measurement.what`


@dataclass(frozen=True)
class Trajectory:
    """Test accuracy of one probe at several checkpoints of the encoder."""

    run: str
    what: dict[str, Any]
    module: int
    steps: list[int]
    accuracies: list[float]
    """Shares of test vectors."""


@dataclass(frozen=True)
class Probed:
    """Results of all probes of a run."""

    measurements: list[Measurement] = field(default_factory=list)
    """Of several checkpoints the last."""
    trajectories: list[Trajectory] = field(default_factory=list)
    examples: dict[str, int] = field(default_factory=dict)
    """Training examples per class on average, rounded up, by label: the largest class has no fewer."""
    warnings: dict[str, None] = field(default_factory=dict)
    """What makes results doubtful, each sentence once."""


def read_probes(folder: Path, run: str, problems: list[UnreadableFile]) -> Probed:
    """Every probe of a run; of equal ones the newest, such as of an untrained encoder before it was calibrated."""
    read = Probed()
    kept: dict[str, dict[int, dict[Any, list[Measurement]]]] = {}  # by probe, step of the encoder, seeds of the probe
    paths = sorted(folder.glob(f"{PROBES}/*/{RESULT}"))
    results = [read_result(path, ProbeResult, "a probe", problems) for path in paths]
    for result in sorted((found for found in results if found is not None), key=lambda found: -found.finished):
        read.warnings.update(dict.fromkeys(result.warnings))
        key = json.dumps([_what(result), result.source.module, result.curve is not None], sort_keys=True)
        of_step = kept.setdefault(key, {}).setdefault(result.source.step or 0, {})
        of_step.setdefault((result.view.get("seed"), result.probe.get("seed")), list(_of_result(run, result)))
        if result.data is not None and result.classes is not None:
            read.examples[result.label] = -(-result.data.train.labels // len(result.classes))
    for of_probe in kept.values():
        by_step = {step: _over_repetitions(own.values()) for step, own in sorted(of_probe.items())}
        read.measurements.extend(by_step[max(by_step)])
        read.trajectories.extend(_trajectory(by_step))
    return read


def _over_repetitions(results: Iterable[list[Measurement]]) -> list[Measurement]:
    """Means over results of probes that differ only in their seed."""
    found: dict[str, list[Measurement]] = {}
    for item in (item for measured in results for item in measured):
        found.setdefault(json.dumps([item.what, item.metric], sort_keys=True), []).append(item)
    return [own[0] if len(own) == 1 else _mean(own) for own in found.values()]


def _mean(repeated: list[Measurement]) -> Measurement:
    values = tuple(item.value for item in repeated)
    return replace(repeated[0], value=statistics.fmean(values), interval=None, repetitions=values)


def _trajectory(by_step: dict[int, list[Measurement]]) -> Iterator[Trajectory]:
    points = {step: found[0] for step, found in by_step.items() if found}
    first = next(iter(points.values()), None)
    if first is not None and first.family == "probe" and first.module is not None and len(points) > 1:
        yield Trajectory(first.run, first.what, first.module, list(points), [item.value for item in points.values()])


def _of_result(run: str, result: ProbeResult) -> Iterator[Measurement]:
    what, module, tested = _what(result), result.source.module, result.test
    for point in result.curve or ():
        examples = {**what, "examples": point.examples_per_class}
        yield Measurement(run, "few-labels", examples, module, "accuracy", point.accuracy.value)
    if tested is None:
        return
    scores = {"accuracy": tested.accuracy, "balanced_accuracy": tested.balanced_accuracy}
    if tested.without_silence is not None:
        scores["accuracy_without_silence"] = tested.without_silence.accuracy
    for metric, score in scores.items():
        yield Measurement(run, "probe", what, module, metric, score.value, score.interval)


def _what(result: ProbeResult) -> dict[str, Any]:
    """A probe without what differs from seed to seed: label, features, and every setting."""
    settings = flat({"view": result.view, "probe": result.probe})
    kept = {key: value for key, value in settings.items() if key not in (*SEEDS, "view.layer")}
    split = None if result.data is None or result.data.test.split is None else Path(result.data.test.split).name
    told = {LAYER: result.source.layer, "protocol": result.protocol, "split": split}
    told = {key: value for key, value in told.items() if value is not None}
    return {"label": result.label, "features": result.source.kind, **told, **kept, "chance": result.chance}


ANALYSIS, DECODERS = "analysis", "decoders"
COMPARISON = "compare"
MEAN_SIGNAL = "mean signal"


@dataclass(frozen=True)
class ModuleResult:
    """A finished analysis of one module, or a decoder that was measured."""

    run: str
    folder: Path
    kind: str
    """`decoder`, or the analysis: `distributions`, `weights`, …"""
    module: int
    layer: int | None
    """Inside the module; None for its output."""
    step: int
    """Of the encoder."""
    summary: list[str] = field(default_factory=list)
    measurements: list[Measurement] = field(default_factory=list)
    loss: str = ""
    """Of a decoder."""
    is_untrained: bool = False
    """Whether a decoder is one of the untrained encoder."""

    @property
    def place(self) -> tuple[int, int]:
        """Module and layer, in order: a module's output before its layers."""
        return self.module, -1 if self.layer is None else self.layer

    @property
    def where(self) -> str:
        """`module 0`, or `module 0, layer 3`."""
        return place_name(self.module, self.layer)


def read_findings(folder: Path, run: str, problems: list[UnreadableFile]) -> list[ModuleResult]:
    """Decoders, and of each analysis of each module or layer the newest one at the latest checkpoint."""
    newest: dict[tuple[str, tuple[int, int], str | None], tuple[tuple[int, float], ModuleResult]] = {}
    for path in sorted(folder.glob(f"{ANALYSIS}/*")):
        if not path.is_dir() or path.name.startswith(f"{COMPARISON}-"):
            continue
        if not (path / RESULT).exists():
            problems.append(UnreadableFile(path, f"has no {RESULT}: the analysis is unfinished"))
            continue
        result = read_result(path / RESULT, AnalysisRecord, "an analysis", problems)
        if result is None:
            continue
        try:
            found, age = _analysis(run, path, result), (result.step, result.finished)
        except SHAPELESS as error:
            problems.append(UnreadableFile(path / RESULT, f"is not the result of an analysis ({reason_of(error)})"))
            continue
        key = (found.kind, found.place, result.definition)
        if key not in newest or age > newest[key][0]:
            newest[key] = (age, found)
    return [*_decoders(folder, run, problems), *(found for _, found in newest.values())]


def _analysis(run: str, path: Path, result: AnalysisRecord) -> ModuleResult:
    kind, module = result.analysis, result.module
    known = ANALYSES.get(kind)
    numbers = known.measurements(result.values) if known is not None and known.measurements is not None else ()
    measured = []
    for number in numbers:
        try:
            what, metric, value = parse(number, AnalysisNumber)
        except RecordError as error:
            raise RecordError(f"{number[1]}: {str(error).partition(': ')[2]}") from error
        of_whom = {} if result.definition is None else {DEFINITION: result.definition}
        what = {"analysis": kind, **_inside(result.layer), **of_whom, **what}
        measured.append(Measurement(run, "analysis", what, module, metric, value))
    return ModuleResult(run, path, kind, module, result.layer, result.step, result.summary, measured)


def _inside(layer: int | None) -> dict[str, Any]:
    return {} if layer is None else {LAYER: layer}


def _decoders(folder: Path, run: str, problems: list[UnreadableFile]) -> Iterator[ModuleResult]:
    """Each decoder; the mean signal, which is the same for all of a run, with the first of its module."""
    baselines: set[int] = set()
    for path in sorted(folder.glob(f"{DECODERS}/*/{RESULT}")):
        result = read_result(path, DecoderResult, "a decoder", problems)
        if result is None:
            continue
        found = _decoder(run, path.parent, result)
        if found.module in baselines:
            own = [item for item in found.measurements if item.what["loss"] != MEAN_SIGNAL]
            found = replace(found, measurements=own)
        baselines.add(found.module)
        yield found


def _decoder(run: str, path: Path, result: DecoderResult) -> ModuleResult:
    encoder, module, measured = result.encoder, result.module, []
    own = {"loss": result.loss, "features": "untrained" if encoder.untrained else "trained", **_inside(result.layer)}
    for who, figures in result.quality.items():
        what = own if who == "decoder" else {"loss": MEAN_SIGNAL, "features": "none"}
        for metric, score in figures.items():
            if score.value is not None:
                measured.append(Measurement(run, "decoder", what, module, metric, score.value))
    step = encoder.step or 0
    return ModuleResult(run, path, "decoder", module, result.layer, step, [], measured, result.loss, encoder.untrained)
