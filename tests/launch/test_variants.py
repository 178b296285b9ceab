"""Lists, grids, draws and seeds become configurations."""

from __future__ import annotations

import itertools

import pytest

from launch.variants import differing, expand
from simdist.config.load import CONFIGS, read_config
from simdist.config.schema import identity
from tests.support.sweeps import sweep_file


def test_a_grid_is_every_combination_once_a_seed() -> None:
    sweep = sweep_file(grid={"loss.beta": [0, 0.5], "optim.lr": ["1e-4", 1e-3]}, seeds=[3, 4])
    found = [(v.config.loss.beta, v.config.optim.lr, v.config.seed) for v in expand(sweep)]
    assert found == list(itertools.product([0.0, 0.5], [1e-4, 1e-3], [3, 4]))


def test_variants_have_their_own_base_and_keys_and_are_crossed_with_the_grid() -> None:
    variants = [
        {"name": "sim"},
        {"name": "gim", "base": "gim_librispeech", "config": {"train.epochs": 3}},
    ]
    sweep = sweep_file(variants=variants, grid={"optim.lr": [1e-4, 1e-3]}, seeds=[0], config={"data.crop": 10_240})
    found = expand(sweep)
    assert [v.varied["variant"] for v in found] == ["sim", "sim", "gim", "gim"]
    assert [v.config.model.head for v in found] == ["variational", "variational", "mu", "mu"]
    assert [v.config.train.epochs for v in found] == [100.0, 100.0, 3.0, 3.0]
    assert {v.config.data.crop for v in found} == {10_240}
    assert differing(found) == ["variant", "optim.lr"]


def test_draws_are_within_bounds_and_depend_on_seed_and_number_alone() -> None:
    draw = {
        "optim.lr": {"log_uniform": [1e-5, 1e-2]},
        "loss.beta": {"uniform": [0.1, 0.2]},
        "loss.num_negatives": {"integer": [5, 8]},
        "loss.window": {"choice": [64, 128]},
    }
    few, many = (expand(sweep_file(grid={}, seeds=[0], random={"samples": n, "draw": draw})) for n in (3, 40))
    assert [v.run for v in few] == [v.run for v in many[:3]]
    assert all(1e-5 <= v.config.optim.lr <= 1e-2 for v in many)
    assert sum(v.config.optim.lr < 1e-3 for v in many) > 20  # two thirds of the logarithm's range
    assert all(0.1 <= v.config.loss.beta <= 0.2 for v in many)
    assert {v.config.loss.num_negatives for v in many} == {5, 6, 7, 8}
    assert {v.config.loss.window for v in many} == {64, 128}
    other = expand(sweep_file(grid={}, seeds=[0], random={"samples": 3, "draw": draw, "seed": 1}))
    assert {v.run for v in other}.isdisjoint(v.run for v in few)


def test_equal_combinations_are_one_run() -> None:
    assert len(expand(sweep_file(grid={"loss.beta": [0.001, "1e-3"]}, seeds=[0]))) == 1


def test_a_run_is_called_as_the_training_would_call_it() -> None:
    sweep = sweep_file(base="gim_librispeech", config={}, grid={}, seeds=[0])
    (variant,) = expand(sweep)
    by_hand = read_config(CONFIGS / "gim_librispeech.yaml")
    assert variant.config.train.precision == "no"  # what `auto` becomes without accelerate's option
    assert variant.run.startswith("gim_librispeech-")
    assert identity(by_hand) != identity(variant.config)
    from dataclasses import replace

    resolved = replace(by_hand, train=replace(by_hand.train, precision="no"))
    assert variant.run == f"gim_librispeech-{identity(resolved)[:8]}"


@pytest.mark.parametrize("value", ["no", False])
def test_a_precision_of_no_is_no_truth_value(value: object) -> None:
    """YAML reads a bare `no` as false."""
    (variant,) = expand(sweep_file(grid={}, seeds=[0], config={"name": "small", "train.precision": value}))
    assert variant.config.train.precision == "no"
