"""Total correlation: how much the dimensions of a latent say about each other (Watanabe 1960), in nats.

TC(z) = sum_d H(z_d) - H(z). Two estimates: entropies by Gaussian kernels of bandwidth 0.1, as arXiv 2408.12936 does,
and the closed form of a Gaussian with the latent's covariance. In many dimensions a kernel estimate mostly says how few
frames there are, so each is compared with the same estimate after every dimension was shuffled over the frames, which
makes them independent: what it says then is its bias.

The paper's code (`--definition paper`) takes 5 sampled frames of each of 1,000 clips, by kernels, and draws three
times.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from scipy.special import logsumexp

from simdist.analyze import style
from simdist.analyze.encoder_under_test import EncoderUnderTest, choose_clips, encode, frames_of, sampled
from simdist.analyze.registry import TotalCorrelationSettings
from simdist.analyze.result_writer import AnalysisResult, ResultWriter
from simdist.analyze.settings import PAPER, numbers
from simdist.core.errors import InputError
from simdist.core.random_streams import stream_seed

Matrix = npt.NDArray[np.float64]
CHUNK = 500  # frames whose distances to all others are in memory together
ESTIMATES = ("kde", "kde_standardized", "gaussian")
SIGNALS, FRAMES_EACH, DRAWS = 1000, 5, 3  # of the paper's code


def gaussian_total_correlation(x: Matrix) -> float:
    """-1/2 log det R of (n, d) vectors with correlation matrix R: TC in nats if they are jointly Gaussian.

    Dimensions that never change are independent of all others, and left out. Infinite if one dimension is a linear
    function of others, as it always is with no more vectors than dimensions.
    """
    x = x[:, x.std(axis=0) > 0]
    if x.shape[1] < 2:
        return 0.0
    sign, log_determinant = np.linalg.slogdet(np.corrcoef(x, rowvar=False))
    return float(-0.5 * log_determinant) if sign > 0 and len(x) > x.shape[1] else float("inf")


def kernel_entropy(x: Matrix, bandwidth: float) -> float:
    """Entropy in nats of the Gaussian-kernel density of (n, d) vectors, averaged over these vectors."""
    n, d = x.shape
    squares = (x**2).sum(axis=1)
    constant = np.log(n) + 0.5 * d * np.log(2 * np.pi * bandwidth**2)
    total = 0.0
    for begin in range(0, n, CHUNK):
        part = x[begin : begin + CHUNK]
        distances = np.maximum((part**2).sum(axis=1)[:, None] + squares - 2 * part @ x.T, 0)
        total += float((constant - logsumexp(-distances / (2 * bandwidth**2), axis=1)).sum())
    return total / n


def kernel_total_correlation(
    x: Matrix, bandwidth: float, marginals: Matrix | None = None, check: Callable[[], None] = lambda: None
) -> float:
    """Sum of marginal entropies minus joint entropy of (n, d) vectors, both by Gaussian kernels, in nats.

    Args:
        marginals: (d,) entropies of the dimensions where they are known.
        check: called between dimensions; may raise to stop.
    """
    if marginals is None:
        marginals = marginal_entropies(x, bandwidth, check)
    return float(marginals.sum() - kernel_entropy(x, bandwidth))


def marginal_entropies(x: Matrix, bandwidth: float, check: Callable[[], None] = lambda: None) -> Matrix:
    """(d,) entropy of each dimension of (n, d) vectors by Gaussian kernels, in nats."""
    found = []
    for dimension in range(x.shape[1]):
        check()
        found.append(kernel_entropy(x[:, [dimension]], bandwidth))
    return np.array(found)


def standardized(x: Matrix) -> Matrix:
    """(n, d) vectors with mean 0 and variance 1 in each dimension; one that never changes becomes 0."""
    deviation = x.std(axis=0)
    return (x - x.mean(axis=0)) / np.where(deviation > 0, deviation, 1)


def shuffled(x: Matrix, seed: int) -> Matrix:
    """(n, d) vectors whose dimensions were shuffled over the vectors each by itself: independent, equal marginals."""
    columns = [x[np.argsort(_bits(len(x), seed, d), kind="stable"), d] for d in range(x.shape[1])]
    return np.stack(columns, axis=1)


class TotalCorrelation:
    """See the module's docstring; an `Analysis`."""

    def __init__(self, encoder: EncoderUnderTest, module: int, settings: TotalCorrelationSettings) -> None:
        self._subject, self._module, self._settings = encoder, module, settings
        is_paper = settings.definition == PAPER
        self._clips = choose_clips(encoder, replace(settings, clips=SIGNALS) if is_paper else settings)
        self._variational = encoder.module(module).log_var is not None
        if settings.latents == "sampled" and not self._variational:
            raise InputError(
                f"module {module} of {encoder.run.folder} has no distribution to sample from (model.head is "
                f"{encoder.run.config.model.head!r}); use --latents deterministic, or a run of SIM"
            )
        self.inputs = [self._clips.split.manifest.fingerprint]

    def work(self, writer: ResultWriter) -> AnalysisResult:
        """See `Analysis`."""
        settings = self._settings
        if settings.definition == PAPER:
            return self._as_published(writer)
        x = self._frames(writer)
        if len(x) < 3:
            raise InputError(f"{len(x)} frames are too few for a correlation; raise --clips or --frames")
        order = np.argsort(_bits(x.shape[1], settings.seed, "dimensions"), kind="stable")
        widths = sorted({min(width, x.shape[1]) for width in numbers("--sizes", settings.sizes)})
        values = estimates(x[:, order], widths, settings.bandwidth, settings.seed, writer)
        rows = [{"estimate": name, **point} for name in ESTIMATES for point in values[name]]
        writer.table("total-correlation", rows)
        where = f"{self._subject.run.folder.name}, module {self._module}"
        figure = style.new_figure(9.6, 3.4)
        for axes, name in zip(figure.subplots(1, len(ESTIMATES)), ESTIMATES, strict=True):
            draw_estimate(axes, name, {where: values[name]})
        figure.suptitle(f"total correlation of {len(x):,} frames: {where}", fontsize=10)
        writer.figure("total-correlation", figure)
        return AnalysisResult({"frames": len(x), **values}, _summary(values))

    def _as_published(self, writer: ResultWriter) -> AnalysisResult:
        """Mean and standard deviation over three draws of noise and frames."""
        settings = self._settings
        encoding = encode(self._subject, self._module, self._clips, writer.stop.check)
        draws: list[list[dict[str, Any]]] = []
        frames = 0
        for number in range(DRAWS):
            seed = stream_seed(settings.seed, "total correlation", number)
            latents = encoding.context
            if encoding.log_var is not None:
                latents = sampled(encoding.mu, encoding.log_var, seed)
            x = frames_of_each(latents.double().numpy(), FRAMES_EACH, seed)
            order = np.argsort(_bits(x.shape[1], seed, "dimensions"), kind="stable")
            widths = sorted({min(width, x.shape[1]) for width in numbers("--sizes", settings.sizes)})
            draws.append(_kernel_points(x[:, order], widths, settings.bandwidth, seed, writer, "kde"))
            frames = len(x)
        points = [_over_draws(of_width) for of_width in zip(*draws, strict=True)]
        writer.table("total-correlation", [{"estimate": "kde", **point} for point in points])
        where = f"{self._subject.run.folder.name}, module {self._module}"
        figure = style.new_figure(5, 3.4)
        draw_estimate(figure.subplots(), "kde", {where: points})
        figure.suptitle(f"total correlation, the paper's definition: {where}", fontsize=10)
        writer.figure("total-correlation", figure)
        last = points[-1]
        line = (
            f"kde, {last['dimensions']} dimensions: {last['total_correlation']:.2f} ± {last['deviation']:.2f} nats "
            f"over {DRAWS} draws of {frames:,} frames, {last['shuffled']:.2f} when shuffled"
        )
        return AnalysisResult({"frames": frames, "draws": DRAWS, "kde": points}, [line])

    def _frames(self, writer: ResultWriter) -> Matrix:
        encoding = encode(self._subject, self._module, self._clips, writer.stop.check)
        if self._settings.latents == "deterministic" or encoding.log_var is None:
            return frames_of(encoding.context, self._settings.frames, self._settings.seed)
        return frames_of(sampled(encoding.mu, encoding.log_var, self._settings.seed), self._settings.frames, 0)


