"""Learning rate, beta and events as functions of the step."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from simdist.config.schema import Config, DataConfig, LossConfig, OptimConfig, TrainConfig
from simdist.runs.schedule import Schedule


def schedule(num_samples: int = 100, batch_size: int = 8, **sections: object) -> Schedule:
    config = replace(Config(), data=DataConfig(batch_size=batch_size), **sections)  # pyright: ignore[reportArgumentType]
    return Schedule(config, num_samples)


def test_steps_cover_the_epochs() -> None:
    assert schedule(train=TrainConfig(epochs=2)).total_steps == 25
    assert schedule(train=TrainConfig(epochs=3)).total_steps == 38  # 37.5
    assert schedule(train=TrainConfig(epochs=3, max_steps=7)).total_steps == 7
    assert schedule(680, 171, train=TrainConfig(epochs=800)).total_steps == 3182  # the thesis: 3181.3


def test_an_epoch_of_full_batches() -> None:
    """The thesis: three batches of 171 of 680 words, 800 times, and a learning rate that falls after each three."""
    data = DataConfig(batch_size=171, epoch="full_batches")
    optim = OptimConfig(lr=1.0, schedule="exponential", lr_decay=0.5)
    table = Schedule(replace(Config(), data=data, train=TrainConfig(epochs=800), optim=optim), 680)
    assert table.total_steps == 2400
    assert [table.lr(step) for step in (0, 2, 3, 5, 6)] == [1, 1, 0.5, 0.5, 0.25]
    assert table.epoch_after(3) == 1.0


def test_exponential_decay_falls_once_an_epoch() -> None:
    table = schedule(optim=OptimConfig(lr=0.01, schedule="exponential", lr_decay=0.5))
    assert [table.lr(step) for step in (0, 12, 13, 25, 37, 38)] == [0.01, 0.01, 0.005, 0.0025, 0.0025, 0.00125]


def test_cosine_with_warm_up() -> None:
    table = schedule(optim=OptimConfig(lr=1.0, schedule="cosine", warmup_epochs=0.8), train=TrainConfig(epochs=8))
    rates = [table.lr(step) for step in range(table.total_steps)]
    assert rates[:10] == pytest.approx([(step + 1) / 10 for step in range(10)])
    assert rates[10] == pytest.approx(1.0)
    assert rates[55] == pytest.approx(0.5 * (1 + math.cos(math.pi * 0.5)))
    assert rates[-1] < 1e-3
    assert rates[10:] == sorted(rates[10:], reverse=True)


def test_constant_rate_and_beta_warm_up() -> None:
    table = schedule(loss=LossConfig(beta=0.1, beta_warmup_epochs=4))
    assert table.lr(0) == table.lr(999) == 2e-4
    assert table.beta(0) == 0
    assert table.beta(25) == pytest.approx(0.05)
    assert table.beta(50) == table.beta(99) == 0.1


def test_validation_falls_due_once_an_epoch_and_at_the_end() -> None:
    table = schedule(train=TrainConfig(epochs=3.3, validate_every=1))
    assert [s for s in range(table.total_steps + 1) if table.validates(s)] == [13, 25, 38, 42]
    assert not any(schedule(train=TrainConfig(validate_every=0)).validates(s) for s in range(60))
