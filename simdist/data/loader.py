"""Batches of crops for one rank.

`TrainBatches` is asked for global sample numbers and answers with crops; torch's DataLoader only spreads these requests
over workers, so their number changes nothing. Do not pass these loaders to `accelerator.prepare`: they are sharded.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from simdist.config import DataConfig
from simdist.data.crops import CropReader, read_corpus
from simdist.data.order import SampleStream, crop_start
from simdist.data.splits import Split, open_split
from simdist.errors import InputError
from simdist.stopping import ignore_signals


@dataclass(frozen=True)
class Batch:
    """One rank's share of a global batch."""

    inputs: Tensor
    """(B, T, 1) audio in [-1, 1), or (B, L, C) latents; float32, on the rank's device."""
    rows: Tensor
    """(B,) int64, rows of the split's index."""
    consumed: int
    """Samples consumed by all ranks once this batch has been trained on: the loader's state."""
    skipped: tuple[str, ...] = ()
    """Why samples of this rank's share do not decode and were replaced."""


@dataclass(frozen=True)
class Clips:
    """The usable clips of a split: opened, checked against the config, short ones dealt with."""

    split: Split
    rows: np.ndarray
    """(N,) rows of the index that are used."""
    num_short: int
    """Clips shorter than a crop."""

    def __len__(self) -> int:
        return len(self.rows)


def open_clips(config: DataConfig, name: str) -> Clips:
    """Open split `name` of `config.root` and decide what happens to clips shorter than a crop.

    Raises:
        InputError: the split cannot be opened, or no clip of it is long enough.
    """
    split = open_split(config.root, name)
    if split.manifest.sample_rate != 16_000:
        raise InputError(
            f"{split.folder} was packed at {split.manifest.sample_rate} Hz; simdist trains at 16,000 Hz: pack again"
        )
    long_enough = split.index.num_samples >= config.crop
    rows = np.arange(len(split.index)) if config.short_clips == "pad" else np.flatnonzero(long_enough)
    if not long_enough.any():
        longest = int(split.index.num_samples.max(initial=0))
        raise InputError(
            f"all {len(split.index)} clips of {split.folder} are shorter than a crop of {config.crop} samples "
            f"(the longest has {longest}); set --data.crop to {longest} or less"
        )
    return Clips(split, rows, int((~long_enough).sum()))


class CropDataset(Dataset[tuple[Tensor, Tensor] | InputError]):
    """Maps a global sample number to the crops of one rank's share of the batch that begins there."""

    def __init__(self, clips: Clips, config: DataConfig, seed: int, rank: int, share: int, cached: bool) -> None:
        self._clips, self._crop, self._seed = clips, config.crop, seed
        self._rank, self._share = rank, share
        self._stream = SampleStream(clips.split.index.shard[clips.rows], seed, config.shuffle_window)
        self._reader = CropReader(clips.split)
        self.memory = read_corpus(clips.split, progress=rank == 0) if cached else None

    def locate(self, first: int) -> list[tuple[int, int]]:
        """(row, first audio sample) of each crop of this rank in the global batch that begins at number `first`."""
        index, crops = self._clips.split.index, []
        begin = first + self._rank * self._share
        for epoch, place in self._stream.rows(begin, begin + self._share):
            row = int(self._clips.rows[place])
            start = crop_start(self._seed, epoch, str(index.key[row]), int(index.num_samples[row]), self._crop)
            crops.append((row, start))
        return crops

    def __getitem__(self, first: int) -> tuple[Tensor, Tensor] | InputError:
        crops = self.locate(first)
        try:
            clips = np.stack([self._read(row, start) for row, start in crops])
        except InputError as error:  # a DataLoader worker would wrap it in a traceback
            return error
        return torch.from_numpy(clips), torch.tensor([row for row, _ in crops])

    def _read(self, row: int, start: int) -> np.ndarray:
        if self.memory is None:
            return self._reader.read(row, start, self._crop)
        samples, starts = self.memory
        length = min(self._crop, int(self._clips.split.index.num_samples[row]) - start)
        crop = np.zeros(self._crop, dtype=np.int16)
        crop[:length] = samples[starts[row] + start : starts[row] + start + length]
        return crop


