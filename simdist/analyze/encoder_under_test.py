"""What is analyzed: the encoder of one checkpoint of a run, and latents of it.

Legend: N clips or vectors, L frames, C channels of a latent, T audio samples.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from simdist.analyze.settings import AnalysisSettings, ClipSettings
from simdist.core.errors import InputError
from simdist.core.random_streams import stream_seed
from simdist.data.crops import CropReader
from simdist.data.order import crop_start
from simdist.data.splits import Split, open_split
from simdist.models.encoder import GreedyEncoder
from simdist.models.module import Encoding, GreedyModule
from simdist.probe.feature_extractors import FeatureExtractor, trained_extractor
from simdist.probe.feature_spec import FeatureSpec, as_audio, noise_for
from simdist.runs.checkpoints import load_chosen
from simdist.runs.folder import Run, existing_run

BATCH = 32  # clips encoded together


@dataclass(frozen=True)
class EncoderUnderTest:
    """A run's encoder."""

    run: Run
    extractor: FeatureExtractor
    device: torch.device

    @property
    def network(self) -> GreedyEncoder:
        return cast(GreedyEncoder, self.extractor.network)

    def module(self, number: int) -> GreedyModule:
        return self.network.stack[number]

    @property
    def step(self) -> int:
        assert self.extractor.step is not None
        return self.extractor.step


def open_encoder(settings: AnalysisSettings) -> EncoderUnderTest:
    """Load the encoder that the settings name.

    Raises:
        InputError: no run, no such checkpoint, or no GPU where one is asked for.
    """
    run = existing_run(settings.run)
    if settings.device == "cuda" and not torch.cuda.is_available():
        raise InputError("--device is 'cuda', but torch finds no GPU. Use --device cpu")
    latest = settings.checkpoint.strip() == "latest"
    if not latest and not settings.checkpoint.strip().isdecimal():
        raise InputError(f"--checkpoint is {settings.checkpoint!r}; it must be latest, or one step such as 200")
    step = None if latest else int(settings.checkpoint)
    extractor = load_chosen(run.folder, step, lambda checkpoint: trained_extractor(checkpoint, run.config))
    on_gpu = settings.device == "cuda" or (settings.device == "auto" and torch.cuda.is_available())
    device = torch.device("cuda" if on_gpu else "cpu")
    extractor.network.to(device)
    return EncoderUnderTest(run, extractor, device)


@dataclass(frozen=True)
class ClipSample:
    """Clips of one length."""

    split: Split
    rows: npt.NDArray[np.int64]
    """(N,) rows of the split's index."""
    starts: npt.NDArray[np.int64]
    """(N,) first sample of each."""
    samples: int
    """T; shorter utterances are padded with zeros."""

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def keys(self) -> list[str]:
        return [str(self.split.index.key[row]) for row in self.rows]

    def audio(self, places: slice, device: torch.device) -> Tensor:
        """(N, 1, T) float32 in [-1, 1)."""
        reader = CropReader(self.split)
        chosen = zip(self.rows[places].tolist(), self.starts[places].tolist(), strict=True)
        return as_audio([reader.read(row, start, self.samples) for row, start in chosen], device)


def draw(count: int, wanted: int, *names: int | str) -> npt.NDArray[np.int64]:
    """`wanted` of `count` places, ascending, or all if there are fewer; decided by `names` alone, on any numpy."""
    bits = np.random.PCG64(np.random.SeedSequence([stream_seed(*names)])).random_raw(count)
    return np.sort(np.argsort(bits, kind="stable")[:wanted]).astype(np.int64)


def choose_clips(encoder: EncoderUnderTest, settings: ClipSettings, keys: list[str] | None = None) -> ClipSample:
    """The clips that the settings name, or those of `keys`.

    Raises:
        InputError: no such split or key, or a crop that is too short for the encoder.
    """
    config = encoder.run.config
    split = open_split(settings.data_root or config.data.root, settings.split or config.data.test_split)
    samples = settings.crop or config.data.crop
    try:
        config.model.num_frames(samples)
    except ValueError as error:
        raise InputError(f"--crop: {error}") from error
    rows = draw(len(split.index), settings.clips, settings.seed, "clips")
    if keys is not None:
        known = {str(key): row for row, key in enumerate(split.index.key)}
        missing = [key for key in keys if key not in known]
        if missing:
            example = ", ".join(list(known)[:3])
            raise InputError(f"split {split.folder} has no clip {missing[0]!r}; it has such as {example}")
        rows = np.array([known[key] for key in keys], dtype=np.int64)
    starts = [
        crop_start(settings.seed, 0, str(split.index.key[row]), int(split.index.num_samples[row]), samples)
        for row in rows
    ]
    return ClipSample(split, rows, np.array(starts, dtype=np.int64), samples)


@torch.no_grad()
def encode(
    encoder: EncoderUnderTest, module: int, clips: ClipSample, check: Callable[[], None] = lambda: None
) -> Encoding:
    """What module `module` makes of clips without noise, on the CPU: (N, L, C) each.

    Args:
        check: called between batches; may raise to stop.
    """
    parts = []
    for begin in range(0, len(clips), BATCH):
        check()
        latent = clips.audio(slice(begin, begin + BATCH), encoder.device).transpose(1, 2)  # (N, 1, T) -> (N, T, 1)
        for below in encoder.network.stack[:module]:
            latent = below.encode(latent).latent
        parts.append(encoder.module(module).encode(latent))
    joined = {
        name: torch.cat([getattr(part, name).float().cpu() for part in parts]) for name in ("latent", "context", "mu")
    }
    log_var = None
    if parts[0].log_var is not None:
        log_var = torch.cat([part.log_var.cpu() for part in parts if part.log_var is not None])
    return Encoding(log_var=log_var, **joined)


def latents_of(
    encoder: EncoderUnderTest,
    module: int,
    layer: int | None,
    clips: ClipSample,
    check: Callable[[], None] = lambda: None,
) -> Tensor:
    """(N, L, C) on the CPU: the mean latent of a module, or what a layer inside it outputs."""
    if layer is None:
        return encode(encoder, module, clips, check).mu
    parts = []
    for begin in range(0, len(clips), BATCH):
        check()
        audio = clips.audio(slice(begin, begin + BATCH), encoder.device)
        parts.append(encoder.network.encode(audio, module, layer=layer).float().cpu())
    return torch.cat(parts)


def sampled(mu: Tensor, log_var: Tensor, seed: int) -> Tensor:
    """One draw of (N, L, C) latents, on the CPU, decided by the seed."""
    noise = noise_for(FeatureSpec("frames", sampled=True, seed=seed), torch.device("cpu"), "analysis")
    return mu + (log_var / 2).exp() * torch.randn(mu.shape, generator=noise)


def frames_of(latents: Tensor, wanted: int, seed: int) -> npt.NDArray[np.float64]:
    """(N, L, C) -> (wanted, C) frames drawn at random, or all if there are fewer, in float64."""
    flat = latents.flatten(0, 1)  # (N, L, C) -> (N * L, C)
    chosen = torch.from_numpy(draw(len(flat), wanted, seed, "frames"))
    return flat[chosen].double().numpy()


def analysis_folder(encoder: EncoderUnderTest) -> Path:
    """RUN/analysis."""
    return encoder.run.folder / "analysis"
