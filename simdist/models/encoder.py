"""The stack of greedy modules, and how a user encodes audio with it."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from simdist.config.schema import Config, LayerConfig, LossConfig, ModelConfig
from simdist.core.errors import InputError
from simdist.models.module import CONSTANTS, GreedyModule


class GreedyEncoder(nn.Module):
    """Greedy modules from the audio upwards; module m sees the latent of module m-1 without its gradient.

    Args:
        model: the stack.
        loss: the objective; it decides the predictors' shapes.
        seed: decides the weights; each module has its own, whatever stands below or above it.
        normalize: mean and standard deviation of the audio, which module 0 normalizes by; None leaves it as it is.
    """

    def __init__(
        self, model: ModelConfig, loss: LossConfig, seed: int = 0, normalize: tuple[float, float] | None = None
    ) -> None:
        super().__init__()
        self.config, self.greedy = model, nn.ModuleList()
        channels = 1
        for m, config in enumerate(model.modules):
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed * 1000 + m)
                module = GreedyModule(config, model, loss, channels, normalize if m == 0 else None)
            self.greedy.append(module)
            channels = module.latent_channels

    @classmethod
    def from_config(cls, config: Config) -> GreedyEncoder:
        """The encoder of an experiment, with the weights of its seed."""
        return cls(config.model, config.loss, config.seed, config.data.normalize)

    @property
    def stack(self) -> list[GreedyModule]:
        """The modules, in order."""
        return [module for module in self.greedy if isinstance(module, GreedyModule)]

    @torch.no_grad()
    def encode(
        self,
        audio: Tensor,
        module: int = -1,
        deterministic: bool = True,
        generator: torch.Generator | None = None,
        layer: int | None = None,
    ) -> Tensor:
        """Representation of raw speech by one module, or by a layer inside it.

        Args:
            audio: (B, 1, T) float32 in [-1, 1] at 16 kHz; the encoder normalizes it itself if `data.normalize` is set.
            module: which one, from 0; negative ones count from the top, -1 is the last.
            deterministic: take the mean; otherwise sample each variational latent on the way up.
            generator: source of that noise, on the audio's device.
            layer: which layer of the module, from 0; None takes the module's output, behind its heads and its GRU.

        Returns:
            (B, frames, channels); for a module with a GRU, its context; for a layer, what it outputs after its ReLU.

        Raises:
            InputError: no such module or layer, or audio of another shape, or too short for it.
        """
        modules = self.stack
        number = module + len(modules) if -len(modules) <= module < 0 else module
        layers = self.config.layers_up_to(number, layer)
        if not isinstance(audio, Tensor) or not audio.is_floating_point():
            kind = audio.dtype if isinstance(audio, Tensor) else type(audio).__name__
            raise InputError(f"audio is {kind}; it must be a float tensor in [-1, 1]: torch.as_tensor(array).float()")
        if audio.dim() != 3 or audio.shape[1] != 1:
            raise InputError(f"audio has the shape {tuple(audio.shape)}; it must be (B, 1, T): mono speech at 16 kHz")
        weights = next(self.parameters())
        audio = audio.to(weights.device, weights.dtype)
        _check_length(layers, audio.shape[2])
        latent = audio.transpose(1, 2)  # (B, 1, T) -> (B, T, 1)
        *below, last = modules[: number + 1]
        for greedy in below:
            latent = (greedy.encode(latent) if deterministic else greedy.sample(latent, generator)).latent
        if layer is not None:
            return last.features(latent, depth=layer + 1)
        return (last.encode(latent) if deterministic else last.sample(latent, generator)).context


def check_fit(model: nn.Module, state: dict[str, Tensor], source: str) -> None:
    """Raise an InputError that names the first tensor of `state` that differs from the model's in name or shape.

    Constants (`data.normalize`) must have the model's values, too.
    """
    ours = model.state_dict()
    for name in [*ours, *sorted(state.keys() - ours.keys())]:
        theirs = tuple(state[name].shape) if name in state else "missing"
        wanted = tuple(ours[name].shape) if name in ours else "missing"
        if theirs != wanted:
            raise InputError(
                f"{source} is of another architecture: {name} is {theirs} there and {wanted} in this config"
            )
        if name.endswith(CONSTANTS) and not torch.equal(state[name].to(ours[name]), ours[name]):
            raise InputError(
                f"{source} normalizes audio otherwise: {name} is {state[name].item():g} there and "
                f"{ours[name].item():g} in this config. Set data.normalize as it was"
            )


def hash_weights(model: nn.Module) -> str:
    """The sha256 of a model's weights and buffers with their names, in hex."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _check_length(layers: Sequence[LayerConfig], num_samples: int) -> None:
    frames = num_samples
    for layer in layers:
        frames = layer.output_frames(frames)
        if frames < 1:
            raise InputError(f"audio of {num_samples} samples is too short for this module; give it a longer clip")
