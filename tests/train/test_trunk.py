"""A run on the frozen lower modules of another one: it trains the rest, needs the other no more, and shares latents."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from simdist.config.schema import Config, identity
from simdist.core.errors import InputError
from simdist.loading import load_encoder
from simdist.models.encoder import GreedyEncoder, hash_weights
from simdist.runs.folder import open_run
from simdist.train.trunk import with_trunk_name
from tests.support.training import build_trainer, lines, reset_accelerate, train, weights

pytestmark = pytest.mark.usefixtures("fresh_process")
STEPS = 12


@pytest.fixture(scope="module")
def short(tiny: Config) -> Config:
    loop = replace(tiny.train, max_steps=STEPS, checkpoint_every=100, keep_last=100)
    return replace(tiny, train=loop)


@pytest.fixture(scope="module")
def trunk(short: Config, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished SIM."""
    reset_accelerate()
    folder = tmp_path_factory.mktemp("runs") / "trunk"
    trainer, _ = train(short, folder)
    trainer.run.finish(trainer.step)
    return folder


def on(trunk: Path, config: Config, count: int = 2, **loop: object) -> Config:
    """The configuration of a run that takes over modules of `trunk`; another learning rate tells it apart."""
    taken = replace(config.train, trunk=str(trunk), trunk_modules=count, **loop)  # pyright: ignore[reportArgumentType]
    return with_trunk_name(replace(config, optim=replace(config.optim, lr=1e-3), train=taken), None)


@pytest.mark.parametrize("schedule", ["joint", "stagewise"])
@pytest.mark.parametrize("cached", [False, True])
def test_the_rest_learns_and_a_stop_changes_nothing(
    short: Config, trunk: Path, tmp_path: Path, schedule: str, cached: bool
) -> None:
    config = on(trunk, short, schedule=schedule, cache_latents=cached)
    whole, _ = train(config, tmp_path / "whole")
    stages = 2 if schedule == "stagewise" else 1
    assert whole.step == whole.schedule.total_steps == stages * STEPS
    below, ours = weights(trunk, STEPS), weights(tmp_path / "whole", whole.step)
    fresh = GreedyEncoder.from_config(config).state_dict()
    for name, tensor in ((name, each) for name, each in ours.items() if name.endswith(".weight")):
        taken_over = name.startswith(("greedy.0.", "greedy.1."))
        assert torch.equal(tensor, below[name]) == taken_over, name
        assert not torch.equal(tensor, fresh[name]), name
    learning = [[each["module"] for each in line["modules"]] for line in lines(tmp_path / "whole")]
    assert [m for m in ([2], [3], [2, 3]) if m in learning] == ([[2], [3]] if stages == 2 else [[2, 3]])

    assert train(config, tmp_path / "parts", stop_at=5)[1] == 15
    resumed, _ = train(config, tmp_path / "parts")
    assert resumed.step == whole.step
    parts = weights(tmp_path / "parts", whole.step)
    assert all(torch.equal(ours[name], parts[name]) for name in ours)
    assert lines(tmp_path / "whole") == lines(tmp_path / "parts")


