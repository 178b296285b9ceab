"""Greedy modules: shapes of every preset, isolation of gradients, heads, KL, precision."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from simdist.config.load import CONFIGS, read_config
from simdist.config.schema import LayerConfig, LossConfig, ModelConfig, ModuleConfig
from simdist.core.errors import InputError
from simdist.models.costs import module_costs
from simdist.models.decoder import Decoder
from simdist.models.encoder import GreedyEncoder
from simdist.models.module import ConvLayer, ModuleLoss, frame_by_frame

FRAMES = {  # of REFERENCE: arXiv 2408.12936, 1905.11786, 1807.03748 and the thesis
    "sim_librispeech": [1023, 257, 128, 128],
    "gim_librispeech": [1023, 257, 128, 128],
    "gim_lowe_librispeech": [4095, 1023, 512, 257, 128, 128],
    "cpc_librispeech": [128],
    "cpc_artificial_speech": [64],
    "cpc_extra_layers_artificial_speech": [64],
    "sim_artificial_speech": [511, 129, 64, 64],
    "gim_artificial_speech": [511, 129, 64, 64],
    "vgim_thesis": [52, 13],
    "gim_thesis": [52, 13],
}


def forward_all(encoder: GreedyEncoder, audio: Tensor, frames: list[int], beta: float = 0.01) -> list[ModuleLoss]:
    x, outcomes = audio.transpose(1, 2), []
    for module, length in zip(encoder.stack, frames, strict=True):
        draws = module.draw(len(audio), length, torch.Generator().manual_seed(1), torch.Generator().manual_seed(2))
        outcomes.append(module(x, draws, beta))
        x = outcomes[-1].latent
    return outcomes


@pytest.mark.parametrize("preset", FRAMES)
def test_presets_have_the_published_frames_and_train(preset: str) -> None:
    config = read_config(CONFIGS / f"{preset}.yaml", CONFIGS / "debug.yaml")
    assert config.model.num_frames(config.data.crop) == FRAMES[preset]
    encoder = GreedyEncoder(config.model, config.loss, config.seed)
    outcomes = forward_all(encoder, torch.randn(2, 1, config.data.crop) * 0.1, FRAMES[preset])
    for module, outcome, frames in zip(encoder.stack, outcomes, FRAMES[preset], strict=True):
        assert outcome.latent.shape == (2, frames, module.latent_channels)
        outcome.loss.backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in module.parameters())
    contexts = [
        encoder.eval().encode(torch.zeros(1, 1, config.data.crop), module=m) for m in range(len(FRAMES[preset]))
    ]
    assert [c.shape[1] for c in contexts] == FRAMES[preset]


def test_published_widths() -> None:
    encoder = GreedyEncoder(ModelConfig(), LossConfig())
    assert [m.latent_channels for m in encoder.stack] == [512] * 4
    assert [m.context_channels for m in encoder.stack] == [512, 512, 512, 256]
    assert read_config(CONFIGS / "vgim_thesis.yaml").model.width == 32
    for preset in ("cpc_librispeech", "cpc_artificial_speech", "cpc_extra_layers_artificial_speech"):
        config = read_config(CONFIGS / f"{preset}.yaml")
        (module,) = GreedyEncoder(config.model, config.loss).stack
        assert (module.steps, module.latent_channels, module.context_channels) == (10, 512, 256)
        assert (module.mu is None, module.log_var) == (False, None)
    assert [m.steps for m in GreedyEncoder(*thesis()).stack] == [12, 12]


def thesis() -> tuple[ModelConfig, LossConfig]:
    config = read_config(CONFIGS / "vgim_thesis.yaml")
    return config.model, config.loss


def test_no_gradient_crosses_a_module_boundary() -> None:
    config = read_config(CONFIGS / "sim_librispeech.yaml", CONFIGS / "debug.yaml")
    encoder = GreedyEncoder(config.model, config.loss)
    outcomes = forward_all(encoder, torch.randn(2, 1, 20_480), FRAMES["sim_librispeech"])
    outcomes[1].loss.backward()
    touched = [any(p.grad is not None for p in module.parameters()) for module in encoder.stack]
    assert touched == [False, True, False, False]


def test_a_layer_without_norm_and_relu_is_linear() -> None:
    """One product of matrices, checked in float64 without any convolution; wherever it stands."""
    linear = LayerConfig(1, norm=False, relu=False)
    stacks = {
        "on top": (LayerConfig(10, 5, 2), LayerConfig(8, 4, 2), linear),
        "between": (LayerConfig(10, 5, 2), linear, LayerConfig(8, 4, 2)),
        "first": (linear, LayerConfig(10, 5, 2), LayerConfig(8, 4, 2)),
    }
    for layers in stacks.values():
        model = ModelConfig(width=6, head="none", modules=(ModuleConfig(layers),))
        encoder = GreedyEncoder(model, LossConfig()).double()
        x = torch.randn(3, 400, 1, dtype=torch.float64)
        for layer, config in zip(encoder.stack[0].layers, layers, strict=True):
            assert isinstance(layer, ConvLayer)
            assert (layer.norm is None) == (config is linear)
            below = x
            x = layer(x)
            if config is linear:
                assert layer.conv.bias is not None
                expected = below @ layer.conv.weight[:, :, 0].t() + layer.conv.bias
                torch.testing.assert_close(x, expected)
                assert (x < 0).any()
            else:
                assert (x >= 0).all()
        audio = torch.randn(3, 400, 1, dtype=torch.float64, requires_grad=True)  # no stem, then one
        torch.testing.assert_close(encoder.stack[0].features(audio), encoder.stack[0].features(audio.detach()))


def test_cpc_trains_its_convolutions_through_the_gru() -> None:
    config = read_config(CONFIGS / "cpc_librispeech.yaml", CONFIGS / "debug.yaml")
    encoder = GreedyEncoder(config.model, config.loss)
    (outcome,) = forward_all(encoder, torch.randn(2, 1, 20_480), [128])
    outcome.loss.backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in encoder.parameters() if p.dim() > 1)


def test_variational_latents_are_sampled_only_when_asked() -> None:
    encoder = GreedyEncoder(ModelConfig(width=8, context_width=8), LossConfig()).eval()
    audio = torch.randn(2, 1, 4000, generator=torch.Generator().manual_seed(0))
    mean = encoder.encode(audio, module=0)
    assert torch.equal(mean, encoder.encode(audio, module=0))
    draws = torch.stack(
        [
            encoder.encode(audio, module=0, deterministic=False, generator=torch.Generator().manual_seed(s))
            for s in range(400)
        ]
    )
    with torch.no_grad():
        log_var = encoder.stack[0].encode(audio.transpose(1, 2)).log_var
    assert log_var is not None
    error = (draws.mean(0) - mean) / (log_var / 2).exp() * 20  # standard errors of a mean of 400
    assert error.abs().max() < 6
    assert (draws.var(0) / log_var.exp()).mean() == pytest.approx(1, abs=0.02)


def test_log_var_stays_finite_in_float32_under_autocast() -> None:
    encoder = GreedyEncoder(ModelConfig(width=8, context_width=8), LossConfig())
    module = encoder.stack[0]
    assert module.log_var is not None
    torch.nn.init.constant_(module.log_var.bias, 1000.0)  # pyright: ignore[reportArgumentType]
    draws = module.draw(2, 199, torch.Generator(), torch.Generator())
    with torch.autocast("cpu", torch.bfloat16):
        mu, log_var = module.distribution(torch.randn(2, 4000, 1))
        outcome = module(torch.randn(2, 4000, 1), draws, 1.0)
    assert mu.dtype == torch.bfloat16
    assert log_var is not None
    assert log_var.dtype == outcome.kl.dtype == outcome.nce.dtype == outcome.latent.dtype == torch.float32
    assert outcome.latent.isfinite().all()
    assert outcome.loss.isfinite()


def test_a_modules_weights_do_not_depend_on_its_neighbors() -> None:
    whole = GreedyEncoder(ModelConfig(width=8, context_width=8), LossConfig(), seed=3)
    part = GreedyEncoder(ModelConfig(width=8, modules=ModelConfig().modules[:2]), LossConfig(), seed=3)
    for name, tensor in part.state_dict().items():
        assert torch.equal(tensor, whole.state_dict()[name])
    assert not torch.equal(
        whole.stack[0].predictor.weight, GreedyEncoder(ModelConfig(width=8), LossConfig(), 4).stack[0].predictor.weight
    )


@pytest.mark.parametrize(
    ("shape", "module", "words"),
    [
        ((2, 1, 4000), 4, "modules 0 to 3"),
        ((2, 4000), 0, "(B, 1, T)"),
        ((2, 2, 4000), 0, "mono"),
        ((2, 1, 30), -1, "too short"),
    ],
)
def test_encode_says_what_is_wrong(shape: tuple[int, ...], module: int, words: str) -> None:
    encoder = GreedyEncoder(ModelConfig(width=8, context_width=8), LossConfig())
    with pytest.raises(InputError, match=words.replace("(", r"\(").replace(")", r"\)")):
        encoder.encode(torch.zeros(*shape), module=module)


@pytest.mark.parametrize("preset", ["cpc_librispeech", "cpc_extra_layers_artificial_speech", "sim_librispeech"])
def test_a_layer_inside_a_module(preset: str) -> None:
    """Equal to the layers applied one by one, of a module whose input is the latent of the one below."""
    config = read_config(CONFIGS / f"{preset}.yaml", CONFIGS / "debug.yaml")
    encoder = GreedyEncoder(config.model, config.loss).eval()
    audio = torch.randn(2, 1, 4000, generator=torch.Generator().manual_seed(0))
    x, frames = audio.transpose(1, 2), 4000
    with torch.no_grad():
        for number, module in enumerate(encoder.stack):
            hidden = x
            for j, layer in enumerate(module.layers):
                hidden, frames = layer(hidden), module.config.layers[j].output_frames(frames)
                ours = encoder.encode(audio, module=number, layer=j)
                assert ours.shape == (2, frames, 16)
                torch.testing.assert_close(ours, hidden, rtol=1e-5, atol=1e-6)
                assert torch.equal(encoder.encode(audio, number - len(encoder.stack), layer=j), ours)
            x = module.encode(x).latent
    if preset == "sim_librispeech":  # noise of the modules below reaches it, and there is none of its own
        drawn = [encoder.encode(audio, m, False, torch.Generator().manual_seed(s), 0) for m in (0, 1) for s in (1, 2)]
        assert torch.equal(drawn[0], drawn[1])
        assert not torch.equal(drawn[2], drawn[3])


def test_layers_that_do_not_exist() -> None:
    encoder = GreedyEncoder(ModelConfig(width=8, context_width=8), LossConfig())
    audio = torch.zeros(1, 1, 4000)
    for module, layer, words in (
        (0, 2, "module 0 has no layer 2; its layers are 0 to 1"),
        (-2, -1, "module 2 has no layer -1; its layers are 0 to 0"),
        (3, 0, "module 3 is a GRU alone and has no layer 0"),
        (4, 0, "modules 0 to 3"),
    ):
        with pytest.raises(InputError, match=words):
            encoder.encode(audio, module, layer=layer)
    assert encoder.encode(torch.zeros(1, 1, 12), 0, layer=0).shape == (1, 2, 8)  # too short for the module's last layer
    with pytest.raises(InputError, match="5 samples is too short"):
        encoder.encode(torch.zeros(1, 1, 5), 0, layer=0)


def test_encode_takes_any_float_and_nothing_else() -> None:
    encoder = GreedyEncoder(ModelConfig(width=8, context_width=8), LossConfig()).eval()
    audio = torch.randn(1, 1, 4000)
    assert torch.equal(encoder.encode(audio.double()), encoder.encode(audio))
    with pytest.raises(InputError, match=r"audio is torch\.int16; it must be a float tensor"):
        encoder.encode(audio.short())
    with pytest.raises(InputError, match="audio is ndarray"):
        encoder.encode(audio.numpy())  # pyright: ignore[reportArgumentType]


def test_without_bptt_each_state_is_a_constant_for_the_next_frame() -> None:
    """Against a loop over frames that detaches the state, as Löwe's code does."""
    torch.manual_seed(0)
    gru, cell = torch.nn.GRU(5, 4, batch_first=True).double(), torch.nn.GRUCell(5, 4).double()
    cell.load_state_dict({name.removesuffix("_l0"): value for name, value in gru.state_dict().items()})
    ours, theirs = (torch.randn(3, 7, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) for _ in "ab")
    ours.requires_grad_()
    theirs.requires_grad_()
    state, states = torch.zeros(3, 4, dtype=torch.float64), []
    for frame in theirs.unbind(1):
        state = cell(frame, state.detach())
        states.append(state)
    expected, found = torch.stack(states, dim=1), frame_by_frame(gru, ours)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(found, gru(ours)[0])  # the forward pass is the same
    found.square().sum().backward()
    expected.square().sum().backward()
    torch.testing.assert_close(ours.grad, theirs.grad)
    for name, parameter in cell.named_parameters():
        torch.testing.assert_close(gru.get_parameter(f"{name}_l0").grad, parameter.grad)


