"""The first layer over raw audio, and the convolution above it, without keeping what lies between.

Legend: B clips, D = C_in * kernel numbers per window of the audio, F windows per clip, C channels; s, M: `convolution`.

The first layer has by far the most frames and by far the fewest multiplications, and its input wants no gradient. So:

- Its BatchNorm needs no pass over its output. The output is affine in the windows, whose mean m and covariance S
  (D x D, in float64) give each channel's mean w.m + b and variance w'Sw exactly; normalizing becomes other weights.
- Its output is made again in the backward pass instead of being kept, some clips at a time, so that it never leaves
  a CPU's cache. It would be the largest activation of the whole encoder.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from simdist.models.convolution import (
    apply,
    blocks_gradient,
    compute_type,
    frames_of,
    geometry,
    sum_of_products,
    tap_weights,
    taps_gradient,
)
from simdist.models.groups import GroupBatchNorm
from simdist.models.span_timer import COLLECTIVES

LARGEST_WINDOW = 64  # D up to which a covariance of windows costs less than a pass over the output
CHUNK_BYTES = {"cpu": 2**22}  # of the first layer's output at a time; elsewhere:
GPU_CHUNK_BYTES = 2**30
Geometry = tuple[tuple[int, int], tuple[int, int], tuple[int, int]]
"""Kernel, stride and padding of a max-pooling of images (1, L)."""


def fits(x: Tensor, conv: nn.Conv1d) -> bool:
    """Whether `conv` over (B, L_in, C_in) may be computed by this module."""
    return not x.requires_grad and conv.in_channels * conv.kernel_size[0] <= LARGEST_WINDOW


def first_layer(x: Tensor, conv: nn.Conv1d, norm: GroupBatchNorm | None, groups: int = 1) -> Tensor:
    """(B, L_in, C_in) -> norm(conv(x)), (B, F, C), in autocast's type.

    A BatchNorm that learns normalizes each of `groups` groups of clips by itself, here and in the functions below.
    """
    dtype = compute_type(x)
    with torch.autocast(x.device.type, enabled=False):
        windows = _windows(x, conv)

        def layer(windows: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
            return F.linear(windows.to(dtype), weight.to(dtype), bias.to(dtype))

        return _by_group(layer, windows, _folded(conv, norm, windows, groups))


def first_two_layers(
    x: Tensor, conv: nn.Conv1d, norm: GroupBatchNorm | None, above: nn.Conv1d, groups: int = 1
) -> Tensor:
    """(B, L_in, C_in) -> above(ReLU(norm(conv(x)))), (B, L, C_out), in autocast's type."""
    dtype = compute_type(x)
    kernel, stride, padding = geometry(above)
    assert above.bias is not None
    with torch.autocast(x.device.type, enabled=False):
        windows = _windows(x, conv)
        folded = _folded(conv, norm, windows, groups)
        taps = tap_weights(above.weight, stride)
        count = windows.shape[1]
        blocks = (count + 2 * padding - kernel) // stride + len(taps)  # M
        # a column of ones carries the bias, but not into the padding, whose windows are all zeros
        windows = F.pad(F.pad(windows, (0, 1), value=1.0), (0, 0, padding, blocks * stride - padding - count))

        def layers(windows: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
            return apply(_FirstTwoLayers, windows, torch.cat([weight.t(), bias[None]]), taps, above.bias)

        return _by_group(layers, windows.to(dtype), folded)


def first_layer_pooled(
    x: Tensor, conv: nn.Conv1d, norm: GroupBatchNorm | None, pooling: Geometry, groups: int = 1
) -> Tensor:
    """(B, L_in, C_in) -> max_pool(ReLU(norm(conv(x)))), (B, L, C), in autocast's type."""
    dtype = compute_type(x)
    with torch.autocast(x.device.type, enabled=False):
        windows = _windows(x, conv)
        folded = _folded(conv, norm, windows, groups)

        def layer(windows: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
            return apply(_FirstLayerPooled, windows, torch.cat([weight.t(), bias[None]]), pooling)

        return _by_group(layer, F.pad(windows, (0, 1), value=1.0).to(dtype), folded)


def _windows(x: Tensor, conv: nn.Conv1d) -> Tensor:
    """(B, L_in, C_in) -> (B, F, D): what each output of `conv` is a linear function of."""
    kernel, stride, padding = geometry(conv)
    return F.pad(x, (0, 0, padding, padding)).unfold(1, kernel, stride).flatten(2)


Layer = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Makes (B, L, C) of windows (B, F, D), a weight (C, D) and a bias (C,)."""


def _by_group(layer: Layer, windows: Tensor, folded: list[tuple[Tensor, Tensor]]) -> Tensor:
    """The layer's output for each group of clips with its own weight and bias, or for all with the only ones."""
    parts = [layer(part, *linear) for part, linear in zip(windows.chunk(len(folded)), folded, strict=True)]
    return torch.cat(parts) if len(parts) > 1 else parts[0]


def _folded(conv: nn.Conv1d, norm: GroupBatchNorm | None, windows: Tensor, groups: int) -> list[tuple[Tensor, Tensor]]:
    """Weight (C, D) and bias (C,) of the one linear layer that `norm(conv(.))` is on these (B, F, D) windows.

    Of each group, if a BatchNorm takes its statistics.
    """
    assert conv.bias is not None
    weight, bias = conv.weight.flatten(1), conv.bias
    if norm is None:
        return [(weight, bias)]
    if norm.training:
        statistics = _statistics(weight.double(), bias.double(), windows, norm, groups)
    else:
        assert norm.running_mean is not None
        assert norm.running_var is not None
        statistics = [(norm.running_mean, norm.running_var)]
    linear = []
    for mean, variance in statistics:
        scale = norm.weight * torch.rsqrt(variance + norm.eps)
        shift = norm.bias + (bias - mean) * scale
        linear.append(((weight * scale[:, None]).to(weight.dtype), shift.to(weight.dtype)))
    return linear


def _statistics(
    weight: Tensor, bias: Tensor, windows: Tensor, norm: GroupBatchNorm, groups: int
) -> list[tuple[Tensor, Tensor]]:
    """Mean and variance (C,) of the output over each group, float64; `norm` tracks them."""
    statistics = []
    for part in windows.chunk(groups):
        rows = part.flatten(0, 1).double()  # (G, F, D) -> (G*F, D)
        center = rows.mean(0)
        covariance = (rows - center).t() @ (rows - center) / len(rows)
        if norm.peers is not None:
            center, covariance = _over_peers(center, covariance, norm.peers)
        statistics.append((weight @ center + bias, ((weight @ covariance) * weight).sum(1)))
    mean, variance = (torch.stack(values).detach().mean(0) for values in zip(*statistics, strict=True))
    count = windows.shape[0] * windows.shape[1] // groups * (norm.peers.size() if norm.peers is not None else 1)
    norm.track(mean, variance * count / (count - 1))
    return statistics


def _over_peers(center: Tensor, covariance: Tensor, peers: dist.ProcessGroup) -> tuple[Tensor, Tensor]:
    """Mean and covariance over all peers' windows, of which there are equally many."""
    moments = torch.cat([center[None], covariance + center.outer(center)]) / peers.size()
    with COLLECTIVES.span(moments.device):
        dist.all_reduce(moments, group=peers)
    return moments[0], moments[1:] - moments[0].outer(moments[0])


class _FirstTwoLayers(torch.autograd.Function):
    """Products in the type of `windows`, with gradients in that of the weights."""

    @staticmethod
    def forward(ctx: Any, windows: Tensor, first: Tensor, taps: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(windows, first, taps)
        first, taps, bias = (weight.to(windows.dtype) for weight in (first, taps, bias))
        parts = []
        for part in _parts(windows, first):
            rows = sum_of_products(_hidden(part, first, taps), taps, bias)
            parts.append(frames_of(rows, len(part), len(taps)))
        return torch.cat(parts)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        windows, first, taps = ctx.saved_tensors
        to_first, to_taps, to_bias = (torch.zeros_like(weight) for weight in (first, taps, taps[0, 0]))
        first, taps = first.to(windows.dtype), taps.to(windows.dtype)
        clip = 0
        for part in _parts(windows, first):
            hidden = _hidden(part, first, taps)
            rows = F.pad(gradient[clip : clip + len(part)], (0, 0, 0, len(taps) - 1)).flatten(0, 1)  # (b*M, C_out)
            to_taps += taps_gradient(hidden, rows, len(taps))
            to_bias += rows.sum(0)
            below = torch.ops.aten.threshold_backward(blocks_gradient(rows, taps), hidden, 0)  # the ReLU's gradient
            to_first += part.flatten(0, 1).t() @ below.view(-1, first.shape[1])
            clip += len(part)
        return None, to_first, to_taps, to_bias


class _FirstLayerPooled(torch.autograd.Function):
    """The ReLU comes after the pooling, where there is less of it: the largest of a window is positive or none is."""

    @staticmethod
    def forward(ctx: Any, windows: Tensor, first: Tensor, pooling: Geometry) -> Tensor:
        weights, outputs, places = first.to(windows.dtype), [], []
        for part in _parts(windows, first):
            pooled, place = torch.ops.aten.max_pool2d_with_indices(image_of(part @ weights), *pooling)
            outputs.append(frames_of_image(pooled))
            places.append(frames_of_image(place))
        output, place = torch.cat(outputs).relu_(), torch.cat(places)
        ctx.save_for_backward(windows, first, output, place)
        ctx.pooling = pooling
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        windows, first, output, places = ctx.saved_tensors
        to_first, clip = torch.zeros_like(first), 0
        for part in _parts(windows, first):
            own = slice(clip, clip + len(part))
            pooled = torch.ops.aten.threshold_backward(gradient[own], output[own], 0)  # the ReLU's gradient
            shape = image_of(windows.new_empty(*part.shape[:2], first.shape[1]))  # only its shape is read
            below = torch.ops.aten.max_pool2d_with_indices_backward(
                image_of(pooled), shape, *ctx.pooling, (1, 1), False, image_of(places[own])
            )
            to_first += part.flatten(0, 1).t() @ frames_of_image(below).flatten(0, 1)
            clip += len(part)
        return None, to_first, None


def image_of(x: Tensor) -> Tensor:
    """(B, L, C) -> (B, C, 1, L) with channels last, as poolings want it."""
    return x.transpose(1, 2).unsqueeze(2)


def frames_of_image(image: Tensor) -> Tensor:
    """(B, C, 1, L) -> (B, L, C)."""
    return image.squeeze(2).transpose(1, 2)


def _parts(windows: Tensor, first: Tensor) -> Iterator[Tensor]:
    """Some clips' windows at a time."""
    bytes_a_clip = windows.shape[1] * first.shape[1] * windows.element_size()
    limit = CHUNK_BYTES.get(windows.device.type, GPU_CHUNK_BYTES)
    return iter(windows.split(max(1, limit // bytes_a_clip)))


def _hidden(windows: Tensor, first: Tensor, taps: Tensor) -> Tensor:
    """(B, M*s, D + 1) -> the first layer's output after its ReLU, (B*M, s*C)."""
    return (windows.flatten(0, 1) @ first).relu_().view(-1, taps.shape[1])