class BatchLoader:
    """Iterates over a rank's batches from a given global sample number on.

    Args:
        clips: what `open_clips` returned.
        config: crop length, global batch size, workers, cache.
        seed: the experiment's seed.
        rank: this process.
        world_size: number of processes; must divide the global batch.
        device: where `Batch.inputs` lie.

    Raises:
        InputError: the batch does not divide, or the split is smaller than one global batch.
    """

    def __init__(
        self, clips: Clips, config: DataConfig, seed: int, rank: int, world_size: int, device: torch.device
    ) -> None:
        if config.batch_size % world_size:
            raise InputError(
                f"data.batch_size is {config.batch_size} clips over all ranks, which {world_size} ranks cannot share "
                f"equally; take a multiple of {world_size}"
            )
        if len(clips) < config.batch_size:
            raise InputError(
                f"{clips.split.folder} has {len(clips)} usable clips, fewer than one global batch of "
                f"{config.batch_size}; set --data.batch_size to {len(clips) // world_size * world_size} or less"
            )
        self._config, self._device = config, device
        share = config.batch_size // world_size
        self._dataset = CropDataset(clips, config, seed, rank, share, cached=config.cache != "none")
        self._device_cache = self._to_device() if config.cache == "device" else None

    def batches(self, first: int, last: int) -> Iterator[Batch]:
        """Batches that begin at global sample number `first`, `first + G`, … below `last`."""
        requests = range(first, last, self._config.batch_size)
        loaded = self._from_device(requests) if self._device_cache is not None else self._from_workers(requests)
        for begin, (inputs, rows) in zip(requests, loaded, strict=True):
            yield Batch(inputs, rows, begin + self._config.batch_size)

    def _from_workers(self, requests: range) -> Iterator[tuple[Tensor, Tensor]]:
        workers = self._config.num_workers if self._config.cache == "none" else 0
        loader = DataLoader(
            self._dataset,
            batch_size=None,
            sampler=requests,
            num_workers=workers,
            prefetch_factor=4 if workers else None,
            pin_memory=self._device.type == "cuda",
            worker_init_fn=lambda worker: ignore_signals(),
        )
        for item in loader:
            if isinstance(item, InputError):
                raise item
            clips, rows = item
            values = clips.to(self._device, non_blocking=True).float()
            yield values if clips.is_floating_point() else values.div_(32768).unsqueeze(2), rows

    def _to_device(self) -> tuple[Tensor, Tensor, Tensor]:
        assert self._dataset.memory is not None
        samples, starts = self._dataset.memory
        silence = np.zeros(self._config.crop, dtype=np.int16)  # a crop that pads reads on into it, then is masked
        lengths = np.diff(np.append(starts, len(samples)))
        arrays = np.concatenate([samples, silence]), starts, lengths
        self._dataset.memory = None
        audio, begin, length = (torch.from_numpy(array).to(self._device) for array in arrays)
        return audio, begin, length

    def _from_device(self, requests: range) -> Iterator[tuple[Tensor, Tensor]]:
        assert self._device_cache is not None
        samples, starts, lengths = self._device_cache
        ramp = torch.arange(self._config.crop, device=self._device)
        for begin in requests:
            where = torch.tensor(self._dataset.locate(begin))  # (B, 2)
            rows, first = where.to(self._device, non_blocking=True).unbind(1)
            place = first[:, None] + ramp  # (B, T) sample within the utterance
            audio = samples[starts[rows, None] + place].float().div_(32768)
            yield (audio * (place < lengths[rows, None])).unsqueeze(2), where[:, 0]
