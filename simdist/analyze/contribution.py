"""The interpolation contribution score (arXiv 2408.12936): how few dimensions carry a clip's sound?

For each ordered pair of clips (a, b), rank the dimensions by the squared difference of the clips' time-averaged
latents. Put b's values of the n most different dimensions, in all frames, into a's latent; decode; take the mean
squared error to decoded b; divide by the error with nothing replaced. 1: they carried nothing; 0: they carried
everything. Where the score falls fast, few dimensions carry what tells sounds apart.

That is our definition: of each pair, on the latents' means. The paper's (`--definition paper`) is of the whole: the
mean error over all pairs divided by the mean error with nothing replaced, on sampled latents.

All pairs of a clip a and all sizes n are mixed and decoded in batches. No decoding is done for n = 0, whose error is
that between two decoded clips, nor for n of all dimensions, whose error is zero.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from simdist.analyze import style
from simdist.analyze.encoder_under_test import EncoderUnderTest, encode, sampled
from simdist.analyze.fast_decoding import FastDecoder
from simdist.analyze.latent_audio import DecodedAnalysis
from simdist.analyze.registry import ContributionSettings
from simdist.analyze.result_writer import AnalysisResult, ResultWriter
from simdist.analyze.settings import PAPER, numbers
from simdist.core.errors import InputError
from simdist.core.files import replacing

DTYPES = {"float32": torch.float32, "bf16": torch.bfloat16}
PROGRESS = "progress.npz"
COARSE = 0.01  # rounding noise from which on scores are not to be trusted
SAVE_EVERY = 20  # clips: what a kill without warning costs at most


@dataclass(frozen=True)
class Scorer:
    """Scores of pairs of N clips. L frames, C dimensions, T samples.

    Args of its fields:
        latents: (N, L, C) in the precision of decoding.
        means: (N, C) latents averaged over time, float32.
        decoded: (N, T) float32.
    """

    decoder: FastDecoder
    latents: Tensor
    means: Tensor
    decoded: Tensor
    sizes: list[int]
    batch: int

    @staticmethod
    @torch.no_grad()
    def of(decoder: FastDecoder, latents: Tensor, sizes: list[int], batch: int, dtype: torch.dtype) -> Scorer:
        """From (N, L, C) float32 latents, decoded once."""
        low = latents.to(dtype)
        decoded = torch.cat([decoder(part).float() for part in low.split(batch)])
        return Scorer(decoder, low, latents.mean(dim=1), decoded, sizes, batch)

    @torch.no_grad()
    def row(self, a: int) -> npt.NDArray[np.float64]:
        """(N, 1 + S) errors of clip a towards every clip b, with nothing replaced and by size; NaN for a itself."""
        n, dimensions = self.means.shape
        differences = (self.means - self.means[a]).square()
        rank = differences.argsort(dim=1, descending=True, stable=True).argsort(dim=1)  # (N, C), 0: most different
        nothing = (self.decoded - self.decoded[a]).double().square().mean(dim=1)  # (N,)
        errors = torch.zeros(n, len(self.sizes), dtype=torch.float64)
        partners = torch.tensor([b for b in range(n) if b != a])
        real = [place for place, size in enumerate(self.sizes) if size < dimensions]
        wanted = torch.cartesian_prod(partners, torch.tensor(real)) if real else torch.empty(0, 2, dtype=torch.long)
        limits = torch.tensor(self.sizes)
        for part in wanted.split(self.batch):
            b, place = part[:, 0], part[:, 1]
            taken = (rank[b] < limits[place].to(rank.device)[:, None])[:, None]  # (B, 1, C)
            mixed = torch.where(taken, self.latents[b], self.latents[a])  # (B, L, C)
            errors[b, place] = (self.decoder(mixed).float() - self.decoded[b]).square().mean(dim=1).double().cpu()
        found = torch.cat([nothing.cpu()[:, None], errors], dim=1).numpy()
        found[a] = np.nan
        return found

    def noise(self, exact: Tensor) -> float:
        """Error of decoding in this precision, against (N, T) exact waveforms, over the median error between clips."""
        rounding = (self.decoded - exact).double().square().mean()
        between = torch.pdist(exact.double().cpu()).square().median() / exact.shape[1]
        return float(rounding.cpu() / between.clamp(min=1e-30))


def scores_of(errors: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """(N, N, S) scores of (N, N, 1 + S) errors; NaN for a clip with itself, and with one that decodes to its sound."""
    with np.errstate(divide="ignore", invalid="ignore"):
        scores = errors[:, :, 1:] / errors[:, :, :1]
    scores[~np.isfinite(scores).all(axis=2)] = np.nan
    return scores


def ratios_of_means(errors: npt.NDArray[np.float64], sizes: list[int]) -> list[dict[str, float]]:
    """The paper's curve, of (N, N, 1 + S) errors: for each size their mean, and over that with nothing replaced."""
    means = np.nanmean(errors, axis=(0, 1))  # (1 + S,)
    return [
        {"dimensions": size, "ratio": float(error / means[0]), "error": float(error)}
        for size, error in zip([0, *sizes], means, strict=True)
    ]


