"""Checkpoints with the names of Löwe's code: what is imported computes what her architecture computes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import simdist
from simdist.config.load import CONFIGS, read_config
from simdist.config.schema import Config, ModuleConfig
from simdist.core.errors import InputError
from simdist.models.reference_checkpoints import LOEWE_NORMALIZE, load_reference_checkpoint

WIDTH, CONTEXT, STEPS = 8, 6, 5
GEOMETRY = ((10, 5, 2), (8, 4, 2), (4, 2, 2), (4, 2, 2), (4, 2, 1))  # kernel, stride, padding
PRESET = CONFIGS / "gim_lowe_librispeech.yaml"
AUDIO = 0.1 * torch.randn(3, 1, 6000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


class Part(nn.Module):
    """A module of Löwe's encoder, written from her paper and the names of her parameters."""

    def __init__(self, geometry: tuple[tuple[int, int, int], ...], inputs: int, gru: type[nn.Module] | None) -> None:
        super().__init__()
        if geometry:
            self.encoder = nn.Module()
            self.encoder.model = nn.Sequential()
            for number, shape in enumerate(geometry):
                conv = nn.Conv1d(WIDTH if number else inputs, WIDTH, *shape)
                self.encoder.model.add_module(f"layer {number}", nn.Sequential(conv, nn.ReLU()))
        if gru is not None:
            self.autoregressor = nn.Module()
            self.autoregressor.gru = gru(WIDTH, CONTEXT)
        self.loss = nn.Module()
        self.loss.predictor = nn.Linear(CONTEXT if gru else WIDTH, STEPS * WIDTH, bias=False)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(B, C_in, L_in) -> latent (B, C, L) and context (B, L, C)."""
        latent = self.encoder.model(x) if hasattr(self, "encoder") else x  # pyright: ignore
        frames = latent.permute(2, 0, 1)  # (B, C, L) -> (L, B, C)
        if not hasattr(self, "autoregressor"):
            return latent, frames.transpose(0, 1)
        gru, state, contexts = self.autoregressor.gru, x.new_zeros(len(x), CONTEXT), []
        if isinstance(gru, nn.GRU):
            return latent, gru(frames)[0].transpose(0, 1)
        for frame in frames:
            state = gru(frame, state)  # pyright: ignore
            contexts.append(state)
        return latent, torch.stack(contexts, dim=1)


def splits(count: int, gru: type[nn.Module]) -> list[Part]:
    """Her `--model_splits`: 6 modules; 5, the last convolution with the GRU; 1, CPC."""
    if count == 1:
        return [Part(GEOMETRY, 1, gru)]
    parts = [Part((shape,), WIDTH if number else 1, None) for number, shape in enumerate(GEOMETRY)]
    return [*parts, Part((), WIDTH, gru)] if count == 6 else [*parts[:4], Part(GEOMETRY[4:], WIDTH, gru)]


def config_of(count: int) -> Config:
    config = read_config(PRESET)
    layers = [module.layers for module in config.model.modules[:5]]
    modules = {
        6: config.model.modules,
        5: (*config.model.modules[:4], ModuleConfig(layers[4], gru=True)),
        1: (ModuleConfig(sum(layers, ()), gru=True),),
    }[count]
    return replace(config, model=replace(config.model, modules=modules))


def saved(parts: list[Part], path: Path, prefix: str = "module.") -> Path:
    whole = nn.Module()
    whole.fullmodel = nn.ModuleList(parts)
    torch.save({prefix + name: tensor for name, tensor in whole.state_dict().items()}, path)
    return path


@pytest.mark.parametrize("gru", [nn.GRU, nn.GRUCell], ids=["gru", "remove_BPTT"])
@pytest.mark.parametrize("count", [6, 5, 1])
def test_an_imported_checkpoint_computes_what_its_own_code_does(
    count: int, gru: type[nn.Module], tmp_path: Path
) -> None:
    torch.manual_seed(count)
    parts = splits(count, gru)
    encoder, config = load_reference_checkpoint(saved(parts, tmp_path / "model_299.ckpt"), config_of(count))
    assert (config.model.width, config.model.context_width) == (WIDTH, CONTEXT)
    assert [module.steps for module in encoder.stack] == [STEPS] * count
    x = (AUDIO * 2**31 + 1456218.75) / 135303504  # as her loader makes it of 32-bit integers
    for number, part in enumerate(parts):
        with torch.no_grad():
            x, context = part.double()(x)
        ours = encoder.eval().double().encode(AUDIO, module=number)
        assert float((ours - context).norm() / context.norm()) < 1e-6
        assert torch.equal(encoder.stack[number].predictor.weight, part.loss.predictor.weight)  # pyright: ignore


def test_the_preset_fits_and_loads_by_its_name(tmp_path: Path) -> None:
    path = saved(splits(6, nn.GRU), tmp_path / "model_299.ckpt", prefix="")
    encoder = simdist.load_encoder(path, config="gim_lowe_librispeech")
    assert (encoder.stack[0].audio_mean, encoder.stack[0].audio_std) == pytest.approx(LOEWE_NORMALIZE)
    assert encoder.stack[1].audio_mean is None
    assert encoder.encode(AUDIO.float()).shape == (3, 38, CONTEXT)


def test_a_config_that_forgets_the_normalization(tmp_path: Path) -> None:
    path, config = saved(splits(6, nn.GRU), tmp_path / "model_299.ckpt"), read_config(PRESET)
    raw = replace(config, data=replace(config.data, normalize=None))
    with pytest.raises(InputError, match=r"Löwe's code, which normalizes audio.*data\.normalize to \[-0\.000678"):
        load_reference_checkpoint(path, raw)
    own = replace(config, data=replace(config.data, normalize=(0.0, 1.0)))
    encoder, _ = load_reference_checkpoint(path, own)
    assert encoder.stack[0].audio_std == 1


def test_a_tensor_is_named_as_it_is_in_the_file(tmp_path: Path) -> None:
    path = saved(splits(6, nn.GRU), tmp_path / "model_299.ckpt")
    with pytest.raises(InputError, match=r"fullmodel\.0\.encoder\.encoder\.0\.1\.weight, which this config needs"):
        load_reference_checkpoint(
            path, replace(read_config(PRESET), model=replace(config_of(6).model, batch_norm=True))
        )
    modules = (ModuleConfig(config_of(6).model.modules[1].layers), *config_of(6).model.modules[1:])
    wrong = replace(config_of(6), model=replace(config_of(6).model, modules=modules))
    words = r"tensor fullmodel\.0\.encoder\.model\.layer 0\.0\.weight has the shape \(8, 1, 10\)"
    with pytest.raises(InputError, match=words):
        load_reference_checkpoint(path, wrong)
