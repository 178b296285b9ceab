"""BatchNorm statistics for an untrained encoder, from training audio.

Running statistics that have seen no data (mean 0, variance 1) shrink features layer by layer, to 1e-5 at SIM's last
module, where probes and decoders read rounding. Calibrated, the baseline differs from a trained encoder in its weights
alone. Variational latents are means on the way up, as probes read them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from simdist.config.schema import Config
from simdist.data.crops import CropReader
from simdist.data.order import crop_start, epoch_order
from simdist.data.splits import MANIFEST, Split, open_split
from simdist.models.encoder import GreedyEncoder

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

    def identity(self, weights: str) -> str:
        """Hash of an encoder with these weights and calibration; not of its statistics, which devices round."""
        return hashlib.sha256(f"{weights} {self}".encode()).hexdigest()


def split_for(config: Config, root: str | Path, otherwise: Callable[[], Split]) -> Split:
    """The run's training split in the folder `root`, or another if it is not there."""
    has_split = (Path(root) / config.data.train_split / MANIFEST).is_file()
    return open_split(root, config.data.train_split) if has_split else otherwise()


def calibration_of(encoder: GreedyEncoder, config: Config, split: Split) -> Calibration | None:
    """What `calibrated` would calibrate with; None if the encoder has no BatchNorm."""
    if not norms_of(encoder):
        return None
    parts = _batches(config, split)
    return Calibration(split.manifest.split, split.manifest.fingerprint, sum(map(len, parts)), len(parts))


def _batches(config: Config, split: Split) -> list[np.ndarray]:
    """Rows of the split, batch by batch."""
    data, index = config.data, split.index
    rows = epoch_order(index.shard, config.seed, 0, data.shuffle_window)
    if data.short_clips == "skip":
        rows = rows[index.num_samples[rows] >= data.crop]
    rows = rows[:NUM_CLIPS]
    return np.array_split(rows, max(1, len(rows) // data.batch_size))


def calibrated(encoder: GreedyEncoder, config: Config, split: Split, device: torch.device) -> Calibration | None:
    """Set running statistics to the means over batches of training crops; None if the encoder has no BatchNorm.

    The crops are the first of the run's first epoch, so they depend on the run's seed alone.
    """
    found = calibration_of(encoder, config, split)
    if found is None:
        return None
    data, index, reader = config.data, split.index, CropReader(split)

    def audio(part: np.ndarray) -> Tensor:
        keys, lengths = index.key[part], index.num_samples[part]
        starts = [crop_start(config.seed, 0, str(key), int(n), data.crop) for key, n in zip(keys, lengths, strict=True)]
        clips = [reader.read(int(row), start, data.crop) for row, start in zip(part, starts, strict=True)]
        return torch.from_numpy(np.stack(clips)).to(device).float().div_(32768).unsqueeze(1)  # (B, 1, T)

    encoder.to(device)
    set_statistics(encoder, map(audio, _batches(config, split)))
    return found


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
