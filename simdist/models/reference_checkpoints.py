"""Checkpoints of the authors' code (`model_N.ckpt`): a state dict whose names this module translates.

Upstream names module m's parameters `module.fullmodel.m.…` (without `module.` where it did not use DataParallel):
`encoder.encoder.J.0` the J-th convolution (`encoder.encoder.layer J.0` in earlier versions), `.J.1` its BatchNorm,
`encoder.encoder_mu` and `encoder.encoder_var` the heads, `autoregressor.gru`, `loss.predictor` all W_k. It always
stores `encoder_var`, also for GIM and CPC, which never use it.
"""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import torch
from torch import Tensor

from simdist.config.schema import Config
from simdist.core.errors import InputError
from simdist.models.encoder import GreedyEncoder


def reference_names(encoder: GreedyEncoder) -> dict[str, str]:
    """Upstream's name of every tensor of our state dict."""
    names = {}
    for m, module in enumerate(encoder.stack):
        convs = [j for j, layer in enumerate(module.config.layers) if layer.kind == "conv"]
        names |= {f"greedy.{m}.{name}": f"fullmodel.{m}.{_upstream_name(name, convs)}" for name in module.state_dict()}
    return names


def _upstream_name(name: str, convs: list[int]) -> str:
    """Translate a name within a module; `convs` are the places of its convolutions among its layers."""
    layer = re.fullmatch(r"layers\.(\d+)\.(conv|norm)\.(\w+)", name)
    if layer:
        return f"encoder.encoder.{convs.index(int(layer[1]))}.{0 if layer[2] == 'conv' else 1}.{layer[3]}"
    owner, _, rest = name.partition(".")
    owners = {"mu": "encoder.encoder_mu", "log_var": "encoder.encoder_var", "gru": "autoregressor.gru"}
    return f"{owners.get(owner, 'loss.predictor')}.{rest}"


def is_upstream(state: object) -> bool:
    """Whether something that was unpickled is a state dict of the reference encoder."""
    return isinstance(state, dict) and any("fullmodel." in str(name) for name in state)


def load_reference_checkpoint(path: Path, config: Config) -> tuple[GreedyEncoder, Config]:
    """Read a reference checkpoint into an encoder of `config`'s architecture.

    Widths and prediction steps are read off the tensors; the rest of `config` stays.

    Returns:
        The encoder, and the config that describes it.

    Raises:
        InputError: the file is not such a checkpoint, or does not fit; the message names the first tensor.
    """
    state = _read(path)
    config = _fit_widths(config, state, path)
    encoder = GreedyEncoder(config.model, config.loss, config.seed)
    ours = encoder.state_dict()
    names = reference_names(encoder)
    translated = {}
    for name, theirs in names.items():
        if theirs not in state:
            raise InputError(f"{path} has no tensor {theirs}, which this config needs; {_presets(state)}")
        if state[theirs].shape != ours[name].shape:
            raise InputError(
                f"{path}: tensor {theirs} has the shape {tuple(state[theirs].shape)}, "
                f"this config needs {tuple(ours[name].shape)}; {_presets(state)}"
            )
        translated[name] = state[theirs]
    for theirs in sorted(state):
        if theirs not in names.values() and ".encoder_var." not in theirs:
            raise InputError(f"{path} has a tensor {theirs}, which this config has no place for; {_presets(state)}")
    encoder.load_state_dict(translated)
    return encoder, config


def _read(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise InputError(f"checkpoint {path} {'is a folder' if path.is_dir() else 'does not exist'}; name model_N.ckpt")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds, with advice to unpickle what could run code
        kind = type(error).__name__
        raise InputError(f"{path} is not a checkpoint of tensors ({kind}); name model_N.ckpt") from error
    if not is_upstream(state):
        raise InputError(f"{path} is not a checkpoint of the reference encoder: it has no tensor fullmodel.…")
    plain = {re.sub(r"^module\.", "", name): tensor for name, tensor in state.items()}
    return {re.sub(r"\.layer (\d+)\.", r".\1.", name): tensor for name, tensor in plain.items()}


def _fit_widths(config: Config, state: dict[str, Tensor], path: Path) -> Config:
    """Replace width, context width and prediction steps by those of the tensors."""
    first = state.get("fullmodel.0.encoder.encoder.0.0.weight")
    if first is None:
        raise InputError(f"{path} has no tensor fullmodel.0.encoder.encoder.0.0.weight: it holds no audio encoder")
    width = first.shape[0]
    grus = [tensor for name, tensor in sorted(state.items()) if name.endswith("gru.weight_hh_l0")]
    modules = []
    for m, module in enumerate(config.model.modules):
        predictor = state.get(f"fullmodel.{m}.loss.predictor.weight")
        steps = None if predictor is None or predictor.shape[0] % width else predictor.shape[0] // width
        known = module.prediction_steps or config.loss.prediction_steps
        modules.append(module if steps in (None, known) else dataclasses.replace(module, prediction_steps=steps))
    model = dataclasses.replace(
        config.model,
        width=width,
        context_width=grus[0].shape[1] if grus else config.model.context_width,
        modules=tuple(modules),
    )
    return dataclasses.replace(config, model=model)


def _presets(state: dict[str, Tensor]) -> str:
    """What the checkpoint looks like, as advice on the config to name."""
    count = len({name.split(".")[1] for name in state})
    grus = sum(name.endswith("gru.weight_hh_l0") for name in state)
    norm = any(name.endswith("running_mean") for name in state)
    return (
        f"the checkpoint has {count} module(s), {'a' if grus else 'no'} GRU and {'' if norm else 'no '}BatchNorm: "
        "name a config with the same"
    )
