"""The number of processes is no hyperparameter: ten steps of each preset end alike on 1, 2, 4, and all in turn."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest
import torch

from tests.support.forked import Ranks, Zygote
from tests.support.processes.ten_steps import CROPS, STEPS, Trained, take_steps
from tests.support.training import reset_accelerate

TOLERANCE = 1e-10


@pytest.fixture(scope="module")
def alone():
    """What one process comes to."""

    @cache
    def take(preset: str) -> Trained:
        reset_accelerate()
        return take_steps(preset, 0, STEPS)

    return take


def on(zygote: Zygote, folder: Path, world: int, first: int, last: int, *presets: str) -> None:
    ranks = Ranks(zygote, "tests.support.processes.ten_steps", world, str(folder), str(first), str(last), *presets)
    codes, printed = ranks.end()
    assert codes == [0] * world, printed


@pytest.fixture(scope="module")
def launched(tmp_path_factory: pytest.TempPathFactory, zygote: Zygote):
    """What several processes come to; each number of processes is launched once."""

    @cache
    def launch(world: int) -> Path:
        folder = tmp_path_factory.mktemp(f"world{world}")
        on(zygote, folder, world, 0, STEPS, *CROPS)
        return folder

    return lambda preset, world: torch.load(launch(world) / f"{preset}.pt", weights_only=False)


def assert_equal(ours: Trained, theirs: Trained) -> None:
    assert ours.model.keys() == theirs.model.keys()
    for name, tensor in ours.model.items():
        difference = (tensor.double() - theirs.model[name].double()).abs().max()
        assert difference < TOLERANCE, f"{name}: {difference:.1e}"
    assert len(ours.losses)
    torch.testing.assert_close(ours.losses, theirs.losses[-len(ours.losses) :], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("world", [2, 4])
@pytest.mark.parametrize("preset", CROPS)
def test_ten_steps_end_alike(launched, alone, preset: str, world: int) -> None:
    """A group of 4 of 8 clips: one of two on a process, all that each of two has, or two processes' together."""
    assert_equal(launched(preset, world), alone(preset))


def test_a_run_changes_its_number_of_processes_half_way(zygote: Zygote, alone, tmp_path: Path) -> None:
    """From 2 to 1 to 4."""
    for world, first, last in ((2, 0, 4), (1, 4, 7), (4, 7, STEPS)):
        on(zygote, tmp_path, world, first, last, "sim_librispeech")
    assert_equal(torch.load(tmp_path / "sim_librispeech.pt", weights_only=False), alone("sim_librispeech"))


def test_ten_steps_change_the_weights_by_far_more_than_the_tolerance(alone) -> None:
    start = take_steps("sim_librispeech", 0, 0).model
    end = alone("sim_librispeech").model
    moved = {name: float((end[name] - each).abs().max()) for name, each in start.items() if name.endswith("weight")}
    assert min(moved.values()) > 1e4 * TOLERANCE
