"""Decoders: transposed convolutions that lead from one greedy module's latent back to the waveform.

A decoder is read off the encoder's config. Every convolution or pooling, from the decoded module's last down to the
audio, is mirrored by a transposed convolution of the same kernel, stride and padding; its output padding is what the
encoder's own rounding lost, so the output is exactly as long as the audio was. A max-pooling keeps no more than its
outputs, so it is mirrored by a learned transposed convolution too. Heads change no length and are not mirrored, nor are
linear layers of kernel 1, which are heads within a module (CPC with SIM's number of layers).

Legend: B clips, T samples, L frames, C channels.
"""

from __future__ import annotations

import itertools

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from simdist.config.schema import LayerConfig, ModelConfig
from simdist.core.errors import InputError

SMOOTHED_DEPTH = 2  # stacks of so few layers get smoothing convolutions, for lack of depth (arXiv 2408.12936, module 0)
SMOOTHING = LayerConfig(kernel=3, stride=1, padding=1)


def mirrored(model: ModelConfig, module: int, layer: int | None = None) -> tuple[LayerConfig, ...]:
    """The encoder's layers up to `module`, or up to one layer inside it, from the latent down to the audio.

    Raises:
        InputError: no such module or layer, or a module without layers of its own.
    """
    layers = model.layers_up_to(module, layer)
    if not model.modules[module].layers:
        decodable = [str(m) for m, config in enumerate(model.modules) if config.layers]
        raise InputError(
            f"module {module} is a GRU alone, whose context no convolution mirrors; "
            f"decode one of {', '.join(decodable)}"
        )
    return tuple(reversed([layer for layer in layers if not _is_head(layer)] or layers))


def _is_head(layer: LayerConfig) -> bool:
    return (layer.kernel, layer.stride, layer.padding, layer.relu) == (1, 1, 0, False)


class Decoder(nn.Module):
    """(B, L, C) latent of one module, or of a layer inside it -> (B, 1, T) waveform at 16 kHz.

    Args:
        model: the encoder's architecture.
        module: which greedy module's latent is decoded.
        crop: samples that a latent of the usual length stands for; decides T where it is not given.
        width: channels between the layers; None takes the encoder's.
        seed: decides the weights.
        layer: of the module, whose output is decoded; None decodes the module's latent.

    Raises:
        InputError: the module cannot be decoded, or nothing of a crop reaches it.
    """

    def __init__(
        self,
        model: ModelConfig,
        module: int,
        crop: int,
        width: int | None = None,
        seed: int = 0,
        layer: int | None = None,
    ) -> None:
        super().__init__()
        self.module, self._mirrored = module, mirrored(model, module, layer)
        self.in_channels = model.layer_channels(module, layer)
        lengths = self.lengths(crop)
        self.output_paddings = [
            longer - _unrounded(layer, shorter)
            for layer, (shorter, longer) in zip(self._mirrored, itertools.pairwise(lengths), strict=True)
        ]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.layers = self._build(width or model.width)

    def _build(self, width: int) -> nn.ModuleList:
        smoothings = [SMOOTHING] * 2 if len(self._mirrored) <= SMOOTHED_DEPTH else []
        stack = [config for layer in self._mirrored for config in (layer, *smoothings)]
        channels = [self.in_channels, *[width] * (len(stack) - 1), 1]
        return nn.ModuleList(
            nn.ConvTranspose1d(before, after, config.kernel, config.stride, config.padding)
            for config, (before, after) in zip(stack, itertools.pairwise(channels), strict=True)
        )

    @property
    def stack(self) -> list[nn.ConvTranspose1d]:
        """The transposed convolutions, from the latent to the waveform."""
        return [layer for layer in self.layers if isinstance(layer, nn.ConvTranspose1d)]

    def lengths(self, num_samples: int) -> list[int]:
        """Lengths that a clip of `num_samples` has in the encoder, from this module's latent down to the audio.

        Raises:
            InputError: the clip is too short for the module.
        """
        lengths = [num_samples]
        for layer in reversed(self._mirrored):
            lengths.append(layer.output_frames(lengths[-1]))
            if lengths[-1] < 1:
                raise InputError(
                    f"a clip of {num_samples} samples is too short: nothing of it reaches module {self.module}"
                )
        return lengths[::-1]

    def num_samples(self, frames: int) -> int:
        """Samples that a latent of `frames` stands for: the crop for a crop's frames, others in step with it."""
        for layer, rounding in zip(self._mirrored, self.output_paddings, strict=True):
            frames = _unrounded(layer, frames) + rounding
        return frames

    def forward(self, latent: Tensor, num_samples: int | None = None) -> Tensor:
        """Decode (B, L, C) to (B, 1, T); T is `num_samples`, which must be a length that encodes to L frames."""
        frames = latent.shape[1]
        wanted = self.lengths(self.num_samples(frames) if num_samples is None else num_samples)
        if wanted[0] != frames:
            raise InputError(
                f"{num_samples} samples have {wanted[0]} frames at module {self.module}, but the latent has {frames}"
            )
        hidden = latent.transpose(1, 2)  # (B, L, C) -> (B, C, L)
        step = len(self.layers) // len(self._mirrored)
        for number, layer in enumerate(self.stack):
            hidden = layer(F.relu(hidden) if number else hidden, [wanted[number // step + 1]])
        return hidden

    @torch.no_grad()
    def decode(self, latent: Tensor, num_samples: int | None = None) -> Tensor:
        """The waveform of a latent, without gradient.

        Args:
            latent: (B, L, C), as `encoder.encode(audio, module)` returns it or made up.
            num_samples: T, where the audio's length is known; None takes that of the crop the decoder was trained on,
                and for other numbers of frames the one that continues it.

        Returns:
            (B, 1, T) float32 at 16 kHz, about [-1, 1], not clipped.

        Raises:
            InputError: a latent of another shape, or a number of samples that does not fit it.
        """
        if not isinstance(latent, Tensor) or not latent.is_floating_point() or latent.dim() != 3:
            kind = f"{latent.dtype} {tuple(latent.shape)}" if isinstance(latent, Tensor) else type(latent).__name__
            raise InputError(f"the latent is {kind}; it must be a float tensor (B, frames, {self.in_channels})")
        if latent.shape[2] != self.in_channels or not latent.shape[1]:
            raise InputError(
                f"the latent has the shape {tuple(latent.shape)}; module {self.module}'s are "
                f"(B, frames, {self.in_channels})"
            )
        weight = next(self.parameters())
        return self(latent.to(weight.device, weight.dtype), num_samples)


def _unrounded(layer: LayerConfig, frames: int) -> int:
    """Length that a transposed layer makes of `frames` without output padding; at least 1 after the last it adds."""
    return (frames - 1) * layer.stride - 2 * layer.padding + layer.kernel
