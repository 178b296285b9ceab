"""What a run's probes reached: test accuracies, few-label curves, and accuracy over training."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from simdist.report.files import SHAPELESS, Problem, flat, read_json, reason_of
from simdist.report.measurement import Measurement

PROBES, RESULT = "probes", "result.json"
SEEDS = ("seed", "view.seed", "probe.seed")


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
    """What all probes of a run reached."""

    measurements: list[Measurement] = field(default_factory=list)
    """Of several checkpoints the last."""
    trajectories: list[Trajectory] = field(default_factory=list)
    examples: dict[str, int] = field(default_factory=dict)
    """Training examples a class on average, rounded up, by label: the largest class has no fewer."""


def read_probes(folder: Path, run: str, problems: list[Problem]) -> Probed:
    """Every probe of a run."""
    read = Probed()
    kept: dict[str, list[tuple[int, list[Measurement]]]] = {}
    for path in sorted(folder.glob(f"{PROBES}/*/{RESULT}")):
        result = read_json(path, problems)
        if result is None:
            continue
        try:
            found = list(_of_result(run, result))
            key = json.dumps([_what(result), result["source"]["module"], "curve" in result], sort_keys=True)
            kept.setdefault(key, []).append((int(result["source"]["step"] or 0), found))
            if "data" in result:
                read.examples[result["label"]] = -(-result["data"]["train"]["labels"] // len(result["classes"]))
        except SHAPELESS as error:
            problems.append(Problem(path, f"is not the result of a probe ({reason_of(error)})"))
    for results in kept.values():
        read.measurements.extend(max(results, key=lambda pair: pair[0])[1])
        read.trajectories.extend(_trajectory(results))
    return read


def _trajectory(results: list[tuple[int, list[Measurement]]]) -> Iterator[Trajectory]:
    points = {step: found[0] for step, found in sorted(results, key=lambda pair: pair[0]) if found}
    first = next(iter(points.values()), None)
    if first is not None and first.family == "probe" and first.module is not None and len(points) > 1:
        yield Trajectory(first.run, first.what, first.module, list(points), [item.value for item in points.values()])


def _of_result(run: str, result: dict[str, Any]) -> Iterator[Measurement]:
    what, module = _what(result), result["source"]["module"]
    if "curve" in result:
        for point in result["curve"]:
            examples = {**what, "examples": point["examples_per_class"]}
            yield Measurement(run, "few-labels", examples, module, "accuracy", float(point["accuracy"]["value"]))
        return
    tested = result["test"]
    for metric in ("accuracy", "balanced_accuracy"):
        yield Measurement(run, "probe", what, module, metric, *_score(tested[metric]))
    if "without_silence" in tested:
        score = _score(tested["without_silence"]["accuracy"])
        yield Measurement(run, "probe", what, module, "accuracy_without_silence", *score)


def _score(found: dict[str, Any]) -> tuple[float, tuple[float, float] | None]:
    """A value and its interval over test utterances."""
    interval = found.get("interval")
    return float(found["value"]), None if interval is None else (float(interval[0]), float(interval[1]))


def _what(result: dict[str, Any]) -> dict[str, Any]:
    """A probe without what differs from seed to seed: label, features, and every setting."""
    named = {"label": result["label"], "features": result["source"]["kind"]}
    settings = {**flat({"view": result["view"]}), **flat({"probe": result["probe"]})}
    named |= {key: value for key, value in settings.items() if key not in SEEDS}
    return named | {"chance": result["chance"]}
