"""How good a decoded waveform is: every loss, SI-SDR and mel-cepstral distortion, clip by clip.

Figures are those of one clip, so that means and intervals are over clips and do not depend on batches or ranks. What
was padded to a clip is cut off first.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from simdist.config.schema import SAMPLE_RATE
from simdist.models.waveform_losses import REACH, TERMS

BETTER_HIGH = {"si_sdr"}
"""Figures that are good when large; all others are good when small."""
UNITS = {"mse": "", "spectral": "", "fft": "", "mel": "dB²", "stft": "", "si_sdr": "dB", "mcd": "dB"}
"""All figures, with their units."""
COEFFICIENTS, MEL_BANDS = 13, 80  # cepstral coefficients without the level
FFT, WINDOW, HOP = 1024, 400, 160  # 25 ms each 10 ms, zero-padded so that the lowest bands hold a bin each
HEARD = 1e-6  # band power below this share of the clip's loudest (-60 dB) counts as this
RESAMPLINGS, COVERAGE = 1000, 0.95


def si_sdr(prediction: Tensor, target: Tensor) -> Tensor:
    """Scale-invariant signal-to-distortion ratio in dB (Le Roux et al. 2019, arXiv 1811.02508, equation 5).

    Args:
        prediction, target: (..., T); their means are taken off.

    Returns:
        (...) float64; NaN where either is constant.
    """
    ours, theirs = (audio.double() - audio.double().mean(-1, keepdim=True) for audio in (prediction, target))
    scale = (ours * theirs).sum(-1, keepdim=True) / theirs.square().sum(-1, keepdim=True)
    signal = (scale * theirs).square().sum(-1)
    return 10 * (signal / (scale * theirs - ours).square().sum(-1)).log10()


class MelCepstralDistortion(nn.Module):
    """Distance in dB between the spectral envelopes of two clips (Kubichek 1993), averaged over frames.

    `10 sqrt(2) / ln 10 · |c - c'|` over the mel cepstral coefficients 1 to 13 of log amplitudes in 80 bands, scaled so
    that log amplitude = c_0 + Σ c_m cos(m ω): the root mean square difference in dB of the smoothed envelopes, whatever
    their level. Powers are floored 60 dB below the original's loudest band, for what is quieter is not heard.
    """

    dct: Tensor

    def __init__(self) -> None:
        super().__init__()
        from simdist.core.torchaudio_import import torchaudio

        self.bands = torchaudio.transforms.MelSpectrogram(
            SAMPLE_RATE, FFT, WINDOW, HOP, n_mels=MEL_BANDS, center=False
        ).double()
        dct = torchaudio.functional.create_dct(COEFFICIENTS + 1, MEL_BANDS, norm="ortho").double()
        self.register_buffer("dct", dct[:, 1:] * math.sqrt(2 / MEL_BANDS), persistent=False)  # (bands, coefficients)

    def forward(self, prediction: Tensor, target: Tensor) -> Tensor:
        """(T,) and (T,) -> scalar float64; NaN if the target is silent or shorter than 1,024 samples."""
        if len(target) < FFT or not target.any():
            return torch.tensor(torch.nan, dtype=torch.float64)
        theirs = self.bands(target.double())  # (bands, frames)
        floor = HEARD * theirs.max()
        ours, theirs = (self._cepstrum(power, floor) for power in (self.bands(prediction.double()), theirs))
        return 10 * math.sqrt(2) / math.log(10) * (ours - theirs).norm(dim=1).mean()

    def _cepstrum(self, power: Tensor, floor: Tensor) -> Tensor:
        return (power.clamp(min=floor).log() / 2).T @ self.dct  # (bands, frames) -> (frames, coefficients)


class Figures(nn.Module):
    """All figures of a decoded clip."""

    def __init__(self) -> None:
        super().__init__()
        self.terms = nn.ModuleDict({name: make() for name, make in TERMS.items()})
        self.distortion = MelCepstralDistortion()

    @torch.no_grad()
    def forward(self, prediction: Tensor, target: Tensor, length: int) -> dict[str, float]:
        """(T,) and (T,) float32, of which the first `length` samples are real; NaN where a figure is not defined."""
        ours, theirs = prediction[:length], target[:length]
        batch = ours[None, None], theirs[None, None]  # (T,) -> (1, 1, T)
        found = {
            name: term(*batch) if length > REACH[name] else torch.tensor(torch.nan) for name, term in self.terms.items()
        }
        found["si_sdr"] = si_sdr(ours, theirs)
        found["mcd"] = self.distortion(ours, theirs)
        return {name: float(value) for name, value in found.items()}


Clips = dict[str, list[float]]
"""Figures of clips: a list by figure, in the order of the clips."""


def summarize(clips: Clips) -> dict[str, dict[str, Any]]:
    """Mean of each figure over clips with its 95 % interval.

    Clips for which a figure is not defined (SI-SDR of a silent clip, say) are left out and counted.
    """
    summary = {}
    for name, values in clips.items():
        kept = np.array(values)[np.isfinite(values)]
        value, interval = _mean(kept) if len(kept) else (None, None)
        summary[name] = {"value": value, "interval": interval, "clips": len(kept)}
    return summary


def compare(ours: Clips, theirs: Clips) -> dict[str, dict[str, Any]]:
    """Mean difference of each figure, clip by clip, with its 95 % interval.

    `better` is true or false where the interval leaves zero out, else null.
    """
    comparison = {}
    for name in ours:
        differences = np.array(ours[name]) - np.array(theirs[name])
        kept = differences[np.isfinite(differences)]
        if not len(kept):
            comparison[name] = {"difference": None, "interval": None, "better": None}
            continue
        value, (low, high) = _mean(kept)
        larger = True if low > 0 else False if high < 0 else None
        better = larger if larger is None or name in BETTER_HIGH else not larger
        comparison[name] = {"difference": value, "interval": [low, high], "better": better}
    return comparison


def _mean(values: npt.NDArray[np.float64]) -> tuple[float, list[float]]:
    """Mean, and its percentile bootstrap interval over clips (Efron 1979)."""
    count = len(values)
    times = np.random.default_rng(0).multinomial(count, np.full(count, 1 / count), size=RESAMPLINGS)  # (R, clips)
    interval = np.quantile(times @ values / count, [(1 - COVERAGE) / 2, (1 + COVERAGE) / 2])
    return float(values.mean()), [float(bound) for bound in interval]
