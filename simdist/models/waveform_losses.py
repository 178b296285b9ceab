"""How far a decoded waveform is from the original: in time, in its spectrum, in mel bands, at several resolutions.

All take (B, 1, T) in [-1, 1] at 16 kHz and give one float32 number; all are computed in float32 whatever the precision
of training. `mse`, `spectral`, `fft` and `mel` are those of Smooth InfoMax (arXiv 2408.12936); `stft` is the
multi-resolution STFT loss of Parallel WaveGAN (arXiv 1910.11480, equations 4 to 6).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from simdist.config.schema import SAMPLE_RATE
from simdist.core.errors import InputError
from simdist.models.precision import wide

SPECTRAL_FFT = 1024
MEL_FFT, MEL_HOP, MEL_BANDS, MEL_FLOOR = 4096, 2048, 128, 1e-10
STFT_RESOLUTIONS = ((1024, 120, 600), (2048, 240, 1200), (512, 50, 240))  # n_fft, hop, window, in samples
STFT_FLOOR = 1e-7  # of power: silence has no logarithm

LOSSES = {
    "mse": ("mse",),
    "spectral": ("spectral",),
    "fft": ("fft",),
    "mel": ("mel",),
    "stft": ("stft",),
    "mse+spectral": ("mse", "spectral"),
    "mse+fft": ("mse", "fft"),
    "mse+mel": ("mse", "mel"),
    "mse+stft": ("mse", "stft"),
}
"""The terms that each loss adds up."""
REACH = {"mse": 0, "spectral": SPECTRAL_FFT // 2, "fft": 0, "mel": MEL_FFT // 2, "stft": 1024}
"""Samples that a term's first window mirrors at the edge of a clip, which must be longer than that."""


class SpectralLoss(nn.Module):
    """Mean squared difference of STFT power: 1,024 samples, hop 256, Hann."""

    window: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("window", torch.hann_window(SPECTRAL_FFT), persistent=False)

    def forward(self, prediction: Tensor, target: Tensor) -> Tensor:
        return (self._power(prediction) - self._power(target)).square().mean()

    def _power(self, audio: Tensor) -> Tensor:  # (B, 1, T) -> (B, bins, frames)
        window = self.window.to(audio.dtype)
        spectrum = torch.stft(audio.squeeze(1), SPECTRAL_FFT, window=window, return_complex=True)
        return spectrum.real.square() + spectrum.imag.square()


class FourierLoss(nn.Module):
    """Mean absolute difference of magnitudes plus that of phases, of one Hann-windowed FFT over the whole clip.

    Phases are compared as in the reference implementation, without wrapping: -π and π count as 2π apart.
    """

    def forward(self, prediction: Tensor, target: Tensor) -> Tensor:
        window = torch.hann_window(target.shape[2], dtype=target.dtype, device=target.device)
        ours, theirs = (torch.fft.rfft(audio * window) for audio in (prediction, target))
        return (ours.abs() - theirs.abs()).abs().mean() + (ours.angle() - theirs.angle()).abs().mean()


class MelLoss(nn.Module):
    """Mean squared difference in dB of the power in 128 mel bands (HTK, Slaney norm): 4,096 samples, hop 2,048."""

    def __init__(self) -> None:
        super().__init__()
        from simdist.core.torchaudio_import import torchaudio

        self.bands = torchaudio.transforms.MelSpectrogram(
            SAMPLE_RATE, MEL_FFT, hop_length=MEL_HOP, n_mels=MEL_BANDS, norm="slaney", mel_scale="htk"
        )

    def forward(self, prediction: Tensor, target: Tensor) -> Tensor:
        return (self._decibels(prediction) - self._decibels(target)).square().mean()

    def _decibels(self, audio: Tensor) -> Tensor:  # (B, 1, T) -> (B, 1, bands, frames)
        return 10 * self.bands(audio).clamp(min=MEL_FLOOR).log10()


class StftLoss(nn.Module):
    """Spectral convergence plus mean absolute difference of log magnitudes, averaged over three resolutions."""

    def forward(self, prediction: Tensor, target: Tensor) -> Tensor:
        return torch.stack([self._at(prediction, target, *sizes) for sizes in STFT_RESOLUTIONS]).mean()

    def _at(self, prediction: Tensor, target: Tensor, n_fft: int, hop: int, length: int) -> Tensor:
        window = torch.hann_window(length, dtype=target.dtype, device=target.device)
        ours, theirs = (_magnitude(audio, n_fft, hop, window) for audio in (prediction, target))
        convergence = torch.linalg.norm(theirs - ours, dim=(1, 2)) / torch.linalg.norm(theirs, dim=(1, 2))  # (B,)
        return convergence.mean() + (ours.log() - theirs.log()).abs().mean()


def _magnitude(audio: Tensor, n_fft: int, hop: int, window: Tensor) -> Tensor:
    """(B, 1, T) -> (B, bins, frames), never less than the floor's root."""
    spectrum = torch.stft(audio.squeeze(1), n_fft, hop, len(window), window, return_complex=True)
    return (spectrum.real.square() + spectrum.imag.square()).clamp(min=STFT_FLOOR).sqrt()


TERMS: dict[str, Callable[[], nn.Module]] = {
    "mse": nn.MSELoss,
    "spectral": SpectralLoss,
    "fft": FourierLoss,
    "mel": MelLoss,
    "stft": StftLoss,
}


class WaveformLoss(nn.Module):
    """A sum of terms between two waveforms, (B, 1, T) each.

    Args:
        name: a key of `LOSSES`.

    Raises:
        InputError: no such loss.
    """

    def __init__(self, name: str) -> None:
        super().__init__()
        if name not in LOSSES:
            raise InputError(f"there is no decoder loss {name!r}; the losses are {', '.join(LOSSES)}")
        self.terms = nn.ModuleDict({term: TERMS[term]() for term in LOSSES[name]})

    def forward(self, prediction: Tensor, target: Tensor) -> Tensor:
        """The sum, with gradient."""
        return torch.stack(list(self.each(prediction, target).values())).sum()

    def each(self, prediction: Tensor, target: Tensor) -> dict[str, Tensor]:
        """Every term by its name."""
        with torch.autocast(target.device.type, enabled=False):
            return {name: term(wide(prediction), wide(target)) for name, term in self.terms.items()}


def check_reach(loss: str, num_samples: int) -> None:
    """Raise an InputError if clips of `num_samples` are too short for a loss's windows."""
    reach = max(REACH[term] for term in LOSSES[loss])
    if num_samples <= reach:
        raise InputError(f"data.crop is {num_samples}; the loss {loss} needs crops of more than {reach} samples")
