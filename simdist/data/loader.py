"""Batches of crops for one rank.

`TrainBatches` is asked for global sample numbers and answers with crops; torch's DataLoader only spreads these requests
over workers, so their number changes nothing. Do not pass these loaders to `accelerator.prepare`: they are sharded.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from simdist.config.schema import DataConfig
from simdist.core.errors import InputError
from simdist.data.crops import CorruptSampleError, CropReader, read_corpus
from simdist.data.integrity import check_shards
from simdist.data.order import SampleStream, crop_start
from simdist.data.splits import Split, open_split
from simdist.data.workers import answers, usable_workers

MOST_SKIPPED = 256  # consecutive corrupt samples after which loading fails


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
    """Why samples of this share were replaced by later ones: the messages of their `CorruptSampleError`s."""


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
    """Open split `name` of `config.root`, check its shards, and decide what happens to clips shorter than a crop.

    Raises:
        InputError: the split cannot be opened, shards are damaged, or no clip of it is long enough.
    """
    split = open_split(config.root, name)
    check_shards(split)
    if split.manifest.sample_rate != 16_000:
        raise InputError(
            f"{split.folder} was packed at {split.manifest.sample_rate:,} Hz; simdist trains at 16,000 Hz: pack again"
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


def rank_share(batch_size: int, world_size: int) -> int:
    """Clips of a rank in a global batch.

    Raises:
        InputError: the batch does not divide.
    """
    if batch_size % world_size:
        raise InputError(
            f"data.batch_size is {batch_size} clips over all ranks, which {world_size} ranks cannot share equally; "
            f"take a multiple of {world_size}"
        )
    return batch_size // world_size


class Share(NamedTuple):
    """One rank's part of a global batch."""

    crops: list[tuple[int, int]]
    """(row, first audio sample) of each."""
    apart: dict[int, np.ndarray]
    """The audio of those crops, by place in the list, that no cache holds."""
    skipped: list[str]
    """Why samples were skipped."""