def summarize(scores: npt.NDArray[np.float64], sizes: list[int]) -> list[dict[str, float]]:
    """For each size mean, median and quartiles over the pairs of (N, N, S) scores."""
    pairs = scores[~np.isnan(scores).any(axis=2)]  # (pairs, S)
    low, median, high = np.quantile(pairs, [0.25, 0.5, 0.75], axis=0)
    return [
        {
            "dimensions": size,
            "mean": float(pairs[:, k].mean()),
            "median": float(median[k]),
            "lower_quartile": float(low[k]),
            "upper_quartile": float(high[k]),
        }
        for k, size in enumerate(sizes)
    ]


class Contribution(DecodedAnalysis):
    """See the module's docstring; an `Analysis`."""

    def __init__(self, encoder: EncoderUnderTest, module: int, settings: ContributionSettings) -> None:
        super().__init__(encoder, module, settings)
        self._settings = settings
        if len(self.clips) < 2:
            raise InputError(f"split {self.clips.split.folder} has {len(self.clips)} clip; the score compares pairs")
        width = self.decoder.in_channels
        self._sizes = sorted({min(size, width) for size in numbers("--sizes", settings.sizes)})

    def work(self, writer: ResultWriter) -> AnalysisResult:
        """See `Analysis`."""
        settings, dtype = self._settings, DTYPES[self._settings.precision]
        device = self.encoder.device
        latents = self._latents(writer).to(device)
        decoder = FastDecoder(self.decoder, self.frames, dtype, self.clips.samples)
        scorer = Scorer.of(decoder, latents, self._sizes, settings.batch, dtype)
        noise = self._noise(scorer, latents)
        errors = self._rows(scorer, writer)
        scores = scores_of(errors)
        if np.isnan(scores).all():
            raise InputError(f"all {len(self.clips)} clips decode to the same sound; train the decoder longer")
        is_paper = settings.definition == PAPER
        curve = ratios_of_means(errors, self._sizes) if is_paper else summarize(scores, self._sizes)
        writer.table("contribution", curve)
        with replacing(writer.folder / "scores.npz") as temporary, temporary.open("wb") as file:
            low = scores.astype(np.float32), errors.astype(np.float32)
            np.savez(file, scores=low[0], errors=low[1], sizes=self._sizes, keys=self.clips.keys)
        writer.files.append("scores.npz")
        pairs = int((~np.isnan(errors if is_paper else scores).any(axis=2)).sum())
        writer.figure("contribution", self._figure(curve, pairs))
        (writer.folder / PROGRESS).unlink(missing_ok=True)
        values = {"clips": len(self.clips), "pairs": pairs, "rounding_noise": noise, "curve": curve}
        return AnalysisResult(values, _sentences(curve, pairs, noise))

    def _latents(self, writer: ResultWriter) -> Tensor:
        """(N, L, C) on the CPU: means, or by the paper's definition a sample of a variational module."""
        if self._settings.definition == PAPER and self.layer is None:
            encoding = encode(self.encoder, self.module, self.clips, writer.stop.check)
            if encoding.log_var is not None:
                return sampled(encoding.mu, encoding.log_var, self._settings.seed)
        return self.latents(writer.stop.check)

    def _figure(self, curve: list[dict[str, float]], pairs: int) -> Figure:
        is_paper = self._settings.definition == PAPER
        figure = style.new_figure(9 if is_paper else 6, 3.8)
        if is_paper:
            draw_ratios(figure, self.where, curve)
        else:
            draw_curves(figure.subplots(), {self.where: curve})
        of_whom = ", the paper's definition" if is_paper else ""
        figure.suptitle(f"interpolation contribution{of_whom}, {pairs:,} pairs", fontsize=10)
        return figure

    def _noise(self, scorer: Scorer, latents: Tensor) -> float:
        if self._settings.precision == "float32":
            return 0.0
        decoder = FastDecoder(self.decoder, self.frames, torch.float32, self.clips.samples)
        return scorer.noise(Scorer.of(decoder, latents, [], self._settings.batch, torch.float32).decoded)

    def _rows(self, scorer: Scorer, writer: ResultWriter) -> npt.NDArray[np.float64]:
        """(N, N, 1 + S) errors; continues an interrupted analysis.

        Raises:
            StoppedError: a signal came; what was done is saved.
        """
        count, path = len(self.clips), writer.folder / PROGRESS
        errors, done = _load(path, (count, count, 1 + len(self._sizes)))
        with writer.bar("scoring pairs", count, "clips") as advance:
            advance(done)
            for a in range(done, count):
                if writer.stop.signal_number or (a > done and a % SAVE_EVERY == 0):
                    with replacing(path) as temporary, temporary.open("wb") as file:
                        np.savez(file, errors=errors, done=a)
                    writer.stop.check()
                errors[a] = scorer.row(a)
                advance(1)
        return errors


