"""Runs of a sweep that agree on their lower modules: one run trains these, and the others take its stages over."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from launch.plan import Plan, read_plan
from launch.scheduler import JobId, arrays, parts
from launch.shared_stages import shared_stages
from launch.sweep import main as sweep
from launch.variants import Variant, expand
from simdist.cluster.discovery import Limits
from simdist.config.load import read_config
from simdist.config.schema import Config, identity, to_dict
from simdist.core.errors import EXIT_OK
from tests.support.sweeps import small_plan, sweep_file

MODULES = to_dict(Config())["model"]["modules"]


def modules(**own: Any) -> dict[str, Any]:
    """SIM's modules with settings of the last but one and the last: {"second": lr, "last": lr}."""
    *lower, second, last = MODULES
    second = second | ({"lr": own["second"]} if "second" in own else {})
    return {"model.modules": [*lower, second, last | ({"lr": own["last"]} if "last" in own else {})]}


VARIANTS = [
    {"name": "a", "config": modules(last=1e-3)},
    {"name": "b", "config": modules(last=1e-4)},
    {"name": "c", "config": modules(second=1e-3)},
]
STAGEWISE = {"train.schedule": "stagewise"}


def planned(**changes: Any) -> Plan:
    config = STAGEWISE | changes.pop("config", {})
    return small_plan(grid={}, variants=VARIANTS, config=config, stages={"report": None}, **changes)


def variants() -> list[Variant]:
    """The runs of the plan."""
    config = {"name": "small", "data.root": "data/small", "data.crop": 8000} | STAGEWISE
    return expand(sweep_file(grid={}, variants=VARIANTS, config=config))


def sources(plan: Plan) -> dict[str, str | None]:
    """Which run each takes stages over from."""
    found: dict[str, str | None] = {}
    for job in plan.jobs.values():
        if job.kind == "train":
            assert job.run is not None
            words = list(job.command)
            found[job.run] = words[words.index("--stages-from") + 1] if "--stages-from" in words else None
    return found


def test_what_runs_have_in_common_is_trained_once() -> None:
    """All three agree on modules 0 and 1, two of them on module 2, too; seeds share nothing."""
    plan = planned()
    found = sources(plan)
    shared, _ = shared_stages({variant.run: variant.config for variant in variants()})
    assert {run for run in found if run.startswith("trunks/")} == set(shared)
    assert len(found) == 2 * (3 + 2)
    assert len(plan.jobs) == len(found) + 1
    for seed in (0, 1):
        low, high = (run for run, config in shared.items() if config.seed == seed)
        assert ("modules_0-1" in low, "modules_0-2" in high) == (True, True)
        assert (found[low], found[high]) == (None, f"runs/{low}")
        assert plan.jobs[f"train/{high}"].parents == (f"train/{low}",)
        of_seed = {plan.runs[run].varied["variant"]: run for run in plan.runs if plan.runs[run].varied["seed"] == seed}
        assert {name: found[of_seed[name]] for name in "abc"} == {
            "a": f"runs/{high}",
            "b": f"runs/{high}",
            "c": f"runs/{low}",
        }
        assert plan.jobs[f"train/{of_seed['a']}"].parents == (f"train/{high}",)
        length = {run: plan.runs[run].length for run in (low, high, of_seed["a"], of_seed["c"])}
        assert [each.stages for each in length.values()] == [2, 3, 4, 4]
        assert [each.own_share for each in length.values()] == [1, pytest.approx(1 / 3), 0.25, 0.5]
    assert not [word for word in plan.jobs["report"].command if "trunks" in word]


def test_names_of_runs_do_not_change_and_joint_runs_share_nothing() -> None:
    found = sources(planned())
    assert {variant.run for variant in variants()} <= set(found)
    joint = sources(planned(config={"train.schedule": "joint"}))
    assert len(joint) == 6
    assert set(joint.values()) == {None}
    one = small_plan(grid={"loss.beta": [0.1, 0.2]}, config=STAGEWISE, stages={"report": None})
    assert set(sources(one).values()) == {None}  # the first module differs already


def test_on_slurm_a_branch_waits_for_the_run_that_trains_its_stages() -> None:
    """Two seeds: three arrays of trainings, each after the one before, index by index where that is one for one."""
    plan = planned()
    ids: dict[str, JobId] = {}
    waits: dict[str, tuple[JobId, ...]] = {}
    for number, jobs in enumerate(parts(plan, plan.jobs)):
        for place, array in enumerate(arrays(jobs, ids, Limits(), 16)):
            for index, job in zip(array.indices or (None,), array.jobs, strict=False):
                waits[job.name] = (*array.after_success, *array.after_same_index)
                ids[job.name] = JobId(f"{number}{place}" + (f"_{index}" if index is not None else ""))
    assert len(ids) == len(plan.jobs)
    for job in plan.jobs.values():
        if job.kind == "train":
            parents = {ids[parent] for parent in job.parents}
            assert {id.array for id in waits[job.name]} == {id.array for id in parents}, job.name


@pytest.mark.usefixtures("fresh_process")
def test_a_sweep_trains_shared_stages_first(tiny: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each run is whole, equals one that trains all its stages, and the second command has nothing to do."""
    from tests.support.training import reset_accelerate, train, weights

    monkeypatch.chdir(tmp_path)
    loop = {"train.max_steps": 4, "train.validate_every": 0, "train.precision": "no", "train.schedule": "stagewise"}
    config = {
        "data": {"root": tiny.data.root, "crop": 5120},
        "loss": {"prediction_steps": 4, "num_negatives": 5},
    }
    flat = {f"{section}.{key}": value for section, values in config.items() for key, value in values.items()}
    content = {
        "name": "shared",
        "base": ["sim_librispeech", "debug"],
        "config": flat | loop,
        "variants": VARIANTS[:2],
        "stages": {"train": {}},
    }
    (tmp_path / "shared.yaml").write_text(json.dumps(content))
    assert sweep(["--cluster", "debug", "shared.yaml"]) == EXIT_OK
    plan = read_plan(tmp_path / "sweeps" / "shared")
    runs = [run for run in plan.runs if not run.startswith("trunks/")]
    assert len(plan.runs) == 3
    for run in runs:
        saved = read_config(tmp_path / "runs" / run / "config.yaml")
        assert identity(saved)[:8] == run[-8:]
        reset_accelerate()
        train(saved, tmp_path / f"{run}-alone")
        ours, theirs = weights(tmp_path / "runs" / run, 16), weights(tmp_path / f"{run}-alone", 16)
        assert all(bool((ours[name] == theirs[name]).all()) for name in ours)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").rglob("*") if path.is_file()}
    assert sweep(["--cluster", "debug", "shared.yaml"]) == EXIT_OK
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").rglob("*") if path.is_file()} == before
