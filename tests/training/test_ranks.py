"""Gradients over 2 and 4 real processes (gloo, float64) against one process that computes the same by itself."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.support.forked import Ranks, Zygote
from tests.support.processes.gradients import CASES, CLIPS, FRAMES, LOSS, MODEL, SAMPLES, Case, FixedDraws, gradients


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


def mean_of_shares(case: Case, world: int) -> dict[str, Tensor]:
    share = CLIPS // world
    parts = [gradients(case, rank * share, (rank + 1) * share) for rank in range(world)]
    return {name: torch.stack([part[name] for part in parts]).mean(0) for name in parts[0]}


def assert_equal(ours: dict[str, Tensor], theirs: dict[str, Tensor], tolerance: float = 1e-11) -> None:
    assert ours.keys() == theirs.keys()
    for name in ours:
        error = float(
            (ours[name] - theirs[name]).norm() / theirs[name].norm().clamp(min=1e-3)
        )  # biases before a BatchNorm have none
        assert error < tolerance, f"{name}: {error:.1e}"


@pytest.mark.parametrize("world", [2, 4])
@pytest.mark.parametrize("name", ["batch", "batch, plain norm", "batch accumulated"])
def test_per_rank_negatives_average_the_gradients_of_the_ranks(launched, name: str, world: int) -> None:
    assert_equal(launched(name, world), mean_of_shares(CASES[name], world))


@pytest.mark.parametrize("world", [2, 4])
@pytest.mark.parametrize("name", ["global", "global, synchronised norm", "sequence, synchronised norm"])
def test_ranks_together_equal_one_process_with_the_whole_batch(launched, name: str, world: int) -> None:
    assert_equal(launched(name, world), gradients(CASES[name]))


def test_plain_batch_norm_differs_from_one_process_as_documented(launched) -> None:
    with pytest.raises(AssertionError, match="greedy"):
        assert_equal(launched("global, plain norm", 2), gradients(CASES["global, plain norm"]))


@pytest.mark.parametrize("world", [2, 4])
def test_bf16_gradients_are_near(launched, world: int) -> None:
    compressed, exact = launched("batch in bf16", world), mean_of_shares(CASES["batch"], world)
    assert_equal(compressed, exact, tolerance=0.02)
    with pytest.raises(AssertionError):
        assert_equal(compressed, exact, tolerance=1e-5)


def test_accumulation_is_the_mean_over_the_parts() -> None:
    assert_equal(gradients(CASES["batch accumulated"]), mean_of_shares(CASES["batch"], 2))


def test_local_backward_equals_the_backward_of_the_summed_loss() -> None:
    from simdist.models.encoder import GreedyEncoder
    from simdist.training.step import ModuleTrainer

    encoder = GreedyEncoder(replace(MODEL, batch_norm=False), LOSS, seed=5).double()
    x = torch.randn(CLIPS, SAMPLES, 1, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    draws, losses = FixedDraws(CASES["batch"], 0, CLIPS), []
    for number, module in enumerate(encoder.stack):
        trainer = ModuleTrainer(number, module, module, None, None, None)  # pyright: ignore[reportArgumentType]
        outcome = module(x, draws.draw("train", 0, trainer, CLIPS, FRAMES), 0.1)
        losses.append(outcome.loss)
        x = outcome.latent
    torch.stack(losses).sum().backward()
    joint = {name: p.grad for name, p in encoder.named_parameters() if p.grad is not None}
    local = gradients(CASES["batch"])
    assert_equal({name: local[name] for name in joint}, joint, tolerance=1e-13)
    assert joint.keys() == local.keys()
