"""The order of samples and their crops: pure functions of the seed, never of a process.

Epochs follow each other as one endless stream of sample numbers 0, 1, 2, …; number n is place `n % N` of epoch
`n // N`. Global batch b is the numbers `[b*G, (b+1)*G)`, and rank r takes the r-th equal share of it. So the state of
training data is one integer, all ranks have the same number of steps, every sample appears once per epoch even if
G does not divide N (a batch may span two epochs), and another world size sees the same batches. With epochs of full
batches (`data.epoch`), an epoch is the first `N // G * G` places of its order.

A corrupt sample is replaced by the next readable one in its epoch's order, with that one's own crop. The replacement
follows from the shards alone, so all ranks, and a resumed run, still see the same batches.

Random bits are taken raw from numpy's PCG64, whose stream is fixed for ever; `Generator.shuffle` is not.
"""

from __future__ import annotations

import hashlib

import numpy as np
import numpy.typing as npt


def _shuffled(rows: npt.NDArray[np.int64], bits: npt.NDArray[np.uint64]) -> npt.NDArray[np.int64]:
    return rows[np.argsort(bits, kind="stable")]


def epoch_order(shard: npt.NDArray[np.int32], seed: int, epoch: int, window: int) -> npt.NDArray[np.int64]:
    """The order in which an epoch visits its samples.

    Shards are shuffled, then samples within each run of `window` shards, so that an epoch reads few tars at a time.

    Args:
        shard: (N,) the shard of each sample.
        seed: the experiment's seed.
        epoch: number of the epoch, from 0.
        window: shards whose samples are mixed.

    Returns:
        (N,) a permutation of 0 … N-1.
    """
    bits = np.random.PCG64(np.random.SeedSequence([seed, epoch]))
    shards = np.unique(shard)
    shuffled = _shuffled(np.arange(len(shards)), bits.random_raw(len(shards)))
    place = np.empty(len(shards), dtype=np.int64)
    place[shuffled] = np.arange(len(shards))
    group = place[np.searchsorted(shards, shard)] // window  # (N,) which run of shards a sample falls into
    mixed = _shuffled(np.arange(len(shard)), bits.random_raw(len(shard)))
    return mixed[np.argsort(group[mixed], kind="stable")]


class SampleStream:
    """The endless stream of samples of one split.

    Args:
        shard: (N,) the shard of each sample that may be drawn.
        seed: the experiment's seed.
        window: shards whose samples are mixed.
        epoch_size: samples of an epoch, the first of its order; None for all.
    """

    def __init__(self, shard: npt.NDArray[np.int32], seed: int, window: int, epoch_size: int | None = None) -> None:
        self.num_samples = len(shard)
        self._epoch_size = epoch_size or len(shard)
        self._shard, self._seed, self._window = shard, seed, window
        self._orders: dict[int, npt.NDArray[np.int64]] = {}  # of the two latest epochs asked for

    def at(self, number: int, further: int = 0) -> tuple[int, int]:
        """(epoch, row) of sample `number`, or of the one `further` places on in that order, as in a circle."""
        epoch, place = divmod(number, self._epoch_size)
        return epoch, int(self._order(epoch)[(place + further) % self.num_samples])

    def _order(self, epoch: int) -> npt.NDArray[np.int64]:
        if epoch not in self._orders:
            if len(self._orders) == 2:
                del self._orders[min(self._orders)]
            self._orders[epoch] = epoch_order(self._shard, self._seed, epoch, self._window)
        return self._orders[epoch]

    def rows(self, first: int, last: int) -> list[tuple[int, int]]:
        """(epoch, row) of the sample numbers `first` … `last - 1`."""
        return [self.at(number) for number in range(first, last)]


def crop_start(seed: int, epoch: int, key: str, num_samples: int, crop: int) -> int:
    """First audio sample of the crop that `epoch` takes from utterance `key`; 0 if the clip is no longer than it."""
    if num_samples <= crop:
        return 0
    digest = hashlib.blake2b(f"{seed}/{epoch}/{key}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") % (num_samples - crop + 1)
