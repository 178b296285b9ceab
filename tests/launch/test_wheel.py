"""Without a clone: `simdist sweep`, `status`, `logs` and `cancel` out of a wheel, in an empty folder."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.support.wheel import environment_of, install_wheel, run

TINY = (
    "train.max_steps=2",
    "train.checkpoint_every=2",
    "data.crop=5120",
    "data.batch_size=2",
    "data.num_workers=0",
    "model.width=8",
    "model.context_width=8",
    "loss.prediction_steps=4",
    "loss.num_negatives=5",
)


@pytest.fixture(scope="module")
def bin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`bin` of an environment with the wheel."""
    return install_wheel(tmp_path_factory.mktemp("wheel"))


def simdist(bin: Path, folder: Path, *words: str) -> str:
    return run(str(bin / "simdist"), *words, cwd=folder, env=environment_of(bin))


def test_the_wheel_is_what_is_imported(bin: Path, tmp_path: Path) -> None:
    program = "import simdist, simdist.launch.naming as n; print(simdist.__file__, n.CODE, n.JOB_MODULE, sep='\\n')"
    module, code, job = run(str(bin / "python"), "-c", program, cwd=tmp_path, env=environment_of(bin)).splitlines()
    assert Path(module).is_relative_to(bin.parent)
    assert Path(module).parent.parent == Path(code)
    assert job == "simdist.launch.job"


@pytest.mark.parametrize("name", ["sweep", "status", "logs", "cancel"])
def test_help_is_spelled_as_it_is_typed(name: str, bin: Path, tmp_path: Path) -> None:
    text = simdist(bin, tmp_path, name, "--help")
    assert f"usage: simdist {name} " in text
    assert f"\n  simdist {name}" in text
    assert "launch/" not in text


def test_help_lists_the_launcher(bin: Path, tmp_path: Path) -> None:
    text = simdist(bin, tmp_path, "--help")
    assert all(f"\n  {name} " in text for name in ("train", "sweep", "status", "logs", "cancel"))


def test_a_dry_run_plans_the_default_sweep(bin: Path, tmp_path: Path) -> None:
    text = simdist(bin, tmp_path, "sweep", "--cluster", "local", "--dry-run")
    assert "sweep: default, a small one on synthetic speech, because data/librispeech is not packed" in text
    assert "`simdist sweep SWEEP.yaml`" in text
    assert "pack/data-default" in text
    assert list(tmp_path.iterdir()) == []


def test_profiles_and_presets_are_those_of_the_wheel(bin: Path, tmp_path: Path) -> None:
    text = simdist(bin, tmp_path, "sweep", "--cluster", "cpu", "--dry-run", "smoke")
    assert "#SBATCH --mem=32G" in text
    assert "sbatch: train, 4 jobs" in text


def test_a_sweep_runs_its_jobs_from_the_wheel(bin: Path, speech: Path, tmp_path: Path) -> None:
    (tmp_path / "one.yaml").write_text("name: one\nstages: {report: null}\n")
    said = simdist(bin, tmp_path, "sweep", "--cluster", "local", "one.yaml", f"data.root={speech}", *TINY)
    assert "2 of 2 jobs are done" in said
    assert "one: 2 jobs: 2 done" in simdist(bin, tmp_path, "status")
    assert "finished: 2 steps" in simdist(bin, tmp_path, "logs", "sim_librispeech")
    assert "no job of one is queued or running" in simdist(bin, tmp_path, "cancel", "one")


def test_the_snapshot_of_a_wheel_is_the_package_alone(bin: Path, tmp_path: Path) -> None:
    program = (
        "from pathlib import Path; from simdist.launch.naming import CODE; "
        "from simdist.launch.snapshot import take_snapshot; print(take_snapshot(CODE, Path('sweeps/one/code')))"
    )
    run("git", "init", "--quiet", str(bin.parent))  # a project with its virtual environment inside
    snapshot = Path(run(str(bin / "python"), "-c", program, cwd=tmp_path, env=environment_of(bin)).strip())
    assert sorted(path.name for path in snapshot.iterdir()) == ["simdist", "snapshot.json"]
    origin = json.loads((snapshot / "snapshot.json").read_text())
    assert (origin["commit"], origin["diff"]) == (None, None)
    environment = environment_of(bin) | {"PYTHONPATH": str(snapshot)}
    program = "import simdist.launch.job as job; print(job.__file__)"
    where = run(str(bin / "python"), "-c", program, cwd=tmp_path, env=environment)
    assert Path(where.strip()).is_relative_to(snapshot)
