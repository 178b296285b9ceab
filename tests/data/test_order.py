"""The order of samples over seeds, epochs, ranks and worlds: complete, disjoint, reproducible, local."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from simdist.data.order import SampleStream, crop_start, epoch_order

SHARDS = np.repeat(np.arange(7, dtype=np.int32), [5, 9, 1, 12, 8, 3, 6])
N = len(SHARDS)


@pytest.mark.parametrize(("seed", "epoch", "window"), list(itertools.product([0, 1, 12345], [0, 3], [1, 3, 100])))
def test_an_epoch_is_a_permutation(seed: int, epoch: int, window: int) -> None:
    order = epoch_order(SHARDS, seed, epoch, window)
    assert sorted(order) == list(range(N))
    assert np.array_equal(order, epoch_order(SHARDS, seed, epoch, window))


def test_seeds_and_epochs_differ() -> None:
    orders = {tuple(epoch_order(SHARDS, seed, epoch, 100)) for seed in range(4) for epoch in range(4)}
    assert len(orders) == 16


def test_the_order_is_fixed_for_ever() -> None:
    """A change here would make every run's resumption wrong: it needs a new format version."""
    assert epoch_order(np.zeros(8, dtype=np.int32), 0, 0, 16).tolist() == [2, 1, 0, 7, 5, 6, 3, 4]
    assert crop_start(0, 0, "1089-134686-0001", 100_000, 20_480) == 20_088


@pytest.mark.parametrize("window", [1, 2, 3])
def test_reads_stay_within_a_window_of_shards(window: int) -> None:
    order = SHARDS[epoch_order(SHARDS, 5, 2, window)]
    for shard in range(7):
        places = np.flatnonzero(order == shard)
        between = set(order[places[0] : places[-1] + 1])
        assert len(between) <= window


def test_shards_of_a_window_are_mixed() -> None:
    order = SHARDS[epoch_order(SHARDS, 5, 2, 100)]
    assert np.count_nonzero(np.diff(order)) > N / 2


@pytest.mark.parametrize(("batch", "world"), [(6, 1), (6, 2), (6, 3), (8, 4), (5, 5)])
def test_ranks_share_every_batch(batch: int, world: int) -> None:
    stream = SampleStream(SHARDS, seed=3, window=2)
    share = batch // world
    for first in range(0, 5 * N, batch):
        whole = stream.rows(first, first + batch)
        ranks = [stream.rows(first + r * share, first + (r + 1) * share) for r in range(world)]
        assert list(itertools.chain(*ranks)) == whole


def test_every_sample_appears_once_an_epoch_also_when_batches_span_epochs() -> None:
    stream = SampleStream(SHARDS, seed=3, window=2)
    seen = [pair for first in range(0, 3 * N, 8) for pair in stream.rows(first, min(first + 8, 3 * N))]
    for epoch in range(3):
        assert sorted(row for e, row in seen if e == epoch) == list(range(N))


def test_crops_lie_inside_the_clip_and_cover_it() -> None:
    starts = [crop_start(0, epoch, "key", 1000, 900) for epoch in range(2000)]
    assert min(starts) == 0
    assert max(starts) == 100
    assert np.std(starts) == pytest.approx(101 / 12**0.5, rel=0.1)


@pytest.mark.parametrize("length", [1, 900])
def test_short_clips_begin_at_their_beginning(length: int) -> None:
    assert crop_start(0, 0, "key", length, 900) == 0


@pytest.mark.parametrize("batch", [5, 8, 44])
def test_an_epoch_of_full_batches_has_other_clips_each_time(batch: int) -> None:
    """Its batches are those of the first places of the order, none spans two epochs, and no clip is always left out."""
    size = N // batch * batch
    stream = SampleStream(SHARDS, seed=3, window=100, epoch_size=size)
    epochs = [stream.rows(epoch * size, (epoch + 1) * size) for epoch in range(6)]
    for epoch, pairs in enumerate(epochs):
        assert {number for number, _ in pairs} == {epoch}
        assert [row for _, row in pairs] == epoch_order(SHARDS, 3, epoch, 100)[:size].tolist()
    assert {row for pairs in epochs for _, row in pairs} == set(range(N))
