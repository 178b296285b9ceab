"""Each dimension of a variational latent against the prior N(0, 1): histogram, KS distance, KL, and whether it is used.

A dimension whose KL is near 0 says nothing about the audio: its posterior is the prior. When most do, the module has
collapsed (Bowman et al. 2016). `active` is the usual test of the opposite: the mean varies over the data by more than
0.01 (Burda et al. 2016).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import scipy.stats
from matplotlib.figure import Figure

from simdist.analyze import style
from simdist.analyze.encoder_under_test import EncoderUnderTest, choose_clips, encode
from simdist.analyze.registry import DistributionsSettings
from simdist.analyze.result_writer import AnalysisResult, ModuleError, ResultWriter
from simdist.analyze.total_correlation import sampled
from simdist.models.module import ACTIVE_VARIANCE

Matrix = npt.NDArray[np.float64]
COLUMNS = 4  # histograms in a row
ALARM = 0.5  # share of collapsed dimensions from which on the module is said to collapse


def ks_distance(z: Matrix) -> Matrix:
    """(d,) largest difference of the distribution functions of (n, d) values and N(0, 1) (Kolmogorov-Smirnov)."""
    n = len(z)
    expected = scipy.stats.norm.cdf(np.sort(z, axis=0))
    above = np.arange(1, n + 1)[:, None] / n - expected
    below = expected - np.arange(n)[:, None] / n
    return np.maximum(above, below).max(axis=0)


def kl_divergence(mu: Matrix, log_var: Matrix) -> Matrix:
    """(d,) mean over (n, d) posteriors of KL(N(mu, exp(log_var)) || N(0, 1)), in nats."""
    return 0.5 * (mu**2 + np.exp(log_var) - 1 - log_var).mean(axis=0)


class Distributions:
    """See the module's docstring; an `Analysis`."""

    def __init__(self, encoder: EncoderUnderTest, module: int, settings: DistributionsSettings) -> None:
        if encoder.module(module).log_var is None:
            is_gru = not encoder.module(module).config.layers
            advice = "" if is_gru else ": train with --model.head variational, as SIM does"
            raise ModuleError(
                f"module {module} of {encoder.run.folder} has no distribution ({why_not(encoder, module)}); "
                f"only variational modules have{advice}"
            )
        self._subject, self._module, self._settings = encoder, module, settings
        self._clips = choose_clips(encoder, settings)
        self.inputs = [self._clips.split.manifest.fingerprint]

    def work(self, writer: ResultWriter) -> AnalysisResult:
        """See `Analysis`."""
        encoding = encode(self._subject, self._module, self._clips, writer.stop.check)
        assert encoding.log_var is not None
        z = sampled(encoding.mu, encoding.log_var, self._settings.seed)
        mu, log_var, z = (t.flatten(0, 1).double().numpy() for t in (encoding.mu, encoding.log_var, z))
        table = describe(mu, log_var, z, self._settings.collapsed_below)
        writer.table("dimensions", _rows(table))
        where = f"{self._subject.run.folder.name}, module {self._module}"
        writer.figure("histograms", histograms(z, table, self._settings.shown, where))
        writer.figure("dimensions", profile(table, self._settings.collapsed_below, where))
        return self._findings(table, len(z))

    def _findings(self, table: dict[str, Matrix], frames: int) -> AnalysisResult:
        collapsed, dimensions = int(table["collapsed"].sum()), len(table["kl"])
        warning = None
        if collapsed >= ALARM * dimensions:
            warning = (
                f"posterior collapse: {collapsed} of {dimensions} dimensions say nothing (KL below "
                f"{self._settings.collapsed_below:g} nats per frame); lower loss.beta or raise loss.beta_warmup_epochs"
            )
        values = {
            "frames": frames,
            "dimensions": dimensions,
            "active_units": int(table["active"].sum()),
            "collapsed_dimensions": collapsed,
            "kl_nats_per_frame": float(table["kl"].sum()),
            "ks_distance": {name: float(f(table["ks"])) for name, f in _SPREAD.items()},
            "ks_critical_5_percent": float(scipy.stats.kstwobign.ppf(0.95) / np.sqrt(frames)),
            "warning": warning,
        }
        ks = values["ks_distance"]
        summary = [
            f"{values['active_units']} of {dimensions} dimensions active, {collapsed} collapsed; KL "
            f"{values['kl_nats_per_frame']:.2f} nats per frame",
            f"KS distance to N(0, 1): median {ks['median']:.3f}, from {ks['smallest']:.3f} to {ks['largest']:.3f} "
            f"({frames:,} frames)",
        ]
        return AnalysisResult(values, summary + ([f"WARNING: {warning}"] if warning else []))


