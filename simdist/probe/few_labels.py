"""Accuracy against the number of labeled examples per class (thesis, few labels), repeated over random draws."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from typing import Any

import numpy as np

from simdist.core.errors import InputError
from simdist.core.files import write_json
from simdist.probe.examples import CachedExamples, Examples, few
from simdist.probe.labels import Targets
from simdist.probe.metrics import accuracy, mean_interval, scores
from simdist.probe.probe_task import (
    ProbeContext,
    ProbeTask,
    Vectors,
    cached_examples,
    describe,
    examples_of,
    fit,
)
from simdist.probe.results import write_result
from simdist.probe.settings import FEW_LABELS_MOST
from simdist.probe.training import ProbeProgress, evaluate

POINTS = "points.json"  # accuracies that are known so far, as {"size/repetition": {...}}


def check_sizes(task: ProbeTask) -> None:
    """Raise an InputError if no class has as many examples as the largest size."""
    most = int(task.data.train.counts().max())
    if task.sizes and max(task.sizes) > most:
        raise InputError(
            f"--examples-per-class asks for {max(task.sizes)}, but the largest class of {task.data.label!r} has {most} "
            f"examples; give sizes up to {most}, such as 1,2,4"
        )


def run_few_labels(task: ProbeTask, context: ProbeContext, vectors: tuple[Vectors, Vectors]) -> None:
    """Train and test a probe for every size and repetition, and write the curve.

    Raises:
        StoppedError: a signal came; the points that are known are kept.
    """
    begin = time.monotonic()
    folder = context.folder / task.name
    folder.mkdir(parents=True, exist_ok=True)
    known = _read_points(folder / POINTS)
    _, test = examples_of(task, context.device, vectors)
    wanted = [(size, repetition) for size in task.sizes for repetition in repetitions(task)]
    with context.bar(f"training {task.name}", len(wanted)) as advance:
        for size, repetition in wanted:
            context.stop.check()
            if f"{size}/{repetition}" not in known:
                known[f"{size}/{repetition}"] = _point(task, context, vectors[0], test, size, repetition)
                write_json(folder / POINTS, known)
            advance(1)
    seconds = {"training_and_testing": time.monotonic() - begin}
    write_result(folder, describe(task, test.dimensions) | {"curve": _curve(task, known), "seconds": seconds}, None)
    (folder / POINTS).unlink()


def repetitions(task: ProbeTask) -> range:
    """The draws of a task's examples."""
    assert task.settings.repetitions is not None
    return range(task.settings.repetitions)


def _point(
    task: ProbeTask, context: ProbeContext, vectors: Vectors, test: Examples, size: int, repetition: int
) -> dict[str, Any]:
    data, seed = task.data, task.settings.seed + repetition
    per_frame = data.spec.kind == "frames"
    drawn, targets = few(vectors, data.train, per_frame, size, seed)
    settings = replace(task.settings, seed=seed, batch_size=task.settings.batch_size or batch_size(targets, size))
    task, shard = replace(task, settings=settings), np.zeros(len(targets.rows), np.int32)
    if per_frame:  # each frame is an example
        train = CachedExamples(drawn, targets, shard, context.device, per_frame=False)
    else:
        train = cached_examples(task, drawn, targets, shard, context.device)
    quiet = replace(context, bar=_no_bar)
    probe, _ = fit(task, train, quiet, ProbeProgress(None, context.stop))
    found = evaluate(probe, test, len(data.train.names), context.stop)
    balanced = scores(found.correct, found.total, 1, 0)[1].value
    return {
        "accuracy": float(accuracy(found.correct.sum(0), found.total.sum(0))),
        "balanced_accuracy": balanced,
        "batch_size": settings.batch_size,
    }


def batch_size(targets: Targets, per_class: int) -> int:
    """Examples per step by the thesis's protocol: all, but at most 32 per class."""
    num_classes = int((targets.counts() > 0).sum())
    return min(num_classes * min(per_class, FEW_LABELS_MOST), len(targets.rows))


def _curve(task: ProbeTask, known: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    counts, curve = task.data.train.counts(), []
    for size in task.sizes:
        points = [known[f"{size}/{repetition}"] for repetition in repetitions(task)]
        values = [point["accuracy"] for point in points]
        curve.append(
            {
                "examples_per_class": size,
                "batch_size": points[0].get("batch_size"),
                "accuracy": mean_interval(values).as_dict(),
                "accuracies": values,
                "balanced_accuracies": [point["balanced_accuracy"] for point in points],
                "classes_with_fewer": [
                    name for name, count in zip(task.data.train.names, counts, strict=True) if 0 < count < size
                ],
            }
        )
    return curve


def _read_points(path: Any) -> dict[str, dict[str, Any]]:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return {}


def _no_bar(what: str, total: int) -> Any:
    from contextlib import nullcontext

    del what, total
    return nullcontext(lambda count: None)
