"""The graph: which jobs, which commands, which parents; and how long a run is."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from launch.estimate import total_steps
from launch.plan import build, config_file, find_sweeps, read_plan, write_plan
from launch.variants import expand
from simdist.config.parser import fields_from
from simdist.config.schema import to_dict
from simdist.core.errors import InputError
from simdist.probe.settings import ProbeSettings
from simdist.runs.schedule import Schedule
from tests.support.sweeps import SMALL, of_kind, small_plan, sweep_file


def test_a_sweep_becomes_one_packing_trainings_with_their_probes_and_one_report() -> None:
    plan = small_plan()
    assert {kind: len(of_kind(plan, kind)) for kind in ("pack", "train", "probe", "report")} == {
        "pack": 1,
        "train": 4,
        "probe": 16,
        "report": 1,
    }
    for job in plan.jobs.values():
        assert all(list(plan.jobs).index(parent) < list(plan.jobs).index(job.name) for parent in job.parents)
    run = next(iter(plan.runs))
    assert plan.jobs[f"train/{run}"].parents == ("pack/data-small",)
    assert plan.jobs[f"probe/{run}/phone-module3"].parents == (f"train/{run}",)
    assert set(plan.jobs["report"].parents) == set(plan.jobs) - {"report"}


def test_commands_are_those_that_a_person_would_type() -> None:
    plan = small_plan(
        stages={**SMALL["stages"], "pack": {**SMALL["stages"]["pack"], "options": {"speakers": 4, "strict": True}}}
    )
    run = next(iter(plan.runs))
    assert (
        " ".join(plan.jobs["pack/data-small"].command) == "pack synthetic data/source data/small --speakers 4 --strict"
    )
    train = f"train --config sweeps/small/configs/{run}.yaml --run-dir runs/{run}"
    assert " ".join(plan.jobs[f"train/{run}"].command) == train
    probe = plan.jobs[f"probe/{run}/speaker-module0"]
    assert " ".join(probe.command) == f"probe --label speaker --module 0 --run-dir runs/{run}"
    assert probe.marker is not None
    assert re.fullmatch(rf"runs/{run}/jobs/probe-speaker-module0-[0-9a-f]{{8}}\.json", str(probe.marker))
    report = plan.jobs["report"].command
    assert report == ("report", *(f"runs/{name}" for name in plan.runs), "--out", "sweeps/small/report")


def test_what_earlier_versions_did_is_not_done_again() -> None:
    """Identities and markers as they were written when `--run-dir` was still `--run`."""
    plan = small_plan(seeds=[0], grid={})
    assert plan.jobs["train/small-ab6b8a37"].identity == "0384b9102e6a703c"
    probe = plan.jobs["probe/small-ab6b8a37/speaker-module0"]
    assert probe.identity == "e0ff6061cfae55f1"
    assert str(probe.marker) == "runs/small-ab6b8a37/jobs/probe-speaker-module0-1dc53ae5.json"
    assert plan.jobs["report"].identity == "a54a8ad988df5afa"


def test_commands_are_accepted_by_what_they_call(capsys: pytest.CaptureFixture[str]) -> None:
    """Every option is known to the command's own parser: only what is not there yet is in the way."""
    from simdist.core.console import run
    from simdist.probe import __main__ as probe_command

    options = {"bias": False, "examples_per_class": [1, 2], "force": True, "l2": 0.1}
    plan = small_plan(stages={"probe": {"labels": "speaker", "modules": "all", "options": options}})
    job = plan.jobs[of_kind(plan, "probe")[0]]
    assert job.command[-7:] == ("--bias", "false", "--examples-per-class", "1,2", "--force", "--l2", "0.1")
    with pytest.raises(SystemExit):
        run(probe_command.main, list(job.command[1:]))
    assert "is not a run folder" in capsys.readouterr().err


@pytest.mark.parametrize(("layer", "word"), [([1, 3], "1,3"), (2, "2"), ("all", "all")])
def test_layers_are_an_option_of_probes(layer: object, word: str, capsys: pytest.CaptureFixture[str]) -> None:
    """One job probes them; jobs without layers keep their names and identities."""
    from simdist.core.console import run
    from simdist.probe import __main__ as probe_command

    stage = {"labels": ["speaker"], "modules": [0]}
    layers = {"kind": "probe", **stage, "options": {"layer": layer}}
    plan = small_plan(stages={"probe": stage, "layers": layers}, seeds=[0], grid={})
    assert plan.jobs["probe/small-ab6b8a37/speaker-module0"].identity == "e0ff6061cfae55f1"
    job = plan.jobs["layers/small-ab6b8a37/speaker-module0"]
    assert job.command[-2:] == ("--layer", word)
    with pytest.raises(SystemExit):
        run(probe_command.main, list(job.command[1:]))
    assert "is not a run folder" in capsys.readouterr().err
    settings = fields_from(ProbeSettings, probe_command._parser(), probe_command._parser().parse_args(job.command[1:]))
    assert settings.layer == word


