"""Feature extractors: a trained encoder, an untrained one, or MFCC. All return frames of every module."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from simdist.config.schema import SAMPLE_RATE, Config, ModelConfig, to_dict
from simdist.loading import load_encoder
from simdist.models.encoder import GreedyEncoder, hash_weights
from simdist.probe.alignment import MFCC_GRID, FrameGrid, frame_grid, frame_grids
from simdist.runs.checkpoints import step_of

NUM_MFCC = 13  # with first and second differences 39 dimensions, as is usual in speech recognition


@dataclass(frozen=True)
class Resampling:
    """New samples of all variational latents, without encoding the audio again.

    Below the first module nothing is random, and it costs most of the encoding. So its Gaussians are computed once;
    each draw samples from them and encodes with the modules above, which sample in turn, as the reference
    implementation does.
    """

    encoder: GreedyEncoder

    def gaussians(self, audio: Tensor) -> Tensor:
        """(B, 1, T) audio -> (B, L, 2 C): mean and log-variance of the first module's latent, side by side."""
        mu, log_var = self.encoder.stack[0].distribution(audio.transpose(1, 2))  # (B, 1, T) -> (B, T, 1)
        assert log_var is not None
        return torch.cat([mu.float(), log_var], dim=2)

    @torch.no_grad()
    def draw(self, gaussians: Tensor, module: int, generator: torch.Generator, layer: int | None = None) -> Tensor:
        """(B, L, 2 C) of `gaussians` -> (B, L', C'), a sample of the context of `module`, or of a layer inside it.

        The first module's layers are below its Gaussians, so that nothing of them is random.
        """
        first, *above = self.encoder.stack[: module + 1 if layer is None else module]
        mu, log_var = gaussians.chunk(2, dim=2)
        encoding = first.sample_from(mu, log_var, generator)
        for greedy in above:
            encoding = greedy.sample(encoding.latent, generator)
        if layer is not None:
            return self.encoder.stack[module].features(encoding.latent, depth=layer + 1)
        return encoding.context


@dataclass(frozen=True)
class FeatureExtractor:
    """Computes frames from audio."""

    kind: str
    """`trained`, `untrained`, `mfcc` or `supervised`."""
    identity: str
    """Hash of everything that decides the frames, weights included."""
    grids: list[FrameGrid]
    """Where each module's frames lie."""
    dimensions: list[int]
    """Channels of each module's frames."""
    network: nn.Module
    """What computes them: moved between devices, trained by the supervised baseline."""
    encode: Callable[[Tensor, torch.Generator | None], list[Tensor]]
    """(B, 1, T) audio, and a generator to sample latents from -> (B, L, C) for each module."""
    step: int | None = None
    """Optimizer steps of a trained encoder."""
    calibration: dict[str, Any] | None = None
    """What the BatchNorm statistics of an untrained encoder are from; see `Calibration`."""
    resampling: Resampling | None = None
    """How to draw latents again and again; None where none is variational."""

    def grid(self, module: int, layer: int | None = None) -> FrameGrid:
        """Where the frames of a module, or of a layer inside it, lie."""
        return self.grids[module] if layer is None else frame_grid(self.encoder.config, module, layer)

    def channels(self, module: int, layer: int | None = None) -> int:
        """Channels of the frames of a module, or of a layer inside it."""
        return self.dimensions[module] if layer is None else self.encoder.config.channels(module, layer)

    @property
    def encoder(self) -> GreedyEncoder:
        """The network, unless it is MFCC."""
        return cast(GreedyEncoder, self.network)

    def where(self, module: int, layer: int | None = None) -> str:
        """Short name of a module, or of a layer inside it, part of a result's name."""
        if self.kind == "mfcc":
            return "mfcc"
        inside = "" if layer is None else f"-layer{layer}"
        if self.kind == "trained":
            return f"module{module}{inside}-step{self.step}"
        return f"{self.kind}{module}{inside}"


