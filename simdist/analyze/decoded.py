"""Latents made audible: which decoder, and how decoded waveforms are drawn and written."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure
from torch import Tensor

from simdist.analyze import style
from simdist.analyze.outcome import ModuleError, Outcome
from simdist.analyze.settings import ContributionSettings, DecodedSettings
from simdist.analyze.subject import Subject, choose_clips
from simdist.config.decoder import DecodingConfig, decoder_command
from simdist.config.load import read_tree
from simdist.config.schema import SAMPLE_RATE
from simdist.core.errors import InputError
from simdist.loading import find_decoder, load_decoder
from simdist.models.decoder import Decoder, mirrored
from simdist.models.encoder import hash_weights
from simdist.runs.folder import CONFIG, DONE

Wave = npt.NDArray[np.float32]
RANGE = 80.0  # dB below the loudest frequency that are shown
BINS = 257  # of a drawn spectrum: frequencies are averaged to so many, for single ones of a long clip are noise


def open_decoder(subject: Subject, module: int, loss: str | None) -> Decoder:
    """The trained decoder of a module, on the subject's device.

    Raises:
        ModuleError: there is none (with the command that makes it), it is not finished, or it was trained on other
            weights.
    """
    run = subject.run.folder
    try:
        mirrored(subject.run.config.model, module)
        folder = find_decoder(run, module, loss, untrained=False)
        decoder = load_decoder(run, module, loss)
    except InputError as error:
        raise ModuleError(str(error)) from error
    made = read_tree(DecodingConfig, folder / CONFIG)
    if not (folder / DONE).exists():
        raise ModuleError(f"{folder} is not finished. Resume it with: {decoder_command(run, module, made.loss)}")
    if made.encoder_weights not in ("", hash_weights(subject.encoder)[:16]):
        raise ModuleError(
            f"{folder} was trained on step {made.checkpoint} of the encoder, not on step {subject.step}; name that "
            f"one with --checkpoint, or train it from scratch: {decoder_command(run, module, made.loss)} --force"
        )
    return decoder.to(subject.device)


class DecodedAnalysis:
    """What the analyses through a decoder share."""

    def __init__(
        self,
        subject: Subject,
        module: int,
        settings: DecodedSettings | ContributionSettings,
        keys: list[str] | None = None,
    ) -> None:
        self.subject, self.module = subject, module
        self.decoder = open_decoder(subject, module, settings.loss)
        self.clips = choose_clips(subject, settings, keys)
        self.frames = subject.run.config.model.num_frames(self.clips.samples)[module]
        self.where = f"{subject.run.folder.name}, module {module}"
        self.inputs = [hash_weights(self.decoder), self.clips.split.manifest.fingerprint]

    def decode(self, latent: Tensor) -> Wave:
        """(B, L, C) -> (B, T) waveforms, as long as the clips."""
        audio = self.decoder.decode(latent.to(self.subject.device), self.clips.samples)
        return audio[:, 0].float().cpu().numpy()


def spectrum(audio: Wave) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Frequencies in kHz and power in dB (relative to full scale) of (T,) audio, a Hann window over all of it.

    Powers of neighbouring frequencies are averaged to at most `BINS` points.
    """
    window = np.hanning(len(audio))
    power = np.abs(np.fft.rfft(audio * window)) ** 2 / (window.sum() / 2) ** 2
    frequencies = np.fft.rfftfreq(len(audio), 1 / SAMPLE_RATE) / 1000
    parts = np.array_split(np.arange(len(power)), min(BINS, len(power)))
    mean = np.array([power[part].mean() for part in parts])
    return np.array([frequencies[part].mean() for part in parts]), 10 * np.log10(mean + 1e-12)


def draw_audio(waves: list[Wave], names: list[str], title: str) -> Figure:
    """One row a sound: its waveform, and its spectrum. Rows share their axes.

    Args:
        waves: (T,) each, at 16 kHz.
        names: what each is.
    """
    figure = style.new_figure(10, 0.7 + 1.35 * len(waves))
    figure.suptitle(title, fontsize=10)
    panels = figure.subplots(len(waves), 2, squeeze=False, sharex="col", sharey="col")
    spectra = [spectrum(wave) for wave in waves]
    loudest = max(float(decibels.max()) for _, decibels in spectra)
    for (left, right), wave, name, (frequencies, decibels) in zip(panels, waves, names, spectra, strict=True):
        left.plot(np.arange(len(wave)) / SAMPLE_RATE, wave, color=style.colour(0), linewidth=0.4)
        right.plot(frequencies, decibels, color=style.colour(1), linewidth=0.7)
        left.set_title(name, loc="left", fontsize=8)
        for axes in (left, right):
            axes.grid(alpha=0.3)
    panels[0][1].set_ylim(loudest - RANGE, loudest + 3)
    panels[0][0].set_xlim(0, len(waves[0]) / SAMPLE_RATE)
    panels[0][1].set_xlim(0, SAMPLE_RATE / 2000)
    panels[-1][0].set_xlabel("time (s)")
    panels[-1][1].set_xlabel("frequency (kHz)")
    middle = len(waves) // 2
    panels[middle][0].set_ylabel("amplitude (full scale 1)")
    panels[middle][1].set_ylabel("power (dB re full scale)")
    return figure


def write_audio(outcome: Outcome, stem: str, waves: list[Wave], names: list[str]) -> None:
    """One WAV a sound, STEM-00.wav …, and a table that says which is which and how loud."""
    rows = []
    for number, (wave, name) in enumerate(zip(waves, names, strict=True)):
        outcome.sound(f"{stem}-{number:02d}", wave)
        rms, peak = float(np.sqrt((wave**2).mean())), float(np.abs(wave).max())
        rows.append({"file": f"{stem}-{number:02d}.wav", "sound": name, "rms": rms, "peak": peak})
    outcome.table(f"{stem}-sounds", rows)
