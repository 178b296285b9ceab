"""Untrained baselines: BatchNorm statistics from training audio, so that features keep their scale."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from simdist.config.load import CONFIGS, read_config
from simdist.config.schema import Config
from simdist.data.splits import open_split
from simdist.models.encoder import GreedyEncoder, hash_weights
from simdist.probe.feature_extractors import contexts
from simdist.training.calibration import calibrated, norms_of, set_statistics

CPU = torch.device("cpu")


def sim(speech: Path | None = None) -> Config:
    """SIM of width 32, untrained."""
    config = read_config(CONFIGS / "sim_librispeech.yaml")
    data = replace(config.data, root=str(speech), crop=5120)
    return replace(config, data=data, model=replace(config.model, width=32, context_width=32))


def encoder_of(config: Config) -> GreedyEncoder:
    return GreedyEncoder(config.model, config.loss, config.seed).eval()


@torch.no_grad()
def scales(encoder: GreedyEncoder, audio: torch.Tensor) -> list[float]:
    """Standard deviation over clips and frames of each module's features, averaged over channels."""
    return [float(found.flatten(0, 1).std(0).mean()) for found in contexts(encoder, audio, None)]


def test_features_of_an_untrained_encoder_do_not_shrink(speech: Path) -> None:
    """Without calibration they are small at module 0 and smaller at module 2; with it all modules have one scale."""
    config = sim(speech)
    split = open_split(speech, "train")
    audio = 0.05 * torch.randn(16, 1, 5120, generator=torch.Generator().manual_seed(0))
    plain, made = encoder_of(config), encoder_of(config)
    found = calibrated(made, config, split, CPU)
    assert found is not None
    assert found.clips == min(128, len(split.index))
    assert found.batches == found.clips // config.data.batch_size
    assert found.fingerprint == split.manifest.fingerprint
    before, after = scales(plain, audio)[:3], scales(made, audio)[:3]
    assert 0.01 > before[0] > 2 * before[2]
    assert min(after) > 0.1
    assert max(after) < 3 * min(after)


def test_statistics_are_the_means_over_the_batches() -> None:
    """The second layer's, against its input written out: ReLU of the normalized first layer, batch by batch."""
    config = sim()
    encoder = encoder_of(config)
    batches = [torch.randn(4, 1, 5120, generator=torch.Generator().manual_seed(n)) * (n + 1) for n in range(3)]
    set_statistics(encoder, batches)
    first, second = (layer for layer in encoder.stack[0].layers)
    assert isinstance(first.conv, nn.Conv1d)
    assert isinstance(second.conv, nn.Conv1d)
    means, variances = [], []
    for audio in batches:
        hidden = first.conv(audio)
        hidden = nn.functional.batch_norm(hidden, None, None, training=True).relu()
        hidden = second.conv(hidden)
        means.append(hidden.mean((0, 2)))
        variances.append(hidden.transpose(0, 1).flatten(1).var(1))
    norm = second.norm
    assert isinstance(norm, nn.BatchNorm1d)
    assert norm.running_mean is not None
    assert norm.running_var is not None
    assert torch.allclose(norm.running_mean, torch.stack(means).mean(0), atol=1e-5)
    assert torch.allclose(norm.running_var, torch.stack(variances).mean(0), rtol=1e-3)
    assert norm.momentum == 0.1
    assert not encoder.training


def test_it_is_the_same_every_time_and_of_the_seed(speech: Path) -> None:
    config, split = sim(speech), open_split(speech, "train")
    made = [encoder_of(config) for _ in range(2)]
    for encoder in made:
        calibrated(encoder, config, split, CPU)
    assert hash_weights(made[0]) == hash_weights(made[1])
    other = encoder_of(config)
    calibrated(other, replace(config, seed=1), split, CPU)  # the same weights on other crops
    assert hash_weights(made[0]) != hash_weights(other)


def test_an_encoder_without_batch_norm_has_nothing_to_calibrate() -> None:
    config = read_config(CONFIGS / "vgim_thesis.yaml")
    encoder = encoder_of(config)
    assert norms_of(encoder) == []
    split: object = None  # is not read
    assert calibrated(encoder, config, split, CPU) is None  # pyright: ignore[reportArgumentType]
