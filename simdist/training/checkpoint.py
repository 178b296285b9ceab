"""Checkpoints that are complete or not there.

`checkpoints/step_00001200/` holds `model.safetensors` (weights and BatchNorm statistics), `optimizer.pt` (a list with
one state a greedy module), `state.json` (step, samples consumed, the data's fingerprint, what went wrong so far), and
`manifest.json` with the size and sha256 of these three. It is written under a temporary name, synced, and renamed as
the last act; older ones are removed only afterwards. Nothing that could run code is unpickled.
"""

from __future__ import annotations

import hashlib
import io
import json
import pickle
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from simdist.core.errors import InputError
from simdist.core.files import naming_the_disk, sha256_of, sync

MODEL, OPTIMIZER, STATE, MANIFEST = "model.safetensors", "optimizer.pt", "state.json", "manifest.json"
STATE_KEYS = ("step", "consumed", "fingerprint", "courses", "bad_steps", "bad_samples")


@dataclass(frozen=True)
class Checkpoint:
    """Everything that a run needs to go on as if it had never stopped."""

    step: int
    """Optimizer steps taken."""
    consumed: int
    """Samples consumed by all ranks in the present stage: the loader's state."""
    fingerprint: str
    """The training split's fingerprint."""
    model: dict[str, Tensor]
    """The encoder's state dict."""
    optimizer: list[dict[str, Any]]
    """Each greedy module's optimizer and scaler state."""
    courses: list[dict[str, Any]] = field(default_factory=list)
    """Each greedy module's `Course`; [] if none was rolled back."""
    bad_steps: list[int] = field(default_factory=list)
    """Steps in a row that each greedy module has skipped; [] for none."""
    bad_samples: list[str] = field(default_factory=list)
    """Samples that did not decode and were passed over."""

    def on_host(self) -> Checkpoint:
        """A copy in host memory, which training does not touch any more."""
        return Checkpoint(**{key: _copied(value) for key, value in self.__dict__.items()})


@dataclass(frozen=True)
class Retention:
    """Which checkpoints stay."""

    last: int
    """So many of the newest."""
    every: int = 0
    """And each whose step is a multiple of this; 0 for none."""

    def keeps(self, step: int) -> bool:
        """Whether a checkpoint stays however old it is."""
        return self.every > 0 and step % self.every == 0


def save_checkpoint(folder: Path, checkpoint: Checkpoint, retention: Retention) -> Path:
    """Write `checkpoint` below `folder`, then remove those that need not stay.

    Raises:
        FailedError: the disk is full, or refuses for another reason; what was there before stays.
    """
    final = folder / f"step_{checkpoint.step:08d}"
    temporary = folder / f".{final.name}.tmp"
    with naming_the_disk(f"checkpoint {final}", folder, num_bytes(checkpoint)):
        shutil.rmtree(temporary, ignore_errors=True)
        try:
            _write(temporary, checkpoint)
            _put_in_place(temporary, final)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    found = [path for path in _folders(folder) if not retention.keeps(_step_of(path))]
    for old in found[retention.last :]:
        shutil.rmtree(old)
    return final


def remove_unfinished(folder: Path) -> None:
    """Clear away what a process that was killed while it saved has left; only for who holds the run's lease."""
    for path in folder.glob(".step_*.*") if folder.is_dir() else []:
        shutil.rmtree(path, ignore_errors=True)


def num_bytes(checkpoint: Checkpoint) -> int:
    """About how large it is on disk."""
    return sum(tensor.nbytes for tensor in _tensors([checkpoint.model, checkpoint.optimizer]))


def latest_checkpoint(folder: Path, report: Callable[[str], None]) -> Path | None:
    """The newest checkpoint that is complete and verified; each damaged one is reported and passed over."""
    return next(good_checkpoints(folder, report), None)


def good_checkpoints(folder: Path, report: Callable[[str], None]) -> Iterator[Path]:
    """All of those, newest first."""
    for candidate in _folders(folder):
        problem = verify_checkpoint(candidate)
        if problem is None:
            yield candidate
        else:
            report(f"checkpoint {candidate} is damaged ({problem}); passing over it")


def verify_checkpoint(folder: Path) -> str | None:
    """What is wrong with a checkpoint, or None: every file present, of its size and sha256."""
    try:
        files = json.loads((folder / MANIFEST).read_text())["files"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"{MANIFEST} cannot be read: {error}"
    for name in (MODEL, OPTIMIZER, STATE):
        if not (folder / name).is_file():
            return f"{name} is missing"
        if files.get(name) != {"bytes": (folder / name).stat().st_size, "sha256": sha256_of(folder / name)}:
            return f"{name} differs from its sha256"
    return None


def load_checkpoint(folder: Path) -> Checkpoint:
    """Read a checkpoint that was verified; tensors lie on the CPU.

    Raises:
        InputError: it is whole, but holds other things than tensors and numbers.
    """
    try:
        state = json.loads((folder / STATE).read_text())
        optimizer = torch.load(folder / OPTIMIZER, map_location="cpu", weights_only=True)
        return Checkpoint(**state, model=load_file(folder / MODEL), optimizer=optimizer)
    except (pickle.UnpicklingError, SafetensorError, ValueError, TypeError, RuntimeError, EOFError) as error:
        raise InputError(
            f"checkpoint {folder} holds what simdist does not write ({type(error).__name__}): nothing of it was run; "
            "remove it to go on from the one before"
        ) from error


def _write(folder: Path, checkpoint: Checkpoint) -> None:
    """All files of a checkpoint, synced; with the user's umask, which safetensors' own writer does not ask."""
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
    aside = final.with_name(f".{final.name}.old")
    if final.exists():  # a damaged one, or one of a step that is trained again: never removed before the other stands
        final.rename(aside)
    temporary.rename(final)
    sync(final.parent)
    shutil.rmtree(aside, ignore_errors=True)


def _copied(value: Any) -> Any:
    """`value` with copies of its tensors in host memory."""
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


def _step_of(folder: Path) -> int:
    return int(folder.name.removeprefix("step_"))


def _folders(folder: Path) -> list[Path]:
    """Checkpoints below `folder`, newest first."""
    found = folder.iterdir() if folder.is_dir() else []
    return sorted((path for path in found if re.fullmatch(r"step_\d{8,}", path.name)), key=_step_of, reverse=True)
