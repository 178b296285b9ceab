"""How a job says that it ended, and when it is requeued. `scontrol` is a script here, real in tests/slurm."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from launch import endings, submit
from launch.endings import Ending, conclude, progress_of
from launch.slurm import SlurmScheduler
from tests.support import ROOT

LIMIT = 3


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Ending:
    """Task 3 of array 17, which runs and may be requeued; what was asked of SLURM is in the file `asked`."""
    program = tmp_path / "bin" / "scontrol"
    program.parent.mkdir()
    program.write_text(
        f'#!/bin/sh\necho "$@" >> {tmp_path}/asked\n[ "$1" = show ] && echo "JobState=RUNNING"\nexit 0\n'
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(program.parent), prepend=":")
    for name, value in {"SLURM_ARRAY_JOB_ID": "17", "SLURM_ARRAY_TASK_ID": "3", "SLURM_JOB_ID": "20"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("SIMDIST_JOB_FOLDER", str(tmp_path))
    monkeypatch.setattr(endings, "UNTIL_KILLED", 0.0)
    ending = Ending.of_this_job(tmp_path)
    ending.begin(tmp_path / "run")
    return ending


def requeues(job: Ending) -> list[str]:
    file = job.file.parent / "asked"
    return [line for line in file.read_text().splitlines() if "requeue" in line] if file.exists() else []


@pytest.mark.parametrize(
    ("code", "progress", "requeued"),
    [(75, False, True), (140, False, True), (137, True, True), (137, False, False), (1, True, False), (2, True, False)],
)
def test_what_is_requeued(job: Ending, code: int, progress: bool, requeued: bool) -> None:
    if progress:
        (job.file.parent / "run" / "checkpoints" / "step_00000005").mkdir(parents=True)
    assert conclude(job, code, LIMIT) == requeued
    assert requeues(job) == ["requeue 17_3"] * requeued


def test_not_more_often_than_allowed(
    job: Ending, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SLURM_RESTART_COUNT", str(LIMIT))
    assert not conclude(job, 75, LIMIT)
    assert f"was requeued {LIMIT} times" in capsys.readouterr().out


def test_the_end_of_the_batch_script_writes_down_what_the_job_could_not(job: Ending, tmp_path: Path) -> None:
    assert endings.main(["137", str(LIMIT), str(tmp_path / "sweep")]) == 0
    assert job.code == 137
    assert json.loads(job.file.read_text())["work"] == str(tmp_path / "run")


def test_only_a_job_that_is_over_submits_others(job: Ending, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fed: list[Path] = []
    monkeypatch.setattr(submit, "feed", lambda folder, seconds: fed.append(folder))
    for code in ("75", "137", "140"):
        endings.main([code, "0", str(tmp_path)])
    assert fed == []
    for code in ("0", "1"):
        endings.main([code, "0", str(tmp_path)])
    assert fed == [tmp_path, tmp_path]


def test_progress_is_what_is_new_of_any_kind(tmp_path: Path) -> None:
    assert progress_of(tmp_path) == []
    for name in ("checkpoints/step_00000005", "decoders/0-mse/checkpoints/step_00000002"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "shard-000000.tar").touch()
    before = progress_of(tmp_path)
    assert len(before) == 3
    (tmp_path / "train" / "shard-000001.tar").touch()
    assert progress_of(tmp_path) != before


def test_the_hosts_of_a_job(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_NODELIST", "n[1-3]")
    assert SlurmScheduler().hosts() == ["n1", "n2", "n3"]


SIGNALLED_DURING_IMPORTS = """
import os, signal, types
from launch import job

def import_module(name):
    try:
        os.kill(os.getpid(), signal.SIGTERM)
        for _ in range(1000):
            pass
    except BaseException:  # as torch's C++ answers a Python exception while it is imported
        os.abort()

job.importlib = types.SimpleNamespace(import_module=import_module)
job.work(["analyze"], None, lambda: print("asked for a requeue", end=""))
"""


def test_a_signal_while_a_command_is_imported_is_a_preemption_and_no_crash() -> None:
    """A job on SLURM had ended with 134 and was not requeued: an exception from the handler met torch's import."""
    environ = os.environ | {"PYTHONPATH": str(ROOT)}
    ended = subprocess.run(
        [sys.executable, "-c", SIGNALLED_DURING_IMPORTS], env=environ, capture_output=True, text=True
    )
    assert (ended.returncode, ended.stdout) == (75, "asked for a requeue"), ended.stderr