class CropDataset(Dataset[tuple[Tensor, Tensor, list[str]] | InputError]):
    """Maps a global sample number to the crops of one rank's share of the batch that begins there."""

    def __init__(self, clips: Clips, config: DataConfig, seed: int, rank: int, share: int, cached: bool) -> None:
        self._clips, self._crop, self._seed = clips, config.crop, seed
        self._rank, self._share = rank, share
        shard, epoch_size = clips.split.index.shard[clips.rows], config.epoch_size(len(clips))
        self._stream = SampleStream(shard, seed, config.shuffle_window, epoch_size)
        self._reader = CropReader(clips.split, config.retry_seconds)
        self.memory = read_corpus(self._reader, clips.split, progress=rank == 0) if cached else None
        self._uncached = self.memory.corrupt if self.memory else None  # rows; None: all

    def share(self, first: int) -> Share:
        """This rank's share of the global batch that begins at number `first`.

        Raises:
            InputError: a tar cannot be read, or nothing decodes.
        """
        share, begin = Share([], {}, []), first + self._rank * self._share
        for place in range(self._share):
            row, start, audio = self._find(begin + place, share.skipped)
            share.crops.append((row, start))
            if audio is not None:
                share.apart[place] = audio
        return share

    def largest_answer(self) -> int:
        """Size of the largest answer in bytes; of latents, that of whole utterances."""
        split = self._clips.split
        clip = int(split.index.size.max()) if split.manifest.encoding == "npy" else 2 * self._crop
        return self._share * clip

    def __getitem__(self, first: int) -> tuple[Tensor, Tensor, list[str]] | InputError:
        try:
            crops, apart, skipped = self.share(first)
        except InputError as error:  # a DataLoader worker would wrap it in a traceback
            return error
        clips = [apart[i] if i in apart else self._remembered(row, start) for i, (row, start) in enumerate(crops)]
        return torch.from_numpy(np.stack(clips)), torch.tensor([row for row, _ in crops]), skipped

    def _find(self, number: int, skipped: list[str]) -> tuple[int, int, np.ndarray | None]:
        """Row, start and audio of sample `number`, or of the next that decodes; no audio where it is cached."""
        tries = min(self._stream.num_samples, MOST_SKIPPED)
        for further in range(tries):
            row, start = self._locate(number, further)
            if self._uncached is not None and row not in self._uncached:
                return row, start, None
            try:
                return row, start, self._reader.read(row, start, self._crop)
            except CorruptSampleError as error:
                skipped.append(str(error))
        raise InputError(f"{tries} consecutive samples failed to decode. Last error: {skipped[-1]}")

    def _locate(self, number: int, further: int) -> tuple[int, int]:
        """Row and first audio sample of a crop."""
        index = self._clips.split.index
        epoch, place = self._stream.at(number, further)
        row = int(self._clips.rows[place])
        return row, crop_start(self._seed, epoch, str(index.key[row]), int(index.num_samples[row]), self._crop)

    def _remembered(self, row: int, start: int) -> np.ndarray:
        assert self.memory is not None
        length = min(self._crop, int(self._clips.split.index.num_samples[row]) - start)
        begin = self.memory.starts[row] + start
        crop = np.zeros(self._crop, dtype=np.int16)
        crop[:length] = self.memory.samples[begin : begin + length]
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
        share = rank_share(config.batch_size, world_size)
        if len(clips) < config.batch_size:
            raise InputError(
                f"{clips.split.folder} has {len(clips)} usable clips, fewer than one global batch of "
                f"{config.batch_size}; set --data.batch_size to {len(clips) // world_size * world_size} or less"
            )
        self._config, self._device = config, device
        self._dataset = CropDataset(clips, config, seed, rank, share, cached=config.cache != "none")
        self._device_cache = self._to_device() if config.cache == "device" else None

    def batches(self, first: int, last: int) -> Iterator[Batch]:
        """Batches that begin at global sample number `first`, `first + G`, … below `last`."""
        requests = range(first, last, self._config.batch_size)
        loaded = self._from_device(requests) if self._device_cache is not None else self._from_workers(requests)
        for begin, (inputs, rows, skipped) in zip(requests, loaded, strict=True):
            yield Batch(inputs, rows, begin + self._config.batch_size, tuple(skipped))

    def _from_workers(self, requests: range) -> Iterator[tuple[Tensor, Tensor, list[str]]]:
        workers = self._config.num_workers if self._config.cache == "none" else 0
        workers = usable_workers(workers, self._dataset.largest_answer())
        for answer in answers(self._dataset, requests, workers, pin_memory=self._device.type == "cuda"):
            if isinstance(answer, InputError):
                raise answer
            clips, rows, skipped = answer
            values = clips.to(self._device, non_blocking=True).float()
            yield values if clips.is_floating_point() else values.div_(32768).unsqueeze(2), rows, skipped

    def _to_device(self) -> tuple[Tensor, Tensor, Tensor]:
        assert self._dataset.memory is not None
        samples, starts = self._dataset.memory.samples, self._dataset.memory.starts
        silence = np.zeros(self._config.crop, dtype=np.int16)  # a crop that pads reads on into it, then is masked
        lengths = np.diff(np.append(starts, len(samples)))
        arrays = np.concatenate([samples, silence]), starts, lengths
        self._dataset.memory = None
        audio, begin, length = (torch.from_numpy(array).to(self._device) for array in arrays)
        return audio, begin, length

    def _from_device(self, requests: range) -> Iterator[tuple[Tensor, Tensor, list[str]]]:
        assert self._device_cache is not None
        samples, starts, lengths = self._device_cache
        ramp = torch.arange(self._config.crop, device=self._device)
        for begin in requests:
            crops, apart, skipped = self._dataset.share(begin)
            where = torch.tensor(crops)  # (B, 2)
            rows, first = where.to(self._device, non_blocking=True).unbind(1)
            place = first[:, None] + ramp  # (B, T) sample within the utterance
            audio = samples[starts[rows, None] + place].float().div_(32768)
            audio *= place < lengths[rows, None]
            for i, crop in apart.items():
                audio[i] = torch.from_numpy(crop).to(self._device).float().div_(32768)
            yield audio.unsqueeze(2), where[:, 0], skipped
