"""Stagewise training: one module after the other, frozen below; the same when resumed, also from cached latents."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from simdist.config.schema import Config
from simdist.data.crops import CropReader
from simdist.data.splits import open_split
from simdist.models.encoder import GreedyEncoder
from simdist.runs.folder import open_run
from simdist.training.checkpoint import load_checkpoint
from tests.support.training import build_trainer, lines, train, weights

pytestmark = pytest.mark.usefixtures("fresh_process")


@pytest.fixture
def stagewise(tiny: Config) -> Config:
    loop = replace(tiny.train, schedule="stagewise", max_steps=12, checkpoint_every=100, keep_last=100)
    return replace(tiny, train=loop)


def test_each_module_learns_in_its_stage_only(stagewise: Config, tmp_path: Path) -> None:
    trainer, _ = train(stagewise, tmp_path / "run")
    assert (trainer.schedule.stage_steps, trainer.schedule.total_steps) == (12, 48)
    fresh = GreedyEncoder(stagewise.model, stagewise.loss, stagewise.seed).state_dict()
    states = [fresh] + [
        load_checkpoint(tmp_path / "run" / "checkpoints" / f"step_{12 * s:08d}").model for s in (1, 2, 3, 4)
    ]
    for stage in range(4):
        changed = {n.split(".")[1] for n in fresh if not torch.equal(states[stage][n], states[stage + 1][n])}
        assert changed == {str(stage)}
    recorded = lines(tmp_path / "run")
    assert [[m["module"] for m in line["modules"]] for line in recorded if line["kind"] == "validation"][-1] == [3]
    assert {line["stage"] for line in recorded} == {0, 1, 2, 3}


def test_the_first_stage_equals_joint_training_of_that_module(stagewise: Config, tiny: Config, tmp_path: Path) -> None:
    train(stagewise, tmp_path / "stagewise")
    joint = replace(tiny, train=replace(tiny.train, max_steps=12))
    train(joint, tmp_path / "joint")
    ours = load_checkpoint(tmp_path / "stagewise" / "checkpoints" / "step_00000012").model
    theirs = weights(tmp_path / "joint", 12)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours if name.startswith("greedy.0."))


@pytest.mark.parametrize("cached", [False, True])
@pytest.mark.parametrize("step", [7, 12, 30])
def test_resumed_equals_undisturbed(stagewise: Config, tmp_path: Path, step: int, cached: bool) -> None:
    config = replace(stagewise, train=replace(stagewise.train, cache_latents=cached))
    train(config, tmp_path / "whole")
    _, signal_number = train(config, tmp_path / "parts", stop_at=step)
    assert signal_number == 15
    resumed, _ = train(config, tmp_path / "parts")
    assert resumed.step == 48
    whole, parts = weights(tmp_path / "whole", 48), weights(tmp_path / "parts", 48)
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
    assert lines(tmp_path / "whole") == lines(tmp_path / "parts")


def test_cached_latents_are_those_of_the_frozen_modules(stagewise: Config, tmp_path: Path) -> None:
    train(replace(stagewise, train=replace(stagewise.train, cache_latents=True)), tmp_path / "run")
    split = open_split(tmp_path / "run" / "latents" / "module_0", "train")
    audio = open_split(stagewise.data.root, "train")
    assert list(split.index.key) == list(audio.index.key)
    encoder = GreedyEncoder(stagewise.model, stagewise.loss).eval()
    encoder.load_state_dict(load_checkpoint(tmp_path / "run" / "checkpoints" / "step_00000012").model)
    whole = torch.from_numpy(CropReader(audio).read_all(2)).float().div(32768)[None, :, None]
    with torch.no_grad():
        mu, log_var = encoder.stack[0].distribution(whole)
    assert log_var is not None
    expected = torch.cat([mu, log_var], dim=2)[0].numpy()
    stored = CropReader(split)
    assert np.abs(stored.read_all(2) - expected).max() < 2e-3 * np.abs(expected).max()  # float16
    assert np.array_equal(stored.read(2, 100, 30), stored.read_all(2)[100:130])
    assert np.array_equal(stored.read(2, len(expected) - 3, 5)[3:], np.zeros((2, 32)))


def test_training_on_cached_latents_learns_the_same(stagewise: Config, tmp_path: Path) -> None:
    """Not in each number: crops of an utterance's latents have neighbors where crops of audio have padding."""
    loop = replace(stagewise.train, max_steps=120, validate_every=0)
    config = replace(stagewise, train=loop, optim=replace(stagewise.optim, lr=2e-3))
    nce = {}
    for cached in (False, True):
        train(replace(config, train=replace(loop, cache_latents=cached)), tmp_path / str(cached))
        of_module = [line["modules"][0]["nce"] for line in lines(tmp_path / str(cached)) if line["stage"] == 1]
        assert of_module[-1] < of_module[0] - 1
        nce[cached] = np.mean(of_module[-8:])
    assert nce[True] == pytest.approx(nce[False], rel=0.1)


