"""Convolutions as shifted products, and the stem, against torch's own layers, in float64."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from simdist.models import stem
from simdist.models.convolution import convolve
from simdist.models.groups import GroupBatchNorm

CLIPS, SAMPLES = 5, 83
SHAPES = [
    (8, 4, 2),
    (10, 5, 2),
    (4, 2, 2),
    (4, 2, 1),
    (1, 1, 0),
    (3, 1, 1),
    (8, 3, 2),
    (10, 4, 2),
    (6, 2, 2),
    (2, 3, 0),
]
"""Kernel, stride, padding: of all presets, and one that leaves gaps."""


def check_gradients(ours: Tensor, theirs: Tensor, wanted: Sequence[Tensor], against: Sequence[Tensor]) -> None:
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)
    weight = torch.randn(theirs.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    got = torch.autograd.grad((ours * weight).sum(), wanted)
    expected = torch.autograd.grad((theirs * weight).sum(), against)
    for ours_, theirs_ in zip(got, expected, strict=True):
        torch.testing.assert_close(ours_, theirs_.to(ours_.dtype), rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize(("kernel", "stride", "padding"), SHAPES)
def test_shifted_products_are_the_convolution(kernel: int, stride: int, padding: int) -> None:
    conv = nn.Conv1d(3, 4, kernel, stride, padding).double()
    x = torch.randn(CLIPS, SAMPLES, 3, dtype=torch.float64, requires_grad=True)
    theirs = conv(x.transpose(1, 2)).transpose(1, 2)
    parameters = list(conv.parameters())
    check_gradients(convolve(x, conv), theirs, [x, *parameters], [x, *parameters])


def test_limits_clamp_values_and_stop_gradients() -> None:
    conv = nn.Conv1d(3, 4, 1).double()
    x = torch.randn(CLIPS, SAMPLES, 3, dtype=torch.float64, requires_grad=True)
    theirs = conv(x.transpose(1, 2)).clamp(-0.3, 0.2).transpose(1, 2)
    assert (theirs == 0.2).any()
    check_gradients(convolve(x, conv, limits=(-0.3, 0.2)), theirs, [x, conv.weight], [x, conv.weight])


def test_limits_keep_float32_under_autocast() -> None:
    conv, x = nn.Conv1d(64, 8, 1), torch.randn(2, 50, 64)
    with torch.autocast("cpu", torch.bfloat16):
        narrow, wide = convolve(x, conv), convolve(x, conv, limits=(-30.0, 20.0))
    rounded = conv(x.bfloat16().float().transpose(1, 2)).transpose(1, 2)
    assert (narrow.dtype, wide.dtype) == (torch.bfloat16, torch.float32)
    torch.testing.assert_close(wide, rounded, rtol=1e-5, atol=1e-5)
    assert (narrow.float() - rounded).abs().max() > 1e-3


def norms() -> list[GroupBatchNorm | None]:
    return [None, GroupBatchNorm(6).double()]


def first_layer(norm: GroupBatchNorm | None) -> tuple[nn.Conv1d, Tensor]:
    """A convolution and its norm with uneven weights, and audio that is far from white."""
    conv = nn.Conv1d(1, 6, 10, 5, 2).double()
    for parameter in norm.parameters() if norm is not None else ():
        nn.init.uniform_(parameter, 0.5, 1.5)
    audio = torch.randn(CLIPS, SAMPLES * 4, 1, dtype=torch.float64).cumsum(1) * 0.01
    return conv, audio


def reference(
    conv: nn.Conv1d, norm: GroupBatchNorm | None, audio: Tensor, groups: int
) -> tuple[Tensor, list[nn.BatchNorm1d]]:
    """By torch's layers, (B, C, L), and torch's norms of each group with the statistics that they tracked."""
    hidden = conv(audio.transpose(1, 2))
    if norm is None:
        return hidden, []
    plain = [nn.BatchNorm1d(6).double() for _ in range(groups)]
    for each in plain:
        each.load_state_dict(norm.state_dict())
        each.train(norm.training)
        for name, parameter in norm.named_parameters():
            setattr(each, name, parameter)
    return torch.cat([each(part) for each, part in zip(plain, hidden.chunk(groups), strict=True)]), plain


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("norm", norms(), ids=["none", "norm"])
@pytest.mark.parametrize("groups", [1, CLIPS])
@pytest.mark.parametrize("above", ["nothing", "convolution", "pooling"])
@pytest.mark.parametrize("chunk", [1, 2**22])
def test_the_stem_is_its_layers(
    monkeypatch: pytest.MonkeyPatch, training: bool, norm: GroupBatchNorm | None, groups: int, above: str, chunk: int
) -> None:
    monkeypatch.setitem(stem.CHUNK_BYTES, "cpu", chunk)  # one clip at a time, and all at once
    norm = copy.deepcopy(norm).train(training) if norm is not None else None
    conv, audio = first_layer(norm)
    second = nn.Conv1d(6, 4, 8, 4, 2).double()
    output, plain = reference(conv, norm, audio, groups)
    hidden = F.relu(output)
    parameters = [*conv.parameters(), *(norm.parameters() if norm is not None else ())]
    if above == "convolution":
        parameters += second.parameters()
        ours, theirs = stem.first_two_layers(audio, conv, norm, second, groups), second(hidden)
    elif above == "pooling":
        ours = stem.first_layer_pooled(audio, conv, norm, ((1, 8), (1, 4), (0, 1)), groups)
        theirs = F.max_pool1d(hidden, 8, 4, 1)
    else:
        ours, theirs = stem.first_layer(audio, conv, norm, groups).relu_(), hidden
    check_gradients(ours, theirs.transpose(1, 2), parameters, parameters)
    for name, ours in norm.named_buffers() if norm is not None else ():
        theirs = torch.stack([each.get_buffer(name).double() for each in plain]).mean(0)
        torch.testing.assert_close(ours.double(), theirs, rtol=1e-10, atol=1e-12)


def test_float32_statistics_of_speech_like_audio_lose_nothing() -> None:
    """The variance comes from a covariance; of channels that see little of a loud input it must not be rounding."""
    norm = GroupBatchNorm(6).double()
    conv, audio = first_layer(norm)
    with torch.no_grad():
        conv.weight.sub_(conv.weight.mean(2, keepdim=True))  # blind to the large constant
    exact, _ = reference(conv, norm, audio + 0.7, 1)
    conv32, norm32 = copy.deepcopy(conv).float(), GroupBatchNorm(6)
    norm32.load_state_dict(norm.state_dict())
    ours = stem.first_layer(audio.float() + 0.7, conv32, norm32).detach().double()
    assert float((ours - exact.detach().transpose(1, 2)).norm() / exact.detach().norm()) < 1e-4


def test_only_few_inputs_without_gradient_go_through_the_stem() -> None:
    audio = torch.zeros(2, 100, 1)
    assert stem.fits(audio, nn.Conv1d(1, 8, 10))
    assert not stem.fits(audio.requires_grad_(), nn.Conv1d(1, 8, 10))
    assert not stem.fits(torch.zeros(2, 100, 16), nn.Conv1d(16, 8, 10))
