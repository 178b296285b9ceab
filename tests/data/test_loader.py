"""Batches on real shards: the right audio, every key once an epoch over ranks and workers, whatever the cache."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from torch.utils.data import Dataset

from simdist.config.schema import DataConfig
from simdist.core.errors import InputError
from simdist.data.crops import CropReader
from simdist.data.loader import BatchLoader, open_clips
from simdist.data.order import SampleStream, crop_start
from simdist.data.splits import open_split
from simdist.data.workers import answers
from tests.support.damage import rotten_copy, unchanged_times

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


def test_a_corrupt_sample_is_replaced_by_the_next_of_its_epochs_order_with_that_ones_crop(
    config: DataConfig, tmp_path: Path
) -> None:
    """Expected batches are put together from the sound corpus: sample by sample, and the next one where one is bad."""
    sound = open_clips(config, "train")
    stream = SampleStream(sound.split.index.shard, 0, config.shuffle_window)
    order = [[row for _, row in stream.rows(e * len(sound), (e + 1) * len(sound))] for e in range(2)]
    bad = [order[0][2], order[0][3], order[0][-1]]  # two in a row, and an epoch's last: a circle
    root = rotten_copy(config.root, tmp_path / "shards", bad)
    reader = CropReader(sound.split)

    def expected(number: int) -> tuple[int, np.ndarray]:
        epoch, place = divmod(number, len(sound))
        while order[epoch][place % len(sound)] in bad:
            place += 1
        row = order[epoch][place % len(sound)]
        start = crop_start(0, epoch, str(sound.split.index.key[row]), int(sound.split.index.num_samples[row]), 8000)
        return row, reader.read(row, start, 8000)

    settings = replace(config, root=str(root))
    loader = BatchLoader(open_clips(settings, "train"), settings, 0, 0, 1, CPU)
    skipped = set()
    for batch in loader.batches(0, 2 * len(sound) // 4 * 4):
        for i in range(4):
            row, audio = expected(batch.consumed - 4 + i)
            assert int(batch.rows[i]) == row
            assert torch.equal(batch.inputs[i, :, 0], torch.from_numpy(audio).float() / 32768)
        skipped |= set(batch.skipped)
    path = open_split(root, "train").shard_path(0)
    assert skipped == {
        f"{sound.split.index.key[row]} in {path} cannot be decoded. Check the shards with simdist.pack --verify"
        for row in bad
    }


def test_all_ranks_workers_and_caches_skip_alike(config: DataConfig, tmp_path: Path) -> None:
    root = rotten_copy(config.root, tmp_path / "shards", [0, 5, 6])
    settings = replace(config, root=str(root))
    corpus = open_clips(settings, "train")
    reference = list(BatchLoader(corpus, settings, 0, 0, 1, CPU).batches(0, 80))
    assert len({text for batch in reference for text in batch.skipped}) == 3
    for world, workers, cache in ((2, 0, "none"), (1, 2, "none"), (2, 0, "memory"), (1, 0, "device"), (2, 0, "device")):
        other = replace(settings, num_workers=workers, cache=cache)
        ranks = [BatchLoader(corpus, other, 0, r, world, CPU).batches(0, 80) for r in range(world)]
        for whole, *parts in zip(reference, *ranks, strict=True):
            assert torch.equal(whole.rows, torch.cat([part.rows for part in parts]))
            assert torch.equal(whole.inputs, torch.cat([part.inputs for part in parts]))
            assert whole.skipped == tuple(text for part in parts for text in part.skipped)
    entered = BatchLoader(corpus, settings, 0, 0, 1, CPU).batches(40, 80)
    for batch, whole in zip(entered, reference[10:], strict=True):
        assert torch.equal(batch.inputs, whole.inputs)
        assert batch.skipped == whole.skipped


@pytest.mark.parametrize("cache", ["none", "memory", "device"])
def test_a_crop_beside_the_damage_is_used_whatever_the_cache(config: DataConfig, tmp_path: Path, cache: str) -> None:
    """A cache decodes whole utterances; what it cannot hold must not be lost to it alone."""
    root = rotten_copy(config.root, tmp_path / "shards", [])
    split = open_split(root, "train")
    row = int(np.argmax(split.index.num_samples))
    path = split.shard_path(int(split.index.shard[row]))
    with unchanged_times(path), path.open("r+b") as tar:
        tar.seek(int(split.index.offset[row] + split.index.size[row] - 300))
        tar.write(b"\xff" * 200)
    settings = replace(config, root=str(root), batch_size=1, cache=cache)
    loader = BatchLoader(open_clips(settings, "train"), settings, 0, 0, 1, CPU)
    sound = BatchLoader(open_clips(replace(settings, root=config.root), "train"), settings, 0, 0, 1, CPU)
    seen = [0, 0]
    for batch, reference in zip(loader.batches(0, 200), sound.batches(0, 200), strict=True):
        if int(reference.rows) == row:
            seen[bool(batch.skipped)] += 1
        if not batch.skipped:
            assert torch.equal(batch.inputs, reference.inputs)
    assert seen[0] > 0, "a crop before the damage"


@pytest.mark.parametrize("workers", [0, 1])
def test_a_corpus_without_a_sound_sample_is_an_error_in_one_line(
    config: DataConfig, tmp_path: Path, workers: int
) -> None:
    number = len(open_split(config.root, "train").index)
    root = rotten_copy(config.root, tmp_path / "shards", list(range(number)))
    settings = replace(config, root=str(root), num_workers=workers)
    loader = BatchLoader(open_clips(settings, "train"), settings, 0, 0, 1, CPU)
    with pytest.raises(InputError, match=rf"^{number} consecutive samples failed to decode. Last error: .*\.tar"):
        next(loader.batches(0, 4))


@pytest.mark.parametrize("workers", [0, 1])
def test_a_shard_that_is_lost_ends_the_training_in_one_line(config: DataConfig, tmp_path: Path, workers: int) -> None:
    root = Path(shutil.copytree(config.root, tmp_path / "shards"))
    settings = replace(config, root=str(root), num_workers=workers, retry_seconds=0.2)
    loader = BatchLoader(open_clips(settings, "train"), settings, 0, 0, 1, CPU)
    path = open_split(root, "train").shard_path(0)
    path.unlink()
    with pytest.raises(InputError, match=rf"^shard {path} cannot be read \(No such file or directory\).*; restore it"):
        next(loader.batches(0, 4))


def test_workers_that_are_killed_are_replaced_and_nothing_is_lost(
    config: DataConfig, capfd: pytest.CaptureFixture[str]
) -> None:
    corpus = open_clips(config, "train")
    reference = BatchLoader(corpus, config, 0, 0, 1, CPU).batches(0, 160)
    others = set(multiprocessing.active_children())
    killed = 0
    for batch, whole in zip(
        BatchLoader(corpus, replace(config, num_workers=2), 0, 0, 1, CPU).batches(0, 160), reference, strict=True
    ):
        assert torch.equal(batch.inputs, whole.inputs)
        if batch.consumed == 40:
            worker = min(set(multiprocessing.active_children()) - others, key=lambda process: process.pid or 0)
            worker.kill()
            killed += 1
    assert killed == 1
    assert capfd.readouterr().err == "a loader worker died (SIGKILL); others take over\n"
    assert set(multiprocessing.active_children()) == others, "no process is left behind"


class Deadly(Dataset[int]):
    def __getitem__(self, index: int) -> int:
        os.kill(os.getpid(), 9)
        return index


class Wrong(Dataset[int]):
    def __getitem__(self, index: int) -> int:
        raise RuntimeError("a defect")


def test_workers_that_die_again_and_again_end_the_training_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("simdist.data.workers.MOST_DEATHS", 2)
    looks = "torch.utils.data.dataloader._MultiProcessingDataLoaderIter._try_get_data"
    monkeypatch.setattr(f"{looks}.__defaults__", (0.5,))  # seconds until a death is noticed; 5 by default

    with pytest.raises(
        InputError, match=r"died 2 times in a row \(SIGKILL\), perhaps because memory is full; .*\(now 1; 0"
    ):
        next(answers(Deadly(), range(10), 1, pin_memory=False))


def test_an_error_of_the_program_in_a_worker_is_not_taken_for_a_death() -> None:
    with pytest.raises(RuntimeError, match="a defect"):
        next(answers(Wrong(), range(10), 1, pin_memory=False))


def test_signals_to_workers_are_not_answered(config: DataConfig) -> None:
    others = set(multiprocessing.active_children())
    batches = BatchLoader(open_clips(config, "train"), replace(config, num_workers=1), 0, 0, 1, CPU).batches(0, 80)
    next(batches)
    (worker,) = set(multiprocessing.active_children()) - others
    assert worker.pid is not None
    for number in (signal.SIGTERM, signal.SIGUSR2, signal.SIGUSR1, signal.SIGINT):
        os.kill(worker.pid, number)
    assert len(list(batches)) == 19