def frames_of_each(latents: npt.NDArray[np.float64], wanted: int, seed: int) -> Matrix:
    """(N * wanted, C): so many frames, or all there are, of each of (N, L, C) latents, drawn by the seed."""
    count, length, channels = latents.shape
    bits = _bits(count * length, seed, "frames of each").reshape(count, length)
    chosen = np.sort(np.argsort(bits, axis=1, kind="stable")[:, :wanted], axis=1)  # (N, wanted)
    return np.take_along_axis(latents, chosen[:, :, None], axis=1).reshape(-1, channels)


def _over_draws(points: tuple[dict[str, Any], ...]) -> dict[str, Any]:
    """Means over draws of one width, and the standard deviation of the total correlation."""
    means = {
        key: float(np.mean([point[key] for point in points])) for key in ("total_correlation", "shuffled", "excess")
    }
    deviation = float(np.std([point["total_correlation"] for point in points], ddof=1))
    return {"dimensions": points[0]["dimensions"], **means, "deviation": deviation}


def estimates(
    x: Matrix, widths: list[int], bandwidth: float, seed: int, writer: ResultWriter
) -> dict[str, list[dict[str, Any]]]:
    """Each estimate of the first so many dimensions of (n, d) vectors, and of the same shuffled."""
    apart = shuffled(x, seed)
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in ESTIMATES}
    for name, scale in (("kde", lambda frames: frames), ("kde_standardized", standardized)):
        found[name] = _kernel_points(scale(x), widths, bandwidth, seed, writer, name)
    for width in widths:
        value, bias = (gaussian_total_correlation(part[:, :width]) for part in (x, apart))
        found["gaussian"].append(_point(width, value, bias))
    return found


