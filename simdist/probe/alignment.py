"""Alignment of a module's frames to 10 ms phone labels.

Label i of CPC's phone files describes the window of 400 samples that begins at sample 160 i, so its center is at
160 i + 200. Frame j of a module is centered at `offset + stride * j`, both sums over its layers' kernels, strides and
paddings. Two alignments:

- `front`, of the reference implementation, where frames are 160 samples apart: an utterance has a few frames more than
  labels, and these are cut from the front. SIM's frame j is centered at 160 j + 20 and two are cut, so a label is read
  140 samples after its center.
- `center`, for any stride: a label takes the mean of the frames whose centers lie within 80 samples of its own, or the
  nearest frame where there is none. Modules 0 and 1 of SIM average 8 and 2 frames; the thesis's module 1, with
  20.8 frames per second, repeats each frame four to five times.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from simdist.config.schema import ModelConfig
from simdist.core.errors import InputError
from simdist.data.labels import PHONE_TOLERANCE, PHONE_WINDOW
from simdist.data.splits import PHONE_HOP


@dataclass(frozen=True)
class FrameGrid:
    """Where the frames of a module or layer lie in the audio, in samples."""

    stride: int
    offset: float
    """Centre of frame 0."""


MFCC_GRID = FrameGrid(PHONE_HOP, PHONE_WINDOW / 2)  # the labels' own windows


def frame_grid(model: ModelConfig, module: int, layer: int | None = None) -> FrameGrid:
    """The grid of a module, or of a layer inside it; heads are symmetric and a GRU adds none."""
    stride, offset = 1, 0.0
    for each in model.layers_up_to(module, layer):
        offset += ((each.kernel - 1) / 2 - each.padding) * stride
        stride *= each.stride
    return FrameGrid(stride, offset)


def frame_grids(model: ModelConfig) -> list[FrameGrid]:
    """The grid of each module of an encoder."""
    return [frame_grid(model, module) for module in range(len(model.modules))]


def resolve_alignment(wanted: str, grid: FrameGrid) -> str:
    """`front` or `center` for `auto`.

    Raises:
        InputError: `front` where frames are not 10 ms apart.
    """
    if wanted == "front" and grid.stride != PHONE_HOP:
        raise InputError(
            f"--align front needs frames {PHONE_HOP} samples apart, these are {grid.stride}; use --align center"
        )
    return wanted if wanted != "auto" else "front" if grid.stride == PHONE_HOP else "center"


def align(frames: Tensor, num_labels: int, grid: FrameGrid, how: str) -> Tensor:
    """One vector per label.

    Args:
        frames: (L, C) of one utterance.
        num_labels: of the utterance.
        grid: where the frames lie.
        how: `front` or `center`.

    Returns:
        (num_labels, C), float32; differentiable.

    Raises:
        InputError: `front`, and labels exceed frames, or fall short of them, by more than a few.
    """
    if how == "front":
        surplus = len(frames) - num_labels
        if not 0 <= surplus <= PHONE_TOLERANCE + 2:  # SIM has two frames more than labels
            raise InputError(
                f"{num_labels} phone labels do not fit {len(frames)} frames of 10 ms cut from the front; "
                "check the shards' labels, or use --align center"
            )
        return frames[surplus:].float()
    first, last = (torch.from_numpy(edge).to(frames.device) for edge in _windows(len(frames), num_labels, grid))
    sums = torch.cat([frames.new_zeros(1, frames.shape[1], dtype=torch.float64), frames.double().cumsum(0)])  # (L+1, C)
    return ((sums[last] - sums[first]) / (last - first)[:, None]).float()


def _windows(num_frames: int, num_labels: int, grid: FrameGrid) -> tuple[np.ndarray, np.ndarray]:
    """First and one past the last frame of each label, (num_labels,) int64 each."""
    centers = PHONE_HOP * np.arange(num_labels) + PHONE_WINDOW / 2
    first = np.ceil((centers - PHONE_HOP / 2 - grid.offset) / grid.stride).astype(np.int64)
    last = np.ceil((centers + PHONE_HOP / 2 - grid.offset) / grid.stride).astype(np.int64)
    first, last = first.clip(0, num_frames), last.clip(0, num_frames)
    nearest = np.rint((centers - grid.offset) / grid.stride).astype(np.int64).clip(0, num_frames - 1)
    empty = last <= first
    return np.where(empty, nearest, first), np.where(empty, nearest + 1, last)
