"""Latents of frozen modules, written once as shards, so that a stagewise run does not compute them in every step.

A split of latents looks like one of audio (`simdist.data.splits`) with members KEY.npy: (frames, C) float16 means, or
(frames, 2C) means and log-variances of a variational module, of which each step draws a fresh sample. Whole utterances
are encoded: at a crop's edges the next module sees real neighbors where it would otherwise see padding. Shards are
shared out over ranks; each is whole or absent, so that a run killed in between resumes with the next shard.

Latents are far larger than speech: 512 variational channels at 100 frames/s are 205 kB/s, FLAC about 20.
"""

from __future__ import annotations

import hashlib
import json
import tarfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor
from webdataset.writer import TarWriter

from simdist.core.errors import FailedError, InputError
from simdist.core.files import TEMPORARY, replacing, sha256_of, write_json
from simdist.core.random_streams import stream_seed
from simdist.core.signals import SignalHandler, StoppedError
from simdist.data.crops import CorruptSampleError, CropReader
from simdist.data.loader import Clips
from simdist.data.shard_files import RETRY_SECONDS
from simdist.data.splits import FORMAT_VERSION, INDEX, MANIFEST, Index, Manifest, open_split
from simdist.training.agreement import together
from simdist.training.distributed import Process
from simdist.training.step import NumberedModule


