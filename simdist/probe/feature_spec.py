"""Which features of an utterance a probe reads, and how to compute them from audio.

Two kinds. `pooled`: one vector per clip, the frames' mean, maximum or all of them flattened; float32. `frames`:
one vector per phone label; float16, half the disk. Both are made for all modules at once, or for one layer inside a
module. Where latents are resampled, a third is stored, from which pooled features are drawn: `gaussian`, the first
module's means and log-variances.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from simdist.config.schema import Config
from simdist.core.errors import InputError
from simdist.core.random_streams import stream_seed
from simdist.data.crops import CropReader
from simdist.data.labels import PHONE_WINDOW, num_phone_frames
from simdist.data.order import crop_start
from simdist.data.splits import Split
from simdist.probe.alignment import align, resolve_alignment
from simdist.probe.feature_extractors import FeatureExtractor, layer_outputs
from simdist.probe.labels import SplitPair
from simdist.probe.settings import FRAME_LABEL, ProbeSettings, for_label

VERSION = 1  # raise when the same audio and weights would give other features
BATCH_SAMPLES = 2**18  # audio samples that are encoded together: bounds the memory of a wide first module


@dataclass(frozen=True)
class FeatureSpec:
    """The features to keep of each utterance."""

    kind: Literal["pooled", "frames", "gaussian"]
    pooling: str = "mean"
    crop: int | None = None
    """Samples of a crop; None takes the whole utterance."""
    crops: int = 1
    align: str = "auto"
    sampled: bool = False
    seed: int = 0
    """Of crops and noise; 0 where there is neither."""
    resampled: bool = False
    """Whether each batch draws latents anew."""
    layer: tuple[int, int] | None = None
    """A module and a layer inside it, whose output alone is kept; None keeps every module's."""

    def described(self) -> dict[str, Any]:
        """The fields; the last two only if they are set, so that features of earlier versions keep their name."""
        added = ("resampled", "layer")
        return {name: value for name, value in asdict(self).items() if name not in added or value}

    def identity(self) -> str:
        return hashlib.sha256(json.dumps([VERSION, self.described()]).encode()).hexdigest()

    def stored(self) -> FeatureSpec:
        """What the cache holds of it."""
        if not self.resampled:
            return self
        return FeatureSpec("gaussian", "flatten", self.crop, self.crops, seed=self.seed if self.crop else 0)

    def for_extractor(self, extractor: FeatureExtractor) -> FeatureSpec:
        """Without sampling where an extractor has nothing to sample."""
        return self if not self.resampled or extractor.resampling is not None else self._deterministic()

    def of_layer(self, module: int, layer: int) -> FeatureSpec:
        """The same of one layer; below those of the first module nothing is sampled."""
        return replace(self if module else self._deterministic(), layer=(module, layer))

    def _deterministic(self) -> FeatureSpec:
        return replace(self, sampled=False, resampled=False, seed=self.seed if self.crop else 0)

    def place(self, module: int) -> tuple[int, int | None]:
        """A module and no layer, or the module and layer that are kept."""
        return (module, None) if self.layer is None else self.layer


def spec_for(settings: ProbeSettings, config: Config, label: str, pair: SplitPair) -> FeatureSpec:
    """The features that a label's probe needs.

    Raises:
        InputError: flattened or resampled, and clips are not of one length; resampled phones.
    """
    settings = for_label(settings, label)
    resampled, sampled = settings.latents == "resampled", settings.latents != "deterministic"
    if label == FRAME_LABEL:
        if resampled and settings.cached:
            raise InputError("--latents resampled is for labels of utterances. For phones, use it with --cached false")
        return FeatureSpec("frames", align=settings.align, sampled=sampled, seed=settings.seed if sampled else 0)
    lengths = np.concatenate([pair.train.index.num_samples, pair.test.index.num_samples])
    crop = settings.crop or config.data.crop
    cropped = settings.clip == "crop" or (settings.clip == "auto" and bool((lengths > crop).any()))
    option = "--pooling flatten" if settings.pooling == "flatten" else "--latents resampled" * resampled
    if option and not cropped and lengths.min() != lengths.max():
        raise InputError(
            f"{option} needs clips of one length, utterances have {lengths.min():,} to {lengths.max():,} "
            "samples; use --clip crop"
        )
    assert settings.pooling is not None
    assert settings.crops is not None
    return FeatureSpec(
        "pooled",
        settings.pooling,
        crop if cropped else None,
        settings.crops if cropped else 1,
        sampled=sampled,
        seed=settings.seed if cropped or sampled else 0,
        resampled=resampled,
    )