def encoder_extractor(
    kind: str, encoder: GreedyEncoder, model: ModelConfig, step: int | None = None
) -> FeatureExtractor:
    """The contexts of all modules of an encoder; the identity is that of its weights."""
    description = json.dumps(to_dict(Config(model=model))["model"], sort_keys=True)
    return FeatureExtractor(
        kind,
        hashlib.sha256((description + hash_weights(encoder)).encode()).hexdigest(),
        frame_grids(model),
        [module.context_channels for module in encoder.stack],
        encoder,
        lambda audio, generator: contexts(encoder, audio, generator),
        step,
        None,
        Resampling(encoder) if encoder.stack[0].log_var is not None else None,
    )


def contexts(encoder: GreedyEncoder, audio: Tensor, generator: torch.Generator | None, depth: int = 0) -> list[Tensor]:
    """The context of every module up to `depth` modules (0: of all) in one pass; carries gradient if enabled.

    Args:
        audio: (B, 1, T).
        generator: samples variational latents on the way up; None takes their means.

    Returns:
        (B, L, C) for each module.
    """
    latent, found = audio.transpose(1, 2), []  # (B, 1, T) -> (B, T, 1)
    for module in encoder.stack[: depth or None]:
        encoding = module.encode(latent) if generator is None else module.sample(latent, generator)
        found.append(encoding.context)
        latent = encoding.latent
    return found


def layer_outputs(
    encoder: GreedyEncoder, audio: Tensor, generator: torch.Generator | None, wanted: Collection[tuple[int, int]]
) -> dict[tuple[int, int], Tensor]:
    """What layers inside modules output, each as `GreedyEncoder.encode` has it; carries gradient if enabled.

    Args:
        audio: (B, 1, T).
        generator: samples variational latents of the modules below; None takes their means.
        wanted: module and layer of each.

    Returns:
        (B, L, C) for each.
    """
    latent, found = audio.transpose(1, 2), {}  # (B, 1, T) -> (B, T, 1)
    last = max(module for module, _ in wanted)
    for number, module in enumerate(encoder.stack[: last + 1]):
        for place in wanted:
            if place[0] == number:
                found[place] = module.features(latent, depth=place[1] + 1)
        if number < last:
            latent = (module.encode(latent) if generator is None else module.sample(latent, generator)).latent
    return found


class Mfcc(nn.Module):
    """13 mel-frequency cepstral coefficients with first and second differences, every 10 ms over 25 ms.

    (B, 1, T) -> (B, 1 + (T - 400) // 160, 39): the frames that CPC's phone labels describe.
    """

    def __init__(self) -> None:
        super().__init__()
        from simdist.core.torchaudio_import import torchaudio

        window = {"n_fft": 400, "hop_length": 160, "n_mels": 40, "center": False}
        self._transform = torchaudio.transforms.MFCC(SAMPLE_RATE, n_mfcc=NUM_MFCC, melkwargs=window)
        self._deltas = torchaudio.functional.compute_deltas

    def forward(self, audio: Tensor) -> Tensor:
        static = self._transform(audio.squeeze(1))  # (B, 13, L)
        first = self._deltas(static)
        return torch.cat([static, first, self._deltas(first)], dim=1).transpose(1, 2)


def mfcc_extractor() -> FeatureExtractor:
    """The classical baseline; its one "module" is number 0."""
    mfcc = Mfcc()
    identity = hashlib.sha256(f"mfcc {NUM_MFCC} + 2 differences, 40 bands, 400/160".encode()).hexdigest()
    return FeatureExtractor("mfcc", identity, [MFCC_GRID], [3 * NUM_MFCC], mfcc, lambda audio, generator: [mfcc(audio)])


def untrained_extractor(config: Config, kind: str = "untrained") -> FeatureExtractor:
    """The encoder as the run's seed initialized it; the baseline needs `calibrated` as well."""
    encoder = GreedyEncoder.from_config(config).eval()
    return encoder_extractor(kind, encoder, config.model)


def trained_extractor(checkpoint: Path, config: Config) -> FeatureExtractor:
    """The encoder of one checkpoint."""
    return encoder_extractor("trained", load_encoder(checkpoint, config), config.model, step_of(checkpoint))