class LatentCache:
    """Writes the latents of `trainers`' last module for the clips of one split.

    Args:
        folder: the split of latents; complete once it has a manifest.
        trainers: the frozen modules, in eval mode.
        clips: the audio.
        crop: utterances are padded to at least so many samples.
        seed: decides the noise of the modules below the last one.
        retry_seconds: how long a shard of audio that cannot be read is tried again.
    """

    def __init__(
        self,
        folder: Path,
        trainers: Sequence[NumberedModule],
        clips: Clips,
        crop: int,
        seed: int,
        retry_seconds: float = RETRY_SECONDS,
    ) -> None:
        self._folder, self._trainers, self._clips, self._crop, self._seed = folder, trainers, clips, crop, seed
        self._reader = CropReader(clips.split, retry_seconds)
        self.skipped: tuple[str, ...] = ()
        """Why utterances are not in the split: the messages of their `CorruptSampleError`s."""

    def write(self, process: Process, log: Callable[[str], None]) -> None:
        """Write missing and damaged shards on all ranks, then the index and manifest on rank 0.

        Every shard that is there already is compared with its sha256: rot changes neither size nor time. Corrupt
        samples are left out and listed in `skipped`.

        Args:
            process: this process in its world.
            log: prints a line on the terminal.

        Raises:
            StoppedError: on all ranks, if any was asked to stop. Complete shards stay.
            InputError: on all ranks; the disk is full, or a module's latents cannot be stored.
        """
        accelerator, identity = process.accelerator, identity_of(self._trainers, self._clips)
        with together(process.cpu_group), self._naming_the_disk():
            if accelerator.is_main_process:
                self._begin(identity)
        shards = np.unique(self._clips.split.index.shard[self._clips.rows]).tolist()
        rank, world = accelerator.process_index, accelerator.num_processes
        damaged = False
        for first in range(0, len(shards), world):  # in lockstep, so that all ranks can stop together
            with together(process.cpu_group), self._naming_the_disk():
                if first + rank < len(shards):
                    damaged |= self._complete(shards[first + rank], accelerator, process.stop)
            process.check_stop()
        if process.cpu_group.all_reduce_max(int(damaged))[0]:
            log(f"latents in {self._folder} were damaged; the damaged shards are computed again")
        with together(process.cpu_group), self._naming_the_disk():
            if accelerator.is_main_process:
                self._finish(shards, identity)
        self.skipped = tuple(open_split(self._folder.parent, self._folder.name).manifest.packed_with.get("skipped", []))

    def _complete(self, shard: int, accelerator: Accelerator, stop: SignalHandler) -> bool:
        """Write a shard that is missing or damaged. Returns whether it was damaged."""
        begun = self._sidecar(shard).exists()
        if begun and self._is_whole(shard):
            return False
        try:
            self._write_shard(shard, accelerator, stop)
        except StoppedError:
            return False  # without this shard; `write` stops all ranks
        return begun

    @contextmanager
    def _naming_the_disk(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise InputError(
                f"latents cannot be written to {self._folder} ({error.strerror}). They take about "
                f"{self._expected_bytes():,} bytes. Free some space, or set --train.cache_latents false --force"
            ) from error

    def _is_whole(self, shard: int) -> bool:
        """Whether a shard and what is known of it are as they were written."""
        try:
            known = self._read_sidecar(shard)
            return known["checksum"] == _checksum(known) and sha256_of(self._shard(shard)) == known["shard"]["sha256"]
        except (OSError, ValueError, KeyError, TypeError):
            return False

    def _read_sidecar(self, shard: int) -> dict[str, Any]:
        return json.loads(self._sidecar(shard).read_text())

    def _begin(self, identity: str) -> None:
        """Remove latents of other weights, damaged shards, and leftovers of a killed process."""
        self._folder.mkdir(parents=True, exist_ok=True)
        for leftover in self._folder.glob(f"{TEMPORARY}*"):
            leftover.unlink()
        marker = self._folder / ".identity"
        if not marker.exists() or marker.read_text() != identity:
            for path in self._folder.iterdir():
                path.unlink()
            with replacing(marker) as temporary:
                temporary.write_text(identity)

    def _write_shard(self, shard: int, accelerator: Accelerator, stop: SignalHandler) -> None:
        index, rows, skipped = self._clips.split.index, [], []
        largest = 0.0
        with replacing(self._shard(shard)) as temporary:
            with TarWriter(str(temporary), mtime=0) as tar:
                for row in self._clips.rows[index.shard[self._clips.rows] == shard]:
                    stop.check()
                    try:
                        latent = self._encode(int(row), accelerator)
                    except CorruptSampleError as error:
                        skipped.append(str(error))
                        continue
                    largest = max(largest, self._largest(latent, str(index.key[row])))
                    tar.write({"__key__": str(index.key[row]), "npy": latent})
                    rows.append({"key": str(index.key[row]), "row": int(row), "num_samples": len(latent)})
            with tarfile.open(temporary) as tar:
                for row, member in zip(rows, tar, strict=True):
                    row["offset"], row["size"] = member.offset_data, member.size
            size, name = temporary.stat().st_size, self._shard(shard).name
            facts = {"name": name, "sha256": sha256_of(temporary), "bytes": size, "largest": largest}
        content = {"rows": rows, "shard": facts, "skipped": skipped}
        write_json(self._sidecar(shard), content | {"checksum": _checksum(content)})

    def _largest(self, latent: np.ndarray, key: str) -> float:
        """The largest magnitude of a latent."""
        largest = float(np.abs(latent).max())
        if not np.isfinite(largest):
            raise FailedError(
                f"module {self._trainers[-1].number} makes values of {key} that are NaN, infinite or beyond "
                f"{np.finfo(latent.dtype).max:,.0f}, which cannot be cached in float16. Look at the module's metrics; "
                "--train.cache_latents false --force continues without the cache"
            )
        return largest

    @torch.no_grad()
    def _encode(self, row: int, accelerator: Accelerator) -> np.ndarray:
        """(frames, C or 2C) float16."""
        samples = self._reader.read(row, 0, max(self._crop, int(self._clips.split.index.num_samples[row])))
        x = torch.from_numpy(samples).to(accelerator.device).float().div_(32768)[None, :, None]  # (1, T, 1)
        generator = torch.Generator(accelerator.device)
        with accelerator.autocast():
            for trainer in self._trainers[:-1]:
                seed = stream_seed(self._seed, "cached latent", str(self._clips.split.index.key[row]), trainer.number)
                x = trainer.module.sample(x, generator.manual_seed(seed)).latent
            mu, log_var = self._trainers[-1].module.distribution(x)
        stored = mu.float() if log_var is None else torch.cat([mu.float(), log_var], dim=2)
        return stored[0].cpu().half().numpy()

    def _finish(self, shards: list[int], identity: str) -> None:
        sidecars = [self._read_sidecar(shard) for shard in shards]
        rows = [row | {"shard": number} for number, s in enumerate(sidecars) for row in s["rows"]]
        none = np.full(len(rows), -1, dtype=np.int64)
        index = Index(
            key=np.array([row["key"] for row in rows]),
            shard=np.array([row["shard"] for row in rows], dtype=np.int32),
            offset=np.array([row["offset"] for row in rows], dtype=np.int64),
            size=np.array([row["size"] for row in rows], dtype=np.int64),
            num_samples=np.array([row["num_samples"] for row in rows], dtype=np.int64),
            phones_offset=none,
            phones_size=np.zeros_like(none),
            labels={},
        )
        with replacing(self._folder / INDEX) as temporary:
            index.save(temporary)
        source = self._clips.split.manifest
        manifest = Manifest(
            format_version=FORMAT_VERSION,
            corpus=f"{source.corpus} through module {self._trainers[-1].number}",
            split=source.split,
            encoding="npy",
            sample_rate=source.sample_rate,
            num_samples=len(rows),
            num_seconds=source.num_seconds,
            shards=[s["shard"] | {"num_samples": len(s["rows"]), "num_seconds": 0.0} for s in sidecars],
            labels={},
            fingerprint=identity,
            packed_with={"skipped": [text for s in sidecars for text in s["skipped"]]},
        )
        write_json(self._folder / MANIFEST, asdict(manifest))

    def _shard(self, shard: int) -> Path:
        return self._folder / f"shard-{shard:06d}.tar"

    def _sidecar(self, shard: int) -> Path:
        return self._folder / f".shard-{shard:06d}.json"

    def _expected_bytes(self) -> int:
        channels = self._trainers[-1].module.latent_channels * (2 if self._trainers[-1].module.log_var else 1)
        samples = int(self._clips.split.index.num_samples[self._clips.rows].sum())
        for layer in [layer for trainer in self._trainers for layer in trainer.module.config.layers]:
            samples = layer.output_frames(samples)
        return 2 * channels * samples


def identity_of(frozen: Sequence[NumberedModule], clips: Clips) -> str:
    """sha256 of frozen weights and the audio that they encode."""
    digest = hashlib.sha256(clips.split.manifest.fingerprint.encode())
    for trainer in frozen:
        for tensor in trainer.module.state_dict().values():
            digest.update(tensor.cpu().numpy().tobytes())
    return digest.hexdigest()


def _checksum(sidecar: dict[str, Any]) -> str:
    """sha256 of everything else in a sidecar."""
    content = {name: value for name, value in sidecar.items() if name != "checksum"}
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def sampled(stored: Tensor, trainer: NumberedModule, noise: Callable[[torch.Size], Tensor]) -> Tensor:
    """A sample (B, F, C) of a stored latent, (B, F, C) or (B, F, 2C) with log-variances, by normal `noise`."""
    if trainer.module.log_var is None:
        return stored
    mu, log_var = stored.chunk(2, dim=2)
    return mu + (log_var / 2).exp() * noise(mu.shape)
