"""The sweep's command: what is said of its defaults, what it needs, and how it ends."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from launch import sweep
from simdist.core.errors import InputError
from tests.support.sweeps import pack_manifests


@pytest.fixture(autouse=True)
def empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def no_slurm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sweep, "default_cluster", lambda: ("local", "there is no SLURM on this machine"))


@pytest.mark.usefixtures("no_slurm")
def test_it_says_what_it_chose_and_how_to_choose_otherwise(capsys: pytest.CaptureFixture[str]) -> None:
    assert sweep.main(["--dry-run", "seeds=[0,1]", "train.max_steps=3"]) == 0
    sweep_line, cluster_line, first, *_ = capsys.readouterr().out.splitlines()
    assert sweep_line.startswith("sweep: default, a small one on synthetic speech")
    assert sweep_line.endswith("(another: `python launch/sweep.py SWEEP.yaml`)")
    assert cluster_line == "cluster: local, because there is no SLURM on this machine (another: `--cluster NAME`)"
    assert first == "default: 4 runs, 38 jobs"  # overrides work without a file


def test_what_was_chosen_by_the_user_is_not_repeated(capsys: pytest.CaptureFixture[str]) -> None:
    assert sweep.main(["--dry-run", "--cluster", "local", "smoke"]) == 0
    assert capsys.readouterr().out.startswith("smoke: 4 runs, 14 jobs")


def test_a_wrong_override_names_the_file_that_was_chosen() -> None:
    with pytest.raises(InputError, match=r"default\.yaml: seeds must be a whole number, not x"):
        sweep.main(["--cluster", "local", "seeds=[x]"])


def test_a_missing_package_is_named_before_anything_is_started(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "espeakng_loader", None)  # as if it were not installed
    expected = "espeakng_loader (for pack synthetic). Install: pip install -e '.[demo]'"
    with pytest.raises(InputError) as caught:
        sweep.main(["--cluster", "local", "smoke"])
    assert expected in str(caught.value)
    assert not Path("sweeps").exists()
    assert sweep.main(["--cluster", "cpu", "--dry-run", "smoke"]) == 0  # jobs on SLURM may have another Python
    assert f"warning: missing packages: {expected}" in capsys.readouterr().out


def test_a_corpus_that_nobody_packs_is_named_before_anything_is_started(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--cluster", "local", "data.root=data/mine"]
    with pytest.raises(InputError, match=r"data\.root is data/mine, which has no packed split 'train'.*simdist\.pack"):
        sweep.main(words)
    assert not Path("sweeps").exists()
    assert sweep.main([*words, "--dry-run"]) == 0
    assert "warning: " in capsys.readouterr().out


def test_a_second_process_is_told_how_to_follow_and_stop_the_first() -> None:
    with sweep.sole_owner(Path("sweeps/smoke")), pytest.raises(InputError) as caught:
        sweep.sole_owner(Path("sweeps/smoke"))
    assert "`python launch/status.py smoke --watch`" in str(caught.value)
    assert "`python launch/cancel.py smoke`" in str(caught.value)


def test_jobs_below_a_failed_one_are_counted(capsys: pytest.CaptureFixture[str]) -> None:
    pack_manifests(Path("data/mine"), "speaker")  # manifests of shards that do not exist
    words = ["--cluster", "local", "data.root=data/mine", "--jobs", "2"]
    assert sweep.main(words) == 1
    text = capsys.readouterr().out
    assert text.count(" failed with exit code 2:") == 3  # two trainings, and a report about nothing
    assert text.count("7 jobs will not run because train/") == 2
    assert "0 of 17 jobs are done" in text
