"""Features on disk: encoded once, shared by every probe, rank and job that needs them.

    CACHE/KEY/entry.json              what it is, and the bytes it is to take when complete
    CACHE/KEY/shard-00000.safetensors `module_0`, … (n, D) of about two minutes of audio, with their sha256; of a layer
                                      one tensor `module_0_layer_2`; to be resampled, one tensor `module_0` with the
                                      first module's Gaussians
    CACHE/locks/                      locks of shards, and of readers

KEY is a hash of the extractor (weights and architecture), the split's fingerprint and the spec, so entries never mix
checkpoints or corpora. A shard appears by rename. Any process may lock and encode a missing one, so ranks and jobs
share the work, and a killed one loses at most one shard. The least recently used entries without readers are removed.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import Tensor

from simdist.config.schema import SAMPLE_RATE
from simdist.core.errors import FailedError, InputError
from simdist.core.file_locks import SharedLock
from simdist.core.files import replacing, write_json
from simdist.core.output import write_error
from simdist.core.signals import SignalHandler
from simdist.data.splits import Split
from simdist.probe.feature_extractors import FeatureExtractor
from simdist.probe.feature_spec import FeatureSpec, encode_rows, num_vectors
from simdist.probe.work_sharing import POLL_SECONDS, share

SHARD_SAMPLES = 120 * SAMPLE_RATE  # audio in a shard of features: the unit of work and of loss
GIGABYTE = 10**9
CHECKSUM = "sha256"  # metadata of a shard


@dataclass(frozen=True)
class CacheEntry:
    """The features of one split, by one extractor and spec."""

    extractor: FeatureExtractor
    split: Split
    spec: FeatureSpec

    @property
    def key(self) -> str:
        parts = (self.extractor.identity, self.split.manifest.fingerprint, self.spec.identity())
        return hashlib.sha256("/".join(parts).encode()).hexdigest()[:24]


@dataclass(frozen=True)
class Features:
    """An entry that was opened; tensors are mapped from the files and read when touched."""

    shards: list[dict[str, Tensor]]
    rows: list[list[int]]
    """Index rows of each shard, in order."""
    counts: list[list[int]]
    """Vectors of each row."""

    def of_module(self, module: int, layer: int | None = None) -> dict[int, Tensor]:
        """Each row's (n, D) of a module, or of the layer inside it that the entry holds."""
        found: dict[int, Tensor] = {}
        for tensors, rows, counts in zip(self.shards, self.rows, self.counts, strict=True):
            parts = tensors[_tensor_name(module, layer)].split(counts)
            found |= dict(zip(rows, parts, strict=True))
        return found


def _tensor_name(module: int, layer: int | None) -> str:
    return f"module_{module}" + ("" if layer is None else f"_layer_{layer}")


def shard_rows(split: Split) -> list[list[int]]:
    """The split's rows in shards of about two minutes; a function of the index alone."""
    ends = np.cumsum(split.index.num_samples) - split.index.num_samples
    shard = ends // SHARD_SAMPLES
    return [np.flatnonzero(shard == number).tolist() for number in np.unique(shard)]


