"""The examples that a probe is trained or tested on: vectors with a class, by utterance.

`CachedExamples` reads stored vectors, and `ResampledExamples` draws them from stored Gaussians. `LiveExamples` encodes
each batch from audio, as the reference implementation does and as the supervised baseline must, whose encoder changes
with every step. All give the same batches in order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from simdist.core.random_streams import stream_seed
from simdist.data.crops import CropReader
from simdist.data.order import epoch_order
from simdist.data.splits import Split
from simdist.probe.alignment import align
from simdist.probe.feature_extractors import FeatureExtractor, contexts, layer_outputs
from simdist.probe.feature_spec import FeatureSpec, as_audio, crop_of, grid_alignment, noise_for, num_vectors, pool
from simdist.probe.labels import Targets

SHUFFLE_WINDOW = 16  # shards of audio whose utterances are mixed
CHUNK = 256  # utterances of which all vectors are looked at together


@dataclass(frozen=True)
class ExampleBatch:
    """Vectors with their classes. N vectors of U utterances."""

    features: Tensor
    """(N, D) float32 or float16."""
    classes: Tensor
    """(N,) int64."""
    owner: Tensor
    """(N,) int64: place of the utterance that each comes from."""


class Readable(Protocol):
    """The interface of examples to be read as a whole."""

    dimensions: int

    def everything(self) -> Iterator[ExampleBatch]:
        """All vectors of all utterances, in parts."""
        ...


class Examples(Readable, Protocol):
    """The interface of examples for training and testing."""

    num_utterances: int

    def order(self, seed: int, epoch: int) -> np.ndarray:
        """(U,) the order in which an epoch visits the utterances."""
        ...

    def batch(self, places: list[int], epoch: int) -> ExampleBatch:
        """The vectors of these utterances in an epoch."""
        ...


class HeldExamples:
    """All vectors at once; they can be read, but not trained on in batches."""

    def __init__(self, batch: ExampleBatch) -> None:
        self._batch, self.dimensions = batch, batch.features.shape[1]

    def everything(self) -> Iterator[ExampleBatch]:
        """See `Examples`."""
        yield self._batch


class CachedExamples:
    """Examples with cached vectors.

    Args:
        vectors: each row's (n, D).
        targets: rows and classes.
        shard: (U,) the shard of audio of each row, for the order.
        device: where batches lie.
        per_frame: every vector has its own class and takes part in each epoch; otherwise one of an utterance's n does.
    """

    def __init__(
        self, vectors: dict[int, Tensor], targets: Targets, shard: np.ndarray, device: torch.device, per_frame: bool
    ) -> None:
        self._vectors = [vectors[int(row)] for row in targets.rows]
        self._classes = [torch.from_numpy(classes) for classes in targets.classes]
        self._shard = shard
        self._device, self._per_frame = device, per_frame
        self.num_utterances = len(self._vectors)
        self.dimensions = self._vectors[0].shape[1]
        self._stacked = None if per_frame else torch.stack(self._vectors).to(device)  # (U, n, D)
        self._labels = None if per_frame else torch.cat(self._classes).to(device)

    def order(self, seed: int, epoch: int) -> np.ndarray:
        """See `Examples`."""
        return epoch_order(self._shard, seed, epoch, SHUFFLE_WINDOW)

    def batch(self, places: list[int], epoch: int) -> ExampleBatch:
        """See `Examples`."""
        if self._stacked is None or self._labels is None:
            return self._frames(places)
        where = torch.as_tensor(places, device=self._device)
        return ExampleBatch(self._stacked[where, epoch % self._stacked.shape[1]], self._labels[where], where)

    def everything(self) -> Iterator[ExampleBatch]:
        """See `Examples`."""
        for begin in range(0, self.num_utterances, CHUNK):
            places = list(range(begin, min(begin + CHUNK, self.num_utterances)))
            if self._stacked is None or self._labels is None:
                yield self._frames(places)
                continue
            vectors, labels = self._stacked[begin : begin + CHUNK], self._labels[begin : begin + CHUNK]
            owner = torch.arange(begin, begin + len(vectors), device=self._device)
            n = vectors.shape[1]
            yield ExampleBatch(vectors.flatten(0, 1), labels.repeat_interleave(n), owner.repeat_interleave(n))

    def _frames(self, places: list[int]) -> ExampleBatch:
        parts = [match(self._vectors[place], self._classes[place]) for place in places]
        return labeled([features for features, _ in parts], [classes for _, classes in parts], places, self._device)


class ResampledExamples:
    """Examples whose latents are drawn anew for each batch.

    A batch's noise is given by seed, epoch and first utterance, so a resumed training sees the same.

    Args:
        gaussians: cached, each (L * 2 C,), see `Resampling`.
        draw: (B, L * 2 C) and a generator -> (B, D), a sample of the features.
        seed: of the probe.
        device: of the noise.
    """

    def __init__(
        self,
        gaussians: CachedExamples,
        draw: Callable[[Tensor, torch.Generator], Tensor],
        seed: int,
        device: torch.device,
    ) -> None:
        self._gaussians, self._draw, self._seed, self._device = gaussians, draw, seed, device
        self.num_utterances = gaussians.num_utterances
        self.dimensions = self.batch([0], 0).features.shape[1]

    def order(self, seed: int, epoch: int) -> np.ndarray:
        """See `Examples`."""
        return self._gaussians.order(seed, epoch)

    def batch(self, places: list[int], epoch: int) -> ExampleBatch:
        """See `Examples`."""
        return self._drawn(self._gaussians.batch(places, epoch), epoch, places[0])

    def everything(self) -> Iterator[ExampleBatch]:
        """See `Examples`: one sample of each vector, the same every time."""
        for number, batch in enumerate(self._gaussians.everything()):
            yield self._drawn(batch, "everything", number)

    def _drawn(self, batch: ExampleBatch, *names: int | str) -> ExampleBatch:
        noise = torch.Generator(self._device).manual_seed(stream_seed(self._seed, "probe", "resampled", *names))
        return replace(batch, features=self._draw(batch.features, noise))


class LiveExamples:
    """Examples that are encoded on demand.

    Args:
        extractor: encodes; its `network` decides whether in training mode.
        module: whose frames, unless `spec` names a layer.
        spec: the features to keep of an utterance.
        split, targets: audio and classes.
        device: where it is encoded.
        trained: let gradients reach the encoder, up to this module.
    """

    def __init__(
        self,
        extractor: FeatureExtractor,
        module: int,
        spec: FeatureSpec,
        split: Split,
        targets: Targets,
        device: torch.device,
        trained: bool = False,
    ) -> None:
        self._source, self._module, self._view, self._split = extractor, module, spec, split
        self._targets, self._device, self._trained = targets, device, trained
        self._reader = CropReader(split)
        self._classes = [torch.from_numpy(classes) for classes in targets.classes]
        self.num_utterances = len(targets.rows)
        with torch.no_grad():
            self.dimensions = self._vectors([0], 0)[0].shape[1]

    def order(self, seed: int, epoch: int) -> np.ndarray:
        """See `Examples`."""
        return epoch_order(self._split.index.shard[self._targets.rows], seed, epoch, SHUFFLE_WINDOW)

    def batch(self, places: list[int], epoch: int) -> ExampleBatch:
        """See `Examples`."""
        with torch.set_grad_enabled(self._trained):
            return self._labeled(places, self._vectors(places, epoch))

    @torch.no_grad()
    def everything(self) -> Iterator[ExampleBatch]:
        """See `Examples`."""
        for place in range(self.num_utterances):
            for crop in range(self._view.crops):
                yield self._labeled([place], self._vectors([place], crop))

    def _labeled(self, places: list[int], vectors: list[Tensor]) -> ExampleBatch:
        parts = [match(features, self._classes[place]) for features, place in zip(vectors, places, strict=True)]
        return labeled([features for features, _ in parts], [classes for _, classes in parts], places, self._device)

    def _vectors(self, places: list[int], epoch: int) -> list[Tensor]:
        """For each utterance (n, D)."""
        rows = [int(self._targets.rows[place]) for place in places]
        clips = [self._reader.read(row, *self._clip(row, epoch)) for row in rows]
        if len({len(clip) for clip in clips}) > 1:
            return [self._encoded([row], [clip], epoch)[0] for row, clip in zip(rows, clips, strict=True)]
        return self._encoded(rows, clips, epoch)

    def _clip(self, row: int, epoch: int) -> tuple[int, int]:
        return crop_of(self._split, row, self._view, epoch % self._view.crops)

    def _encoded(self, rows: list[int], clips: list[np.ndarray], epoch: int) -> list[Tensor]:
        names = (self._split.manifest.split, str(self._split.index.key[rows[0]]), epoch)
        frames = self._frames(as_audio(clips, self._device), noise_for(self._view, self._device, *names))
        if self._view.kind == "pooled":
            return list(pool(frames, self._view.pooling)[:, None])  # B x (1, D)
        how = grid_alignment(self._view, self._source, self._module)
        grid = self._source.grid(*self._view.place(self._module))
        counts = [num_vectors(self._split, row, self._view) for row in rows]
        return [align(one, count, grid, how) for one, count in zip(frames, counts, strict=True)]

    def _frames(self, audio: Tensor, noise: torch.Generator | None) -> Tensor:
        """(B, 1, T) -> (B, L, C) of the module or the layer; what is above it is not computed."""
        if self._source.kind == "mfcc":
            return self._source.encode(audio, noise)[0]
        if self._view.layer is not None:
            return layer_outputs(self._source.encoder, audio, noise, [self._view.layer])[self._view.layer]
        return contexts(self._source.encoder, audio, noise, self._module + 1)[-1]


def match(features: Tensor, classes: Tensor) -> tuple[Tensor, Tensor]:
    """Equally many vectors and classes of one utterance: surplus vectors are cut at the front, classes at the end."""
    if len(classes) == 1:
        return features, classes.expand(len(features))
    features = features[max(0, len(features) - len(classes)) :]
    return features, classes[: len(features)]


def labeled(features: list[Tensor], classes: list[Tensor], places: list[int], device: torch.device) -> ExampleBatch:
    """Utterances one after the other, without vectors whose class is -1; classes lie on the CPU."""
    owner = torch.tensor(places).repeat_interleave(torch.tensor([len(part) for part in features]))
    joined, found = torch.cat(features).to(device), torch.cat(classes)
    kept = found >= 0
    if not kept.all():  # decided on the CPU, so that no step waits for a GPU
        joined, found, owner = joined[kept.to(device)], found[kept], owner[kept]
    return ExampleBatch(joined, found.to(device), owner.to(device))


def few(
    vectors: dict[int, Tensor], targets: Targets, per_frame: bool, per_class: int, seed: int
) -> tuple[dict[int, Tensor], Targets]:
    """Draw `per_class` examples of each class at random, or all of a rarer one.

    An example is an utterance with all its crops or, for phones, a frame, which then counts as an utterance. The draw
    is nested: with the same seed, fewer examples are among the more.

    Returns:
        Vectors and targets as `CachedExamples` takes them.
    """
    labels = np.concatenate(targets.classes)
    features: Tensor | None = None
    if per_frame:
        features, labels = _all_frames(vectors, targets)
    bits = np.random.PCG64(np.random.SeedSequence([seed])).random_raw(len(labels))
    shuffled = np.argsort(bits, kind="stable")
    numbers = range(len(targets.names))
    chosen = np.sort(np.concatenate([shuffled[labels[shuffled] == number][:per_class] for number in numbers]))
    classes = [labels[where : where + 1] for where in chosen]
    if features is None:
        rows = targets.rows[chosen]
        return {int(row): vectors[int(row)] for row in rows}, Targets(rows, classes, targets.names)
    drawn = features[torch.from_numpy(chosen)].float()
    return dict(enumerate(drawn[:, None])), Targets(np.arange(len(chosen)), classes, targets.names)


def _all_frames(vectors: dict[int, Tensor], targets: Targets) -> tuple[Tensor, np.ndarray]:
    """(N, D) and (N,): every frame of every utterance with its class."""
    parts = [
        match(vectors[int(row)], torch.from_numpy(classes))
        for row, classes in zip(targets.rows, targets.classes, strict=True)
    ]
    return torch.cat([features for features, _ in parts]), torch.cat([classes for _, classes in parts]).numpy()
