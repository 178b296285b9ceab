"""Decoders mirror every preset, and equal upstream's where both exist."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from simdist.config.load import CONFIGS, read_config
from simdist.config.schema import LayerConfig, ModelConfig, ModuleConfig
from simdist.core.errors import InputError
from simdist.models.decoder import Decoder, mirrored
from simdist.models.encoder import GreedyEncoder

PRESETS = sorted({path.stem for path in CONFIGS.glob("*_*.yaml")})


@pytest.fixture(scope="module")
def golden(shared: Path) -> dict[str, Tensor]:
    with np.load(shared / "golden" / "decoder.npz") as stored:
        return {name: torch.from_numpy(stored[name]) for name in stored}


@pytest.mark.parametrize("module", range(3))
def test_outputs_equal_upstream(golden: dict[str, Tensor], module: int) -> None:
    decoder = Decoder(ModelConfig(width=32), module, crop=10_240)
    state = {
        name: golden[f"module{module}/weights/decoder.conv_transpose_{number}.{kind}"]
        for name in decoder.state_dict()
        for _, number, kind in [name.split(".")]
    }
    assert len(state) == sum(name.startswith(f"module{module}/weights") for name in golden)
    decoder.load_state_dict(state)
    expected = golden[f"module{module}/output"]
    output = decoder.decode(golden[f"module{module}/latent"].transpose(1, 2))
    assert output.shape == expected.shape
    assert float((output - expected).norm() / expected.norm()) < 1e-4


@pytest.mark.parametrize(("module", "layer"), [(0, 1), (1, 3), (2, 4)])
def test_decoders_at_cpcs_layers_are_those_of_sims_modules(golden: dict[str, Tensor], module: int, layer: int) -> None:
    """The reference implementation decodes SIM's three modules and these layers of CPC by the same architectures."""
    model = replace(read_config(CONFIGS / "cpc_artificial_speech.yaml").model, width=32)
    decoder = Decoder(model, 0, crop=10_240, layer=layer)
    sims = Decoder(ModelConfig(width=32), module, crop=10_240)
    assert decoder.in_channels == 32
    decoder.load_state_dict(sims.state_dict())
    latent = golden[f"module{module}/latent"].transpose(1, 2)
    assert torch.equal(decoder.decode(latent), sims.decode(latent))


def test_a_layer_that_cannot_be_decoded() -> None:
    with pytest.raises(InputError, match="module 0 has no layer 2; its layers are 0 to 1"):
        Decoder(ModelConfig(width=4), 0, crop=10_240, layer=2)


@pytest.mark.parametrize("preset", PRESETS)
def test_every_conv_module_of_every_preset_decodes_to_its_own_length(preset: str) -> None:
    config = read_config(CONFIGS / f"{preset}.yaml")
    model = replace(config.model, width=4, context_width=4)
    encoder = GreedyEncoder(model, config.loss).eval()
    for module, layers in enumerate(model.modules):
        if not layers.layers:
            continue
        decoder = Decoder(model, module, config.data.crop)
        for num_samples in (config.data.crop, 10_240, 10_247, 9_999, 8_800, 4_001):
            latent = torch.randn(1, model.num_frames(num_samples)[module], 4)
            assert decoder.decode(latent, num_samples).shape == (1, 1, num_samples)
        audio = torch.randn(2, 1, config.data.crop)
        with torch.no_grad():
            latent = encoder.stack[0].encode(audio.transpose(1, 2)).latent
            for above in encoder.stack[1 : module + 1]:
                latent = above.encode(latent).latent
        assert decoder.decode(latent).shape == audio.shape  # without being told


def test_linear_layers_of_kernel_one_are_not_mirrored() -> None:
    """CPC with SIM's number of layers has the decoders of SIM's modules, as in the reference implementation."""
    extra = read_config(CONFIGS / "cpc_extra_layers_artificial_speech.yaml").model
    assert mirrored(extra, 0) == mirrored(read_config(CONFIGS / "cpc_artificial_speech.yaml").model, 0)
    assert mirrored(extra, 0) == mirrored(ModelConfig(), 2)


def test_a_made_up_number_of_frames_encodes_back_to_as_many() -> None:
    model = ModelConfig(width=4)
    decoder = Decoder(model, 2, crop=20_480)
    for frames in (1, 2, 63, 64, 127, 300):
        waveform = decoder.decode(torch.randn(1, frames, 4))
        assert model.num_frames(waveform.shape[2])[2] == frames


def test_the_table_of_the_paper() -> None:
    """REFERENCE 3: kernels, strides, paddings, output paddings of module 2's decoder."""
    decoder = Decoder(ModelConfig(width=4), 2, crop=10_240)
    shapes = [(layer.kernel, layer.stride, layer.padding) for layer in mirrored(ModelConfig(), 2)]
    assert shapes == [(4, 2, 1), (4, 2, 2), (4, 2, 2), (8, 4, 2), (10, 5, 2)]
    assert decoder.output_paddings == [1, 0, 1, 3, 4]
    smoothed = [layer.kernel_size[0] for layer in Decoder(ModelConfig(width=4), 0, 10_240).stack]
    assert smoothed == [8, 3, 3, 10, 3, 3]


def test_pooling_is_mirrored_by_a_transposed_convolution() -> None:
    model = ModelConfig(
        width=4, modules=(ModuleConfig(layers=(LayerConfig(10, 4, 2), LayerConfig(8, 4, kind="maxpool"))),)
    )
    layers = [(layer.kernel_size[0], layer.stride[0]) for layer in Decoder(model, 0, 10_240).stack]
    assert layers == [(8, 4), (3, 1), (3, 1), (10, 4), (3, 1), (3, 1)]


def test_weights_belong_to_the_seed_and_take_nothing_from_the_global_generator() -> None:
    before = torch.random.get_rng_state()
    first, again, other = (Decoder(ModelConfig(width=4), 1, 10_240, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert torch.equal(first.stack[0].weight, again.stack[0].weight)
    assert not torch.equal(first.stack[0].weight, other.stack[0].weight)


@pytest.mark.parametrize(
    ("module", "words"),
    [
        (3, "module 3 is a GRU alone, whose context no convolution mirrors; decode one of 0, 1, 2"),
        (4, "module 4 does not exist"),
        (-1, "modules 0 to 3"),
    ],
)
def test_modules_that_cannot_be_decoded(module: int, words: str) -> None:
    with pytest.raises(InputError, match=words):
        Decoder(ModelConfig(width=4), module, 10_240)


@pytest.mark.parametrize(
    ("latent", "num_samples", "words"),
    [
        (torch.zeros(1, 64, 5), None, r"\(1, 64, 5\); module 2's are \(B, frames, 4\)"),
        (torch.zeros(64, 4), None, r"float tensor \(B, frames, 4\)"),
        (torch.zeros(1, 64, 4, dtype=torch.int64), None, "int64"),
        (torch.zeros(1, 64, 4), 20_480, "20480 samples have 128 frames at module 2, but the latent has 64"),
        (torch.zeros(1, 64, 4), 5, "too short: nothing of it reaches module 2"),
    ],
)
def test_latents_that_do_not_fit(latent: Tensor, num_samples: int | None, words: str) -> None:
    with pytest.raises(InputError, match=words):
        Decoder(ModelConfig(width=4), 2, 10_240).decode(latent, num_samples)
