"""Latents by the plain way, to compare analyses with: whole clips through `load_encoder`, one after the other."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from simdist.data.crops import CropReader
from simdist.data.order import crop_start
from simdist.data.splits import open_split
from simdist.loading import load_encoder


def all_clips(root: Path, samples: int = 5120, seed: int = 0) -> dict[str, Tensor]:
    """Key -> (1, 1, T) audio of the clip that analyses take of every test utterance."""
    split = open_split(root, "test")
    reader, clips = CropReader(split), {}
    for row, key in enumerate(split.index.key.tolist()):
        start = crop_start(seed, 0, key, int(split.index.num_samples[row]), samples)
        clips[str(key)] = torch.from_numpy(reader.read(row, start, samples).astype(np.float32) / 32768)[None, None]
    return clips


def module_outputs(run: Path, module: int, audio: Tensor) -> tuple[Tensor, Tensor | None]:
    """Mean and log-variance, (B, L, C), of one module for (B, 1, T) audio."""
    encoder = load_encoder(run)
    x = audio.transpose(1, 2)
    with torch.no_grad():
        for below in encoder.stack[:module]:
            x = below.encode(x).latent
        return encoder.stack[module].distribution(x)
