"""One probe: what identifies it, and how it is trained, tested and written to its folder.

A job's name ends with the hash of everything that can change its numbers: the weights it reads, both splits'
fingerprints, the view and the probe. So a result that is there is the result, and the same command does only what is
missing.
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

import torch
from torch import Tensor

from simdist.core.signals import SignalHandler
from simdist.models.probes import Probe
from simdist.probe.examples import CachedExamples, Examples, LiveExamples
from simdist.probe.labels import SILENCE, SplitPair, Targets
from simdist.probe.metrics import summarize, without
from simdist.probe.optimum import fit_optimum
from simdist.probe.results import FORMAT_VERSION, RESULT, write_result
from simdist.probe.settings import FRAME_LABEL, ProbeSettings
from simdist.probe.sources import Source
from simdist.probe.training import Progress, evaluate, num_steps, standardize, train_with_adam
from simdist.probe.views import View

PROGRESS = "progress.pt"
USED_BY = {  # settings that only one kind of probe looks at
    "linear": ("epochs", "lr", "batch_size"),
    "mlp": ("epochs", "lr", "batch_size", "hidden"),
    "lbfgs": ("l2", "tolerance", "max_iterations"),
}
IN_VIEW = ("pooling", "latents", "clip", "crop", "crops", "align")  # said by the view

Bar = Callable[[str, int], AbstractContextManager[Callable[[int], None]]]


@dataclass(frozen=True)
class Data:
    """What a label's probes are trained and tested on."""

    label: str
    pair: SplitPair
    view: View
    train: Targets
    test: Targets
    unseen: list[str]
    """Test classes that were left out."""


@dataclass(frozen=True)
class Job:
    """One probe of one module."""

    source: Source
    module: int
    data: Data
    settings: ProbeSettings
    sizes: tuple[int, ...] = ()
    """Few labels: numbers of examples a class; () trains on all."""

    @property
    def standardized(self) -> bool:
        wanted = self.settings.standardize
        return wanted if wanted is not None else self.settings.probe == "lbfgs" or self.source.kind == "mfcc"

    def probe_settings(self) -> dict[str, Any]:
        """The settings that can change this probe's numbers."""
        settings, unused = self.settings, {name for names in USED_BY.values() for name in names}
        unused -= set(USED_BY[settings.probe])
        kept = {
            item.name: getattr(settings, item.name)
            for item in dataclasses.fields(settings)
            if item.metadata.get("identity", True) and item.name not in unused and item.name not in IN_VIEW
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
            "source": (self.source.kind, self.source.identity, self.module),
            "data": (data.pair.train.manifest.fingerprint, data.pair.test.manifest.fingerprint),
            "view": data.view.identity(),
            "probe": self.probe_settings(),
        }
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]

    @property
    def name(self) -> str:
        """Name of the result's folder."""
        few = "few-labels-" if self.sizes else ""
        where = self.source.where(self.module)
        return f"{few}{self.data.label}-{where}-{self.settings.probe}-{self.identity()[:8]}"

    @property
    def needs_features(self) -> bool:
        return self.settings.cached and self.source.kind != "supervised"


@dataclass(frozen=True)
class Workplace:
    """What a job is done with."""

    folder: Path
    """RUN/probes."""
    device: torch.device
    stop: SignalHandler
    bar: Bar

    def is_done(self, job: Job) -> bool:
        return (self.folder / job.name / RESULT).exists()

    def lock(self, job: Job) -> Path:
        return self.folder / job.name / ".lock"


Vectors = dict[int, Tensor]


def do_job(job: Job, place: Workplace, vectors: tuple[Vectors, Vectors] | None) -> None:
    """Train and test a probe, and write its folder.

    Args:
        vectors: of the training and test split; None encodes them from audio, batch by batch.

    Raises:
        StoppedError: a signal came; the same job resumes from there.
    """
    begin = time.monotonic()
    if job.source.kind == "supervised":  # its encoder is trained, and the next job begins with it untrained
        job = dataclasses.replace(
            job, source=dataclasses.replace(job.source, network=copy.deepcopy(job.source.network))
        )
    folder = place.folder / job.name
    folder.mkdir(parents=True, exist_ok=True)
    progress = Progress(folder / PROGRESS, place.stop)
    train, test = examples_of(job, place.device, vectors)
    probe, fitted = fit(job, train, place, progress)
    names = job.data.train.names
    evaluation = evaluate(probe, test, len(names), place.stop)
    seed, resamplings = job.settings.seed, job.settings.bootstrap
    tested = summarize(evaluation, names, resamplings, seed)
    if job.data.label == FRAME_LABEL and SILENCE in names:
        tested["without_silence"] = without(evaluation, names.index(SILENCE), resamplings, seed)
    seconds = {"training_and_testing": time.monotonic() - begin}
    write_result(folder, describe(job, train.dimensions) | {"train": fitted, "test": tested, "seconds": seconds}, probe)
    progress.done()


def fit(job: Job, train: Examples, place: Workplace, progress: Progress) -> tuple[Probe, dict[str, Any]]:
    """A probe trained as the job says, and what is to be said of the training."""
    settings = job.settings
    hidden = settings.hidden if settings.probe == "mlp" else None
    probe = Probe(train.dimensions, len(job.data.train.names), hidden, settings.bias, settings.seed).to(place.device)
    if job.standardized:
        standardize(probe, train)
    if settings.probe == "lbfgs":
        return probe, dataclasses.asdict(fit_optimum(probe, train, settings, progress))
    encoder = job.source.network if job.source.kind == "supervised" else None
    with place.bar(f"training {job.name}", num_steps(train, settings)) as advance:
        loss = train_with_adam(probe, train, settings, progress, encoder, advance)
    return probe, {"loss": loss}


def examples_of(job: Job, device: torch.device, vectors: tuple[Vectors, Vectors] | None) -> tuple[Examples, Examples]:
    """Training and test examples: stored vectors, or encoded from audio when asked for."""
    data = job.data
    sides = ((data.pair.train, data.train), (data.pair.test, data.test))
    if vectors is None:
        supervised = job.source.kind == "supervised"
        job.source.network.to(device)
        train, test = (
            LiveExamples(job.source, job.module, data.view, split, targets, device, supervised)
            for split, targets in sides
        )
        return train, test
    train, test = (
        CachedExamples(found, targets, split.index.shard[targets.rows], device, data.view.kind == "frames")
        for found, (split, targets) in zip(vectors, sides, strict=True)
    )
    return train, test


def describe(job: Job, dimensions: int) -> dict[str, Any]:
    """The part of a result that says what was probed, how, and what guessing gives."""
    data, source = job.data, job.source
    counts, test_counts = data.train.counts(), data.test.counts()
    likeliest = int(counts.argmax())
    return {
        "format_version": FORMAT_VERSION,
        "name": job.name,
        "label": data.label,
        "classes": data.train.names,
        "source": {
            "kind": source.kind,
            "module": None if source.kind == "mfcc" else job.module,
            "step": source.step,
            "weights": source.identity,
            "dimensions": dimensions,
        },
        "view": dataclasses.asdict(data.view),
        "probe": job.probe_settings(),
        "data": {
            "train": _describe_side(data.pair.train, data.train),
            "test": _describe_side(data.pair.test, data.test) | {"unseen_classes_left_out": data.unseen},
        },
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
