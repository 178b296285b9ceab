"""Checking complete splits again: every shard's hash, and every sample against the index and its source file."""

from __future__ import annotations

import io
import os
import tarfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.console import Console

from simdist.core.files import sha256_of
from simdist.core.progress import progress
from simdist.core.signals import SignalHandler
from simdist.data import audio
from simdist.data.labels import num_phone_frames
from simdist.data.splits import Index, Split, is_plain, open_split
from simdist.pack import parallel
from simdist.pack.corpora import CorpusProblem, SplitPlan, Utterance

ROUNDING = 1  # steps of 16 bits: resampling on another machine, or 24 bits packed before they were rounded


@dataclass(frozen=True)
class _ShardCheck:
    path: Path
    size: int
    sha256: str
    rows: Index
    """The shard's part of the index."""
    sources: list[Utterance | None]
    """For each row what it was packed from; None if that is not compared."""


def verify(
    root: Path,
    names: Sequence[str],
    workers: int,
    console: Console,
    stop: SignalHandler,
    plans: Sequence[SplitPlan] = (),
) -> list[CorpusProblem]:
    """Problems of the complete splits `names` below `root`; those in `plans` are compared with their source files."""
    sources = {plan.name: {utterance.key: utterance for utterance in plan.utterances} for plan in plans}
    jobs = [job for name in names for job in _jobs(open_split(root, name), sources.get(name, {}))]
    problems: list[CorpusProblem] = []
    with progress(console, "verifying", sum(len(job.rows) for job in jobs)) as advance:
        for found, count in parallel.results(_verify_shard, jobs, workers, stop):
            problems += found
            advance(count)
    return sorted(problems)


def _jobs(split: Split, sources: Mapping[str, Utterance]) -> list[_ShardCheck]:
    jobs = []
    for i, shard in enumerate(split.manifest.shards):
        rows = _rows(split.index, split.index.shard == i)
        utterances = [sources.get(key) for key in rows.key.tolist()]
        jobs.append(_ShardCheck(split.shard_path(i), shard["bytes"], shard["sha256"], rows, utterances))
    return jobs


def _rows(index: Index, chosen: np.ndarray) -> Index:
    plain = {name: value[chosen] for name, value in vars(index).items() if name != "labels"}
    return Index(**plain, labels={})


def _verify_shard(job: _ShardCheck, check_stop: Callable[[], None]) -> tuple[list[CorpusProblem], int]:
    count = len(job.rows)
    if not job.path.is_file():
        return [CorpusProblem(str(job.path), "is missing")], count
    size = job.path.stat().st_size
    if size != job.size:
        return [CorpusProblem(str(job.path), f"has {size:,} bytes; the manifest says {job.size:,}")], count
    problems: list[CorpusProblem] = []
    if sha256_of(job.path) != job.sha256:
        problems.append(
            CorpusProblem(str(job.path), "is damaged: it does not have the sha256 that the manifest states")
        )
    problems += [CorpusProblem(f"{job.path}:{name}", reason) for name, reason in _bad_members(job.path)]
    with job.path.open("rb") as file:
        for row in range(count):
            check_stop()
            reason = _verify_sample(file.fileno(), job.rows, row, job.sources[row])
            if reason:
                problems.append(CorpusProblem(f"{job.path}:{job.rows.key[row]}", reason))
    return problems, count


def _bad_members(path: Path) -> list[tuple[str, str]]:
    """Members that other programs, which unpack the tar, should not meet."""
    found = []
    try:
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                if not is_plain(member.name):
                    found.append((member.name, "its name is not a plain file name: unpacked, it could lead elsewhere"))
                elif not member.isfile():
                    found.append((member.name, "is no plain file but a link, folder or device"))
    except (tarfile.TarError, OSError) as error:
        found.append(("", f"is no readable tar from there on ({error})"))
    return found


def _verify_sample(descriptor: int, rows: Index, row: int, source: Utterance | None) -> str:
    """What is wrong with a sample, or an empty string."""
    try:
        pcm = audio.decode(os.pread(descriptor, int(rows.size[row]), int(rows.offset[row]))).pcm
    except audio.AudioError as error:
        return str(error)
    if len(pcm) != rows.num_samples[row]:
        return f"has {len(pcm):,} samples; the index says {rows.num_samples[row]:,}"
    if rows.phones_offset[row] >= 0:
        stored = os.pread(descriptor, int(rows.phones_size[row]), int(rows.phones_offset[row]))
        try:
            phones = np.load(io.BytesIO(stored), allow_pickle=False)
        except (ValueError, EOFError, OSError) as error:
            return f"its phones cannot be read ({error})"
        if phones.shape != (num_phone_frames(len(pcm)),):
            return f"has phones of shape {phones.shape}; ({num_phone_frames(len(pcm))},) is needed"
    return _compare(pcm, source) if source else ""


def _compare(pcm: audio.Pcm, source: Utterance) -> str:
    """How a sample differs from its source file, or an empty string."""
    try:
        expected = audio.read(source.path, may_resample=source.resample, exact_length=source.exact_length).pcm
    except audio.AudioError as error:
        return f"its source {source.path} {error}"
    if len(pcm) != len(expected):
        return f"has {len(pcm):,} samples; its source {source.path} gives {len(expected):,}"
    difference = int(np.abs(pcm.astype(np.int32) - expected).max())
    if difference > ROUNDING:
        return f"differs from its source {source.path} by up to {difference:,} of 32,768"
    return ""
