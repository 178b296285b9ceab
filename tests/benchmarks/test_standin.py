"""The step that simdist is measured against computes the same thing: losses and gradients, for the same draws."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from benchmarks.standin import Recorded, StandIn, batched_info_nce
from simdist.config.load import CONFIGS, read_config
from simdist.config.schema import Config
from simdist.models.encoder import GreedyEncoder
from simdist.models.infonce import info_nce
from simdist.models.module import RandomInputs

CLIPS, BETA = 3, 0.01


def small(preset: str) -> Config:
    config = read_config(CONFIGS / f"{preset}.yaml")
    model = replace(config.model, width=12, context_width=9)
    return replace(config, data=replace(config.data, crop=min(config.data.crop, 10_240)), model=model)


def recorded(config: Config) -> list[Recorded]:
    """Draws of every module, as upstream makes them."""
    draws = []
    for frames in config.model.num_frames(config.data.crop):
        window = min(frames, config.loss.window or frames)
        noise = [torch.randn(CLIPS, frames, config.model.width, dtype=torch.float64) for _ in range(2)]
        permutations = [torch.randperm(CLIPS * frames) for _ in range(config.loss.num_negatives)]
        draws.append(Recorded(int(torch.randint(frames - window + 1, ())), noise, permutations))
    return draws


def as_draws(draw: Recorded, frames: int, window: int, steps: int) -> RandomInputs:
    """The same numbers as simdist takes them: negatives of an anchor and step, (B, A, K, N)."""
    negatives = torch.zeros(CLIPS, window - 1, steps, len(draw.permutations), dtype=torch.int64)
    for k in range(1, steps + 1):
        rows = CLIPS * (window - k)
        for n, permutation in enumerate(draw.permutations):
            negatives[:, : window - k, k - 1, n] = permutation[-rows:].view(CLIPS, window - k)
    return RandomInputs(draw.start, negatives, draw.noise[0][:, draw.start : draw.start + window], draw.noise[1])


PRESETS = ["sim_librispeech", "gim_librispeech", "cpc_librispeech", "vgim_thesis", "cpc_extra_layers_artificial_speech"]


@pytest.mark.parametrize("preset", PRESETS)
def test_losses_and_gradients_are_the_same(preset: str) -> None:
    config = small(preset)
    encoder, standin = GreedyEncoder(config.model, config.loss).double(), StandIn(config).double()
    standin.load_state_dict(encoder.state_dict())
    audio, draws = torch.randn(CLIPS, 1, config.data.crop, dtype=torch.float64) * 0.1, recorded(config)
    losses, nces = standin.losses(audio, BETA, draws)
    losses.sum().backward()
    x, frames = audio.transpose(1, 2), config.model.num_frames(config.data.crop)
    for m, module in enumerate(encoder.stack):
        outcome = module(x, as_draws(draws[m], frames[m], module.window(frames[m]), module.steps), BETA)
        outcome.loss.backward()
        assert outcome.nce.item() == pytest.approx(nces[m].item(), rel=1e-9)
        assert outcome.loss.item() == pytest.approx(losses[m].item(), rel=1e-9)
        x = outcome.latent
    theirs = dict(standin.named_parameters())
    for name, parameter in encoder.named_parameters():
        expected = theirs[name].grad
        assert expected is not None
        assert parameter.grad is not None
        torch.testing.assert_close(parameter.grad, expected, rtol=1e-7, atol=1e-9, msg=name)


def test_the_plain_batched_product_is_info_nce() -> None:
    clips, frames, window, steps, width = 2, 9, 7, 3, 4
    latent, context = torch.randn(clips, frames, width), torch.randn(clips, window, width)
    weight, negatives = torch.randn(steps * width, width), torch.randint(clips * frames, (clips, window - 1, 5))
    expected, _ = info_nce(context, latent, weight, negatives, start=0, steps=steps)
    assert batched_info_nce(context, latent, weight, negatives, steps).item() == pytest.approx(expected.item(), 1e-5)


def test_a_step_of_the_stand_in_learns() -> None:
    config = small("sim_librispeech")
    standin = StandIn(replace(config, optim=replace(config.optim, lr=1e-2)))
    audio = torch.randn(CLIPS, 1, config.data.crop)
    nces = [standin.step(audio, 0.0) for _ in range(9)]
    assert (nces[-1] < nces[0]).all()
