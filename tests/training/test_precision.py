"""bf16 against float32 from one seed, over 200 steps; and what must stay float32."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from accelerate.state import AcceleratorState

from simdist.config.schema import Config
from simdist.train.__main__ import train
from tests.support.training import lines

pytestmark = pytest.mark.usefixtures("fresh_process")


def losses(config: Config, folder: Path) -> np.ndarray:
    """(recorded steps, modules) InfoNCE of a whole run."""
    assert train(config, folder) == 0
    AcceleratorState._reset_state(reset_partial_state=True)
    return np.array(
        [[module["nce"] for module in line["modules"]] for line in lines(folder) if line["kind"] == "train"]
    )


def test_loss_curves_in_bf16_and_float32_stay_together(tiny: Config, tmp_path: Path) -> None:
    loop = replace(tiny.train, max_steps=200, validate_every=0, log_every=5)
    config = replace(tiny, train=loop, optim=replace(tiny.optim, lr=2e-3), model=replace(tiny.model, width=32))
    exact = losses(config, tmp_path / "float32")
    mixed = losses(replace(config, train=replace(loop, precision="bf16")), tmp_path / "bf16")
    assert np.abs(mixed[0] / exact[0] - 1).max() < 0.01  # one forward
    assert not np.array_equal(mixed[0], exact[0])  # it is bf16 that ran
    smooth = [np.stack([np.convolve(curve, np.ones(5) / 5, "valid") for curve in run.T]) for run in (exact, mixed)]
    assert np.abs(smooth[1] / smooth[0] - 1).max() < 0.1  # chaotic from there on, but the same curve
    assert mixed[-5:].mean() < 0.6 * mixed[0].mean()  # and it learns