_SPREAD = {"smallest": np.min, "median": np.median, "largest": np.max}


def why_not(encoder: EncoderUnderTest, module: int) -> str:
    """Why a module is not variational."""
    if not encoder.module(module).config.layers:
        return "it is a GRU"
    return f"model.head is {encoder.run.config.model.head!r}, as in GIM and CPC"


def describe(mu: Matrix, log_var: Matrix, z: Matrix, collapsed_below: float) -> dict[str, Any]:
    """Moments, KS distance, KL, and state of each of d dimensions, from (n, d) means, log-variances and draws."""
    kl, spread = kl_divergence(mu, log_var), mu.var(axis=0, ddof=1)
    return {
        "mean": z.mean(axis=0),
        "std": z.std(axis=0, ddof=1),
        "variance_of_mu": spread,
        "ks": ks_distance(z),
        "kl": kl,
        "active": spread > ACTIVE_VARIANCE,
        "collapsed": kl < collapsed_below,
    }


def histograms(z: Matrix, table: dict[str, Matrix], shown: int, where: str) -> Figure:
    """Histograms of the dimensions of the largest and the smallest KL, with the prior's density."""
    order = np.argsort(-table["kl"], kind="stable")
    count = min(shown, len(order))
    chosen = np.concatenate([order[: count - count // 2], order[len(order) - count // 2 :]])
    rows = -(-count // COLUMNS)
    figure = style.new_figure(10, 0.6 + 1.7 * rows)
    panels = figure.subplots(rows, COLUMNS, squeeze=False, sharex=True)
    grid = np.linspace(-4, 4, 200)
    for panel in panels.flat[count:]:
        panel.set_visible(False)
    for axes, dimension in zip(panels.flat, chosen, strict=False):
        axes.hist(z[:, dimension], bins=60, range=(-4, 4), density=True, color=style.color(0), alpha=0.6)
        axes.plot(grid, scipy.stats.norm.pdf(grid), color=style.color(1), linewidth=1.2)
        axes.set_title(
            f"dimension {dimension}: KL {table['kl'][dimension]:.2f}, KS {table['ks'][dimension]:.2f}", fontsize=8
        )
    figure.supxlabel("value of the sampled latent", fontsize=9)
    figure.supylabel("density", fontsize=9)
    figure.suptitle(f"{where}: largest KL first, smallest last; line: N(0, 1)", fontsize=10)
    return figure


def profile(table: dict[str, Matrix], collapsed_below: float, where: str) -> Figure:
    """KL and KS distance of all dimensions, each sorted."""
    figure = style.new_figure(9, 3.4)
    left, right = figure.subplots(1, 2)
    rank = np.arange(1, len(table["kl"]) + 1)
    left.plot(rank, np.sort(table["kl"])[::-1], color=style.color(0), marker="o", markersize=3)
    left.axhline(collapsed_below, color=style.GREY, linestyle=":", label="collapsed below")
    left.set_yscale("log")
    style.finish(left, "dimension, by KL", "KL to the prior (nats per frame)", where)
    right.plot(rank, np.sort(table["ks"])[::-1], color=style.color(1), marker="s", markersize=3)
    right.set_ylim(bottom=0)
    style.finish(right, "dimension, by distance", "KS distance to N(0, 1)", where)
    return figure


def _rows(table: dict[str, Any]) -> list[dict[str, Any]]:
    names = list(table)
    return [{"dimension": d} | {name: table[name][d].item() for name in names} for d in range(len(table["kl"]))]
