"""A SLURM that only writes down what it is asked."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

import launch.submit
from tests.support.fake_slurm import SACCT, SBATCH, SCANCEL, SQUEUE


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Commands of a SLURM that only writes down; its folder holds the scripts, the queue and what was cancelled."""
    folder, programs = tmp_path / "slurm", tmp_path / "bin"
    folder.mkdir()
    programs.mkdir()
    for name, text in (("sbatch", SBATCH), ("squeue", SQUEUE), ("scancel", SCANCEL), ("sacct", SACCT)):
        (programs / name).write_text(text.format(folder=folder))
        (programs / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr(launch.submit, "CODE", _little_code(tmp_path))
    return folder


def _little_code(root: Path) -> Path:
    code = root / "code"
    (code / "launch").mkdir(parents=True)
    (code / "launch" / "one.py").write_text("1")
    return code
