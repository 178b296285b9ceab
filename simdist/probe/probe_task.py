"""One probe: its identity, training, test and result folder.

A task's name ends with the hash of everything that can change its numbers: the weights it reads, both splits'
fingerprints, the features and the probe. So an existing result is valid, and the same command only adds missing ones.
"""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import json
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from simdist.config.schema import place_name
from simdist.core.signals import SignalHandler
from simdist.models.probes import Probe
from simdist.probe.examples import CachedExamples, Examples, LiveExamples, ResampledExamples
from simdist.probe.feature_extractors import FeatureExtractor
from simdist.probe.feature_spec import FeatureSpec, pool
from simdist.probe.labels import SILENCE, SplitPair, Targets, different_sessions, recordings
from simdist.probe.metrics import summarize, without
from simdist.probe.optimum import fit_optimum
from simdist.probe.penalty import choose_penalty
from simdist.probe.results import FORMAT_VERSION, RESULT, write_result
from simdist.probe.settings import FRAME_LABEL, ProbeSettings, protocol_of
from simdist.probe.training import ProbeProgress, evaluate, num_steps, standardize, train_with_adam

PROGRESS = "progress.pt"
OF_ADAM = ("epochs", "lr", "batch_size", "drop_last", "weight_decay", "clip_grad_norm")
USED_BY = {  # settings that only one kind of probe looks at
    "linear": (*OF_ADAM,),
    "mlp": (*OF_ADAM, "hidden"),
    "lbfgs": ("l2", "tolerance", "max_iterations"),
}
NO_ERRORS = 1e-3  # share of the training examples below which a probe interpolates
FEW_ERRORS = 1e-2  # the same with more features than examples
IN_VIEW = ("pooling", "latents", "clip", "crop", "crops", "align")  # part of the spec

Bar = Callable[[str, int], AbstractContextManager[Callable[[int], None]]]


@dataclass(frozen=True)
class ProbeData:
    """Training and test data of a label's probes."""

    label: str
    pair: SplitPair
    spec: FeatureSpec
    train: Targets
    test: Targets
    unseen: list[str]
    """Test classes that were left out."""


@dataclass(frozen=True)
class ProbeTask:
    """One probe of one module, or of a layer inside it."""

    extractor: FeatureExtractor
    module: int
    data: ProbeData
    settings: ProbeSettings
    sizes: tuple[int, ...] = ()
    """Few labels: numbers of examples per class; () trains on all."""

    @property
    def layer(self) -> int | None:
        """Inside the module; None for its output."""
        return self.data.spec.place(self.module)[1]

    @property
    def standardized(self) -> bool:
        wanted = self.settings.standardize
        return wanted if wanted is not None else self.settings.probe == "lbfgs" or self.extractor.kind == "mfcc"

    def probe_settings(self) -> dict[str, Any]:
        """The settings that can change this probe's numbers; those of earlier versions have no off-by-default ones."""
        settings, unused = self.settings, {name for names in USED_BY.values() for name in names}
        unused -= set(USED_BY[settings.probe])
        kept = {
            item.name: getattr(settings, item.name)
            for item in dataclasses.fields(settings)
            if item.metadata.get("identity", True) and item.name not in unused and item.name not in IN_VIEW
            if getattr(settings, item.name) or not item.metadata.get("added")
        }
        few = {"examples_per_class": list(self.sizes), "repetitions": settings.repetitions} if self.sizes else {}
        live = {} if settings.cached else {"from_audio": True}
        return kept | {"standardize": self.standardized} | few | live

    def identity(self) -> str:
        """Sixteen hex digits over everything that can change a number."""
        data = self.data
        parts = {
            "version": FORMAT_VERSION,
            "label": data.label,
            "source": (self.extractor.kind, self.extractor.identity, self.module),
            "data": (data.pair.train.manifest.fingerprint, data.pair.test.manifest.fingerprint),
            "view": data.spec.identity(),
            "probe": self.probe_settings(),
        }
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]

    @property
    def name(self) -> str:
        """Name of the result's folder."""
        few = "few-labels-" if self.sizes else ""
        where = self.extractor.where(self.module, self.layer)
        return f"{few}{self.data.label}-{where}-{self.settings.probe}-{self.identity()[:8]}"

    @property
    def needs_features(self) -> bool:
        return self.settings.cached and self.extractor.kind != "supervised"


