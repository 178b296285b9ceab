"""Quality figures against plain numpy and scipy in float64."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import fft, signal, stats
from torch import Tensor

from simdist.decode.quality import Figures, MelCepstralDistortion, compare, si_sdr, summarize


def clip(seed: int, length: int = 6000) -> Tensor:
    return 0.1 * torch.randn(length, generator=torch.Generator().manual_seed(seed))


def test_si_sdr_by_hand() -> None:
    target, noise = clip(0), clip(1)
    prediction = 0.3 * target + 0.05 * noise + 0.7  # neither scale nor offset count
    s, p = target.double().numpy(), prediction.double().numpy()
    s, p = s - s.mean(), p - p.mean()
    projection = (p @ s) / (s @ s) * s
    expected = 10 * math.log10((projection @ projection) / ((projection - p) @ (projection - p)))
    assert si_sdr(prediction, target).item() == pytest.approx(expected, rel=1e-9)
    assert si_sdr(5 * prediction - 1, target).item() == pytest.approx(expected, rel=1e-5)
    assert torch.stack([si_sdr(prediction, target), si_sdr(target, noise)]).equal(
        si_sdr(torch.stack([prediction, target]), torch.stack([target, noise]))
    )


def test_si_sdr_of_silence() -> None:
    assert si_sdr(clip(0), torch.zeros(6000)).isnan()
    assert si_sdr(torch.zeros(6000), clip(0)).isnan()


def cepstra(audio: np.ndarray, loudest: float = 0.0) -> tuple[np.ndarray, float]:
    """Mel cepstra 1..13 by scipy: HTK triangles laid over an FFT, natural logarithm of amplitudes, DCT-II."""
    frames = np.lib.stride_tricks.sliding_window_view(audio, 1024)[::160]
    window = np.pad(signal.get_window("hann", 400), 312)
    power = np.abs(np.fft.rfft(frames * window)) ** 2  # (frames, 513)
    mel = 2595 * np.log10(1 + 8000 / 700)
    edges = 700 * (10 ** (np.linspace(0, mel, 82) / 2595) - 1)
    hertz = np.linspace(0, 8000, 513)
    bands = np.stack([np.interp(hertz, edges[band : band + 3], [0.0, 1.0, 0.0]) for band in range(80)])
    energy = power @ bands.T
    loudest = loudest or float(energy.max())
    logarithm = np.log(np.maximum(energy, 1e-6 * loudest)) / 2
    return np.asarray(fft.dct(logarithm, type=2, axis=1))[:, 1:14] / 80, loudest  # scipy's DCT-II has a factor 2


def test_mel_cepstral_distortion_by_scipy() -> None:
    target, prediction = clip(2), torch.cumsum(clip(3), 0) * 0.3
    theirs, loudest = cepstra(target.double().numpy())
    ours, _ = cepstra(prediction.double().numpy(), loudest)
    expected = 10 / math.log(10) * np.sqrt(2 * ((ours - theirs) ** 2).sum(1)).mean()
    measure = MelCepstralDistortion()
    assert measure(prediction, target).item() == pytest.approx(expected, rel=1e-5)
    assert measure(target, target).item() == 0
    assert measure(0.5 * target, target).item() == pytest.approx(0, abs=0.2)  # the level is not counted


def test_a_tilt_of_known_size() -> None:
    """Envelopes that differ by 0.4 cos ω in log amplitude differ in c_1 alone, and by their root mean square in dB."""
    measure = MelCepstralDistortion()
    power = torch.ones(80, 5, dtype=torch.float64)
    band = (torch.arange(80) + 0.5) / 80 * math.pi
    tilted = power * (2 * 0.4 * torch.cos(band)).exp()[:, None]  # log amplitude 0.4 cos ω
    floor = torch.tensor(1e-9, dtype=torch.float64)
    difference = measure._cepstrum(tilted, floor) - measure._cepstrum(power, floor)
    assert difference[0, 0].item() == pytest.approx(0.4)
    assert difference[0, 1:].abs().max().item() < 1e-6
    root_mean_square = (20 / math.log(10) * 0.4 * torch.cos(band)).square().mean().sqrt().item()
    assert 10 * math.sqrt(2) / math.log(10) * 0.4 == pytest.approx(root_mean_square)


def test_figures_leave_padding_out() -> None:
    target, prediction = clip(4), clip(5)
    figures = Figures()
    plain = figures(prediction[:5000], target[:5000], 5000)
    assert set(plain) == {"mse", "spectral", "fft", "mel", "stft", "si_sdr", "mcd"}
    assert figures(prediction, target, 5000) == plain
    assert plain["mse"] == pytest.approx((prediction - target)[:5000].square().mean().item())
    short = figures(prediction, target, 1500)
    assert math.isnan(short["mel"])
    assert not math.isnan(short["stft"])


def test_summary() -> None:
    clips = {"mse": [0.0, 1.0, 2.0, 3.0, 4.0], "si_sdr": [0.0, 1.0, 2.0, -math.inf, 4.0], "mel": [math.nan] * 5}
    summary = summarize(clips)
    assert summary["mse"]["value"] == 2
    assert 0.6 < summary["mse"]["interval"][0] < 1.2
    assert 2.8 < summary["mse"]["interval"][1] < 3.4
    assert summary["si_sdr"]["clips"] == 4
    assert summary["si_sdr"]["value"] == pytest.approx(7 / 4)
    assert summary["mel"] == {"value": None, "interval": None, "clips": 0}


def test_comparison_is_clip_by_clip() -> None:
    """A small difference on every clip is clear although clips differ much more; scipy's t-test agrees."""
    random = np.random.default_rng(0)
    clips = random.normal(0, 10, 50)
    ours = {"mse": list(clips), "si_sdr": list(clips), "mel": list(clips)}
    shift = random.normal(0.5, 0.5, 50)
    theirs = {"mse": list(clips + shift), "si_sdr": list(clips + shift), "mel": list(clips - shift + 0.5)}
    found = compare(ours, theirs)
    assert found["mse"]["better"] is True
    assert found["si_sdr"]["better"] is False
    assert found["mel"]["better"] is None
    assert found["mse"]["difference"] == pytest.approx(-shift.mean())
    expected = stats.ttest_1samp(-shift, 0).confidence_interval(0.95)
    assert found["mse"]["interval"] == pytest.approx([expected.low, expected.high], abs=0.05)
    assert compare({"mel": [math.nan]}, {"mel": [1.0]})["mel"] == {"difference": None, "interval": None, "better": None}
