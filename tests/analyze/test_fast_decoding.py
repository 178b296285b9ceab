"""The fast decoder is the decoder."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from simdist.analyze.fast_decoding import FastDecoder
from simdist.config.load import CONFIGS, read_config
from simdist.models.decoder import Decoder


@pytest.mark.parametrize(
    ("preset", "module"),
    [("sim_librispeech", 0), ("sim_librispeech", 1), ("sim_librispeech", 2), ("vgim_thesis", 0), ("vgim_thesis", 1)],
)
@pytest.mark.parametrize("samples", [5120, 8801])
def test_it_decodes_the_same(preset: str, module: int, samples: int) -> None:
    model = replace(read_config(CONFIGS / f"{preset}.yaml").model, width=6)
    decoder = Decoder(model, module, 10240, seed=1)
    frames = model.num_frames(samples)[module]
    latent = torch.randn(3, frames, 6, generator=torch.Generator().manual_seed(0))
    expected = decoder.decode(latent, samples)[:, 0]
    assert expected.shape == (3, samples)
    assert torch.allclose(FastDecoder(decoder, frames, num_samples=samples)(latent), expected, atol=1e-6)
    coarse = FastDecoder(decoder, frames, torch.bfloat16, samples)(latent).float()
    assert (coarse - expected).square().mean() < 1e-3 * expected.square().mean()


def test_without_a_length_it_is_the_crops() -> None:
    model = replace(read_config(CONFIGS / "sim_librispeech.yaml").model, width=6)
    decoder = Decoder(model, 2, 5120)
    latent = torch.randn(2, model.num_frames(5120)[2], 6)
    assert torch.allclose(FastDecoder(decoder, latent.shape[1])(latent), decoder.decode(latent)[:, 0], atol=1e-6)
