"""The checkpoints of a run or a decoder on disk: which exist, which are complete, and which one is meant.

`checkpoints/step_00001200/` contains `model.safetensors` (weights and BatchNorm statistics), `optimizer.pt` (a list
with the state of each greedy module), `state.json` (step, samples consumed, fingerprint of the data, recovery), and
`manifest.json` with the size and sha256 of these files. `simdist.training.checkpoint` reads and writes them.
"""

from __future__ import annotations

import errno
import json
import re
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from simdist.core.errors import InputError
from simdist.core.files import patiently, sha256_of

MODEL, OPTIMIZER, STATE, MANIFEST = "model.safetensors", "optimizer.pt", "state.json", "manifest.json"
UNFINISHED, REPLACED, REMOVED = ".tmp", ".old", ".removed"
"""Endings of the names of folders that do not count as checkpoints: being written, replaced, removed."""


Loaded = TypeVar("Loaded")


class CheckpointGoneError(InputError):
    """A checkpoint was removed while it was read: a running training keeps the newest ones only."""

    def __init__(self, folder: Path) -> None:
        super().__init__(
            f"checkpoint {folder} does not exist, or was removed while it was read. Choose another one; "
            "train.keep_every keeps some permanently"
        )


def checkpoint_folders(folder: Path) -> list[Path]:
    """Checkpoints below `folder`, newest first, complete or not."""
    found = folder.iterdir() if folder.is_dir() else []
    return sorted((path for path in found if re.fullmatch(r"step_\d{8,}", path.name)), key=step_of, reverse=True)


def step_of(folder: Path) -> int:
    """The step of a checkpoint folder."""
    return int(folder.name.removeprefix("step_"))


@dataclass(frozen=True)
class CheckpointId:
    """Which checkpoint is meant, for processes that may not all see the same files."""

    step: int
    manifest: str
    """sha256 of its manifest, which contains those of its files."""

    @classmethod
    def of(cls, folder: Path) -> CheckpointId:
        return cls(step_of(folder), sha256_of(folder / MANIFEST))


def wait_for_checkpoint(folder: Path, wanted: CheckpointId, patience: float = 90.0) -> Path:
    """The checkpoint that another process has chosen, verified.

    Args:
        folder: of the checkpoints.
        wanted: of the chosen one.
        patience: seconds to wait until this machine sees it: a network file system shows old listings for a minute.

    Raises:
        InputError: it does not appear, or has other contents.
    """
    path, end = folder / f"step_{wanted.step:08d}", time.monotonic() + patience
    while True:
        problem = verify_checkpoint(path) if path.is_dir() else "it does not exist"
        if problem is None and CheckpointId.of(path) != wanted:
            problem = "its contents are others"
        if problem is None:
            return path
        if time.monotonic() > end:
            raise InputError(
                f"rank 0 resumes from checkpoint {path}, which is different here ({problem}). All ranks need the same "
                "--run-dir on a file system that they share"
            )
        time.sleep(min(1.0, patience / 10))


def finish_saving(folder: Path) -> None:
    """Complete or undo what a process was doing that was killed while it saved. Only for the holder of the run's lease.

    A checkpoint that replaces another of the same step is renamed after the other was put aside; a process killed
    between the two leaves both under names that do not count.
    """
    for suffix in (UNFINISHED, REPLACED):
        for path in folder.glob(f".step_*{suffix}"):
            final = folder / path.name.removeprefix(".").removesuffix(suffix)
            if not final.exists() and verify_checkpoint(path) is None:
                path.rename(final)
    for suffix in (UNFINISHED, REPLACED, REMOVED):
        for path in folder.glob(f".step_*{suffix}"):
            shutil.rmtree(path, ignore_errors=True)


def latest_checkpoint(folder: Path, report: Callable[[str], None]) -> Path | None:
    """The newest complete checkpoint. Damaged ones are reported and skipped."""
    return next(good_checkpoints(folder, report), None)


def good_checkpoints(folder: Path, report: Callable[[str], None]) -> Iterator[Path]:
    """All complete checkpoints, newest first. Damaged ones are reported and skipped."""
    for candidate in checkpoint_folders(folder):
        problem = verify_checkpoint(candidate)
        if problem is None:
            yield candidate
        elif candidate.exists():  # otherwise a running training has just removed it
            report(f"checkpoint {candidate} is damaged ({problem}); skipping it")


def choose_checkpoint(run: Path, step: int | None = None) -> Path:
    """The checkpoint of a step, or the newest complete one; verified.

    Args:
        run: folder of a run or a decoder.

    Raises:
        InputError: there is no complete checkpoint, or none of this step, or it is damaged.
    """
    folder = run / "checkpoints"
    found = {step_of(path): path for path in checkpoint_folders(folder)}
    if step is None:
        damaged: list[str] = []
        newest = latest_checkpoint(folder, damaged.append)
        if newest is not None:
            return newest
        if checkpoint_folders(folder) != list(found.values()):  # a training saves and removes them meanwhile
            return choose_checkpoint(run)
        raise InputError("; ".join([f"{run} has no complete checkpoint. Train it first", *damaged]))
    if step not in found:
        there = ", ".join(map(str, sorted(found)))
        remedy = f"it has {there}. Choose one of them" if found else "it has none. Train it first"
        raise InputError(f"{run} has no checkpoint of step {step}; {remedy}")
    problem = verify_checkpoint(found[step])
    if problem is not None and not found[step].exists():
        raise CheckpointGoneError(found[step])
    if problem is not None:
        raise InputError(f"checkpoint {found[step]} is damaged: {problem}. Choose another one")
    return found[step]


def load_chosen(run: Path, step: int | None, load: Callable[[Path], Loaded]) -> Loaded:
    """Load the checkpoint of a step, or the newest complete one even if a running training removes checkpoints.

    Args:
        run: folder of a run or a decoder.
        step: None for the newest.
        load: reads a checkpoint folder; raises `CheckpointGoneError` if that is removed meanwhile.

    Raises:
        InputError: see `choose_checkpoint`.
    """
    while True:
        try:
            return load(choose_checkpoint(run, step))
        except CheckpointGoneError:
            if step is not None:
                raise


def verify_checkpoint(folder: Path) -> str | None:
    """What is wrong with a checkpoint, or None if every file has its size and sha256."""
    try:
        return patiently(lambda: _difference(folder), but=(errno.ENOENT,))
    except OSError as error:
        return f"{error.filename or folder} cannot be read: {error.strerror}"


def _difference(folder: Path) -> str | None:
    try:
        files = json.loads((folder / MANIFEST).read_text())["files"]
    except (FileNotFoundError, ValueError, KeyError, TypeError) as error:
        return f"{MANIFEST} cannot be read: {error}"
    for name in (MODEL, OPTIMIZER, STATE):
        if not (folder / name).is_file():
            return f"{name} is missing"
        try:
            found = {"bytes": (folder / name).stat().st_size, "sha256": sha256_of(folder / name)}
        except OSError as error:
            return f"{name} cannot be read: {error.strerror}"
        if files.get(name) != found:
            return f"{name} differs from its sha256"
    return None
