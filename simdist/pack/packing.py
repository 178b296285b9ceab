"""Packing a planned corpus into splits: what is done already, the shards still missing, index, manifest and report.

A split is complete when its manifest is there, which is written last. Until then each shard's sidecar says whether it
is done, so the same command resumes a packing that was killed, and `.packing.json` what it is, so that a command with
other options does not throw it away. Splits are finished only after all shards of all splits are written: with
`--strict` one bad file leaves no manifest anywhere.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape

from simdist.core.errors import InputError, counted, shortened
from simdist.core.file_locks import locked
from simdist.core.progress import progress
from simdist.core.signals import SignalHandler
from simdist.data.splits import Manifest
from simdist.pack import folders, parallel
from simdist.pack.corpora import Corpus, CorpusProblem, SplitPlan, scattered
from simdist.pack.finishing import finish
from simdist.pack.shards import DiskError, Encoding, Shard, ShardJob, write_shard

INDEX_BYTES = 512  # an utterance in index, sidecar, manifest and report, about


@dataclass(frozen=True)
class Options:
    """How a corpus is packed."""

    encoding: Encoding = "flac"
    shard_samples: int = 256
    workers: int = 1
    min_samples: int = 20_480
    strict: bool = False
    overwrite: bool = False
    verify: bool = False

    def __post_init__(self) -> None:
        for name in ("shard_samples", "workers", "min_samples"):
            least = 0 if name == "min_samples" else 1
            if getattr(self, name) < least:
                flag = name.replace("_", "-")
                raise InputError(f"--{flag} is {getattr(self, name)}; it must be at least {least}")
        if self.encoding not in ("flac", "wav"):
            raise InputError(f"--encoding is {self.encoding!r}; it must be flac or wav")


@dataclass
class PackedSplit:
    """A split on its way: what is to be done and what came out."""

    plan: SplitPlan
    folder: Path
    jobs: list[ShardJob]
    identity: dict[str, Any]
    shards: dict[str, Shard] = dataclasses.field(default_factory=dict)
    manifest: Manifest | None = None
    """Set once the split is complete; from the start where it was before."""
    was_complete: bool = False
    problems: list[CorpusProblem] = dataclasses.field(default_factory=list)

    def missing(self) -> list[ShardJob]:
        return [] if self.manifest else [job for job in self.jobs if job.name not in self.shards]


def pack(corpus: Corpus, out: Path, options: Options, console: Console, stop: SignalHandler) -> list[PackedSplit]:
    """Pack all splits of `corpus` into folders below `out`; those that are complete already stay as they are.

    Raises:
        InputError: a split is there or begun, but from or with something else; nothing usable; --strict and problems.
        PackingError: the disk is full, or a process died.
        StoppedError: a signal came; finished shards are kept.
    """
    with locked(out):
        splits = [_prepare(corpus, plan, out, options) for plan in corpus.splits]
        for split in splits:
            _find_what_is_done(split, options)
        _write_shards(splits, options, console, stop)
        try:
            _report(splits)
            list_problems(splits, console)
            _refuse_problems(splits, options)
            for split in splits:
                split.manifest = split.manifest or finish(
                    split.plan.name, split.folder, _in_order(split), corpus, split.identity
                )
        except OSError as error:
            refused = DiskError(f"{error.filename or out} cannot be written: {error.strerror}")
            raise _with_bytes_needed(refused, splits) from error
    return splits


# --- what there is to do ----------------------------------------------------------------------------------------------


def _prepare(corpus: Corpus, plan: SplitPlan, out: Path, options: Options) -> PackedSplit:
    """What is to be packed, after a look at what is there; changes nothing."""
    folder = out / plan.name
    utterances = sorted(plan.utterances, key=lambda u: scattered(u.key))  # all speakers in every shard
    if not utterances:
        first = f": {plan.problems[0].path}: {plan.problems[0].reason}" if plan.problems else ""
        raise InputError(f"split {plan.name!r} would be empty: none of its utterances can be used{first}")
    size = options.shard_samples
    jobs = [
        ShardJob(folder, f"shard-{i // size:06d}.tar", utterances[i : i + size], options.encoding, options.min_samples)
        for i in range(0, len(utterances), size)
    ]
    inputs = "\n".join(f"{u.key} {u.size}" for u in utterances)
    identity = {
        "corpus": corpus.name,
        **corpus.parameters,
        "encoding": options.encoding,
        "shard_samples": size,
        "min_samples": options.min_samples,
        "inputs": hashlib.sha256(inputs.encode()).hexdigest()[:16],
    }
    manifest = folders.stored_manifest(folder)
    if options.overwrite:
        manifest = None
    else:
        folders.require_same(folder, manifest, identity)
    if manifest is None:
        folders.refuse_foreign(folder)
    return PackedSplit(plan, folder, jobs, identity, manifest=manifest, was_complete=manifest is not None)


def _find_what_is_done(split: PackedSplit, options: Options) -> None:
    if split.was_complete:
        folders.remove_traces(split.folder)
        split.problems = folders.stored_problems(split.folder)
        return
    try:
        split.folder.mkdir(exist_ok=True)
        folders.clear(split.folder, {job.name for job in split.jobs})
    except OSError as error:
        raise InputError(f"cannot write to {split.folder}: {error.strerror}; choose another OUT") from error
    for job in split.jobs:
        shard = folders.finished_shard(job, check_hash=options.verify)
        if shard:
            split.shards[job.name] = shard


# --- shards -----------------------------------------------------------------------------------------------------------


def _write_shards(splits: Sequence[PackedSplit], options: Options, console: Console, stop: SignalHandler) -> None:
    of_folder = {split.folder: split for split in splits}
    jobs = [job for split in splits for job in split.missing()]
    done = sum(len(split.shards) for split in splits)
    if done:
        console.print(f"continuing: {done} of {done + len(jobs)} shards are finished already")
    total = sum(len(job.utterances) for job in jobs)
    try:
        for split in splits:
            if not split.was_complete:
                folders.begin(split.folder, split.identity)
        with progress(console, "packing", total) as advance:
            for folder, shard, count in parallel.results(_write, jobs, options.workers, stop):
                of_folder[folder].shards[shard.name] = shard
                advance(count)
    except DiskError as error:
        raise _with_bytes_needed(error, splits) from error
    finally:
        for split in splits:
            folders.remove_temporaries(split.folder)


def _write(job: ShardJob, check_stop: Callable[[], None]) -> tuple[Path, Shard, int]:
    return job.folder, write_shard(job, check_stop), len(job.utterances)


def _with_bytes_needed(error: DiskError, splits: Sequence[PackedSplit]) -> DiskError:
    incomplete = [split for split in splits if not split.manifest]
    needed = sum(folders.expected_bytes(job) for split in incomplete for job in split.missing())
    needed += sum(INDEX_BYTES * len(split.plan.utterances) for split in incomplete)
    free = folders.free_bytes(splits[0].folder)
    return DiskError(
        f"{error}; what is missing needs about {needed:,} bytes and {free:,} are free there "
        "(finished shards are kept: make room and run the same command again)"
    )


# --- problems ---------------------------------------------------------------------------------------------------------


def list_problems(splits: Sequence[PackedSplit], console: Console, most: int = 20) -> None:
    """Print the first problems, and where all of them stand."""
    problems = list(dict.fromkeys(p for split in splits for p in split.problems))
    if not problems:
        return
    out = sum(not p.packed for p in problems)
    console.print(
        f"[yellow]{counted(len(problems), 'problem')}[/]: {out:,} left out, {len(problems) - out:,} packed all the same"
    )
    for problem in problems[:most]:
        console.print(f"  {escape(problem.path)}: {escape(problem.reason)}")
    reports = ", ".join(str(s.folder / folders.REPORT) for s in splits if s.problems)
    console.print(f"  {'all of them' if len(problems) <= most else f'and {len(problems) - most:,} more'} in {reports}")
    for kind in ("silent", "clipped"):
        paths = [p.path for p in problems if p.kind == kind]
        if paths:
            what = f"{len(paths):,} utterance{' is' if len(paths) == 1 else 's are'} {kind}"
            console.print(f"[yellow]warning:[/] {what}, packed all the same: {escape(shortened(paths, 3))}")


def _in_order(split: PackedSplit) -> list[Shard]:
    return [split.shards[job.name] for job in split.jobs if split.shards[job.name].rows]


def _report(splits: Sequence[PackedSplit]) -> None:
    for split in splits:
        if not split.was_complete:
            split.problems = sorted({*split.plan.problems, *(p for s in split.shards.values() for p in s.problems)})
            folders.write_report(split.folder, split.problems, sum(len(s.rows) for s in split.shards.values()))


def _refuse_problems(splits: Sequence[PackedSplit], options: Options) -> None:
    problems = list(dict.fromkeys(p for split in splits for p in split.problems))
    if options.strict and problems:
        names = shortened([s.plan.name for s in splits if s.problems])
        before = all(s.was_complete for s in splits if s.problems)
        state = "packed earlier without --strict" if before else "so nothing was completed"
        raise InputError(
            f"--strict: {counted(len(problems), 'problem')} in {names} (listed above), {state}; "
            "mend them, or run without --strict to leave those utterances out"
        )
    for split in splits:
        if not split.manifest and not any(shard.rows for shard in split.shards.values()):
            first = f"{split.problems[0].path}: {split.problems[0].reason}" if split.problems else "no utterances"
            raise InputError(f"split {split.plan.name!r} would be empty: none of its utterances can be used: {first}")
