"""Latent traversals: one dimension moves, all others stand, and the decoder says what it does (arXiv 2408.12936).

The dimension takes the same value in every frame. How much a dimension changes the audio is measured for all of
them: the root mean square of the difference between the decoded ends.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from simdist.analyze import style
from simdist.analyze.decoded import DecodedAnalysis, draw_audio, write_audio
from simdist.analyze.outcome import Findings, Outcome
from simdist.analyze.settings import TraversalSettings, numbers
from simdist.analyze.subject import Subject, encode
from simdist.core.errors import InputError

MOST = 4  # dimensions that are traversed where none are named
BATCH = 32  # latents decoded together


def moved(start: Tensor, dimension: int, values: list[float]) -> Tensor:
    """(L, C) latent -> (len(values), L, C): in each, one dimension has one of the values in all frames."""
    latents = start.repeat(len(values), 1, 1)
    latents[:, :, dimension] = torch.tensor(values, dtype=start.dtype)[:, None]
    return latents


class Traversal(DecodedAnalysis):
    """See the module's docstring; an `Analysis`."""

    def __init__(self, subject: Subject, module: int, settings: TraversalSettings) -> None:
        super().__init__(subject, module, settings, None if settings.start == "zero" else [settings.start])
        self._settings, self._dimensions = settings, numbers("--dimensions", settings.dimensions)
        self._width = self.decoder.in_channels
        if not all(0 <= d < self._width for d in self._dimensions):
            raise InputError(f"--dimensions is {settings.dimensions!r}; this latent has 0 to {self._width - 1}")

    def work(self, outcome: Outcome) -> Findings:
        """See `Analysis`."""
        settings, start = self._settings, self._start()
        effects = self._effects(start, outcome)
        outcome.table("effects", [{"dimension": d, "rms_change": float(e)} for d, e in enumerate(effects)])
        self._draw_effects(effects, outcome)
        chosen = self._dimensions or np.argsort(-effects, kind="stable")[:MOST].tolist()
        values = np.linspace(-settings.reach, settings.reach, settings.steps).tolist()
        for dimension in chosen:
            outcome.stop.check()
            waves = list(self.decode(moved(start, dimension, values)))
            names = [f"dimension {dimension} = {value:+.2f}" for value in values]
            title = f"traversal of dimension {dimension} from {self._called()}: {self.where}"
            outcome.figure(f"dimension-{dimension:03d}", draw_audio(waves, names, title))
            write_audio(outcome, f"dimension-{dimension:03d}", waves, names)
        most = ", ".join(f"{d} ({effects[d]:.2g})" for d in chosen)
        median = float(np.median(effects))
        return Findings(
            {"dimensions": chosen, "values": values, "rms_change": effects.tolist(), "median_rms_change": median},
            [f"RMS change of the audio from end to end: dimensions {most}; median of all {median:.2g}"],
        )

    def _start(self) -> Tensor:
        """(L, C)."""
        if self._settings.start == "zero":
            return torch.zeros(self.frames, self._width)
        return encode(self.subject, self.module, self.clips).mu[0]

    def _called(self) -> str:
        return "the zero latent" if self._settings.start == "zero" else self._settings.start

    def _effects(self, start: Tensor, outcome: Outcome) -> npt.NDArray[np.float64]:
        """(C,) RMS of the difference between the two ends of every dimension's traversal."""
        ends, found = [-self._settings.reach, self._settings.reach], []
        with outcome.bar("decoding the ends of each dimension", self._width, "dimensions") as advance:
            for first in range(0, self._width, BATCH // 2):
                outcome.stop.check()
                part = range(first, min(first + BATCH // 2, self._width))
                waves = self.decode(torch.cat([moved(start, d, ends) for d in part])).astype(np.float64)
                found.append(np.sqrt(((waves[1::2] - waves[::2]) ** 2).mean(axis=1)))
                advance(len(part))
        return np.concatenate(found)

    def _draw_effects(self, effects: npt.NDArray[np.float64], outcome: Outcome) -> None:
        figure = style.new_figure(6.5, 3.4)
        axes = figure.subplots()
        rank = np.arange(1, len(effects) + 1)
        axes.plot(rank, np.sort(effects)[::-1], color=style.colour(0), marker="o", markersize=3)
        axes.set_ylim(bottom=0)
        style.finish(axes, "latent dimension, by effect", "RMS change of the audio (full scale 1)", self.where)
        outcome.figure("effects", figure)