def test_labels_and_modules_decide_how_many_jobs_probe_a_run() -> None:
    def commands(stage: dict[str, Any]) -> list[str]:
        plan = small_plan(stages={"probe": stage}, seeds=[0], grid={})
        return [" ".join(plan.jobs[name].command).partition(" --run-dir")[0] for name in of_kind(plan, "probe")]

    assert commands({}) == ["probe --all"]
    assert commands({"labels": "all", "modules": "all"}) == ["probe --all"]
    assert commands({"labels": ["phone"], "modules": "all"}) == ["probe --label phone --module all"]
    assert commands({"labels": ["phone"], "modules": [-1, 3]}) == ["probe --label phone --module 3"]
    with pytest.raises(InputError, match=r"module 4 does not exist in small-.* modules 0 to 3"):
        commands({"labels": ["phone"], "modules": [4]})
    with pytest.raises(InputError, match="modules are given without labels"):
        commands({"modules": [1]})
    with pytest.raises(InputError, match="two jobs have the name probe/"):
        commands({"labels": ["phone", "phone"], "modules": [1]})


def test_decoders_and_analyses_wait_for_what_they_read() -> None:
    stages = {"decode": {"losses": ["mse", "mel"]}, "analyze": {"which": ["traversals"]}}
    plan = small_plan(stages=stages, seeds=[0], grid={})
    (run,) = plan.runs
    decoders = of_kind(plan, "decode")
    assert decoders == [f"decode/{run}/{loss}-module{m}" for m in range(3) for loss in ("mse", "mel")]  # not the GRU
    (analysis,) = of_kind(plan, "analyze")
    assert plan.jobs[analysis].parents == (f"train/{run}", *decoders)
    assert plan.jobs[analysis].command == ("analyze", "traversals", "--run-dir", f"runs/{run}")


def test_identities_follow_what_is_done_and_nothing_else() -> None:
    before, after = small_plan(), small_plan(grid={"loss.beta": [0.001, 0.02]}, seeds=[0, 1])
    shared = set(before.runs) & set(after.runs)
    assert len(shared) == 2
    for run in shared:
        for name in (f"train/{run}", f"probe/{run}/phone-module0"):
            assert before.jobs[name].identity == after.jobs[name].identity
    assert before.jobs["report"].identity != after.jobs["report"].identity
    resources = {"probe": {"labels": ["phone"], "modules": [0], "resources": {"time_minutes": 5}}}
    lighter = small_plan(stages=resources)
    assert all(lighter.jobs[name].identity == before.jobs[name].identity for name in of_kind(lighter, "probe"))


def test_a_plan_comes_back_from_disk_as_it_was(tmp_path: Path) -> None:
    sweep = sweep_file(variants=[{"name": "a", "config": {"model.width": 8}}])
    plan, configs = build(sweep, tmp_path / "runs", tmp_path / "sweeps")
    write_plan(plan, configs)
    assert read_plan(plan.folder) == plan
    assert find_sweeps(tmp_path / "sweeps", None) == find_sweeps(tmp_path / "sweeps", "small") == [plan.folder]
    from simdist.config.load import read_config

    run = next(iter(configs))
    assert read_config(config_file(plan.folder, run)) == configs[run]
    with pytest.raises(InputError, match=r"no sweep 'other' in .*there are small"):
        find_sweeps(tmp_path / "sweeps", "other")


# --- how long ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("epochs", "max_steps", "schedule", "epoch"),
    [
        (0.3, None, "joint", "all"),
        (7, 20, "joint", "all"),
        (7, None, "joint", "full_batches"),
        (2, None, "stagewise", "all"),
        (2.5, 3, "stagewise", "full_batches"),
    ],
)
def test_total_steps_are_those_of_the_timetable(
    epochs: float, max_steps: int | None, schedule: str, epoch: str, tmp_path: Path
) -> None:
    config = {
        "data.root": str(tmp_path),
        "train.epochs": epochs,
        "train.max_steps": max_steps,
        "train.schedule": schedule,
        "data.epoch": epoch,
    }
    (variant,) = expand(sweep_file(config=config, grid={}, seeds=[0]))
    plan, _ = build(sweep_file(config=config, grid={}, seeds=[0]))
    length = plan.runs[variant.run].length
    assert total_steps(length) is None  # nothing is packed yet
    folder = tmp_path / f"{epochs}-{max_steps}"
    folder.mkdir()
    (folder / "manifest.json").write_text(json.dumps({"num_samples": 37}))
    packed = replace(length, data=folder)
    assert total_steps(packed) == Schedule(variant.config, 37).total_steps
    assert to_dict(variant.config)["train"]["epochs"] == epochs
