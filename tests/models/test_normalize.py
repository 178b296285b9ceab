"""`data.normalize`: whoever gives an encoder audio, it is normalized once, inside the encoder."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor

from simdist.config.decoder import DecodingConfig, defaults_for
from simdist.config.load import CONFIGS, read_config
from simdist.config.schema import Config, DataConfig, identity
from simdist.core.errors import InputError
from simdist.decode.frozen import FrozenEncoder
from simdist.loading import load_weights
from simdist.models.encoder import GreedyEncoder, hash_weights
from simdist.probe.feature_extractors import contexts, untrained_extractor
from simdist.training.random_streams import RandomStreams
from simdist.training.step import Step, frozen_latent, prepare_module, train_step, validation_step

MEAN, STD = 0.01, 0.05
AUDIO = MEAN + STD * torch.randn(2, 1, 10_240, generator=torch.Generator().manual_seed(0))
NORMALIZED = ((AUDIO.double() - MEAN) / STD).float()
PRESETS = ["gim_lowe_librispeech", "sim_librispeech", "vgim_thesis"]  # one layer, two layers, a pooling in the stem


def configs(preset: str) -> tuple[Config, Config]:
    """With and without normalization."""
    config = read_config(CONFIGS / f"{preset}.yaml", CONFIGS / "debug.yaml")
    normal = replace(config, data=replace(config.data, crop=10_240, normalize=(MEAN, STD)))
    return normal, replace(normal, data=replace(normal.data, normalize=None))


def encoders(preset: str) -> tuple[GreedyEncoder, GreedyEncoder]:
    normal, raw = (GreedyEncoder.from_config(config).eval() for config in configs(preset))
    return normal, raw


@pytest.mark.parametrize("preset", PRESETS)
def test_every_way_through_an_encoder_normalizes_once(preset: str) -> None:
    normal, raw = encoders(preset)
    expected = [raw.encode(NORMALIZED, module=number) for number in range(len(raw.stack))]
    assert float((raw.encode(AUDIO, module=0) - expected[0]).norm() / expected[0].norm()) > 0.3  # it matters
    torch.testing.assert_close(normal.encode(AUDIO), expected[-1], rtol=1e-4, atol=1e-5)
    with torch.no_grad():
        for ours, wanted in zip(contexts(normal, AUDIO, None), expected, strict=True):  # probes and analyses
            torch.testing.assert_close(ours, wanted, rtol=1e-4, atol=1e-5)
    frozen, other = (FrozenEncoder(encoder, 1, True) for encoder in (normal, raw))
    latents = [
        each.latent(audio.transpose(1, 2), torch.Generator().manual_seed(1))
        for each, audio in ((frozen, AUDIO), (other, NORMALIZED))
    ]
    torch.testing.assert_close(*latents, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("preset", PRESETS)
def test_training_and_validation_normalize(preset: str) -> None:
    def work(encoder: GreedyEncoder, config: Config, audio: Tensor) -> list[Tensor]:
        streams, frames = RandomStreams(0, 0, torch.device("cpu")), config.model.num_frames(10_240)
        trainers = [
            prepare_module(Accelerator(cpu=True), number, module, config.optim, compress=False)
            for number, module in enumerate(encoder.stack)
        ]
        x, step = audio.transpose(1, 2), Step(0, 1e-3, 0.1, measure=True)
        measured = train_step(trainers, x, frames, step, streams).metrics
        measured += validation_step(trainers, x, frames, 1, streams, step)
        return [frozen_latent(trainers, x, 2, streams), *(metrics["nce"] for metrics in measured)]

    (normal, raw), (config, _) = encoders(preset), configs(preset)
    for ours, wanted in zip(work(normal, config, AUDIO), work(raw, config, NORMALIZED), strict=True):
        torch.testing.assert_close(ours, wanted, rtol=1e-3, atol=1e-3)


def test_it_is_stored_with_the_weights() -> None:
    normal, raw = encoders("gim_lowe_librispeech")
    assert normal.state_dict().keys() - raw.state_dict().keys() == {"greedy.0.audio_mean", "greedy.0.audio_std"}
    assert hash_weights(normal) != hash_weights(raw)  # features of the two are never taken for each other
    identities = [untrained_extractor(config).identity for config in configs("gim_lowe_librispeech")]
    assert identities[0] != identities[1]
    with pytest.raises(InputError, match=r"audio_mean is missing there and \(\) in this config"):
        load_weights(normal, raw.state_dict(), "a checkpoint")
    with pytest.raises(InputError, match=r"audio_mean is \(\) there and missing in this config"):
        load_weights(raw, normal.state_dict(), "a checkpoint")
    config = configs("gim_lowe_librispeech")[0]
    other = GreedyEncoder(config.model, config.loss, normalize=(MEAN, 2 * STD))
    with pytest.raises(InputError, match=r"audio_std is 0\.05 there and 0\.1 in this config. Set data\.normalize"):
        load_weights(other, normal.state_dict(), "a checkpoint")


def test_a_decoder_has_no_normalization_of_its_own() -> None:
    config = configs("gim_lowe_librispeech")[0]
    assert defaults_for(config).data == replace(config.data, normalize=None)
    with pytest.raises(ValueError, match=r"data\.normalize belongs to the encoder"):
        DecodingConfig(data=config.data)


@pytest.mark.parametrize("values", [(0.0, 0.0), (0.0, -1.0), (float("nan"), 1.0), (0.0, float("inf"))])
def test_impossible_values(values: tuple[float, float]) -> None:
    with pytest.raises(ValueError, match=r"data\.normalize is .*\[mean, std\] with a positive"):
        DataConfig(normalize=values)


def test_a_run_with_it_has_a_name_of_its_own() -> None:
    normal, raw = configs("sim_librispeech")
    assert identity(normal) != identity(raw)
