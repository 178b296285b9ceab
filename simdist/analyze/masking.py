"""What a clip sounds like without some of its latent's dimensions: they are set to zero, and the rest is decoded.

Zero is the prior's mean, and for a latent after a ReLU what it is where nothing was found. SIM's authors mask single
dimensions, or all but some, to hear what a probe of vowels relies on.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from simdist.analyze import style
from simdist.analyze.encoder_under_test import EncoderUnderTest
from simdist.analyze.latent_audio import BATCH, DecodedAnalysis, draw_audio, write_audio
from simdist.analyze.probes import Wanted, newest_by_label
from simdist.analyze.registry import MaskingSettings
from simdist.analyze.result_writer import AnalysisResult, ResultWriter
from simdist.analyze.settings import numbers
from simdist.analyze.weights import importance
from simdist.core.errors import InputError

MOST_HEARD = 4  # dimensions whose masking is written as audio where each is masked alone


def masked(latents: Tensor, dimensions: list[int]) -> Tensor:
    """(N, L, C) with some dimensions set to zero in all frames."""
    left = latents.clone()
    left[:, :, dimensions] = 0.0
    return left


class Masking(DecodedAnalysis):
    """See the module's docstring; an `Analysis`."""

    def __init__(self, encoder: EncoderUnderTest, module: int, settings: MaskingSettings) -> None:
        super().__init__(encoder, module, settings)
        self._width = self.decoder.in_channels
        mask, called = self._named("mask", settings.mask)
        keep, kept = self._named("keep", settings.keep)
        self._masked = [d for d in range(self._width) if d not in keep] if keep else mask
        self._called = f"all but {kept}" if keep else called
        if keep and not self._masked:
            raise InputError(f"--keep {settings.keep} keeps all {self._width} dimensions; leave out some")

    def _named(self, option: str, given: str) -> tuple[list[int], str]:
        """The dimensions that --mask or --keep names, and what to call them."""
        label, has_probe, count = (part.strip() for part in given.partition(":"))
        if not has_probe:
            dimensions = numbers(f"--{option}", given)
            if not all(number < self._width for number in dimensions):
                raise InputError(f"--{option} is {given!r}; this latent has dimensions 0 to {self._width - 1}")
            return dimensions, given
        wanted = Wanted("linear", "mean", bias=False)
        probe = newest_by_label(self.encoder, self.module, label, wanted, self.layer)[label]
        self.inputs.append(probe.name)
        order = np.argsort(-importance(probe.weights()), kind="stable")
        dimensions = order[: int(count)].tolist()
        return dimensions, f"{','.join(map(str, dimensions))} (the most important to {label})"

    def work(self, writer: ResultWriter) -> AnalysisResult:
        """See `Analysis`."""
        latents = self.latents(writer.stop.check)
        whole = self._decoded(latents, writer)
        loudness = float((whole**2).mean())
        if self._masked:
            waves = self._decoded(masked(latents, self._masked), writer)
            error = float(((waves - whole) ** 2).mean())
            self._write(writer, "masked", latents, whole, {f"without {self._called}": self._masked})
            share = error / loudness if loudness else 0.0
            line = (
                f"without dimensions {self._called}: mean squared error {error:.3g}, {100 * share:.0f} % of the power"
            )
            return AnalysisResult({"masked": self._masked, "error": error, "share": share}, [line])
        errors = []
        with writer.bar("masking each dimension", self._width, "dimensions") as advance:
            for dimension in range(self._width):
                waves = self._decoded(masked(latents, [dimension]), writer)
                errors.append(float(((waves - whole) ** 2).mean()))
                advance(1)
        order = np.argsort(-np.array(errors), kind="stable")[:MOST_HEARD].tolist()
        writer.table("effects", [{"dimension": d, "error": errors[d]} for d in range(self._width)])
        self._draw(errors, writer)
        self._write(writer, "masked", latents, whole, {f"without dimension {d}": [d] for d in order})
        shares = ", ".join(f"{d} ({100 * errors[d] / loudness if loudness else 0:.1f} %)" for d in order)
        line = f"share of the power that changes without one dimension: most for {shares}"
        return AnalysisResult({"errors": errors, "most_important": order, "power": loudness}, [line])

    def _decoded(self, latents: Tensor, writer: ResultWriter) -> npt.NDArray[np.float64]:
        """(N, L, C) -> (N, T)."""
        waves = []
        for part in latents.split(BATCH):
            writer.stop.check()
            waves.append(self.decode(part).astype(np.float64))
        return np.concatenate(waves)

    def _write(
        self, writer: ResultWriter, stem: str, latents: Tensor, whole: npt.NDArray[Any], masks: dict[str, list[int]]
    ) -> None:
        """Audio and figure of the first clip: as it was, decoded, and decoded with each mask."""
        key, first = self.clips.keys[0], latents[:1]
        original = self.clips.audio(slice(0, 1), torch.device("cpu"))[0, 0].numpy()
        waves = [original, whole[0].astype(np.float32)]
        waves += [self.decode(masked(first, dimensions))[0] for dimensions in masks.values()]
        names = [f"original {key}", "decoded", *masks]
        writer.figure(stem, draw_audio(waves, names, f"masked dimensions: {self.where}"))
        write_audio(writer, stem, waves, names)

    def _draw(self, errors: list[float], writer: ResultWriter) -> None:
        figure = style.new_figure(6.5, 3.4)
        axes = figure.subplots()
        axes.plot(
            np.arange(1, len(errors) + 1), sorted(errors, reverse=True), color=style.color(0), marker="o", markersize=3
        )
        axes.set_ylim(bottom=0)
        style.finish(axes, "latent dimension, by effect", "mean squared error without it", self.where)
        writer.figure("effects", figure)
