"""Defaults of `python launch/sweep.py`: which sweep, and on which cluster."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from simdist.core.errors import InputError

from .plan import MANIFEST
from .slurm import said
from .sweep_file import SHIPPED

LIBRISPEECH = Path("data/librispeech")
SPLITS = ("train", "test")
QUESTION = ("sinfo", "--noheader", "--format=%P")
QUESTION_SECONDS = 30.0
NO_CONFIGURATION = ("configuration source", "No such file or directory")
"""Parts of what SLURM's commands say, depending on the version, where there is no slurm.conf."""


@dataclass(frozen=True)
class DefaultSweep:
    """The default sweep."""

    file: Path
    overrides: tuple[str, ...]
    """Come before those of the user."""
    reason: str
    """What it is, and why it was chosen."""


def default_sweep(overrides: Sequence[str] = ()) -> DefaultSweep:
    """The shipped sweep that fits what is packed in the current folder.

    Args:
        overrides: the user's `key=value` words. With a `data.root` among them nothing is packed: a corpus of the
            user's own is never replaced by synthetic speech.
    """
    given = [word.partition("=")[2] for word in overrides if word.startswith(("data.root=", "config.data.root="))]
    root = Path(given[-1]) if given else LIBRISPEECH
    if not given and not all((root / split / MANIFEST).is_file() for split in SPLITS):
        reason = f"a small one on synthetic speech, because {root} is not packed"
        return DefaultSweep(SHIPPED / "default.yaml", (), reason)
    without = () if _has_phones(root) else ("stages.phones=false",)
    reason = f"on {root}{', which has no phone labels' if without else ''}"
    return DefaultSweep(SHIPPED / "default_librispeech.yaml", without, reason)


def _has_phones(root: Path) -> bool:
    """Whether a packed corpus has phone labels; a manifest that cannot be read is left to the training to report."""
    try:
        return "phone" in json.loads((root / SPLITS[0] / MANIFEST).read_text())["labels"]
    except (OSError, ValueError, KeyError):
        return True


def default_cluster(ask: Callable[[Sequence[str]], str] | None = None) -> tuple[str, str]:
    """The default cluster, `slurm` or `local`, and the reason.

    Args:
        ask: runs a command of SLURM's and returns what it prints.

    Raises:
        InputError: SLURM is configured on this machine, but does not answer.
    """
    if shutil.which("sbatch") is None:
        return "local", "there is no SLURM on this machine"
    try:
        (ask or _ask)(QUESTION)
    except (OSError, subprocess.SubprocessError) as error:
        text = _stderr(error)
        if "SLURM_CONF" not in os.environ and any(part in text for part in NO_CONFIGURATION):
            return "local", "SLURM is installed on this machine, but not configured"
        raise InputError(
            f"no --cluster is given, and SLURM does not answer ({text}). "
            "Try again, or run the sweep on this machine with --cluster local."
        ) from error
    return "slurm", "SLURM answers on this machine"


def _ask(words: Sequence[str]) -> str:
    return subprocess.run(words, capture_output=True, text=True, timeout=QUESTION_SECONDS, check=True).stdout


def _stderr(error: Exception) -> str:
    """What the command said, also if it was given up: SLURM repeats itself for a minute about a missing file."""
    text = getattr(error, "stderr", None)
    if isinstance(text, bytes):
        text = text.decode(errors="replace")
    return said(RuntimeError(text)) if text else said(error)
