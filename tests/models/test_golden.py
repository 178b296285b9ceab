"""Representations, losses and gradients of upstream's own code, with its recorded draws."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from simdist.config.schema import Config, LossConfig, ModelConfig
from simdist.models.encoder import GreedyEncoder
from simdist.models.module import RandomInputs
from simdist.models.reference_checkpoints import load_reference_checkpoint, reference_names

WINDOW, STEPS, NEGATIVES = 128, 10, 10


@pytest.fixture(scope="module")
def golden(shared: Path) -> dict[str, Tensor]:
    with np.load(shared / "golden" / "sim.npz") as stored:
        return {name: torch.from_numpy(stored[name]) for name in stored}


@pytest.fixture
def encoder(shared: Path) -> GreedyEncoder:
    return load_reference_checkpoint(shared / "golden" / "sim_reference.ckpt", Config())[0]


def relative(ours: Tensor, theirs: Tensor) -> float:
    return float((ours - theirs).norm() / theirs.norm())


def recorded_draws(golden: dict[str, Tensor], m: int, batch: int, frames: int) -> RandomInputs:
    """Upstream's draws for module m: each step's anchors are rows of their own, negatives count from the end."""
    window = min(frames, WINDOW)
    start = int(golden["train/windows"][m]) if frames > WINDOW else 0
    negatives = torch.zeros(batch, window - 1, STEPS, NEGATIVES, dtype=torch.int64)
    permutations = [golden[f"train/perm/{m * NEGATIVES + n}"] for n in range(NEGATIVES)]
    for k in range(1, STEPS + 1):
        rows = batch * (window - k)
        for n, permutation in enumerate(permutations):
            negatives[:, : window - k, k - 1, n] = permutation[len(permutation) - rows :].view(batch, window - k)
    noise = [golden[f"train/normal/{2 * m + i}"] for i in range(2)] if m < 3 else []
    return RandomInputs(start, negatives, *(n if i else n[:, start : start + window] for i, n in enumerate(noise)))


@pytest.mark.parametrize("module", range(4))
def test_representations_equal_upstream(golden: dict[str, Tensor], encoder: GreedyEncoder, module: int) -> None:
    encoder.eval()
    context = encoder.encode(golden["audio"], module=module)
    assert context.shape == golden[f"eval/module{module}/context"].shape
    assert relative(context, golden[f"eval/module{module}/context"]) < 1e-4
    if module < 3:
        below = golden["audio"].transpose(1, 2) if module == 0 else golden[f"eval/module{module - 1}/latent"]
        with torch.no_grad():
            encoding = encoder.stack[module].encode(below)
        assert encoding.log_var is not None
        assert relative(encoding.log_var, golden[f"eval/module{module}/log_var"]) < 1e-4
        assert relative(encoding.mu, golden[f"eval/module{module}/mu"]) < 1e-4


def test_losses_and_gradients_equal_upstream(golden: dict[str, Tensor], encoder: GreedyEncoder) -> None:
    encoder.train()
    x = golden["audio"].transpose(1, 2)
    for m, (module, frames) in enumerate(zip(encoder.stack, (1023, 257, 128, 128), strict=True)):
        outcome = module(x, recorded_draws(golden, m, len(x), frames), beta=0.01)
        outcome.loss.backward()
        x = outcome.latent
        assert outcome.nce.item() == pytest.approx(golden["train/nce"][m].item(), rel=1e-4)
        assert outcome.kl.item() == pytest.approx(golden["train/kld"][m].item(), rel=1e-4)
        assert outcome.loss.item() == pytest.approx(golden["train/loss"][m].item(), rel=1e-4)
    theirs = reference_names(encoder)
    compared = 0
    for name, parameter in encoder.named_parameters():
        assert parameter.grad is not None, name
        expected = golden[f"train/grad/{theirs[name]}"]
        scale = max(float(expected.norm()), 1e-6)  # biases before BatchNorm have no gradient but rounding
        assert float((parameter.grad - expected).norm()) / scale < 1e-4 or float(expected.abs().max()) < 1e-5, name
        compared += 1
    assert compared == sum(name.startswith("train/grad/") for name in golden)


def test_golden_needs_the_objective_it_was_made_with(golden: dict[str, Tensor]) -> None:
    """The comparison above can fail: other weights give other representations."""
    other = GreedyEncoder(replace(ModelConfig(), width=32, context_width=16), LossConfig()).eval()
    assert relative(other.encode(golden["audio"]), golden["eval/module3/context"]) > 0.1
