"""BatchNorm statistics for an untrained encoder, from training audio.

Running statistics that have seen no data (mean 0, variance 1) shrink features layer by layer, to 1e-5 at SIM's last
module, where a probe reads rounding. Calibrated, the baseline differs from a trained encoder in its weights alone.
Variational latents are means on the way up, as probes read them.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from simdist.config.schema import Config
from simdist.data.crops import CropReader
from simdist.data.order import crop_start, epoch_order
from simdist.data.splits import Split
from simdist.models.encoder import GreedyEncoder
from simdist.probe.feature_spec import as_audio

NUM_CLIPS = 128


@dataclass(frozen=True)
class Calibration:
    """What the statistics of an untrained encoder are from."""

    split: str
    fingerprint: str
    clips: int
    batches: int

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def calibrated(encoder: GreedyEncoder, config: Config, split: Split, device: torch.device) -> Calibration | None:
    """Set running statistics to the means over batches of training crops; None if the encoder has no BatchNorm.

    The crops are the first of the run's first epoch, so they depend on the run's seed alone.
    """
    if not norms_of(encoder):
        return None
    data, index = config.data, split.index
    rows = epoch_order(index.shard, config.seed, 0, data.shuffle_window)
    if data.short_clips == "skip":
        rows = rows[index.num_samples[rows] >= data.crop]
    rows = rows[:NUM_CLIPS]
    parts = np.array_split(rows, max(1, len(rows) // data.batch_size))
    reader = CropReader(split)

    def audio(part: np.ndarray) -> Tensor:
        keys, lengths = index.key[part], index.num_samples[part]
        starts = [crop_start(config.seed, 0, str(key), int(n), data.crop) for key, n in zip(keys, lengths, strict=True)]
        clips = [reader.read(int(row), start, data.crop) for row, start in zip(part, starts, strict=True)]
        return as_audio(clips, device)

    encoder.to(device)
    set_statistics(encoder, map(audio, parts))
    return Calibration(split.manifest.split, split.manifest.fingerprint, len(rows), len(parts))


@torch.no_grad()
def set_statistics(encoder: GreedyEncoder, batches: Iterable[Tensor]) -> None:
    """Set running means and variances to the means of those of batches, each (B, 1, T); leaves eval mode."""
    norms = norms_of(encoder)
    momenta = [norm.momentum for norm in norms]
    encoder.train()
    for number, audio in enumerate(batches, 1):
        for norm in norms:
            norm.momentum = 1 / number  # the running mean over the batches so far
        latent = audio.transpose(1, 2)  # (B, 1, T) -> (B, T, 1)
        for module in encoder.stack:
            latent = module.encode(latent).latent
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    encoder.eval()


def norms_of(encoder: nn.Module) -> list[nn.BatchNorm1d]:
    """Its BatchNorm layers."""
    return [module for module in encoder.modules() if isinstance(module, nn.BatchNorm1d)]
