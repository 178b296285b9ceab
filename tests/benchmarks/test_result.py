"""Training with simdist and with the stand-in, same weights and draws: the same losses, step after step."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from benchmarks.result import outcomes, train_both
from simdist.config.schema import Config


def test_losses_stay_the_same_while_both_learn(tiny: Config) -> None:
    config = replace(tiny, data=replace(tiny.data, cache="memory"), optim=replace(tiny.optim, lr=2e-3))
    seconds, losses = train_both(config, steps=10)
    assert (seconds > 0).all()
    assert np.abs(losses[0] / losses[1] - 1).max() < 1e-3
    assert (losses[0, -1] < losses[0, 0]).all()  # they train; equal losses of frozen weights would say nothing
    assert not np.array_equal(losses[0], losses[1])  # two computations


def test_outcomes_tell_the_time_of_the_whole_run(tiny: Config) -> None:
    minutes, waiting, faster, difference = outcomes(tiny, steps=3)
    assert minutes.value > 0
    assert 0 < waiting.value < 100
    assert f"{tiny.train.max_steps} steps of" in minutes.detail
    assert faster.value > 0
    assert difference.is_met
