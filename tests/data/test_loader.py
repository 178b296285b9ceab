"""Batches on real shards: the right audio, every key once an epoch over ranks and workers, whatever the cache."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from simdist.config import DataConfig
from simdist.data.crops import CorruptSampleError, CropReader
from simdist.data.loader import BatchLoader, open_clips
from simdist.data.splits import open_split
from simdist.errors import InputError

CPU = torch.device("cpu")


@pytest.fixture
def config(speech: Path) -> DataConfig:
    return DataConfig(root=str(speech), crop=8000, batch_size=4, num_workers=0)


def sources(speech: Path) -> dict[str, Path]:
    return {path.stem: path for path in (speech.parent / "source").rglob("*.flac")}


def test_crops_are_the_sources_samples(config: DataConfig, speech: Path) -> None:
    split = open_split(config.root, "train")
    reader = CropReader(split)
    for row, key in enumerate(split.index.key[:8]):
        whole, rate = soundfile.read(sources(speech)[str(key)], dtype="int16")
        assert rate == 16_000
        assert np.array_equal(reader.read_all(row), whole)
        assert np.array_equal(reader.read(row, 1234, 5000), whole[1234:6234])
        end = reader.read(row, len(whole) - 100, 300)
        assert np.array_equal(end, np.pad(whole[-100:], (0, 200)))


@pytest.mark.parametrize(("world", "workers"), [(1, 0), (1, 2), (2, 0), (2, 2), (4, 1)])
def test_an_epoch_over_ranks_and_workers_is_every_key_once(config: DataConfig, world: int, workers: int) -> None:
    corpus = open_clips(config, "train")
    settings = replace(config, num_workers=workers)
    loaders = [BatchLoader(corpus, settings, 0, rank, world, CPU) for rank in range(world)]
    steps = -(-len(corpus) // 4)  # the last batch reaches into the next epoch
    ranks = [list(loader.batches(0, steps * 4)) for loader in loaders]
    assert {len(batches) for batches in ranks} == {steps}
    order = [row for batches in zip(*ranks, strict=True) for batch in batches for row in batch.rows.tolist()]
    assert Counter(order[: len(corpus)]) == Counter(range(len(corpus)))


def test_batches_do_not_depend_on_world_workers_or_cache(config: DataConfig) -> None:
    corpus = open_clips(config, "train")
    reference = [b.inputs for b in BatchLoader(corpus, config, 0, 0, 1, CPU).batches(0, 40)]
    for world, workers, cache in ((2, 0, "none"), (1, 2, "none"), (2, 0, "memory"), (1, 0, "device")):
        settings = replace(config, num_workers=workers, cache=cache)
        ranks = [BatchLoader(corpus, settings, 0, r, world, CPU).batches(0, 40) for r in range(world)]
        for whole, *parts in zip(reference, *ranks, strict=True):
            assert torch.equal(whole, torch.cat([part.inputs for part in parts]))


def test_a_stream_entered_anywhere_continues(config: DataConfig) -> None:
    loader = BatchLoader(open_clips(config, "train"), config, 0, 0, 1, CPU)
    whole = list(loader.batches(0, 48))
    for entered, expected in zip(loader.batches(20, 48), whole[5:], strict=True):
        assert torch.equal(entered.inputs, expected.inputs)
        assert entered.consumed == expected.consumed


def test_audio_is_mono_float_within_one(config: DataConfig) -> None:
    batch = next(BatchLoader(open_clips(config, "train"), config, 0, 0, 1, CPU).batches(0, 4))
    assert batch.inputs.shape == (4, 8000, 1)
    assert batch.inputs.dtype == torch.float32
    assert 0.01 < batch.inputs.abs().max() <= 1


@pytest.mark.parametrize("cache", ["none", "memory", "device"])
def test_short_clips_are_padded_or_skipped_and_counted(config: DataConfig, cache: str) -> None:
    lengths = open_split(config.root, "train").index.num_samples
    crop = int(np.sort(lengths)[-3])  # all but three are shorter
    padded = open_clips(replace(config, crop=crop, cache=cache), "train")
    assert (len(padded), padded.num_short) == (len(lengths), len(lengths) - 3)
    settings = replace(config, crop=crop, batch_size=1, cache=cache)
    for batch in BatchLoader(padded, settings, 0, 0, 1, CPU).batches(0, len(lengths)):
        length = int(lengths[batch.rows[0]])
        assert not batch.inputs[0, length:].any()
        assert batch.inputs[0, : min(length, crop)].any()
    skipped = open_clips(replace(config, crop=crop, short_clips="skip"), "train")
    assert len(skipped) == 3


def test_clips_that_are_all_too_short(config: DataConfig) -> None:
    longest = int(open_split(config.root, "train").index.num_samples.max())
    with pytest.raises(InputError, match=f"the longest has {longest}.*set --data.crop to {longest} or less"):
        open_clips(replace(config, crop=10**7), "train")


def test_fewer_clips_than_a_batch(config: DataConfig) -> None:
    corpus = open_clips(config, "train")
    with pytest.raises(InputError, match=rf"has {len(corpus)} usable clips.*set --data.batch_size to {len(corpus)}"):
        BatchLoader(corpus, replace(config, batch_size=1000), 0, 0, 1, CPU)


def test_a_batch_that_does_not_divide(config: DataConfig) -> None:
    with pytest.raises(InputError, match=r"which 3 ranks cannot share equally; take a multiple of 3"):
        BatchLoader(open_clips(config, "train"), config, 0, 0, 3, CPU)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_corrupt_sample_is_named_without_a_traceback(config: DataConfig, tmp_path: Path, workers: int) -> None:
    import shutil

    root = Path(shutil.copytree(config.root, tmp_path / "shards"))
    split = open_split(root, "train")
    with split.shard_path(0).open("r+b") as tar:
        tar.seek(int(split.index.offset[3]) + 1000)
        tar.write(b"\xff" * 40_000)
    settings = replace(config, root=str(root), num_workers=workers)
    loader = BatchLoader(open_clips(settings, "train"), settings, 0, 0, 1, CPU)
    with pytest.raises(
        CorruptSampleError, match=rf"^sample {split.index.key[3]} in .*shard-000000.tar does not decode"
    ):
        list(loader.batches(0, 400))
