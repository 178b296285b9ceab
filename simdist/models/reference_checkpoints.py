"""Checkpoints of the authors' codes (`model_N.ckpt`): state dicts whose names this module translates.

Smooth InfoMax names module m's parameters `module.fullmodel.m.…` (without `module.` where it did not use DataParallel):
`encoder.encoder.J.0` the J-th convolution (`encoder.encoder.layer J.0` in earlier versions, `encoder.encoder.J` where
neither BatchNorm nor ReLU follows), `.J.1` its BatchNorm,
`encoder.encoder_mu` and `encoder.encoder_var` the heads, `autoregressor.gru`, `loss.predictor` all W_k. It always
stores `encoder_var`, also for GIM and CPC, which never use it.

Löwe's Greedy InfoMax has the same names but for the convolutions, `encoder.model.layer J.0`, and for a GRU trained
without backpropagation through time, a GRU cell: `autoregressor.gru.weight_ih` without `_l0`. It normalizes audio.
"""

from __future__ import annotations

import dataclasses
import re
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, TypeGuard, cast

import torch
from torch import Tensor

from simdist.config.schema import Config, LayerConfig
from simdist.core.errors import InputError
from simdist.core.files import open_regular
from simdist.models.encoder import GreedyEncoder
from simdist.models.module import CONSTANTS

LOEWE_NORMALIZE = (-1456218.75 / 2**31, 135303504 / 2**31)  # of audio that her code reads as 32-bit integers
RENAMED = {  # patterns of earlier versions and of Löwe's code -> today's names in Smooth InfoMax
    r"\.encoder\.model\.": ".encoder.encoder.",
    r"\.layer (\d+)\.": r".\1.",
    r"\.gru\.((?:weight|bias)_[ih]h)$": r".gru.\1_l0",
}
MOST_BYTES = 2**32  # of a checkpoint; those that were published have some 100 MB


@dataclass(frozen=True)
class ReferenceState:
    """Tensors of a reference checkpoint."""

    tensors: dict[str, Tensor]
    """By their names in Smooth InfoMax's code."""
    originals: dict[str, str]
    """Their names in the file, without `module.`."""

    @property
    def is_loewe(self) -> bool:
        """Whether Löwe's code wrote it."""
        return any(".encoder.model." in name for name in self.originals.values())


def reference_names(encoder: GreedyEncoder) -> dict[str, str]:
    """Upstream's name of every tensor of our state dict but the constants."""
    names = {}
    for m, module in enumerate(encoder.stack):
        ours = [name for name in module.state_dict() if name not in CONSTANTS]
        names |= {f"greedy.{m}.{name}": f"fullmodel.{m}.{_upstream_name(name, module.config.layers)}" for name in ours}
    return names


def _upstream_name(name: str, layers: Sequence[LayerConfig]) -> str:
    """Translate a name within a module of these layers; upstream counts convolutions alone."""
    layer = re.fullmatch(r"layers\.(\d+)\.(conv|norm)\.(\w+)", name)
    if layer:
        own, below = layers[int(layer[1])], layers[: int(layer[1])]
        block = "" if not (own.norm or own.relu) else "0." if layer[2] == "conv" else "1."
        return f"encoder.encoder.{sum(each.kind == 'conv' for each in below)}.{block}{layer[3]}"
    owner, _, rest = name.partition(".")
    owners = {"mu": "encoder.encoder_mu", "log_var": "encoder.encoder_var", "gru": "autoregressor.gru"}
    return f"{owners.get(owner, 'loss.predictor')}.{rest}"


def _is_reference(state: object) -> TypeGuard[dict[object, object]]:
    """Whether something that was unpickled is a state dict of the reference encoder."""
    return isinstance(state, dict) and any("fullmodel." in str(name) for name in state)


def load_reference_checkpoint(path: Path, config: Config) -> tuple[GreedyEncoder, Config]:
    """Read a reference checkpoint into an encoder of `config`'s architecture.

    Widths and prediction steps are read off the tensors; the rest of `config` stays, `data.normalize` included.

    Returns:
        The encoder, and the config that describes it.

    Raises:
        InputError: the file is not such a checkpoint, or does not fit; the message names the first tensor.
    """
    read = _read(path)
    state, originals = read.tensors, read.originals
    config = _fit_widths(config, state, path)
    if read.is_loewe and config.data.normalize is None:
        raise InputError(
            f"{path} was written by Löwe's code, which normalizes audio, but data.normalize is null in this config. "
            f"Name gim_lowe_librispeech, or set data.normalize to {list(LOEWE_NORMALIZE)} ([0, 1] if yours does not)"
        )
    with torch.device("meta"):  # shapes alone: widths that do not fit could need more memory than there is
        shapes = GreedyEncoder.from_config(config)
    ours = shapes.state_dict()
    names = reference_names(shapes)
    translated = {}
    for name, theirs in names.items():
        if theirs not in state:
            raise InputError(f"{path} has no tensor {theirs}, which this config needs; {_presets(state)}")
        if state[theirs].shape != ours[name].shape:
            raise InputError(
                f"{path}: tensor {originals[theirs]} has the shape {tuple(state[theirs].shape)}, "
                f"this config needs {tuple(ours[name].shape)}; {_presets(state)}"
            )
        translated[name] = state[theirs]
    for theirs in sorted(state):
        if theirs not in names.values() and ".encoder_var." not in theirs:
            raise InputError(
                f"{path} has a tensor {originals[theirs]}, which this config has no place for; {_presets(state)}"
            )
    encoder = GreedyEncoder.from_config(config)
    encoder.load_state_dict(encoder.state_dict() | translated)  # constants are the config's
    return encoder, config


