"""Costs that are counted from the config against what torch counts while it trains."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.standin import Module, Recorded
from simdist.config.load import CONFIGS, read_config
from simdist.config.schema import Config, LayerConfig, ModelConfig, ModuleConfig
from simdist.models.costs import PARTS, module_costs, step_flops
from simdist.models.encoder import GreedyEncoder
from simdist.models.infonce import info_nce
from simdist.models.module import GreedyModule, ModuleLoss, RandomInputs

PRESETS = ("sim_librispeech", "gim_librispeech", "gim_lowe_librispeech", "cpc_librispeech", "vgim_thesis")
PRESETS += ("cpc_extra_layers_artificial_speech", "gim_librispeech other_positives", "without_gru")


def linear(kernel: int, stride: int = 1, padding: int = 0) -> LayerConfig:
    return LayerConfig(kernel, stride, padding, norm=False, relu=False)


WITHOUT_GRU = ModelConfig(  # what the CPU's GRU keeps is not counted, so no CPC is among the modules that are compared
    width=24,
    context_width=20,
    head="mu",
    modules=(
        ModuleConfig((LayerConfig(10, 5, 2), LayerConfig(8, 4, 2), linear(1))),
        ModuleConfig((linear(1), LayerConfig(4, 2, 2, norm=False), LayerConfig(3, relu=False))),
        ModuleConfig((linear(4, 2, 1), LayerConfig(2, 2, kind="maxpool"), linear(1))),
    ),
)
FIRST_LINEAR = (  # of a stem
    (linear(10, 5, 2), LayerConfig(8, 4, 2)),
    (LayerConfig(10, 5, 2, relu=False), LayerConfig(8, 4, 2)),
    (linear(10, 5, 2), LayerConfig(2, 2, kind="maxpool")),
    (LayerConfig(10, 5, 2, norm=False), linear(1)),
    (LayerConfig(10, 5, 2, relu=False),),
)
CLIPS = 3


def small(preset: str) -> Config:
    if preset == "without_gru":
        return replace(small("gim_librispeech"), model=WITHOUT_GRU)
    preset, _, negatives = preset.partition(" ")
    config = read_config(CONFIGS / f"{preset}.yaml")
    model = replace(config.model, width=24, context_width=20)
    loss = replace(config.loss, num_negatives=7, negatives=negatives or "batch")
    return replace(config, data=replace(config.data, crop=10_240), model=model, loss=loss)


Forward = Callable[[], ModuleLoss]


def forwards(config: Config, mixed: bool = False) -> Iterator[tuple[GreedyModule, Forward]]:
    """Every module, with its forward on the latents of the one below."""
    encoder = GreedyEncoder(config.model, config.loss)
    x, generator = torch.randn(CLIPS, config.data.crop, 1), torch.Generator()
    frames = config.model.num_frames(config.data.crop)
    for m, module in enumerate(encoder.stack):
        draws = module.draw(CLIPS, frames[m], generator, generator)

        def forward(module: GreedyModule = module, x: Tensor = x, draws: RandomInputs = draws) -> ModuleLoss:
            with torch.autocast("cpu", torch.bfloat16, enabled=mixed):
                return module(x, draws, 0.1)

        yield module, forward
        with torch.no_grad():
            x = forward().latent


class WithoutScores(Module):
    """The straightforward module with a loss that costs nothing."""

    def info_nce(self, context: Tensor, latent: Tensor, recorded: Recorded | None) -> Tensor:
        return context.sum() + latent.sum()


@pytest.mark.parametrize("preset", PRESETS)
def test_flops_of_the_encoder_are_those_that_torch_counts(preset: str) -> None:
    config, channels = small(preset), 1
    x = torch.randn(CLIPS, 1, config.data.crop)
    for cost, module in zip(module_costs(config, CLIPS), config.model.modules, strict=True):
        plain = WithoutScores(module, config.model, config.loss, channels)
        with FlopCounterMode(display=False) as counter:
            loss, _, x = plain(x, 0.1)
            if loss.requires_grad:
                loss.backward()
        assert (cost.convs + cost.heads + cost.gru).flops == counter.get_total_flops()
        channels = plain.channels
    assert step_flops(config, CLIPS) == sum(cost.total.flops for cost in module_costs(config, CLIPS))


@pytest.mark.parametrize("preset", PRESETS)
def test_flops_of_the_loss_are_those_that_torch_counts(preset: str) -> None:
    """The positives are no matrix products here, so torch does not count them."""
    config = small(preset)
    for cost, (module, _) in zip(module_costs(config, CLIPS), forwards(config), strict=True):
        trained = bool(module.config.layers)
        latent = torch.randn(CLIPS, cost.frames, module.latent_channels, requires_grad=trained)
        window = module.window(cost.frames)
        context = torch.randn(CLIPS, window, module.context_channels, requires_grad=True)
        generator = torch.Generator()
        draws = module.draw(CLIPS, cost.frames, generator, generator)
        with FlopCounterMode(display=False) as counter:
            loss, _ = info_nce(context, latent, module.predictor.weight, draws.negatives, start=0, steps=module.steps)
            loss.backward()
        positives = 2 * CLIPS * (window - 1) * module.steps * module.latent_channels
        assert cost.nce.flops == counter.get_total_flops() + positives * (3 if trained else 2)


@pytest.mark.parametrize("preset", PRESETS)
def test_parameters_are_those_of_the_encoder(preset: str) -> None:
    config = small(preset)
    encoder = GreedyEncoder(config.model, config.loss)
    for cost, module in zip(module_costs(config, CLIPS), encoder.stack, strict=True):
        count = sum(parameter.numel() for parameter in module.parameters())
        assert (cost.total.parameters, cost.gradient_bytes) == (count, 4 * count)
        assert cost.frames == config.model.num_frames(config.data.crop)[encoder.stack.index(module)]


@pytest.mark.parametrize("mixed", [False, True])
@pytest.mark.parametrize("preset", PRESETS)
def test_kept_bytes_are_those_that_autograd_keeps(preset: str, mixed: bool) -> None:
    config = small(preset)
    for cost, (module, forward) in zip(module_costs(config, CLIPS, mixed), forwards(config, mixed), strict=True):
        if module.gru is None:  # the CPU's GRU keeps other things than cuDNN's
            assert cost.total.kept_bytes == pytest.approx(kept_bytes(module, forward), rel=0.01)


@pytest.mark.parametrize("head", ["mu", "none"])
@pytest.mark.parametrize("mixed", [False, True])
@pytest.mark.parametrize("layers", FIRST_LINEAR)
def test_kept_bytes_of_a_stem_without_a_relu(layers: tuple[LayerConfig, ...], mixed: bool, head: str) -> None:
    config = small("without_gru")
    config = replace(config, model=replace(config.model, modules=(ModuleConfig(layers),), head=head))
    (cost,), ((module, forward),) = module_costs(config, CLIPS, mixed), forwards(config, mixed)
    assert cost.total.kept_bytes == pytest.approx(kept_bytes(module, forward), rel=0.01)


class Kept:
    """A tensor that a node of the graph holds, for as long as the node lives."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor.detach()  # a node that held its own output would never die