def test_a_run_is_whole_without_its_trunk(short: Config, trunk: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(trunk, copy)
    config = on(copy, short)
    train(config, tmp_path / "undisturbed")
    assert train(config, tmp_path / "run", stop_at=7)[1] == 15
    shutil.rmtree(copy)
    again = with_trunk_name(replace(config, train=replace(config.train, trunk_name="")), tmp_path / "run")
    assert again == config
    train(again, tmp_path / "run")
    ours, theirs = weights(tmp_path / "undisturbed", STEPS), weights(tmp_path / "run", STEPS)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert load_encoder(tmp_path / "run").encode(torch.zeros(1, 1, 8000)).shape[0] == 1


def test_runs_share_the_latents_of_their_trunk(short: Config, trunk: Path, tmp_path: Path) -> None:
    config = on(trunk, short, cache_latents=True)
    train(config, tmp_path / "first")
    (folder,) = (path for path in (trunk / "latents").iterdir() if path.is_dir())
    files = {path: path.stat().st_mtime_ns for path in folder.rglob("*.tar")}
    assert files
    assert not (tmp_path / "first" / "latents").exists()
    train(replace(config, optim=replace(config.optim, lr=5e-4)), tmp_path / "second")
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*.tar")} == files
    shutil.rmtree(folder)  # costs time only
    train(config, tmp_path / "third")
    ours, theirs = weights(tmp_path / "first", STEPS), weights(tmp_path / "third", STEPS)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    train(on(trunk, short, cache_latents=True, schedule="stagewise"), tmp_path / "stages")
    assert [path.name for path in (tmp_path / "stages" / "latents").iterdir()] == ["module_2"]  # only its own


def test_another_trunk_is_another_run(short: Config, trunk: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(trunk, other)
    open_run(other, replace(short, optim=replace(short.optim, lr=0.5)), force=True).write()
    config, changed = on(trunk, short), on(other, short)
    assert config.train.trunk_name.startswith(f"{short.name}-")
    assert len({identity(config), identity(changed), identity(on(trunk, short, 1)), identity(short)}) == 4
    train(config, tmp_path / "run", stop_at=3)
    with pytest.raises(InputError, match=r"another configuration .train.trunk_name: "):
        open_run(tmp_path / "run", changed)
    moved = tmp_path / "moved"
    shutil.copytree(trunk, moved)
    assert open_run(tmp_path / "run", on(moved, short))  # the same run in another place


def refusals(short: Config, trunk: Path, tmp_path: Path) -> list[tuple[Config, str]]:
    unfinished, wide = tmp_path / "unfinished", replace(short, model=replace(short.model, width=12))
    shutil.copytree(trunk, unfinished)
    (unfinished / "DONE").unlink()
    first, *rest = short.model.modules
    layers = (replace(first.layers[0], kernel=12, padding=3), *first.layers[1:])
    other_layers = replace(short, model=replace(short.model, modules=(replace(first, layers=layers), *rest)))
    fewer = tmp_path / "fewer"
    shutil.copytree(trunk, fewer)
    open_run(fewer, replace(short, model=replace(short.model, modules=short.model.modules[:1])), force=True).write()
    empty = tmp_path / "empty"
    shutil.copytree(trunk, empty)
    shutil.rmtree(empty / "checkpoints")
    normalized = replace(short, data=replace(short.data, normalize=(0.0, 0.1)))
    longer = replace(short, loss=replace(short.loss, prediction_steps=3))
    return [
        (on(unfinished, short), "unfinished is not finished, and its modules would change"),
        (on(trunk, wide), "the width of module 0 is 16 in .*trunk and 12 here"),
        (on(trunk, other_layers), r"model.modules.0..layers is .* in .*trunk"),
        (on(trunk, normalized), "data.normalize is None in .* here. Set it as it is there"),
        (on(trunk, longer), "the number of prediction steps of module 0 is 4 in .* and 3 here"),
        (on(fewer, short), "trunk_modules=2, but .*fewer has 1 modules"),
        (on(empty, short), "empty has no complete checkpoint"),
    ]


@pytest.mark.parametrize("number", range(7))
def test_a_trunk_that_does_not_fit_is_refused(short: Config, trunk: Path, tmp_path: Path, number: int) -> None:
    config, message = refusals(short, trunk, tmp_path)[number]
    with pytest.raises(InputError, match=message):
        build_trainer(open_run(tmp_path / "run", config)).resume()
    assert not (tmp_path / "run").exists()


def test_settings_of_a_trunk_belong_together(short: Config, trunk: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"train.trunk=None and train.trunk_modules=2 belong together"):
        replace(short.train, trunk_modules=2)
    with pytest.raises(ValueError, match=r"train.trunk_modules=4 leaves nothing to train of 4 modules"):
        replace(short, train=replace(short.train, trunk=str(trunk), trunk_modules=4))
    with pytest.raises(InputError, match=r"train.trunk: .*nowhere is not a run folder .it does not exist"):
        on(tmp_path / "nowhere", short)


@pytest.fixture(scope="module", params=[False, True], ids=["", "cached"])
def stagewise(short: Config, request: pytest.FixtureRequest) -> Config:
    loop = replace(short.train, schedule="stagewise", cache_latents=request.param, max_steps=6)
    return replace(short, train=loop)


@pytest.fixture(scope="module")
def lower(stagewise: Config, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Modules 0 and 1 alone."""
    reset_accelerate()
    folder = tmp_path_factory.mktemp("runs") / "lower"
    trainer, _ = train(with_modules(stagewise, 2), folder)
    trainer.run.finish(trainer.step)
    return folder


def with_modules(config: Config, count: int) -> Config:
    return replace(config, model=replace(config.model, modules=config.model.modules[:count]))


def with_last(config: Config, lr: float) -> Config:
    """A branch: its last module learns at another rate."""
    *others, last = config.model.modules
    return replace(config, model=replace(config.model, modules=(*others, replace(last, lr=lr))))


@pytest.mark.parametrize("lr", [1e-3, 3e-4])
def test_a_branch_equals_a_run_that_trained_every_stage(
    stagewise: Config, lower: Path, tmp_path: Path, lr: float
) -> None:
    config = with_last(stagewise, lr)
    alone, _ = train(config, tmp_path / "alone")
    branch, _ = train(config, tmp_path / "branch", stages_from=lower)
    assert (branch.step, branch.schedule.total_steps) == (24, 24)
    assert hash_weights(branch.task.model) == hash_weights(alone.task.model)
    assert lines(tmp_path / "branch") == lines(tmp_path / "alone")
    assert branch.task.state()[0]["optimizer"]["state"][0]["step"] == 6  # moments of every module, as its own run's
    assert train(config, tmp_path / "stopped", stop_at=14, stages_from=lower)[1] == 15
    resumed, _ = train(config, tmp_path / "stopped")  # without the option: it has a checkpoint of its own
    assert hash_weights(resumed.task.model) == hash_weights(alone.task.model)
    assert lines(tmp_path / "stopped") == lines(tmp_path / "alone")
    if stagewise.train.cache_latents:
        assert [path.name for path in (tmp_path / "branch" / "latents").iterdir()] == ["module_2"]
        assert [path.name[:8] for path in (lower / "latents").iterdir() if path.is_dir()].count("module_1") == 1


def test_a_branch_stopped_before_its_first_checkpoint_begins_again(
    stagewise: Config, lower: Path, tmp_path: Path
) -> None:
    run = open_run(tmp_path / "run", stagewise)
    trainer = build_trainer(run, stages_from=lower)
    assert trainer.resume() == 12
    run.write()
    trainer.metrics.rewind(12, trainer._inherited)  # killed here
    reset_accelerate()
    train(stagewise, tmp_path / "run", stages_from=lower)
    train(stagewise, tmp_path / "alone")
    assert lines(tmp_path / "run") == lines(tmp_path / "alone")


def test_stages_that_differ_are_not_taken_over(stagewise: Config, lower: Path, tmp_path: Path) -> None:
    joint = replace(stagewise, train=replace(stagewise.train, schedule="joint", cache_latents=False))
    unfinished = tmp_path / "unfinished"
    shutil.copytree(lower, unfinished)
    (unfinished / "DONE").unlink()
    cases = [
        (replace(stagewise, seed=1), lower, r"would come to .seed: 0 -> 1"),
        (with_last(with_modules(stagewise, 2), 1.0), lower, "has 2 modules and this run 2. Name a run with fewer"),
        (joint, lower, "train.schedule is joint, which has no stages"),
        (stagewise, unfinished, "is not finished"),
        (stagewise, tmp_path / "nowhere", "--stages-from: .*nowhere is not a run folder"),
    ]
    for number, (config, source, message) in enumerate(cases):
        reset_accelerate()
        with pytest.raises(InputError, match=message):
            build_trainer(open_run(tmp_path / str(number), config), stages_from=source).resume()
