"""GPU-hours out of earlier runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from rich.console import Console

from launch.dry_run import show
from launch.estimate import Machine, kind_of_job, measure, stage_costs
from launch.plan import build
from simdist.cluster.profile import Profile
from simdist.config.schema import Config, to_dict
from simdist.core.files import append_json
from tests.support.sweeps import of_kind, sweep_file


def earlier(folder: Path, config: Config, rates: list[float], world_size: int, partition: str | None) -> None:
    """A run that was trained at so many clips a second."""
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(to_dict(config)))
    slurm = {"SLURM_JOB_PARTITION": partition} if partition else {}
    (folder / "environment.json").write_text(json.dumps({"slurm": slurm}))
    append_json(folder / "events.jsonl", {"event": "start", "world_size": world_size, "host": "n1"})
    for step, rate in enumerate(rates):
        append_json(folder / "metrics.jsonl", {"kind": "train", "step": step, "modules": [], "samples_per_s": rate})


def sweep(root: Path, **changes: Any):
    config = {"data.root": str(root / "data"), "train.max_steps": 1800, "data.crop": 8000}
    for split in ("train", "test"):
        (root / "data" / split).mkdir(parents=True, exist_ok=True)
        (root / "data" / split / "manifest.json").write_text('{"num_samples": 100000}')
    stages = {"probe": {"labels": ["phone"], "modules": [0]}}
    return build(sweep_file(config=config, grid={}, stages=stages, **changes), root / "runs", root / "sweeps")


def test_gpu_hours_follow_from_runs_of_the_same_kind_on_the_same_partition(tmp_path: Path) -> None:
    plan, configs = sweep(tmp_path, seeds=[0, 1])
    config = next(iter(configs.values()))
    earlier(tmp_path / "runs" / "a", config, [1.0, 1.0, 8.0, 8.0, 8.0], 8, "gpu")  # the first two lines are warm-up
    earlier(tmp_path / "runs" / "b", config, [1.0, 1.0, 24.0], 4, "gpu")
    earlier(tmp_path / "runs" / "c", config, [1.0, 1.0, 800.0], 8, "fast")
    marker = tmp_path / "runs" / "a" / "jobs" / "probe.json"
    marker.parent.mkdir()
    probe = plan.jobs[of_kind(plan, "probe")[0]]
    command = [word if not word.startswith(str(tmp_path)) else "elsewhere" for word in probe.command]
    marker.write_text(json.dumps({"command": command, "seconds": 360.0, "partition": "gpu"}))
    measured = measure(tmp_path / "runs")
    profiles = {
        "train": Profile(partition="gpu", nodes=2, gpus_per_node=4),
        "probe": Profile(partition="gpu", gpus_per_node=1),
    }
    costs = stage_costs(plan, configs, list(plan.jobs.values()), profiles, measured)
    steps_per_s = 8.0 / 4  # batches of 4
    assert costs["train"].hours == pytest.approx(1800 / steps_per_s / 3600)
    assert costs["train"].device_hours == pytest.approx(2 * 8 * 0.25)
    assert (costs["probe"].hours, costs["probe"].device_hours) == (pytest.approx(0.1), pytest.approx(0.2))
    other = {stage: Profile(partition="other", gpus_per_node=8) for stage in profiles}
    unknown = stage_costs(plan, configs, list(plan.jobs.values()), other, measured)
    assert (unknown["train"].hours, unknown["train"].unknown) == (None, 2)


def test_another_seed_or_beta_is_the_same_kind_and_another_model_is_not(tmp_path: Path) -> None:
    _, configs = sweep(tmp_path, seeds=[0])
    config = next(iter(configs.values()))
    earlier(tmp_path / "runs" / "a", config, [4.0] * 4, 1, None)
    measured = measure(tmp_path / "runs")
    machine = Machine(None, 1)

    def hours(**changes: Any) -> float | None:
        plan, other = sweep(tmp_path, seeds=[7], **changes)
        (name,) = plan.runs
        return measured.train_hours(other[name], plan.runs[name].length, machine)

    assert hours(variants=[{"name": "x", "config": {"loss.beta": 0.5, "optim.lr": 1.0}}]) == pytest.approx(0.5)
    assert hours(variants=[{"name": "x", "config": {"model.width": 32}}]) is None


def test_a_jobs_kind_leaves_out_the_run_that_it_is_about() -> None:
    for option in ("--run-dir", "--run"):  # as markers of earlier versions have it
        words = ("probe", "--label", "phone", option, "runs/a", "--bias", "false")
        assert kind_of_job(words) == "probe --label phone --bias false"


def test_a_dry_run_shows_the_graph_the_scripts_and_the_hours_and_writes_nothing(tmp_path: Path) -> None:
    plan, configs = sweep(tmp_path, seeds=[0, 1, 2, 3, 4])
    config = next(iter(configs.values()))
    earlier(tmp_path / "runs" / "a", config, [4.0] * 4, 4, "gpu")
    profile = tmp_path / "mine.yaml"
    profile.write_text("{partition: gpu, gpus_per_node: 4}")
    before = sorted(tmp_path.rglob("*"))
    console = Console(width=200)
    with console.capture() as shown:
        show(plan, configs, str(profile), console)
    text = shown.get()
    assert sorted(tmp_path.rglob("*")) == before
    assert f"{plan.name}: 5 runs, 10 jobs" in text
    assert "… and 2 more runs" in text
    assert text.count("#SBATCH --job-name=") == 2
    assert "submissions more" not in text  # one array for all runs
    assert "10.00 GPU-hours, and 5 jobs of unknown duration" in text  # 5 runs x 0.5 h x 4 GPUs
