"""What single modules have of their own: beta, learning rate, negatives; and noise on the audio of a step."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from simdist.config.load import CONFIGS, read_config
from simdist.config.schema import Config, ModuleConfig, identity
from simdist.models.encoder import GreedyEncoder
from simdist.runs.schedule import Schedule
from simdist.training.distributed import build_accelerator
from simdist.training.random_streams import RandomStreams
from simdist.training.step import ModuleTrainer, Step, own_settings, prepare_module, train_step, validation_step
from tests.support.training import lines, train, weights

pytestmark = pytest.mark.usefixtures("fresh_process")


@pytest.fixture(scope="module")
def small() -> Config:
    """A SIM of two modules."""
    config = read_config(CONFIGS / "sim_librispeech.yaml", CONFIGS / "debug.yaml")
    model = replace(config.model, modules=config.model.modules[:2])
    optim = replace(config.optim, lr=1e-3, schedule="exponential", lr_decay=0.5)
    return replace(config, model=model, optim=optim, loss=replace(config.loss, beta=0.01, beta_warmup_epochs=2.0))


def with_second(config: Config, **own: float | int) -> Config:
    """Module 1 has something of its own."""
    first, second = config.model.modules
    return replace(config, model=replace(config.model, modules=(first, replace(second, **own))))


def take(config: Config, number: int = 5) -> tuple[list[dict[str, Tensor]], list[Tensor], list[ModuleTrainer]]:
    """Metrics of one step, the largest change of each module's weights, and its trainers."""
    accelerator, encoder = build_accelerator("no"), GreedyEncoder.from_config(config)
    trainers = [
        prepare_module(accelerator, m, module, config.optim, False, **own_settings(module.config, config.optim))
        for m, module in enumerate(encoder.stack)
    ]
    before = [torch.cat([p.detach().flatten().clone() for p in module.parameters()]) for module in encoder.stack]
    audio = torch.randn(4, config.data.crop, 1, generator=torch.Generator().manual_seed(0)) * 0.1
    step = replace(Step.at(number, Schedule(config, 4 * config.data.batch_size)), measure=True)
    frames = config.model.num_frames(config.data.crop)
    outcome = train_step(trainers, audio, frames, step, RandomStreams(0, 0, torch.device("cpu")))
    after = [torch.cat([p.detach().flatten() for p in module.parameters()]) for module in encoder.stack]
    return outcome.metrics, [(b - a).abs().max() for a, b in zip(before, after, strict=True)], trainers


def test_a_module_may_have_a_beta_of_its_own(small: Config) -> None:
    """After 5 steps of 4 to an epoch, 1.25 of 2 epochs of warm-up are over."""
    metrics, _, trainers = take(with_second(small, beta=0.3))
    for values, beta in zip(metrics, (0.01, 0.3), strict=True):
        weight = beta * 1.25 / 2
        torch.testing.assert_close(values["loss"] - values["nce"], weight * values["kl"], rtol=1e-3, atol=1e-5)
    audio, frames = torch.randn(2, small.data.crop, 1), small.model.num_frames(small.data.crop)
    streams = RandomStreams(0, 0, torch.device("cpu"))
    validated = validation_step(trainers, audio, frames, 0, streams, Step(8, 1e-3, 0.01))
    torch.testing.assert_close(
        validated[1]["loss"] - validated[1]["nce"], 0.3 * validated[1]["kl"], rtol=1e-3, atol=1e-5
    )
    assert take(with_second(small, beta=0.0))[0][1]["loss"] == take(with_second(small, beta=0.0))[0][1]["nce"]


def test_a_module_may_have_a_learning_rate_of_its_own(small: Config) -> None:
    """Adam's first step is as large as its learning rate, which has halved after one epoch."""
    _, changes, _ = take(with_second(small, lr=0.02))
    assert [float(change) for change in changes] == pytest.approx([0.0005, 0.01], rel=1e-3)


def test_a_module_may_have_negatives_of_its_own(small: Config) -> None:
    encoder = GreedyEncoder.from_config(with_second(small, num_negatives=3, prediction_steps=2))
    for module, (negatives, steps) in zip(encoder.stack, ((10, 10), (3, 2)), strict=True):
        draws = module.draw(2, 40, torch.Generator().manual_seed(0), torch.Generator().manual_seed(0))
        assert (draws.negatives.shape[-1], module.steps) == (negatives, steps)


def test_own_values_make_another_run_and_their_absence_none(small: Config) -> None:
    assert identity(with_second(small, lr=0.02)) != identity(small)
    assert identity(with_second(small)) == identity(small)
    for key, value, allowed in (("lr", 0, "positive or null"), ("beta", -1, "0 or more"), ("num_negatives", 0, "1")):
        with pytest.raises(ValueError, match=rf"module.{key} is {value}.*{allowed}"):
            ModuleConfig(gru=True, **{key: value})  # pyright: ignore[reportArgumentType]


def test_noise_is_of_the_step_and_not_in_validation(tiny: Config, tmp_path: Path) -> None:
    short = replace(tiny, train=replace(tiny.train, max_steps=8, checkpoint_every=100))
    noisy = replace(short, data=replace(short.data, noise=0.05))
    assert identity(replace(short, data=replace(short.data, noise=0.0))) == identity(short) != identity(noisy)
    train(noisy, tmp_path / "whole")
    assert train(noisy, tmp_path / "parts", stop_at=3)[1] == 15
    train(noisy, tmp_path / "parts")
    whole, parts = weights(tmp_path / "whole", 8), weights(tmp_path / "parts", 8)
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
    assert lines(tmp_path / "whole") == lines(tmp_path / "parts")


def test_noise_has_its_standard_deviation(tiny: Config, tmp_path: Path) -> None:
    from simdist.runs.folder import open_run
    from tests.support.training import build_trainer

    noisy = replace(tiny, data=replace(tiny.data, noise=0.05))
    task = build_trainer(open_run(tmp_path / "run", noisy)).task
    audio = torch.zeros(4, 5000, 1)
    first, again, second = (task._with_noise(audio, step) for step in (0, 0, 1))  # pyright: ignore
    assert float(first.std()) == pytest.approx(0.05, rel=0.02)
    assert torch.equal(first, again)
    assert abs(float((first * second).mean())) < 1e-4


def test_noise_and_cached_latents_exclude_each_other(tiny: Config) -> None:
    loop = replace(tiny.train, schedule="stagewise", cache_latents=True)
    with pytest.raises(ValueError, match=r"data.noise=0.05 requires train.cache_latents=False"):
        replace(tiny, data=replace(tiny.data, noise=0.05), train=loop)