def _read(path: Path) -> ReferenceState:
    """Tensors and names; all checked by `_problem`."""
    if not path.exists() or path.is_dir():
        raise InputError(f"checkpoint {path} {'is a folder' if path.is_dir() else 'does not exist'}; name model_N.ckpt")
    try:
        file = open_regular(path, MOST_BYTES)
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}; name model_N.ckpt") from error
    with file:
        try:
            if zipfile.is_zipfile(file) and _unpacked_bytes(file) > path.stat().st_size:
                raise ValueError("it is compressed, and may have any size")
            file.seek(0)
            state = torch.load(file, map_location="cpu", weights_only=True)
        except Exception as error:  # torch raises many kinds, with advice to unpickle what could run code
            kind = type(error).__name__
            raise InputError(f"{path} is not a checkpoint of tensors ({kind}); name model_N.ckpt") from error
    if not _is_reference(state):
        raise InputError(f"{path} is not a checkpoint of the reference encoder: it has no tensor fullmodel.…")
    for name, value in state.items():
        problem = _problem(name, value)
        if problem:
            raise InputError(f"{path} cannot be used: {problem}")
    named = cast("dict[str, Tensor]", state)
    plain = {name.removeprefix("module."): tensor for name, tensor in named.items()}
    originals = {_renamed(name): name for name in plain}
    return ReferenceState({name: plain[original] for name, original in originals.items()}, originals)


def _renamed(name: str) -> str:
    """Today's name in Smooth InfoMax's code."""
    for pattern, new in RENAMED.items():
        name = re.sub(pattern, new, name)
    return name


def _unpacked_bytes(file: BinaryIO) -> int:
    with zipfile.ZipFile(file) as archive:
        return sum(member.file_size for member in archive.infolist())


def _problem(name: object, value: object) -> str:
    """What is wrong with an entry of a state dict; empty if it is a tensor of finite numbers that the file has."""
    if not isinstance(name, str):
        return f"it has a tensor named {name!r}, not by a string"
    if not isinstance(value, Tensor):
        return f"{name} is not a tensor but {type(value).__name__}"
    if value.layout != torch.strided or value.is_nested or value.is_quantized:
        return f"{name} is a tensor of another layout than a plain one"
    if value.is_meta:
        return f"{name} is a tensor without values"
    if not value.is_floating_point() and not name.endswith("num_batches_tracked"):
        return f"{name} is a tensor of {str(value.dtype).removeprefix('torch.')}, not of floating-point numbers"
    if value.nbytes > value.untyped_storage().nbytes():  # strides of 0 repeat a value without end
        return f"{name}, of shape {tuple(value.shape)}, announces more values than the file has"
    return "" if value.isfinite().all() else f"{name} has values that are NaN or infinite"


def _fit_widths(config: Config, state: dict[str, Tensor], path: Path) -> Config:
    """Replace width, context width and prediction steps by those of the tensors."""
    name = "fullmodel.0.encoder.encoder.0.0.weight"
    if name not in state:
        raise InputError(f"{path} has no tensor {name}: it holds no audio encoder")
    width = _size(state, name, 0, path)
    grus = [name for name in sorted(state) if name.endswith("gru.weight_hh_l0")]
    context_width = _size(state, grus[0], 1, path) if grus else config.model.context_width
    modules = []
    for m, module in enumerate(config.model.modules):
        predictor = f"fullmodel.{m}.loss.predictor.weight"
        rows = _size(state, predictor, 0, path) if predictor in state else 0
        steps = rows // width if rows and rows % width == 0 else None
        known = config.loss.of(module).prediction_steps
        modules.append(module if steps in (None, known) else dataclasses.replace(module, prediction_steps=steps))
    try:
        model = dataclasses.replace(config.model, width=width, context_width=context_width, modules=tuple(modules))
        return dataclasses.replace(config, model=model)
    except ValueError as error:
        raise InputError(f"{path} does not fit this config: {error}") from error


def _size(state: dict[str, Tensor], name: str, dimension: int, path: Path) -> int:
    shape = tuple(state[name].shape)
    if len(shape) <= dimension or shape[dimension] < 1:
        raise InputError(f"{path}: tensor {name} has the shape {shape}, which no encoder has")
    return shape[dimension]


def _presets(state: dict[str, Tensor]) -> str:
    """What the checkpoint looks like, as advice on the config to name."""
    count = len({name.split(".")[1] for name in state})
    grus = sum(name.endswith("gru.weight_hh_l0") for name in state)
    norm = any(name.endswith("running_mean") for name in state)
    return (
        f"the checkpoint has {count} module(s), {'a' if grus else 'no'} GRU and {'' if norm else 'no '}BatchNorm: "
        "name a config with the same"
    )
