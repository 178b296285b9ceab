"""Convolutions over (B, L, C) as matrix products, without gathering what they read.

Legend: B clips, L_in frames in, L frames out, s stride, q = ceil(kernel / s) taps, M = L + q - 1 blocks.

A kernel of q strides reads q neighboring blocks of s frames. In a contiguous, padded (B, M*s, C) tensor a block is a
row of s*C numbers, so a convolution is q products of one (B*M, s*C) matrix, each shifted by a row: nothing overlaps and
nothing is copied (no im2col), and the products run at the speed of the BLAS library. Rows at the end of a clip that mix
it with the next one are cut off.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


def compute_type(x: Tensor) -> torch.dtype:
    """What autocast multiplies in where it is on, else the type of `x`."""
    device = x.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype


def geometry(conv: nn.Conv1d) -> tuple[int, int, int]:
    """Kernel, stride and padding."""
    padding = conv.padding[0]
    assert isinstance(padding, int)
    return conv.kernel_size[0], conv.stride[0], padding


def convolve(x: Tensor, conv: nn.Conv1d, limits: tuple[float, float] | None = None) -> Tensor:
    """What `conv` makes of (B, L_in, C_in): (B, L, C_out), in autocast's type.

    With `limits`, values are clamped to them, and are float32 or wider under autocast too; only their gradients are
    multiplied in autocast's type, as those of every other layer.
    """
    kernel, stride, padding = geometry(conv)
    frames = (x.shape[1] + 2 * padding - kernel) // stride + 1
    dtype = compute_type(x)
    result_type = torch.promote_types(dtype, torch.float32) if limits else dtype
    with torch.autocast(x.device.type, enabled=False):
        taps = tap_weights(conv.weight, stride)
        blocks = to_blocks(x.to(dtype), len(taps), stride, padding, frames)
        rows: Tensor = apply(_Convolution, blocks, taps, conv.bias, result_type, limits)
        return frames_of(rows, x.shape[0], len(taps))


def tap_weights(weight: Tensor, stride: int) -> Tensor:
    """(C_out, C_in, kernel) -> (q, s*C_in, C_out): what multiplies each block; kernels are filled up with zeros."""
    out, channels, kernel = weight.shape
    taps = -(-kernel // stride)
    if taps * stride != kernel:
        weight = F.pad(weight, (0, taps * stride - kernel))
    return weight.permute(2, 1, 0).reshape(taps, stride * channels, out)


def to_blocks(x: Tensor, taps: int, stride: int, padding: int, frames: int) -> Tensor:
    """(B, L_in, C) -> (B*M, s*C): `padding` frames of zeros come first, and as many last as fill the blocks."""
    blocks = frames + taps - 1
    after = blocks * stride - padding - x.shape[1]
    if padding or after:
        x = F.pad(x, (0, 0, padding, after))
    return x.reshape(x.shape[0] * blocks, stride * x.shape[2])


def apply(function: type[torch.autograd.Function], *arguments: Any) -> Any:
    """Call an autograd function; its own `apply` carries no types."""
    return function.apply(*arguments)


class _Convolution(torch.autograd.Function):
    """Products in `result_type`, clamped to `limits`; those of the gradients in the type of `blocks`."""

    @staticmethod
    def forward(
        ctx: Any,
        blocks: Tensor,
        taps: Tensor,
        bias: Tensor,
        result_type: torch.dtype,
        limits: tuple[float, float] | None,
    ) -> Tensor:
        out = sum_of_products(*(tensor.to(result_type) for tensor in (blocks, taps, bias)))
        if limits:
            F.hardtanh_(out, *limits)
        ctx.save_for_backward(blocks, taps, out if limits else None)
        ctx.limits = limits
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        blocks, taps, clamped = ctx.saved_tensors
        if ctx.limits:
            gradient = torch.ops.aten.hardtanh_backward(gradient, clamped, *ctx.limits)
        rows = gradient.to(blocks.dtype)  # zeros where rows were cut off
        below = blocks_gradient(rows, taps.to(rows.dtype)) if ctx.needs_input_grad[0] else None
        return below, taps_gradient(blocks, rows, len(taps)), rows.sum(0), None, None


def sum_of_products(blocks: Tensor, taps: Tensor, bias: Tensor) -> Tensor:
    """(B*M, s*C) -> (B*M, C_out), of which the last q - 1 rows of a clip mix it with the next one."""
    out = torch.addmm(bias, blocks, taps[0])
    for j in range(1, len(taps)):
        out[:-j].addmm_(blocks[j:], taps[j])
    return out


def frames_of(rows: Tensor, clips: int, taps: int) -> Tensor:
    """(B*M, C) -> (B, L, C), a view without the rows that mix clips."""
    frames = len(rows) // clips - taps + 1
    return rows.view(clips, -1, rows.shape[1])[:, :frames]


def taps_gradient(blocks: Tensor, rows: Tensor, taps: int) -> Tensor:
    """(B*M, s*C) and the output's gradient (B*M, C_out) -> (q, s*C, C_out)."""
    return torch.stack([blocks[j:].t() @ rows[: len(rows) - j] for j in range(taps)])


def blocks_gradient(rows: Tensor, taps: Tensor) -> Tensor:
    """The output's gradient (B*M, C_out) -> (B*M, s*C)."""
    gradient = rows @ taps[0].t()
    for j in range(1, len(taps)):
        gradient[j:].addmm_(rows[:-j], taps[j].t())
    return gradient
