"""Frames meet labels where they lie in the audio."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from simdist.config.load import CONFIGS, read_config
from simdist.core.errors import InputError
from simdist.models.encoder import GreedyEncoder
from simdist.probe.alignment import FrameGrid, align, frame_grids, resolve_alignment
from simdist.probe.feature_extractors import contexts


@pytest.mark.parametrize("preset", ["sim_librispeech", "gim_lowe_librispeech", "vgim_thesis"])
def test_grids_are_the_centers_of_what_frames_see(preset: str) -> None:
    """The samples that a frame depends on, by its gradient; a GRU remembers everything, so it is left out."""
    config = read_config(CONFIGS / f"{preset}.yaml")
    model = replace(config.model, width=16)
    encoder = GreedyEncoder(model, config.loss).eval()
    audio = torch.randn(6, 1, 12_000, generator=torch.manual_seed(0), requires_grad=True)
    for module, (frames, grid) in enumerate(zip(contexts(encoder, audio, None), frame_grids(model), strict=True)):
        if model.modules[module].gru:
            continue
        for frame in (frames.shape[1] // 3, frames.shape[1] // 2):
            (gradient,) = torch.autograd.grad(frames[:, frame].square().sum(), audio, retain_graph=True)
            touched = (gradient != 0).any(dim=0)[0].nonzero().flatten()  # ReLU and pooling hide some in each clip
            middle = (int(touched[0]) + int(touched[-1])) / 2
            assert middle == pytest.approx(grid.offset + grid.stride * frame, abs=25)


@pytest.mark.parametrize("grid", [FrameGrid(20, 10.0), FrameGrid(80, 0.0), FrameGrid(192, 50.0), FrameGrid(768, 300.0)])
def test_center_is_the_mean_of_the_frames_within_80_samples(grid: FrameGrid) -> None:
    num_labels, num_frames = 50, (160 * 50 + 400) // grid.stride
    frames = torch.randn(num_frames, 3)
    aligned = align(frames, num_labels, grid, "center")
    centers = [grid.offset + grid.stride * j for j in range(num_frames)]
    for i in range(num_labels):
        middle = 160 * i + 200
        near = [j for j, center in enumerate(centers) if middle - 80 <= center < middle + 80]
        near = near or [int(np.argmin([abs(center - middle) for center in centers]))]
        assert torch.allclose(aligned[i], frames[near].mean(0), atol=1e-6), i


def test_front_cuts_the_surplus_from_the_front() -> None:
    frames = torch.randn(128, 4)
    assert torch.equal(align(frames, 126, FrameGrid(160, 20.0), "front"), frames[2:])
    with pytest.raises(InputError, match="90 phone labels do not fit 128 frames"):
        align(frames, 90, FrameGrid(160, 20.0), "front")


def test_front_is_for_frames_of_10_ms() -> None:
    assert resolve_alignment("auto", FrameGrid(160, 20.0)) == "front"
    assert resolve_alignment("auto", FrameGrid(20, 10.0)) == "center"
    with pytest.raises(InputError, match="these are 20; use --align center"):
        resolve_alignment("front", FrameGrid(20, 10.0))