class FeatureCache:
    """The features below one folder.

    Args:
        folder: is created when something is written.
        limit_gb: size limit in GB.
        stop: asked between shards.
        advance: told how many utterances have been encoded.
    """

    def __init__(self, folder: Path, limit_gb: float, stop: SignalHandler) -> None:
        self._folder, self._limit, self._stop = folder, int(limit_gb * GIGABYTE), stop

    @contextmanager
    def opened(
        self, entries: list[CacheEntry], device: torch.device, report: Callable[[int], None], first: float = 0.0
    ) -> Iterator[list[Features]]:
        """Open entries of one extractor, encoding missing ones, and protect them from eviction inside the block.

        Args:
            device: encodes.
            report: told the number of utterances after each shard that this process encoded.
            first: where in the list of shards to begin, as a share of it, so that ranks seldom meet.

        Raises:
            InputError: they do not fit the cache, or the disk.
            StoppedError: a signal came.
        """
        locks: list[SharedLock] = []
        try:
            yield self._ready(entries, locks, device, report, first)
        finally:
            for lock in locks:
                lock.release()

    def _ready(
        self,
        entries: list[CacheEntry],
        locks: list[SharedLock],
        device: torch.device,
        report: Callable[[int], None],
        first: float,
    ) -> list[Features]:
        """Lock, reserve, encode and open."""
        try:
            locks += [self._hold(entry) for entry in entries]
            for entry in entries:
                self._reserve(entry)
            return self._complete(entries, device, report, first)
        except OSError as error:
            raise InputError(
                f"the feature cache {self._folder} cannot be used: {error.strerror or error}; "
                "name another with --cache, or go without: --cached false"
            ) from error

    def _complete(
        self, entries: list[CacheEntry], device: torch.device, report: Callable[[int], None], first: float
    ) -> list[Features]:
        while True:
            self._encode_missing(entries, device, report, first)
            opened = [self._open(entry) for entry in entries]
            if all(features is not None for features in opened):
                return [features for features in opened if features is not None]

    # --- encoding -----------------------------------------------------------------------------------------------------

    def _encode_missing(
        self, entries: list[CacheEntry], device: torch.device, report: Callable[[int], None], first: float
    ) -> None:
        by_split: dict[str, list[CacheEntry]] = {}
        for entry in entries:
            by_split.setdefault(str(entry.split.folder), []).append(entry)
        units = [(group, number) for group in by_split.values() for number in range(len(shard_rows(group[0].split)))]

        def encode(unit: tuple[list[CacheEntry], int]) -> None:
            missing = [entry for entry in unit[0] if not self._shard(entry, unit[1]).exists()]
            report(self._encode(missing, unit[1], device))

        share(
            units,
            lambda unit: all(self._shard(entry, unit[1]).exists() for entry in unit[0]),
            lambda unit: self._lock(_same_audio(unit[0][0]), f"shard-{unit[1]:05d}"),
            encode,
            self._stop,
            int(first * len(units)),
        )

    def _encode(self, entries: list[CacheEntry], number: int, device: torch.device) -> int:
        """Encode and write one shard of several feature specs of the same audio; returns the number of utterances."""
        extractor, split = entries[0].extractor, entries[0].split
        rows = shard_rows(split)[number]
        extractor.network.to(device)
        found = dict(encode_rows(extractor, split, rows, [entry.spec for entry in entries], device))
        for place, entry in enumerate(entries):
            tensors = {
                _tensor_name(*entry.spec.place(module)): torch.cat([found[row][place][module] for row in rows])
                for module in range(len(found[rows[0]][place]))
            }
            _check_finite(tensors, extractor)
            with replacing(self._shard(entry, number)) as temporary:  # save_file makes files that nobody else may read
                temporary.write_bytes(save(tensors, {CHECKSUM: _checksum(tensors)}))
        return len(rows)

    # --- files --------------------------------------------------------------------------------------------------------

    def _shard(self, entry: CacheEntry, number: int) -> Path:
        return self._folder / entry.key / f"shard-{number:05d}.safetensors"

    def _lock(self, *names: str) -> Path:
        return self._folder / "locks" / "-".join(names)

    def _open(self, entry: CacheEntry) -> Features | None:
        """Map an entry's shards; None if one was damaged, and is gone now."""
        rows = shard_rows(entry.split)
        counts = [[num_vectors(entry.split, row, entry.spec) for row in shard] for shard in rows]
        shards = []
        for number in range(len(rows)):
            path = self._shard(entry, number)
            tensors = _read_whole(path)
            if tensors is None or any(len(tensor) != sum(counts[number]) for tensor in tensors.values()):
                if path.exists():
                    write_error(f"features in {path} are damaged; computing them again")
                    path.unlink(missing_ok=True)
                return None
            shards.append(tensors)
        return Features(shards, rows, counts)

    def _hold(self, entry: CacheEntry) -> SharedLock:
        lock = SharedLock(self._lock(entry.key, "use"), shared=True)
        while not lock.acquire():  # someone is removing it
            self._stop.check()
            time.sleep(POLL_SECONDS)
        return lock

    # --- the bound ----------------------------------------------------------------------------------------------------

    def _reserve(self, entry: CacheEntry) -> None:
        """Reserve the size of an entry, and make room for it."""
        description = self._folder / entry.key / "entry.json"
        guard = SharedLock(self._lock("reserve"))
        while not guard.acquire():
            self._stop.check()
            time.sleep(POLL_SECONDS)
        try:
            if not description.exists():
                size = entry_bytes(entry)
                self._make_room(size, entry.key)
                description.parent.mkdir(parents=True, exist_ok=True)
                write_json(description, _describe(entry) | {"bytes": size})
            os.utime(description)
        finally:
            guard.release()

    def _make_room(self, size: int, key: str) -> None:
        others = sorted(self._folder.glob("*/entry.json"), key=lambda path: path.stat().st_mtime)
        taken = {path.parent: int(json.loads(path.read_text())["bytes"]) for path in others}
        for folder in list(taken):
            if sum(taken.values()) + size <= self._limit:
                return
            lock = SharedLock(self._lock(folder.name, "use"))
            if folder.name != key and lock.acquire():
                shutil.rmtree(folder, ignore_errors=True)
                del taken[folder]
            lock.release()
        if sum(taken.values()) + size > self._limit:
            raise InputError(
                f"the features need {size / GIGABYTE:.3g} GB, and {self._folder} may hold {self._limit / GIGABYTE:.3g} "
                f"GB, of which {sum(taken.values()) / GIGABYTE:.3g} GB are in use; raise --cache-gb, "
                "or probe fewer labels in one command"
            )


