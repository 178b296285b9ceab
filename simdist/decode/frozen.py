"""The frozen encoder below a decoder: which checkpoint, and its latents."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from simdist.config.decoder import DECODERS, DecodingConfig
from simdist.config.schema import Config
from simdist.core.errors import InputError
from simdist.data.splits import open_split
from simdist.loading import load_encoder
from simdist.models.encoder import GreedyEncoder, hash_weights
from simdist.runs.checkpoints import load_chosen, step_of
from simdist.training.calibration import Calibration, calibrated, calibration_of, split_for


@dataclass(frozen=True)
class FrozenEncoder:
    """The modules of an encoder up to the decoded one, in eval mode, without gradient."""

    encoder: GreedyEncoder
    module: int
    is_sampled: bool
    """Whether variational latents are sampled; otherwise they are means."""
    calibration: Calibration | None = None
    """What the BatchNorm statistics of an untrained encoder are from, once it is prepared."""
    calibrate: Callable[[torch.device], object] | None = None
    """Sets these statistics."""
    layer: int | None = None
    """Inside the module, whose output is decoded; None is the module's latent."""

    def prepare(self, device: torch.device) -> None:
        """Move the encoder to a device; an untrained one gets its BatchNorm statistics there."""
        self.encoder.to(device)
        if self.calibrate is not None:
            self.calibrate(device)

    @torch.no_grad()
    def latent(self, audio: Tensor, generator: torch.Generator) -> Tensor:
        """(B, T, 1) audio -> (B, L, C) latent of the decoded module, before its GRU if it has one, or of the layer."""
        x = audio
        for module in self.encoder.stack[: self.module + (self.layer is None)]:
            x = (module.sample(x, generator) if self.is_sampled else module.encode(x)).latent
        return x if self.layer is None else self.encoder.stack[self.module].features(x, depth=self.layer + 1)


def open_encoder(run: Path, config: Config, wanted: DecodingConfig) -> tuple[FrozenEncoder, DecodingConfig]:
    """Open the encoder that a decoder is trained on.

    Args:
        run: the encoder's folder.
        config: its configuration.
        wanted: configuration of the decoder; without `checkpoint`, the newest one is taken.

    Returns:
        The encoder, on the CPU, and `wanted` with the step and hash of its weights filled in.

    Raises:
        InputError: no such checkpoint, or its weights differ from those that the decoder was trained on.
    """
    calibration, calibrate = None, None
    if wanted.untrained:
        encoder, step = GreedyEncoder.from_config(config), None
        data = wanted.data
        split = split_for(config, data.root, lambda: open_split(data.root, data.train_split))
        calibration, calibrate = calibration_of(encoder, config, split), partial(calibrated, encoder, config, split)
    else:
        encoder, step = load_chosen(run, wanted.checkpoint, lambda found: (load_encoder(found, config), step_of(found)))
    weights = hash_weights(encoder)
    weights = (weights if calibration is None else calibration.identity(weights))[:16]
    if wanted.encoder_weights not in ("", weights):
        raise InputError(
            f"{run} has other weights than those its decoder {wanted.folder_name} was trained on. "
            f"Remove {run / DECODERS / wanted.folder_name} to train it from scratch on these"
        )
    encoder.eval().requires_grad_(False)
    frozen = FrozenEncoder(encoder, wanted.module, wanted.latents == "sampled", calibration, calibrate, wanted.layer)
    return frozen, replace(wanted, checkpoint=step, encoder_weights=weights)