def _kernel_points(
    x: Matrix, widths: list[int], bandwidth: float, seed: int, writer: ResultWriter, name: str
) -> list[dict[str, Any]]:
    """The kernel estimate of the first so many dimensions of (n, d) vectors, and of the same shuffled."""
    with writer.bar(f"{name} entropies", x.shape[1], "dimensions") as advance:

        def step() -> None:
            writer.stop.check()
            advance(1)

        marginals = marginal_entropies(x, bandwidth, step)  # shuffling leaves them as they are
    points, apart = [], shuffled(x, seed)
    for width in widths:
        writer.stop.check()
        value, bias = (kernel_total_correlation(part[:, :width], bandwidth, marginals[:width]) for part in (x, apart))
        points.append(_point(width, value, bias))
    return points


def draw_estimate(axes: Axes, name: str, runs: dict[str, list[dict[str, Any]]]) -> None:
    """One estimate against the number of dimensions, for each run and its shuffled version."""
    for number, (run, points) in enumerate(runs.items()):
        finite = [point for point in points if point["total_correlation"] is not None]
        widths = [point["dimensions"] for point in finite]
        prefix = "" if len(runs) == 1 else f"{run}"
        style.line(axes, number, widths, [p["total_correlation"] for p in finite], prefix or "latent")
        style.line(axes, number, widths, [p["shuffled"] for p in finite], f"{prefix} shuffled".strip(), style=":")
    titles = {"kde": "kernels", "kde_standardized": "kernels, standardized latent", "gaussian": "Gaussian closed form"}
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter(lambda value, place: f"{value:g}")
    axes.set_ylim(bottom=0)
    style.finish(axes, "dimensions", "total correlation (nats)", titles[name])


def _point(width: int, value: float, bias: float) -> dict[str, Any]:
    finite = [v if np.isfinite(v) else None for v in (value, bias)]
    excess = value - bias if None not in finite else None
    return {"dimensions": width, "total_correlation": finite[0], "shuffled": finite[1], "excess": excess}


def _bits(count: int, *names: int | str) -> npt.NDArray[np.uint64]:
    return np.random.PCG64(np.random.SeedSequence([stream_seed(*names)])).random_raw(count)


def _summary(values: dict[str, list[dict[str, Any]]]) -> list[str]:
    lines = []
    for name in ESTIMATES:
        point = values[name][-1]
        if point["total_correlation"] is None:
            lines.append(f"{name}, {point['dimensions']} dimensions: infinite (too few frames, or a linear dependence)")
            continue
        lines.append(
            f"{name}, {point['dimensions']} dimensions: {point['total_correlation']:.2f} nats, "
            f"{point['shuffled']:.2f} when shuffled"
        )
    return lines