def draw_curves(axes: Axes, runs: dict[str, list[dict[str, float]]]) -> None:
    """Median score against the number of dimensions with the quartiles around it, one line per run."""
    for number, (name, curve) in enumerate(runs.items()):
        sizes = [point["dimensions"] for point in curve]
        style.line(axes, number, sizes, [point["median"] for point in curve], name)
        low, high = ([point[key] for point in curve] for key in ("lower_quartile", "upper_quartile"))
        axes.fill_between(sizes, low, high, color=style.color(number), alpha=0.15, linewidth=0)
    axes.axhline(1, color=style.GREY, linestyle=":", label="nothing replaced")
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter(lambda value, place: f"{value:g}")
    axes.set_ylim(bottom=0)
    style.finish(axes, "dimensions replaced, most different first", "remaining error\n(share; median and quartiles)")


def draw_ratios(figure: Figure, name: str, curve: list[dict[str, float]]) -> None:
    """The paper's curve, and the errors that it is the ratio of, against the number of dimensions replaced."""
    sizes = [point["dimensions"] for point in curve]
    shown = {"ratio": "error / error with nothing replaced", "error": "mean squared error"}
    for axes, (key, label) in zip(figure.subplots(1, 2), shown.items(), strict=True):
        style.line(axes, 0, sizes, [point[key] for point in curve], name)
        axes.set_xscale("symlog", base=2, linthresh=1)
        axes.xaxis.set_major_formatter(lambda value, place: f"{value:g}")
        axes.set_ylim(bottom=0)
        style.finish(axes, "dimensions replaced, most different first", label)


def _load(path: Path, shape: tuple[int, int, int]) -> tuple[npt.NDArray[np.float64], int]:
    """The partial result of an interrupted analysis; empty if the file is damaged."""
    try:
        with np.load(path, allow_pickle=False) as stored:
            if stored["errors"].shape == shape:
                return stored["errors"], int(stored["done"])
    except (OSError, ValueError, KeyError, EOFError):
        pass
    return np.full(shape, np.nan), 0


def _sentences(curve: list[dict[str, float]], pairs: int, noise: float) -> list[str]:
    key, of = ("ratio", "mean over mean of") if "ratio" in curve[0] else ("median", "median of")
    points = ", ".join(f"{point['dimensions']}: {100 * point[key]:.0f} %" for point in curve)
    half: Any = next((point["dimensions"] for point in curve if point[key] <= 0.5), None)
    lines = [
        f"remaining error by dimensions replaced ({of} {pairs:,} pairs): {points}",
        f"half of the difference between two sounds is in {half} of {curve[-1]['dimensions']} dimensions or fewer",
    ]
    if noise > COARSE:
        lines.append(
            f"WARNING: bf16 rounds by {100 * noise:.0f} % of the difference between two sounds; use --precision float32"
        )
    return lines
