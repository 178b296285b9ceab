"""Reading and writing checkpoints, which are complete or absent; their format is in `simdist.runs.checkpoints`.

A checkpoint is written under a temporary name, synced, and renamed; older ones are removed afterwards. Nothing that
could run code is unpickled.
"""

from __future__ import annotations

import hashlib
import io
import json
import pickle
import shutil
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from simdist.core.errors import InputError
from simdist.core.files import naming_the_disk, patiently, sync
from simdist.core.output import write_error
from simdist.runs.checkpoints import (
    MANIFEST,
    MODEL,
    OPTIMIZER,
    REMOVED,
    REPLACED,
    STATE,
    UNFINISHED,
    CheckpointGoneError,
    checkpoint_folders,
    step_of,
)

STATE_KEYS = ("step", "consumed", "fingerprint", "test_fingerprint", "recovery", "nonfinite_steps", "bad_samples")
OLD_NAMES = {  # of keys in state.json until November 2026
    "courses": "recovery",
    "bad_steps": "nonfinite_steps",
    "reseeds": "reseed_count",
    "fruitless": "failed_rollbacks",
}


@dataclass(frozen=True)
class Checkpoint:
    """Everything that a run needs to resume exactly."""

    step: int
    """Optimizer steps taken."""
    consumed: int
    """Samples consumed by all ranks in the current stage: the state of the loader."""
    fingerprint: str
    """Fingerprint of the training split."""
    model: dict[str, Tensor]
    """State dict of the model."""
    optimizer: list[dict[str, Any]]
    """State of each module's optimizer and scaler."""
    recovery: list[dict[str, Any]] = field(default_factory=list)
    """`RecoveryState` of each module; [] if none was rolled back."""
    nonfinite_steps: list[int] = field(default_factory=list)
    """Number of consecutive steps that each module has skipped; [] for none."""
    bad_samples: list[str] = field(default_factory=list)
    """Why corrupt samples were skipped."""
    test_fingerprint: str = ""
    """Fingerprint of the test split; empty without validation."""

    def on_host(self) -> Checkpoint:
        """A copy in host memory."""
        return Checkpoint(**{key: _copied(value) for key, value in self.__dict__.items()})


@dataclass(frozen=True)
class Retention:
    """Which checkpoints to keep."""

    last: int
    """Number of newest checkpoints."""
    every: int = 0
    """Keep those whose step is a multiple of this, too; 0 for none."""

    def keeps(self, step: int) -> bool:
        """Whether to keep a checkpoint regardless of its age."""
        return self.every > 0 and step % self.every == 0


def save_checkpoint(folder: Path, checkpoint: Checkpoint, retention: Retention) -> Path:
    """Write a checkpoint below `folder`, then `prune` old ones.

    Raises:
        FailedError: the disk is full or not writable; older checkpoints stay.
    """
    final = folder / f"step_{checkpoint.step:08d}"
    temporary = folder / f".{final.name}{UNFINISHED}"
    with naming_the_disk(f"checkpoint {final}", folder, num_bytes(checkpoint)):
        patiently(lambda: _replace(final, temporary, checkpoint))
    prune(folder, checkpoint.step, retention)
    return final


def _replace(final: Path, temporary: Path, checkpoint: Checkpoint) -> None:
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        _write(temporary, checkpoint)
        _put_in_place(temporary, final)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def prune(folder: Path, step: int, retention: Retention) -> None:
    """Remove old checkpoints, now that the one of `step` is complete. What cannot be removed stays, with a warning.

    Checkpoints of later steps are damaged ones that the run passed over; they do not count.
    """
    known = [
        path for path in checkpoint_folders(folder) if step_of(path) <= step and not retention.keeps(step_of(path))
    ]
    for old in known[retention.last :]:
        try:
            removed = old.rename(folder / f".{old.name}{REMOVED}")  # whole or not there, for those who look meanwhile
        except OSError as error:
            write_error(f"warning: the old checkpoint {old} cannot be removed ({error.strerror}); remove it by hand")
            continue
        shutil.rmtree(removed, ignore_errors=True)


