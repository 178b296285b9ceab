"""Quality of a trained decoder on the test split, and of the mean signal.

Every test clip is looked at once, by one rank: its crop of epoch 0, encoded and decoded by itself with noise of its
own, so that numbers do not depend on batches or ranks.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from simdist.data import loader
from simdist.data.crops import CorruptSampleError, CropReader
from simdist.data.order import crop_start
from simdist.decode.quality import UNITS, Clips, Figures
from simdist.training.distributed import Process

MEAN_CLIPS = 2048  # training clips at most that the mean signal is the mean of; more change it little


@dataclass(frozen=True)
class Crops:
    """The crops of epoch 0 of a split, clip by clip."""

    clips: loader.Clips
    crop: int
    seed: int

    def __len__(self) -> int:
        return len(self.clips)

    def read(self, reader: CropReader, number: int) -> tuple[Tensor, int] | None:
        """The `number`-th clip's (T,) float32 crop, padded with zeros, and how many of its samples are real.

        None if it is corrupt: training skips such clips, too, and names them.
        """
        row, index = int(self.clips.rows[number]), self.clips.split.index
        length = int(index.num_samples[row])
        start = crop_start(self.seed, 0, str(index.key[row]), length, self.crop)
        try:
            pcm = reader.read(row, start, self.crop)
        except CorruptSampleError:
            return None
        return torch.from_numpy(pcm.astype(np.float32)) / 32768, min(length, self.crop)

    def key(self, number: int) -> str:
        """The clip's name."""
        return str(self.clips.split.index.key[int(self.clips.rows[number])])


@dataclass(frozen=True)
class MeasuredQuality:
    """Figures of all test clips."""

    keys: list[str]
    """The clips' names."""
    decoder: Clips
    mean_signal: Clips


def mean_signal(crops: Crops) -> Tensor:
    """(T,) the mean over training crops, sample by sample: what a decoder that ignores its latent does best by MSE."""
    reader, number = CropReader(crops.clips.split), min(len(crops), MEAN_CLIPS)
    chosen = np.linspace(0, len(crops) - 1, number).astype(int)  # spread over speakers, who follow each other
    total, count = torch.zeros(crops.crop, dtype=torch.float64), 0
    for place in chosen:
        found = crops.read(reader, int(place))
        if found is not None:
            total, count = total + found[0], count + 1
    return (total / max(count, 1)).float()


def measure(
    decode: Callable[[Tensor, int], Tensor], train: Crops, test: Crops, process: Process, advance: Callable[[int], None]
) -> MeasuredQuality:
    """Figures of a decoder and of the mean signal on all test clips; the work is shared by all ranks.

    Args:
        decode: a test clip (T,) and its number -> (T,) encoded and decoded, on the CPU.
        train: what the mean signal is the mean of.
        test: what is decoded.
        process: this process among the others.
        advance: told how many clips are done.

    Returns:
        Clip by clip, the same on all ranks.

    Raises:
        StoppedError: on all ranks, if any was asked to stop.
    """
    baseline, figures, reader = mean_signal(train), Figures(), CropReader(test.clips.split)
    rank, world = process.accelerator.process_index, process.accelerator.num_processes
    found: dict[int, tuple[dict[str, float], dict[str, float]]] = {}
    for first in range(0, len(test), world):  # in step, so that all ranks hear of a stop request
        number = first + rank
        clip = test.read(reader, number) if number < len(test) else None
        if clip is not None:
            audio, length = clip
            found[number] = figures(decode(audio, number), audio, length), figures(baseline, audio, length)
        advance(min(world, len(test) - first))
        process.check_stop()
    everywhere = {number: pair for part in process.cpu_group.gather(found) for number, pair in part.items()}
    ordered = [everywhere[number] for number in sorted(everywhere)]
    decoded, baselines = ({name: [pair[side][name] for pair in ordered] for name in UNITS} for side in (0, 1))
    return MeasuredQuality([test.key(number) for number in sorted(everywhere)], decoded, baselines)