def test_bptt_is_a_setting_of_the_model() -> None:
    config = read_config(CONFIGS / "sim_librispeech.yaml", CONFIGS / "debug.yaml")
    audio = torch.randn(2, 1, 20_480, generator=torch.Generator().manual_seed(0))
    nce, grads = [], []
    for bptt in (True, False):
        encoder = GreedyEncoder(replace(config.model, bptt=bptt), config.loss)
        last = forward_all(encoder, audio, FRAMES["sim_librispeech"])[-1]
        last.loss.backward()
        nce.append(last.nce)
        grads.append(encoder.stack[-1].gru.weight_hh_l0.grad)  # pyright: ignore[reportOptionalMemberAccess]
    torch.testing.assert_close(*nce)
    assert float((grads[0] - grads[1]).norm() / grads[0].norm()) > 0.01


def test_a_module_may_have_a_width_of_its_own() -> None:
    config = read_config(CONFIGS / "vgim_thesis.yaml")
    first, second = config.model.modules
    modules = (first, replace(second, width=48), ModuleConfig(layers=(LayerConfig(3, 1, 1),), width=20), second)
    model = replace(config.model, modules=(*modules[:3], ModuleConfig(gru=True)))
    encoder = GreedyEncoder(model, replace(config.loss, prediction_steps=4))
    audio = torch.randn(2, 1, config.data.crop)
    outcomes = forward_all(encoder, audio, model.num_frames(config.data.crop))
    assert [outcome.latent.shape[2] for outcome in outcomes] == [32, 48, 20, 20]
    assert [encoder.eval().encode(audio, module=m).shape[2] for m in range(4)] == [32, 48, 20, 256]
    assert [model.channels(m) for m in range(4)] == [32, 48, 20, 20]
    assert encoder.encode(audio, module=1, layer=0).shape[2] == model.channels(1, 0) == 48
    config = replace(config, model=model, loss=replace(config.loss, prediction_steps=4))
    for cost, module in zip(module_costs(config, 2), encoder.stack, strict=True):
        assert cost.total.parameters == sum(p.numel() for p in module.parameters())
    decoder = Decoder(model, 1, config.data.crop)
    assert decoder(outcomes[1].latent).shape == audio.shape