@dataclass(frozen=True)
class ProbeContext:
    """Folder, device and callbacks that tasks share."""

    folder: Path
    """RUN/probes."""
    device: torch.device
    stop: SignalHandler
    bar: Bar

    def is_done(self, task: ProbeTask) -> bool:
        return (self.folder / task.name / RESULT).exists()

    def lock(self, task: ProbeTask) -> Path:
        return self.folder / task.name / ".lock"


Vectors = dict[int, Tensor]


def run_task(task: ProbeTask, context: ProbeContext, vectors: tuple[Vectors, Vectors] | None) -> None:
    """Train and test a probe, and write its folder.

    Args:
        vectors: of the training and test split; None encodes them from audio, batch by batch.

    Raises:
        StoppedError: a signal came; the same task resumes.
    """
    begin = time.monotonic()
    if task.extractor.kind == "supervised":  # its encoder is trained, and the next task starts with it untrained
        task = dataclasses.replace(
            task, extractor=dataclasses.replace(task.extractor, network=copy.deepcopy(task.extractor.network))
        )
    folder = context.folder / task.name
    folder.mkdir(parents=True, exist_ok=True)
    progress = ProbeProgress(folder / PROGRESS, context.stop)
    train, test = examples_of(task, context.device, vectors)
    probe, fitted = fit(task, train, context, progress)
    names = task.data.train.names
    evaluation = evaluate(probe, test, len(names), context.stop)
    seed, resamplings = task.settings.seed, task.settings.bootstrap
    tested = summarize(evaluation, names, resamplings, seed)
    if task.data.label == FRAME_LABEL and SILENCE in names:
        tested["without_silence"] = without(evaluation, names.index(SILENCE), resamplings, seed)
    seconds = {"training_and_testing": time.monotonic() - begin}
    result = describe(task, train.dimensions) | {"train": fitted, "test": tested, "seconds": seconds}
    result["warnings"] += [text for text in [interpolation(task, fitted)] if text]
    write_result(folder, result, probe)
    progress.done()


def fit(
    task: ProbeTask, train: Examples, context: ProbeContext, progress: ProbeProgress
) -> tuple[Probe, dict[str, Any]]:
    """Train a probe for a task; returns it and a description of the training."""
    settings = task.settings
    hidden = settings.hidden if settings.probe == "mlp" else None
    assert settings.bias is not None
    probe = Probe(train.dimensions, len(task.data.train.names), hidden, settings.bias, settings.seed).to(context.device)
    if task.standardized:
        standardize(probe, train)
    if settings.probe == "lbfgs":
        return probe, _fit_lbfgs(task, probe, train, context, progress)
    encoder = task.extractor.network if task.extractor.kind == "supervised" else None
    with context.bar(f"training {task.name}", num_steps(train, settings)) as advance:
        loss = train_with_adam(probe, train, settings, progress, encoder, advance)
    return probe, {"loss": loss}


def _fit_lbfgs(
    task: ProbeTask, probe: Probe, train: Examples, context: ProbeContext, progress: ProbeProgress
) -> dict[str, Any]:
    """Choose the penalty unless it is given, and fit."""
    settings, chosen = task.settings, {}
    if settings.l2 is None:
        groups = recordings(task.data.pair.train, task.data.train.rows)
        chosen = {"penalty": dataclasses.asdict(choose_penalty(probe, train, groups, settings, progress))}
        settings = dataclasses.replace(settings, l2=chosen["penalty"]["l2"])
    optimum = dataclasses.asdict(fit_optimum(probe, train, settings, progress, chosen))
    answers = evaluate(probe, train, len(task.data.train.names), context.stop)
    number = int(answers.total.sum())
    reached = {"examples": number, "dimensions": train.dimensions, "accuracy": int(answers.correct.sum()) / number}
    return optimum | reached | {"l2": settings.l2, "cross_validation": chosen.get("penalty")}