def test_latents_of_other_weights_are_replaced(stagewise: Config, tmp_path: Path) -> None:
    config = replace(stagewise, train=replace(stagewise.train, cache_latents=True))
    train(config, tmp_path / "run")
    split = tmp_path / "run" / "latents" / "module_0"
    before = open_split(split, "train").manifest.fingerprint
    for path in (tmp_path / "run" / "checkpoints").iterdir():
        for file in path.iterdir():
            file.unlink()
    other = replace(config, optim=replace(config.optim, lr=0.01))
    assert open_run(tmp_path / "run", other, force=True)
    build_trainer(open_run(tmp_path / "run", other, force=True)).fit()
    assert open_split(split, "train").manifest.fingerprint != before


def test_groups_and_their_number_must_divide(tiny: Config, tmp_path: Path) -> None:
    from simdist.core.errors import InputError
    from simdist.training.groups import Groups

    def trained(group: int | None, at_once: int) -> None:
        config = replace(tiny, data=replace(tiny.data, batch_size=4, group=group))
        train(replace(config, train=replace(config.train, groups_at_once=at_once)), tmp_path / "run")

    with pytest.raises(InputError, match=r"groups_at_once=3 does not divide the 4 groups per rank .4 clips, data"):
        trained(1, 3)
    with pytest.raises(InputError, match=r"groups_at_once=2 does not divide the 1 group per rank.*set --data.group to"):
        trained(None, 2)
    with pytest.raises(ValueError, match=r"data.group is 3; it must be a divisor of data.batch_size=4, or null"):
        trained(3, 1)
    with pytest.raises(InputError, match=r"data.group=4 fits neither way into the 6 clips .* Use 1, 2, 3, 6 or 12"):
        Groups.of(replace(tiny.data, batch_size=12, group=4), rank=0, world_size=2)
    with pytest.raises(InputError, match=r"which 3 ranks cannot share equally; take a multiple of 3"):
        Groups.of(replace(tiny.data, batch_size=4), rank=0, world_size=3)


def test_where_clips_fall() -> None:
    from simdist.training.groups import Groups, Part

    assert Groups(4, 8, rank=1).at(0, 8) == [Part(2, 0, 4), Part(3, 0, 4)]
    assert Groups(4, 8, rank=1).at(4, 4) == [Part(3, 0, 4)]
    assert Groups(8, 4, rank=3).at(0, 4) == [Part(1, 4, 8)]
    assert [Groups(8, 4).ranks, Groups(4, 4).ranks, Groups(2, 4).ranks] == [2, 1, 1]
    assert [Groups(2, 8).passes(n) for n in (None, 1, 2, 4)] == [1, 4, 2, 1]
    assert Groups(8, 4, rank=1).of_fewer(3) == Groups(6, 3, rank=1)
    assert Groups(2, 8).of_fewer(6) == Groups(2, 6)
    assert Groups(4, 8).of_fewer(3) == Groups(3, 3)
