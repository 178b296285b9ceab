"""Waveforms and spectrograms of decoded clips next to their originals, as PNG."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from simdist.config.schema import SAMPLE_RATE
from simdist.decode.audio import Example

WINDOW, HOP = 400, 80  # samples: 25 ms each 5 ms, where formants and pitch periods both show
RANGE = 70.0  # dB below the loudest point that are shown
COLOR = "#0072B2"
COLORS, SCALE = "magma", Normalize(-RANGE, 0)
DOTS = 150  # dots an inch


def plot_examples(examples: list[Example], title: str, path: Path) -> None:
    """Each clip's waveform and spectrogram: the original in the left column, the decoded one in the right.

    Both share axes and colors, so that what is missing or too quiet is seen as such.
    """
    figure = Figure(figsize=(10, 3.4 * len(examples) + 0.4), layout="constrained")
    figure.suptitle(title, fontsize=11)
    rows = np.atleast_2d(figure.subplots(2 * len(examples), 2, sharex="row", sharey="row", squeeze=False))
    for number, example in enumerate(examples):
        sounds = {f"{example.key}: original": example.original, f"{example.key}: decoded": example.decoded}
        loudest = _decibels(example.original).max()
        for column, (name, sound) in enumerate(sounds.items()):
            waveform, spectrogram = rows[2 * number][column], rows[2 * number + 1][column]
            seconds = len(sound) / SAMPLE_RATE
            waveform.plot(np.arange(len(sound)) / SAMPLE_RATE, sound, color=COLOR, linewidth=0.4)
            waveform.set_title(name, fontsize=9)
            waveform.set_xlim(0, seconds)
            extent = (0.0, seconds, 0.0, SAMPLE_RATE / 2000)
            spectrogram.imshow(
                _decibels(sound) - loudest, COLORS, norm=SCALE, origin="lower", aspect="auto", extent=extent
            )
            spectrogram.set_xlabel("time (s)")
        rows[2 * number][0].set_ylabel("amplitude")
        rows[2 * number + 1][0].set_ylabel("frequency (kHz)")
        figure.colorbar(ScalarMappable(SCALE, COLORS), ax=rows[2 * number + 1], label="power (dB)", shrink=0.9)
    figure.savefig(path, format="png", dpi=DOTS)


def _decibels(audio: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    """(T,) -> (bins, frames) power in dB."""
    padded = np.pad(audio, (0, max(0, WINDOW - len(audio))))
    frames = np.lib.stride_tricks.sliding_window_view(padded, WINDOW)[::HOP] * np.hanning(WINDOW)
    return 20 * np.log10(np.abs(np.fft.rfft(frames, 512)).T + 1e-6)