def interpolation(task: ProbeTask, fitted: dict[str, Any]) -> str | None:
    """A warning where an L-BFGS probe answers (almost) all its training examples; None otherwise."""
    if task.settings.probe != "lbfgs":
        return None
    error, few = 1 - fitted["accuracy"], fitted["examples"] < fitted["dimensions"]
    if error >= (FEW_ERRORS if few else NO_ERRORS):
        return None
    where = "MFCC" if task.extractor.kind == "mfcc" else f"{task.extractor.kind} {place_name(task.module, task.layer)}"
    return (
        f"the L-BFGS probe of {task.data.label} on {where} interpolates its training examples "
        f"({fitted['dimensions']:,} features, {fitted['examples']:,} examples), so its accuracy depends on the penalty"
    )


def examples_of(
    task: ProbeTask, device: torch.device, vectors: tuple[Vectors, Vectors] | None
) -> tuple[Examples, Examples]:
    """Training and test examples, from cached vectors or encoded from audio."""
    data = task.data
    sides = ((data.pair.train, data.train), (data.pair.test, data.test))
    if vectors is None:
        supervised = task.extractor.kind == "supervised"
        task.extractor.network.to(device)
        train, test = (
            LiveExamples(task.extractor, task.module, data.spec, split, targets, device, supervised)
            for split, targets in sides
        )
        return train, test
    train, test = (
        cached_examples(task, found, targets, split.index.shard[targets.rows], device)
        for found, (split, targets) in zip(vectors, sides, strict=True)
    )
    return train, test


def cached_examples(
    task: ProbeTask, vectors: Vectors, targets: Targets, shard: npt.NDArray[np.int32], device: torch.device
) -> CachedExamples | ResampledExamples:
    """Examples of what the cache holds of a task's features.

    Args:
        vectors: each row's (n, D).
        shard: (U,) the shard of audio of each row, for the order.
    """
    spec, resampling = task.data.spec, task.extractor.resampling
    stored = CachedExamples(vectors, targets, shard, device, spec.kind == "frames")
    if not spec.resampled or resampling is None:
        return stored
    resampling.encoder.to(device)
    width = 2 * resampling.encoder.stack[0].latent_channels

    def draw(gaussians: Tensor, noise: torch.Generator) -> Tensor:
        latents = gaussians.unflatten(1, (-1, width))  # (B, L * 2 C) -> (B, L, 2 C)
        return pool(resampling.draw(latents, task.module, noise, task.layer), spec.pooling)

    return ResampledExamples(stored, draw, task.settings.seed, device)


def describe(task: ProbeTask, dimensions: int) -> dict[str, Any]:
    """The description of a probe in its result, with chance and the majority class."""
    data, extractor = task.data, task.extractor
    counts, test_counts = data.train.counts(), data.test.counts()
    likeliest = int(counts.argmax())
    return {
        "format_version": FORMAT_VERSION,
        "name": task.name,
        "label": data.label,
        "classes": data.train.names,
        "source": {
            "kind": extractor.kind,
            "module": None if extractor.kind == "mfcc" else task.module,
            **({} if task.layer is None else {"layer": task.layer}),
            "step": extractor.step,
            "weights": extractor.identity,
            "dimensions": dimensions,
            **({"calibration": extractor.calibration} if extractor.calibration else {}),
        },
        "view": data.spec.described(),
        "protocol": protocol_of(task.settings, data.label),
        "probe": task.probe_settings(),
        "data": {
            "train": _describe_side(data.pair.train, data.train),
            "test": _describe_side(data.pair.test, data.test) | {"unseen_classes_left_out": data.unseen},
        },
        "warnings": [text for text in [different_sessions(data.pair)] if text],
        "chance": 1 / int((counts > 0).sum()),
        "majority": {
            "class": data.train.names[likeliest],
            "accuracy": float(test_counts[likeliest] / max(1, test_counts.sum())),
        },
    }


def _describe_side(split: Any, targets: Targets) -> dict[str, Any]:
    return {
        "split": str(split.folder),
        "fingerprint": split.manifest.fingerprint,
        "utterances": len(targets.rows),
        "labels": int(targets.counts().sum()),
    }
