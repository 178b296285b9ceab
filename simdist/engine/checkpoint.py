"""Checkpoints that are complete or not there.

`checkpoints/step_00001200/` holds `model.safetensors` (weights and BatchNorm statistics), `optimizer.pt` (a list with
one state a greedy module), `state.json` (step, samples consumed, the data's fingerprint), and `manifest.json` with the
size and sha256 of these three. It is written under a temporary name, synced, and renamed as the last act; older ones
are removed only afterwards. Nothing that could run code is unpickled.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from simdist.durable import sha256_of, sync

MODEL, OPTIMIZER, STATE, MANIFEST = "model.safetensors", "optimizer.pt", "state.json", "manifest.json"


@dataclass(frozen=True)
class Checkpoint:
    """Everything that a run needs to go on as if it had never stopped."""

    step: int
    """Optimizer steps taken."""
    consumed: int
    """Samples consumed by all ranks: the loader's state."""
    fingerprint: str
    """The training split's fingerprint."""
    model: dict[str, Tensor]
    """The encoder's state dict."""
    optimizer: list[dict[str, Any]]
    """Each greedy module's optimizer and scaler state."""


def save_checkpoint(folder: Path, checkpoint: Checkpoint, keep_last: int) -> Path:
    """Write `checkpoint` below `folder`, then remove all but the `keep_last` newest ones."""
    final = folder / f"step_{checkpoint.step:08d}"
    temporary = folder / f".{final.name}.tmp"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    save_file({name: tensor.contiguous() for name, tensor in checkpoint.model.items()}, temporary / MODEL)
    torch.save(checkpoint.optimizer, temporary / OPTIMIZER)
    state = {key: getattr(checkpoint, key) for key in ("step", "consumed", "fingerprint")}
    (temporary / STATE).write_text(json.dumps(state, indent=1))
    files = {name: _describe(temporary / name) for name in (MODEL, OPTIMIZER, STATE)}
    (temporary / MANIFEST).write_text(json.dumps({"format_version": 1, "files": files}, indent=1))
    for path in (*temporary.iterdir(), temporary):
        sync(path)
    if final.exists():  # a damaged one, or a step that is trained again after going back
        shutil.rmtree(final)
    temporary.rename(final)
    sync(folder)
    for old in _folders(folder)[keep_last:]:
        shutil.rmtree(old)
    return final


def latest_checkpoint(folder: Path, report: Callable[[str], None]) -> Path | None:
    """The newest checkpoint that is complete and verified; each damaged one is reported and passed over."""
    for candidate in _folders(folder):
        problem = verify_checkpoint(candidate)
        if problem is None:
            return candidate
        report(f"checkpoint {candidate} is damaged ({problem}); passing over it")
    return None


def verify_checkpoint(folder: Path) -> str | None:
    """What is wrong with a checkpoint, or None: every file present, of its size and sha256."""
    try:
        files = json.loads((folder / MANIFEST).read_text())["files"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"{MANIFEST} cannot be read: {error}"
    for name in (MODEL, OPTIMIZER, STATE):
        if not (folder / name).is_file():
            return f"{name} is missing"
        if files.get(name) != _describe(folder / name):
            return f"{name} differs from its sha256"
    return None


def load_checkpoint(folder: Path) -> Checkpoint:
    """Read a checkpoint that was verified; tensors lie on the CPU."""
    state = json.loads((folder / STATE).read_text())
    optimizer = torch.load(folder / OPTIMIZER, map_location="cpu", weights_only=True)
    return Checkpoint(**state, model=load_file(folder / MODEL), optimizer=optimizer)


def _describe(path: Path) -> dict[str, Any]:
    return {"bytes": path.stat().st_size, "sha256": sha256_of(path)}


def _folders(folder: Path) -> list[Path]:
    """Checkpoints below `folder`, newest first."""
    found = folder.iterdir() if folder.is_dir() else []
    return sorted((path for path in found if re.fullmatch(r"step_\d{8,}", path.name)), reverse=True)