def _read_whole(path: Path) -> dict[str, Tensor] | None:
    """Map a shard; None if it is missing or damaged."""
    try:
        with safe_open(path, framework="pt") as file:
            expected = (file.metadata() or {}).get(CHECKSUM)
        tensors = load_file(path)
    except (SafetensorError, FileNotFoundError):
        return None
    return tensors if _checksum(tensors) == expected else None


def _checksum(tensors: dict[str, Tensor]) -> str:
    """sha256 of names, types, shapes and values."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(memoryview(tensor.contiguous().numpy()))  # pyright: ignore[reportArgumentType]: before Python 3.12
    return digest.hexdigest()


def _check_finite(tensors: dict[str, Tensor], extractor: FeatureExtractor) -> None:
    for name, tensor in tensors.items():
        if not tensor.isfinite().all():
            what = f"the encoder of step {extractor.step:,}" if extractor.kind == "trained" else extractor.kind
            raise FailedError(
                f"features of {what} ({name}) are NaN, infinite or too large for {tensor.dtype}. Probe an earlier "
                "checkpoint with --checkpoint, or leave out the cache with --cached false"
            )


def entry_bytes(entry: CacheEntry) -> int:
    """Bytes that an entry takes when complete."""
    spec, index = entry.spec, entry.split.index
    vectors = sum(num_vectors(entry.split, row, spec) for row in range(len(index)))
    extractor, modules = entry.extractor, range(len(entry.extractor.dimensions))
    places = [spec.layer] if spec.layer is not None else [(module, None) for module in modules]
    channels = sum(extractor.channels(*place) for place in places)
    if spec.kind == "frames":
        return 2 * vectors * channels
    samples, grids = spec.crop or int(index.num_samples.max()), [extractor.grid(*place) for place in places]
    if spec.kind == "gaussian":
        return 4 * vectors * 2 * extractor.dimensions[0] * (samples // grids[0].stride + 1)
    length = max(1, samples // min(grid.stride for grid in grids) + 1) if spec.pooling == "flatten" else 1
    return 4 * vectors * channels * length


def _same_audio(entry: CacheEntry) -> str:
    return hashlib.sha256(f"{entry.extractor.identity}/{entry.split.manifest.fingerprint}".encode()).hexdigest()[:16]


def _describe(entry: CacheEntry) -> dict[str, object]:
    return {
        "source": entry.extractor.kind,
        "step": entry.extractor.step,
        "weights": entry.extractor.identity,
        "split": str(entry.split.folder),
        "fingerprint": entry.split.manifest.fingerprint,
        "view": entry.spec.described(),
    }