def kept_bytes(module: GreedyModule, forward: Forward) -> int:
    """Bytes of all storages that wait for the backward pass, beside the parameters'."""
    packed: list[weakref.ref[Kept]] = []

    def pack(tensor: Tensor) -> Kept:
        kept = Kept(tensor)
        packed.append(weakref.ref(kept))
        return kept

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda kept: kept.tensor):
        outcome = forward()
        alive = [kept.tensor.untyped_storage() for ref in packed if (kept := ref()) is not None]
        storages = {storage.data_ptr(): storage.nbytes() for storage in alive}
        outcome.loss.backward()
    for parameter in module.parameters():
        storages.pop(parameter.untyped_storage().data_ptr(), None)
    return sum(storages.values())


def test_a_step_grows_with_its_clips() -> None:
    config = small("sim_librispeech")
    assert step_flops(config, 8) == 8 * step_flops(config, 1)
    one, eight = module_costs(config, 1)[0], module_costs(config, 8)[0]
    assert one.total.parameters == eight.total.parameters
    assert 7 * one.total.kept_bytes < eight.total.kept_bytes < 8 * one.total.kept_bytes  # weights' copies do not grow


def test_the_paper_s_model_has_its_size() -> None:
    costs = module_costs(read_config(CONFIGS / "sim_librispeech.yaml"), 8)
    parts = [[getattr(cost, part).parameters for part in PARTS] for cost in costs]
    assert parts[1] == [2 * (512 * 512 * 4 + 3 * 512), 2 * (512 * 512 + 512), 0, 10 * 512 * 512]
    assert parts[3] == [0, 0, 3 * 256 * (512 + 256 + 2), 10 * 512 * 256]