class AsyncCheckpointer:
    """Writes a run's checkpoints in the background: training only waits for the copy to host memory.

    Args:
        folder: of the checkpoints.
        retention: which checkpoints to keep.
        allowed: called before each write; raises if this process may no longer write.
    """

    def __init__(self, folder: Path, retention: Retention, allowed: Callable[[], None]) -> None:
        self._folder, self._retention, self._allowed = folder, retention, allowed
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None
        self._saved = -1

    def save(self, checkpoint: Checkpoint) -> None:
        """Copy `checkpoint` and start to write it, after waiting for the previous one.

        Raises:
            InputError: the previous one failed.
        """
        self.finish()
        if checkpoint.step == self._saved:
            return
        self._thread = threading.Thread(target=self._write, args=(checkpoint.on_host(),), name="saver")
        self._thread.start()

    def finish(self) -> None:
        """Wait until everything is on disk.

        Raises:
            InputError: the last save failed.
        """
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        self.check()

    def check(self) -> None:
        """Raise an error of the background thread."""
        if self._error is not None:
            raise self._error

    def prune(self, step: int) -> None:
        """Remove old checkpoints, once the one of `step` is known to be complete."""
        prune(self._folder, step, self._retention)

    def forget(self) -> None:
        """Write the next checkpoint even if its step was saved before."""
        self._saved = -1

    def _write(self, checkpoint: Checkpoint) -> None:
        try:
            self._allowed()
            save_checkpoint(self._folder, checkpoint, self._retention)
            self._saved = checkpoint.step
        except BaseException as error:  # raised again in the training thread
            self._error = error


def num_bytes(checkpoint: Checkpoint) -> int:
    """Approximate size on disk."""
    return sum(tensor.nbytes for tensor in _tensors([checkpoint.model, checkpoint.optimizer]))


def load_checkpoint(folder: Path) -> Checkpoint:
    """Read a verified checkpoint to the CPU.

    Raises:
        CheckpointGoneError: it was removed meanwhile.
        InputError: it contains anything but tensors and numbers.
    """
    try:
        state = json.loads((folder / STATE).read_text(), object_hook=_with_current_names)
        optimizer = torch.load(folder / OPTIMIZER, map_location="cpu", weights_only=True)
        return Checkpoint(**state, model=load_file(folder / MODEL), optimizer=optimizer)
    except FileNotFoundError as error:
        raise CheckpointGoneError(folder) from error
    except (pickle.UnpicklingError, SafetensorError, ValueError, TypeError, RuntimeError, EOFError) as error:
        raise InputError(
            f"checkpoint {folder} was not written by simdist ({type(error).__name__}), so nothing in it was run. "
            "Remove it to resume from the previous one"
        ) from error


def _write(folder: Path, checkpoint: Checkpoint) -> None:
    """Write and sync all files, with the user's umask, which safetensors' `save_file` ignores."""
    folder.mkdir(parents=True)
    state = {key: getattr(checkpoint, key) for key in STATE_KEYS}
    pickled = io.BytesIO()
    torch.save(checkpoint.optimizer, pickled)
    files = {}
    for name, content in {
        MODEL: save({key: tensor.contiguous() for key, tensor in checkpoint.model.items()}),
        OPTIMIZER: pickled.getbuffer(),
        STATE: json.dumps(state, indent=1).encode(),
    }.items():
        (folder / name).write_bytes(content)
        files[name] = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    (folder / MANIFEST).write_text(json.dumps({"format_version": 1, "files": files}, indent=1))
    for path in (*folder.iterdir(), folder):
        sync(path)


def _put_in_place(temporary: Path, final: Path) -> None:
    aside = final.with_name(f".{final.name}{REPLACED}")
    if final.exists():  # damaged, or of a step that is trained again; `finish_saving` completes this after a kill
        final.rename(aside)
    try:
        temporary.rename(final)
    except OSError:
        if aside.exists():
            aside.rename(final)
        raise
    sync(final.parent)
    shutil.rmtree(aside, ignore_errors=True)


def _copied(value: Any) -> Any:
    """A value with its tensors copied to host memory."""
    if isinstance(value, Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, dict):
        return {key: _copied(item) for key, item in value.items()}
    return [_copied(item) for item in value] if isinstance(value, list) else value


def _tensors(value: Any) -> list[Tensor]:
    """All tensors in nested dicts and lists."""
    if isinstance(value, Tensor):
        return [value]
    items = value.values() if isinstance(value, dict) else value if isinstance(value, list) else []
    return [tensor for item in items for tensor in _tensors(item)]


def _with_current_names(fields: dict[str, Any]) -> dict[str, Any]:
    return {OLD_NAMES.get(name, name): value for name, value in fields.items()}
