"""Gradients over 2 and 4 real processes (gloo, float64) against one process that computes the same by itself."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.support.forked import Ranks, Zygote
from tests.support.processes.gradients import CASES, CLIPS, FRAMES, LOSS, MODEL, SAMPLES, Case, gradients


@pytest.fixture(scope="module")
def launched(tmp_path_factory: pytest.TempPathFactory, zygote: Zygote):
    """Gradients of a case over so many processes; each number of processes is launched once."""

    @cache
    def launch(world: int) -> Path:
        folder = tmp_path_factory.mktemp(f"world{world}")
        codes, printed = Ranks(zygote, "tests.support.processes.gradients", world, str(folder), *CASES).end()
        assert codes == [0] * world, printed
        return folder

    return lambda name, world: torch.load(launch(world) / f"{name}.pt", weights_only=True)


@pytest.fixture(autouse=True)
def alone(fresh_process: None) -> None:
    """References are computed without processes."""


def assert_equal(ours: dict[str, Tensor], theirs: dict[str, Tensor], tolerance: float = 1e-11) -> None:
    assert ours.keys() == theirs.keys()
    for name in ours:
        error = float(
            (ours[name].double() - theirs[name].double()).norm() / theirs[name].double().norm().clamp(min=1e-3)
        )  # biases before a BatchNorm have none
        assert error < (max(tolerance, 1e-6) if name.startswith("metrics") else tolerance), f"{name}: {error:.1e}"


@pytest.mark.parametrize("world", [2, 4])
@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.group and not case.compress])
def test_ranks_compute_what_one_process_computes(launched, name: str, world: int) -> None:
    """A group of 2, 4 or 8 of 8 clips is one of several on a rank, all of a rank's, or spans two or four ranks."""
    assert_equal(launched(name, world), gradients(CASES[name]))


@pytest.mark.parametrize("world", [2, 4])
def test_without_a_group_it_is_what_a_rank_holds(launched, world: int) -> None:
    assert_equal(launched("no group", world), gradients(Case(CLIPS // world)))
    with pytest.raises(AssertionError, match="greedy"):
        assert_equal(launched("no group", world), gradients(Case(CLIPS)))


@pytest.mark.parametrize("world", [2, 4])
def test_bf16_gradients_are_near(launched, world: int) -> None:
    compressed, exact = launched("bf16", world), gradients(CASES["group 2"])
    assert_equal(compressed, exact, tolerance=0.02)
    with pytest.raises(AssertionError):
        assert_equal(compressed, exact, tolerance=1e-5)


def test_groups_one_at_a_time_are_groups_at_once() -> None:
    assert_equal(gradients(CASES["group 2, one at a time"]), gradients(CASES["group 2"]))
    norms = [name for name in gradients(CASES["group 2"]) if name.endswith("num_batches_tracked")]
    assert norms
    assert all(gradients(CASES["group 2, one at a time"])[name] == 1 for name in norms)


def test_groups_are_their_clips_alone() -> None:
    """Another way to the same numbers: the mean over batches of one group each, which see nothing of each other."""
    parts = [gradients(Case(2), rank, 4) for rank in range(4)]
    mean = {name: torch.stack([part[name].double() for part in parts]).mean(0) for name in parts[0]}
    exact = gradients(Case(2))
    norms = {name: mean.pop(name) for name in list(mean) if name.endswith("grad_norm")}  # not linear
    assert len(norms) == len(MODEL.modules)
    assert_equal(mean, {name: value for name, value in exact.items() if name not in norms})


def test_local_backward_equals_the_backward_of_the_summed_loss() -> None:
    from simdist.models.encoder import GreedyEncoder
    from simdist.training.random_streams import RandomStreams
    from simdist.training.step import ModuleTrainer

    encoder = GreedyEncoder(replace(MODEL, batch_norm=False), LOSS, seed=5).double()
    x = torch.randn(CLIPS, SAMPLES, 1, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    draws, losses = RandomStreams(0, 0, torch.device("cpu")), []
    for number, module in enumerate(encoder.stack):
        trainer = ModuleTrainer(number, module, module, None, None, None)  # pyright: ignore[reportArgumentType]
        outcome = module(x, draws.draw("train", 0, trainer, CLIPS, FRAMES), 0.1)
        losses.append(outcome.loss)
        x = outcome.latent
    torch.stack(losses).sum().backward()
    joint = {name: p.grad for name, p in encoder.named_parameters() if p.grad is not None}
    local = gradients(Case(CLIPS, batch_norm=False))
    assert_equal({name: local[name] for name in joint}, joint, tolerance=1e-13)
    assert joint.keys() == dict(encoder.named_parameters()).keys()
