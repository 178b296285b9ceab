"""The same decoder, faster: each transposed convolution as a plain one that computes all its phases at once.

A transposed convolution of stride s writes s interleaved phases, each of them a plain convolution of the input with
every s-th tap. Computed together, as s times the channels, and with channels last in memory, the interleaving is a
reshape. On a CPU this is two to three times as fast as torch's transposed convolution, in float32 and in bf16.

Legend: B clips, L frames, C channels, T samples, K taps, S stride.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from simdist.models.decoder import Decoder


@dataclass(frozen=True)
class _Phases:
    """One transposed convolution."""

    weight: Tensor
    """(S * C_out, C_in, 1, ceil(K / S)): the taps of phase r are channels r * C_out on, the last frame's first."""
    bias: Tensor
    stride: int
    padding: int
    channels: int

    def __call__(self, x: Tensor, length: int) -> Tensor:
        """(B, C_in, 1, L) -> (B, C_out, 1, length), both channels-last."""
        taps = self.weight.shape[3]
        positions = -(-(length + self.padding) // self.stride)
        # conv2d pads both sides alike; where output padding asks for more on the right, what the left gets is skipped
        surplus = max(0, positions - (x.shape[3] + taps - 1))
        y = F.conv2d(x, self.weight, self.bias, padding=(0, taps - 1 + surplus))  # (B, S * C_out, 1, positions or more)
        flat = y.permute(0, 2, 3, 1).reshape(len(x), -1, self.channels)  # a view: each position's phases in a row
        begin = self.padding + surplus * self.stride
        return flat[:, begin : begin + length].transpose(1, 2).unsqueeze(2)


class FastDecoder:
    """Decodes latents of one length.

    Args:
        decoder: what is to be computed.
        frames: L.
        dtype: float32, or bf16 where the machine multiplies it faster.
        num_samples: T; None as `Decoder.decode` has it.
    """

    def __init__(
        self, decoder: Decoder, frames: int, dtype: torch.dtype = torch.float32, num_samples: int | None = None
    ) -> None:
        self._dtype = dtype
        self._lengths = _lengths(decoder, num_samples or decoder.num_samples(frames))
        self._layers = [_phases(layer, dtype) for layer in decoder.stack]

    @torch.no_grad()
    def __call__(self, latent: Tensor) -> Tensor:
        """(B, L, C) -> (B, T) waveforms."""
        hidden = latent.to(self._dtype).transpose(1, 2).unsqueeze(2)  # (B, L, C) -> (B, C, 1, L)
        for number, (layer, length) in enumerate(zip(self._layers, self._lengths, strict=True)):
            hidden = layer(hidden.relu_() if number else hidden, length)
        return hidden[:, 0, 0]


def _lengths(decoder: Decoder, num_samples: int) -> list[int]:
    """Length after each of the decoder's layers."""
    mirrored = decoder.lengths(num_samples)[1:]
    return [length for length in mirrored for _ in range(len(decoder.stack) // len(mirrored))]


def _phases(layer: nn.ConvTranspose1d, dtype: torch.dtype) -> _Phases:
    weight, stride = layer.weight.detach(), layer.stride[0]  # (C_in, C_out, K)
    inputs, outputs, kernel = weight.shape
    taps = -(-kernel // stride)
    weight = F.pad(weight, (0, taps * stride - kernel)).view(inputs, outputs, taps, stride)
    weight = weight.flip(2).permute(3, 1, 0, 2).reshape(stride * outputs, inputs, 1, taps)
    bias = layer.bias.detach() if layer.bias is not None else weight.new_zeros(outputs)
    padding = layer.padding[0]
    assert isinstance(padding, int)
    return _Phases(
        weight.to(dtype).contiguous(memory_format=torch.channels_last),
        bias.repeat(stride).to(dtype),
        stride,
        padding,
        outputs,
    )
