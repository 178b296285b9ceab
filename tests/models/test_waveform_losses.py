"""Decoder losses against upstream's values, and against plain numpy in float64."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import signal
from torch import Tensor

from simdist.core.errors import InputError
from simdist.models.waveform_losses import LOSSES, STFT_RESOLUTIONS, WaveformLoss, check_reach


@pytest.fixture(scope="module")
def golden(shared: Path) -> dict[str, Tensor]:
    with np.load(shared / "golden" / "decoder.npz") as stored:
        return {name.removeprefix("losses/"): torch.from_numpy(stored[name]) for name in stored if "losses/" in name}


def clips(seed: int, count: int = 3, length: int = 6000) -> Tensor:
    return 0.1 * torch.randn(count, 1, length, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("name", [name for name in LOSSES if "stft" not in name])
def test_losses_equal_upstream(golden: dict[str, Tensor], name: str) -> None:
    value = WaveformLoss(name)(golden["prediction"], golden["target"])
    assert value.item() == pytest.approx(golden[name.replace("+", "_")].item(), rel=1e-4)


def test_stft_loss_equals_its_definition_in_float64() -> None:
    ours, theirs = clips(0), clips(1)
    expected = []
    for n_fft, hop, length in STFT_RESOLUTIONS:
        window = np.zeros(n_fft)
        begin = (n_fft - length) // 2
        window[begin : begin + length] = signal.get_window("hann", length)
        for one, other in zip(ours.double().numpy()[:, 0], theirs.double().numpy()[:, 0], strict=True):
            spectra = []
            for audio in (one, other):
                padded = np.pad(audio, n_fft // 2, mode="reflect")
                frames = np.lib.stride_tricks.sliding_window_view(padded, n_fft)[::hop] * window
                spectra.append(np.abs(np.fft.rfft(frames)))
            distance = np.linalg.norm(spectra[1] - spectra[0]) / np.linalg.norm(spectra[1])
            expected.append(distance + np.abs(np.log(spectra[0]) - np.log(spectra[1])).mean())
    assert WaveformLoss("stft")(ours, theirs).item() == pytest.approx(np.mean(expected), rel=1e-4)


@pytest.mark.parametrize("name", LOSSES)
def test_every_loss_is_zero_at_the_target_and_has_finite_gradients_at_silence(name: str) -> None:
    loss, target = WaveformLoss(name), clips(2)
    assert loss(target, target).item() == pytest.approx(0, abs=1e-6)
    target[0, :, 3000:] = 0  # a clip that was padded
    target[1] = 0  # and one of nothing else
    for prediction in (clips(3), torch.zeros_like(target)):
        prediction.requires_grad_()
        value = loss(prediction, target)
        value.backward()
        assert value.item() > 0.001
        assert prediction.grad is not None
        assert bool(prediction.grad.isfinite().all())


def test_losses_are_float32_under_autocast() -> None:
    ours, theirs = clips(4), clips(5)
    with torch.autocast("cpu", torch.bfloat16):
        for name in LOSSES:
            exact = WaveformLoss(name).double()(ours.double(), theirs.double())
            assert WaveformLoss(name)(ours, theirs).item() == pytest.approx(exact.item(), rel=1e-4)


def test_terms_add_up() -> None:
    ours, theirs = clips(6), clips(7)
    terms = WaveformLoss("mse+mel").each(ours, theirs)
    assert set(terms) == {"mse", "mel"}
    assert terms["mse"].item() == pytest.approx((ours - theirs).square().mean().item())
    assert WaveformLoss("mse+mel")(ours, theirs).item() == pytest.approx(sum(v.item() for v in terms.values()))


def test_wrong_losses_and_short_clips() -> None:
    with pytest.raises(InputError, match=r"no decoder loss 'l1'; the losses are mse, spectral.*mse\+stft"):
        WaveformLoss("l1")
    check_reach("mel", 2049)
    with pytest.raises(InputError, match=r"data.crop is 2048; the loss mse\+mel needs crops of more than 2048 samples"):
        check_reach("mse+mel", 2048)