def check_lengths(config: Config, spec: FeatureSpec, pair: SplitPair, with_mfcc: bool) -> None:
    """Raise an InputError if a clip is too short for the encoder, or for one frame of MFCC."""
    shortest = spec.crop or int(min(split.index.num_samples.min() for split in (pair.train, pair.test)))
    what = "--crop" if spec.crop else "the shortest utterance"
    if with_mfcc and shortest < PHONE_WINDOW:
        raise InputError(f"{what} has {shortest} samples; MFCC needs {PHONE_WINDOW}")
    try:
        config.model.num_frames(shortest)
    except ValueError as error:
        raise InputError(f"{what}: {error}") from error


def crop_of(split: Split, row: int, spec: FeatureSpec, number: int) -> tuple[int, int]:
    """First sample and length of clip `number` of an utterance."""
    length = int(split.index.num_samples[row])
    if spec.crop is None:
        return 0, length
    return crop_start(spec.seed, number, str(split.index.key[row]), length, spec.crop), spec.crop


def num_vectors(split: Split, row: int, spec: FeatureSpec) -> int:
    """Number of vectors of an utterance."""
    if spec.kind != "frames":
        return spec.crops
    has_phones = split.index.phones_offset[row] >= 0
    return num_phone_frames(int(split.index.num_samples[row])) if has_phones else 0


def as_audio(clips: list[np.ndarray], device: torch.device) -> Tensor:
    """Int16 clips of one length -> (B, 1, T) float32 in [-1, 1)."""
    return torch.from_numpy(np.stack(clips)).to(device).float().div_(32768).unsqueeze(1)


def noise_for(spec: FeatureSpec, device: torch.device, *names: int | str) -> torch.Generator | None:
    """The generator of sampled latents that `names` identify; None for deterministic ones."""
    if not spec.sampled:
        return None
    return torch.Generator(device).manual_seed(stream_seed(spec.seed, "probe", *names))


def pool(frames: Tensor, pooling: str) -> Tensor:
    """(B, L, C) -> (B, C), or (B, L * C) flattened."""
    if pooling == "mean":
        return frames.float().mean(dim=1)
    return frames.float().amax(dim=1) if pooling == "max" else frames.float().flatten(1)


def grid_alignment(spec: FeatureSpec, extractor: FeatureExtractor, module: int) -> str:
    """How the frames of this module, or of the layer that is kept, are aligned; frame rates differ between them."""
    return resolve_alignment(spec.align, extractor.grid(*spec.place(module)))


@torch.no_grad()
def encode_rows(
    extractor: FeatureExtractor, split: Split, rows: list[int], specs: list[FeatureSpec], device: torch.device
) -> Iterator[tuple[int, list[list[Tensor]]]]:
    """Encode utterances once for several feature specs.

    Yields:
        A row and, for each spec, each module's (num_vectors, D) on the CPU, or that of its layer alone; rows may come
        in another order.
    """
    reader = CropReader(split)
    whole = [spec for spec in specs if spec.crop is None]
    cropped: dict[FeatureSpec, list[FeatureSpec]] = {}  # layers of the same crops
    for spec in specs:
        if spec.crop is not None:
            cropped.setdefault(replace(spec, layer=None), []).append(spec)
    found: dict[int, dict[FeatureSpec, list[Tensor]]] = {row: {} for row in rows}
    for group in _batches(split, rows) if whole else []:
        audio = as_audio([reader.read_all(row) for row in group], device)
        names = (split.manifest.split, str(split.index.key[group[0]]))
        made = _encode(extractor, whole, audio, lambda spec, names=names: noise_for(spec, device, *names))
        for spec, encoded in made.items():
            for place, row in enumerate(group):
                found[row][spec] = _keep(extractor, split, row, spec, [frames[place] for frames in encoded])
    for row in rows:
        for same in cropped.values():
            found[row] |= _encode_crops(extractor, split, row, same, reader, device)
        yield row, [found[row][spec] for spec in specs]


