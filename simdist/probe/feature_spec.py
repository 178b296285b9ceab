"""Which features of an utterance a probe reads, and how to compute them from audio.

Two kinds. `pooled`: one vector per clip, the frames' mean, maximum or all of them flattened; float32. `frames`:
one vector per phone label; float16, half the disk. Both are made for all modules at once. Where latents are resampled,
a third is stored, from which pooled features are drawn: `gaussian`, the first module's means and log-variances.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
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
from simdist.probe.feature_extractors import FeatureExtractor
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

    def described(self) -> dict[str, Any]:
        """The fields; `resampled` only if it is, so that features of earlier versions keep their name."""
        return {name: value for name, value in asdict(self).items() if name != "resampled" or value}

    def identity(self) -> str:
        return hashlib.sha256(json.dumps([VERSION, self.described()]).encode()).hexdigest()

    def stored(self) -> FeatureSpec:
        """What the cache holds of it."""
        if not self.resampled:
            return self
        return FeatureSpec("gaussian", "flatten", self.crop, self.crops, seed=self.seed if self.crop else 0)

    def for_extractor(self, extractor: FeatureExtractor) -> FeatureSpec:
        """Without sampling where an extractor has nothing to sample."""
        if not self.resampled or extractor.resampling is not None:
            return self
        return replace(self, sampled=False, resampled=False, seed=self.seed if self.crop else 0)


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
    """How this module's frames are aligned; an encoder of several frame rates is aligned module by module."""
    return resolve_alignment(spec.align, extractor.grids[module])


@torch.no_grad()
def encode_rows(
    extractor: FeatureExtractor, split: Split, rows: list[int], specs: list[FeatureSpec], device: torch.device
) -> Iterator[tuple[int, list[list[Tensor]]]]:
    """Encode utterances once for several feature specs.

    Yields:
        A row and, for each spec, each module's (num_vectors, D) on the CPU; rows may come in another order.
    """
    reader = CropReader(split)
    whole = [spec for spec in specs if spec.crop is None]
    found: dict[int, dict[FeatureSpec, list[Tensor]]] = {row: {} for row in rows}
    for group in _batches(split, rows) if whole else []:
        audio = as_audio([reader.read_all(row) for row in group], device)
        noise = noise_for(whole[0], device, split.manifest.split, str(split.index.key[group[0]]))
        encoded = _encode(extractor, whole[0], audio, noise)  # one command samples all its features alike: they share
        for place, row in enumerate(group):
            frames = [module[place] for module in encoded]
            found[row] |= {spec: _keep(extractor, split, row, spec, frames) for spec in whole}
    for row in rows:
        for spec in specs:
            if spec.crop is not None:
                found[row][spec] = _encode_crops(extractor, split, row, spec, reader, device)
        yield row, [found[row][spec] for spec in specs]


def _encode(
    extractor: FeatureExtractor, spec: FeatureSpec, audio: Tensor, noise: torch.Generator | None
) -> list[Tensor]:
    """(B, L, C) of every module, or of the Gaussians alone."""
    if spec.kind != "gaussian":
        return extractor.encode(audio, noise)
    assert extractor.resampling is not None
    return [extractor.resampling.gaussians(audio)]


def _keep(extractor: FeatureExtractor, split: Split, row: int, spec: FeatureSpec, frames: list[Tensor]) -> list[Tensor]:
    if spec.kind != "frames":
        return [pool(one[None], spec.pooling).cpu() for one in frames]
    count = num_vectors(split, row, spec)
    return [
        align(one, count, extractor.grids[module], grid_alignment(spec, extractor, module)).half().cpu()
        for module, one in enumerate(frames)
    ]


def _encode_crops(
    extractor: FeatureExtractor, split: Split, row: int, spec: FeatureSpec, reader: CropReader, device: torch.device
) -> list[Tensor]:
    clips = [reader.read(row, *crop_of(split, row, spec, number)) for number in range(spec.crops)]
    noise = noise_for(spec, device, split.manifest.split, str(split.index.key[row]), "crops")
    parts = [
        [pool(frames, spec.pooling).cpu() for frames in _encode(extractor, spec, part, noise)]
        for part in as_audio(clips, device).split(max(1, BATCH_SAMPLES // (spec.crop or 1)))
    ]
    return [torch.cat(module) for module in zip(*parts, strict=True)]


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
