"""Options of `launch/sweep.py` that change what jobs request, and what is printed and written of the choice."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from launch import sweep
from launch.cluster_options import read_time
from simdist.cluster.profile import load_profile
from simdist.core.errors import InputError
from tests.support.sweeps import SMALL

OPTIONS = ("--partition=a", "--nodes=2", "--gpus-per-node=a100:2", "--time=02:00:00", "--setup=module load cuda")


@pytest.fixture
def arguments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The small sweep, in a home without profiles and on a machine without SLURM."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("XDG_CONFIG_HOME", "SIMDIST_CLUSTER", "SLURM_CONF"):
        monkeypatch.delenv(name, raising=False)
    file = tmp_path / "small.yaml"
    file.write_text(yaml.safe_dump(SMALL))
    return [str(file), f"--runs={tmp_path}/runs", f"--sweeps={tmp_path}/sweeps"]


@pytest.mark.parametrize("cluster", ["local", "debug"])
def test_options_of_slurm_are_refused_on_this_machine(arguments: list[str], cluster: str) -> None:
    with pytest.raises(InputError, match=f"--partition, --nodes, .*for jobs on SLURM, but --cluster is {cluster}"):
        sweep.main([*arguments, f"--cluster={cluster}", *OPTIONS])


def test_a_dry_run_shows_the_choice(arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert sweep.main([*arguments, "--cluster=slurm", "--dry-run", *OPTIONS]) == 0
    said = capsys.readouterr().out
    assert "  training: partition a, 2 nodes, 2 a100 GPUs per node, 2 processes of 4 cores, 120 minutes" in said
    assert "warning: SLURM does not answer here" in said
    assert "to change this: --partition" in said
    for line in ("#SBATCH --gpus-per-node=a100:2", "#SBATCH --nodes=2", "#SBATCH --time=120", "module load cuda"):
        assert line in said
    assert not (tmp_path / "sweeps").exists()


def test_a_silent_slurm_is_no_sweep_without_gpus(arguments: list[str], tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"SLURM does not answer\. Try again, or name a profile"):
        sweep.main([*arguments, "--cluster=slurm"])
    assert not (tmp_path / "sweeps").exists()


def test_setup_may_hold_an_assignment_and_be_repeated(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    setup = ["--setup", "CUDA_HOME=/opt/cuda", "--setup=module load cuda"]
    assert sweep.main([*arguments, "--cluster=gpu", "--dry-run", *setup, "train.max_steps=3"]) == 0
    assert "CUDA_HOME=/opt/cuda\nmodule load cuda\n" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("cluster", "option", "message"),
    [
        ("gpu", "--jobs=2", "--jobs is for --cluster local, but --cluster is gpu"),
        ("local", "--wait", "--wait: for jobs on SLURM, but --cluster is local"),
        ("debug", "--prune", "--prune: for jobs on SLURM, but --cluster is debug"),
        ("gpu", "--every=0", "--every is 0; it must be at least 1 second"),
    ],
)
def test_an_option_that_would_do_nothing_is_refused(
    arguments: list[str], cluster: str, option: str, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        sweep.main([*arguments, f"--cluster={cluster}", option, "--dry-run"])


def test_options_on_top_of_a_named_profile(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert sweep.main([*arguments, "--cluster=gpu", "--dry-run", "--account=speech", "--mem=100G"]) == 0
    said = capsys.readouterr().out
    assert "profile gpu:" in said
    assert "#SBATCH --account=speech" in said
    assert "#SBATCH --mem=100G" in said
    assert "mem-per-gpu" not in said


def test_the_choice_is_written_to_the_sweeps_folder(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SIMDIST_CLUSTER", "gpu")
    with pytest.raises(InputError, match="no SLURM on this machine"):  # found out by the submission
        sweep.main([*arguments, "--cluster=slurm", "--time=90"])
    written = load_profile(tmp_path / "sweeps" / "small" / "cluster.yaml")
    assert written.partition == load_profile("gpu").partition
    assert written.time_minutes == 90


@pytest.mark.parametrize(
    ("text", "minutes"),
    [
        ("240", 240),
        ("04:00:00", 240),
        ("1-00:00:00", 1440),
        ("2-12", 3600),
        ("1-12:30", 2190),
        ("30:00", 30),
        ("00:00:10", 1),
    ],
)
def test_times_as_sbatch_takes_them(text: str, minutes: int) -> None:
    assert read_time(text) == minutes


@pytest.mark.parametrize("text", ["4h", "", "1:2:3:4", "-5"])
def test_a_time_that_is_none(text: str) -> None:
    with pytest.raises(InputError, match=r"--time is '.*'; give minutes, HH:MM:SS, or D-HH:MM:SS"):
        read_time(text)