def _encode(
    extractor: FeatureExtractor,
    specs: list[FeatureSpec],
    audio: Tensor,
    noise: Callable[[FeatureSpec], torch.Generator | None],
) -> dict[FeatureSpec, list[Tensor]]:
    """For each spec (B, L, C) of every module, of its layer alone, or of the Gaussians alone.

    One command samples all its features alike, so each is computed once for all specs.
    """
    made: dict[FeatureSpec, list[Tensor]] = {}
    gaussian = [spec for spec in specs if spec.kind == "gaussian"]
    of_layers = [spec for spec in specs if spec.layer is not None]
    of_modules = [spec for spec in specs if spec not in (*gaussian, *of_layers)]
    if gaussian:
        assert extractor.resampling is not None
        found = [extractor.resampling.gaussians(audio)]
        made |= dict.fromkeys(gaussian, found)
    if of_layers:
        layers = dict.fromkeys(spec.layer for spec in of_layers if spec.layer is not None)
        deepest = max(of_layers, key=lambda spec: spec.layer or (0, 0))  # those of the first module have no noise
        outputs = layer_outputs(extractor.encoder, audio, noise(deepest), layers)
        made |= {spec: [outputs[spec.layer]] for spec in of_layers if spec.layer is not None}
    if of_modules:
        found = extractor.encode(audio, noise(of_modules[0]))
        made |= dict.fromkeys(of_modules, found)
    return made


def _keep(extractor: FeatureExtractor, split: Split, row: int, spec: FeatureSpec, frames: list[Tensor]) -> list[Tensor]:
    if spec.kind != "frames":
        return [pool(one[None], spec.pooling).cpu() for one in frames]
    count = num_vectors(split, row, spec)
    return [
        align(one, count, extractor.grid(*spec.place(module)), grid_alignment(spec, extractor, module)).half().cpu()
        for module, one in enumerate(frames)
    ]


def _encode_crops(
    extractor: FeatureExtractor,
    split: Split,
    row: int,
    specs: list[FeatureSpec],
    reader: CropReader,
    device: torch.device,
) -> dict[FeatureSpec, list[Tensor]]:
    """The vectors of an utterance's crops, for specs that differ in their layer only."""
    crop, crops = specs[0].crop or 1, specs[0].crops
    clips = [reader.read(row, *crop_of(split, row, specs[0], number)) for number in range(crops)]
    noise = noise_for(specs[0], device, split.manifest.split, str(split.index.key[row]), "crops")
    parts: dict[FeatureSpec, list[list[Tensor]]] = {spec: [] for spec in specs}
    for part in as_audio(clips, device).split(max(1, BATCH_SAMPLES // crop)):
        for spec, encoded in _encode(extractor, specs, part, lambda _: noise).items():
            parts[spec].append([pool(frames, spec.pooling).cpu() for frames in encoded])
    return {spec: [torch.cat(one) for one in zip(*found, strict=True)] for spec, found in parts.items()}


def _batches(split: Split, rows: list[int]) -> list[list[int]]:
    """Rows in groups of one length, never padded: padding would change a convolution's last frames."""
    groups: list[list[int]] = []
    length = split.index.num_samples
    for row in sorted(rows, key=lambda row: (int(length[row]), row)):
        group = groups[-1] if groups else []
        if group and length[group[0]] == length[row] and (len(group) + 1) * int(length[row]) <= BATCH_SAMPLES:
            group.append(row)
        else:
            groups.append([row])
    return groups
