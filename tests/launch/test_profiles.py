"""Cluster profiles: what a file may hold, and what sbatch is told."""

from __future__ import annotations

from pathlib import Path

import pytest
from submitit.slurm.slurm import SlurmExecutor

from launch.profiles import Profile, load_profile, profile_names, replaced, sbatch_parameters
from simdist.errors import InputError


@pytest.fixture
def write(tmp_path: Path):
    def to_file(text: str) -> Path:
        path = tmp_path / "mine.yaml"
        path.write_text(text)
        return path

    return to_file


def sbatch_lines(profile: Profile, folder: Path, monkeypatch: pytest.MonkeyPatch, **overrides: object) -> list[str]:
    """The #SBATCH lines that submitit writes for a profile, also where there is no SLURM."""
    monkeypatch.setattr(SlurmExecutor, "affinity", classmethod(lambda cls: 1))
    executor = SlurmExecutor(folder)
    executor.update_parameters(**sbatch_parameters(profile, overrides))
    return executor._make_submission_file_text("true", "uid").splitlines()


@pytest.mark.parametrize("name", profile_names())
def test_each_profile_that_ships_becomes_a_job(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = sbatch_lines(load_profile(name), tmp_path, monkeypatch)
    assert "#SBATCH --requeue" in lines
    assert any(line.startswith("#SBATCH --signal=USR2@") for line in lines)


def test_every_field_reaches_sbatch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    profile = Profile(
        partition="gpu",
        account="speech",
        qos="long",
        constraint="a100",
        nodes=2,
        gpus_per_node=4,
        cpus_per_task=6,
        mem_per_gpu="60G",
        time_minutes=90,
        exclude="n3",
        reservation="workshop",
        setup=("module load cuda",),
        signal_lead_s=45,
        requeue=False,
        extra={"licenses": "scratch", "exclusive": True, "overcommit": False},
    )
    lines = sbatch_lines(profile, tmp_path, monkeypatch)
    options = {line.removeprefix("#SBATCH --") for line in lines if line.startswith("#SBATCH")}
    assert options >= {
        "partition=gpu",
        "account=speech",
        "qos=long",
        "constraint=a100",
        "nodes=2",
        "gpus-per-node=4",
        "ntasks-per-node=4",
        "cpus-per-task=6",
        "mem-per-gpu=60G",
        "time=90",
        "exclude=n3",
        "reservation=workshop",
        "signal=USR2@45",
        "no-requeue",
        "licenses=scratch",
        "exclusive",
    }
    assert not any("overcommit" in option or option == "requeue" for option in options)
    assert "module load cuda" in lines
    assert lines.index("module load cuda") < next(n for n, line in enumerate(lines) if line.startswith("srun "))


def test_a_job_without_gpus_asks_for_none() -> None:
    parameters = sbatch_parameters(load_profile("gpu"), {"gpus_per_node": 0})
    assert "gpus_per_node" not in parameters
    assert "mem_per_gpu" not in parameters
    assert parameters["ntasks_per_node"] == 1


def test_a_short_job_is_still_warned_in_time() -> None:
    assert replaced(Profile(), {"time_minutes": 1}).signal_lead_s == 30
    assert replaced(Profile(), {"time_minutes": 1, "signal_lead_s": 10}).signal_lead_s == 10


def test_an_unknown_override_names_the_fields() -> None:
    with pytest.raises(ValueError, match=r"has no gpus; its fields are partition, account.*gpus_per_node"):
        sbatch_parameters(Profile(), {"gpus": 4})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("partion: gpu", r"unknown key 'partion': did you mean 'partition'\? .*account, .*time_minutes"),
        ("nodes: many", "nodes must be a whole number, not many"),
        ("nodes: 0", "nodes is 0; it must be at least 1"),
        ("time_minutes: 1\nsignal_lead_s: 60", "signal_lead_s is 60; it must be less than time_minutes"),
        ("mem: 8G\ngpus_per_node: 1\nmem_per_gpu: 4G", "SLURM takes one of them"),
        ("mem_per_gpu: 4G", "gpus_per_node is 0; give mem"),
        ("extra: {cpus_per_task: 3}", "extra has cpus-per-task, for which a profile has fields of its own"),
        ("setup: module load cuda", "setup must be a list"),
    ],
)
def test_a_mistake_is_named_with_its_remedy(write, text: str, message: str) -> None:
    path = write(text)
    with pytest.raises(InputError, match=message) as caught:
        load_profile(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


def test_a_profile_that_is_not_there_names_those_that_are() -> None:
    with pytest.raises(InputError, match=r"no cluster profile 'juwels'; name one of cpu, gpu, testbed"):
        load_profile("juwels")
