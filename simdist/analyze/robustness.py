"""How robust is what a probe reads? Its accuracy when noise is added to the audio, by signal-to-noise ratio.

Two kinds of noise of the same energy: white Gaussian noise, and one step along the sign of the gradient of the probe's
loss with respect to the audio (FGSM, Goodfellow et al. 2015), the direction that hurts most to first order. The SNR is
each clip's: 10 log10 of the energy of the clip over that of what is added.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from torch import Tensor

from simdist.analyze import style
from simdist.analyze.encoder_under_test import EncoderUnderTest, draw
from simdist.analyze.probes import TrainedProbe, Wanted, newest_by_label
from simdist.analyze.registry import RobustnessSettings
from simdist.analyze.result_writer import AnalysisResult, ResultWriter
from simdist.analyze.settings import numbers
from simdist.core.errors import InputError
from simdist.core.random_streams import stream_seed
from simdist.data.crops import CropReader
from simdist.data.splits import Split
from simdist.models.probes import Probe
from simdist.probe.alignment import align
from simdist.probe.examples import match
from simdist.probe.feature_extractors import contexts
from simdist.probe.feature_spec import FeatureSpec, as_audio, crop_of, grid_alignment, num_vectors, pool
from simdist.probe.labels import Targets, drop_unseen, find_splits, read_targets
from simdist.probe.metrics import scores
from simdist.probe.settings import ProbeSettings

CLEAN = "clean"
KINDS = {"none": ("noise",), "fgsm": ("noise", "fgsm")}
BOOTSTRAP = 1000


def at_snr(audio: Tensor, direction: Tensor, snr: float) -> Tensor:
    """(1, 1, T) audio plus a direction of the same shape, scaled so that the sum has this SNR in dB.

    A silent clip, or a direction of zeros, is left as it is.
    """
    energy = direction.square().sum()
    if energy == 0:
        return audio
    return audio + direction * (audio.square().sum() / energy / 10 ** (snr / 10)).sqrt()


@dataclass(frozen=True)
class _Reader:
    """A probe and how it reads a clip."""

    encoder: EncoderUnderTest
    module: int
    spec: FeatureSpec
    probe: Probe

    def logits(self, audio: Tensor, split: Split, row: int) -> Tensor:
        """(1, 1, T) -> (n, num_classes), with gradient if enabled; n is 1, or frames with phone labels."""
        frames = contexts(self.encoder.network, audio, None, self.module + 1)[-1]
        if self.spec.kind == "pooled":
            return self.probe(pool(frames, self.spec.pooling))
        how = grid_alignment(self.spec, self.encoder.extractor, self.module)
        grid = self.encoder.extractor.grids[self.module]
        return self.probe(align(frames[0], num_vectors(split, row, self.spec), grid, how))


class Robustness:
    """See the module's docstring; an `Analysis`."""

    def __init__(self, encoder: EncoderUnderTest, module: int, settings: RobustnessSettings) -> None:
        self._subject, self._module, self._settings = encoder, module, settings
        self._probes = newest_by_label(
            encoder, module, settings.label, Wanted(settings.probe, settings.pooling, bias=True)
        )
        self._snrs = sorted(set(numbers("--snr", settings.snr, float)), reverse=True)
        wanted = ProbeSettings(label=",".join(self._probes), data_root=settings.data_root)
        self._pairs = find_splits(wanted, encoder.run.config)
        self.inputs = [probe.name for probe in self._probes.values()]
        self.inputs += [pair.test.manifest.fingerprint for pair in self._pairs.values()]

    def work(self, writer: ResultWriter) -> AnalysisResult:
        """See `Analysis`."""
        values, summary = {}, []
        for label, probe in self._probes.items():
            curves = self._curves(label, probe, writer)
            rows = [{"kind": kind, **point} for kind, points in curves.items() for point in points]
            writer.table(f"robustness-{label}", rows)
            majority = probe.result["majority"]["accuracy"]
            title = f"{label}: {self._subject.run.folder.name}, module {self._module}"
            writer.figure(f"robustness-{label}", figure_of(curves, majority, title))
            values[label] = {"probe": probe.name, "majority": majority, "curves": curves}
            summary += [_sentence(label, kind, points) for kind, points in curves.items()]
        return AnalysisResult({"labels": values}, summary)

    def _curves(self, label: str, probe: TrainedProbe, writer: ResultWriter) -> dict[str, list[dict[str, Any]]]:
        """For each kind of noise the accuracy at each SNR, clean audio first."""
        split, targets = self._pairs[label].test, self._targets(label)
        spec, settings = FeatureSpec(**probe.result["view"]), self._settings
        reader = _Reader(self._subject, self._module, spec, probe.load().to(self._subject.device))
        kinds, levels = KINDS[settings.attack], [None, *self._snrs]
        correct = np.zeros((len(kinds), len(levels), len(targets.rows)), dtype=np.int64)
        total = np.zeros(len(targets.rows), dtype=np.int64)
        with writer.bar(f"testing {label}", len(targets.rows), "utterances") as advance:
            for place, (row, classes) in enumerate(zip(targets.rows.tolist(), targets.classes, strict=True)):
                writer.stop.check()
                hits, total[place] = self._utterance(reader, split, row, torch.from_numpy(classes))
                correct[:, :, place] = hits
                advance(1)
        return {
            kind: [_point(level, correct[k, n], total, settings.seed) for n, level in enumerate(levels)]
            for k, kind in enumerate(kinds)
        }

    def _targets(self, label: str) -> Targets:
        pair = self._pairs[label]
        targets, _ = drop_unseen(read_targets(pair.train, label), read_targets(pair.test, label), label, "drop")
        chosen = draw(len(targets.rows), self._settings.examples, self._settings.seed, "examples")
        if not len(chosen):
            raise InputError(f"no test utterance in {pair.test.folder} has a {label} that training shows")
        return Targets(targets.rows[chosen], [targets.classes[place] for place in chosen], targets.names)

    def _utterance(self, reader: _Reader, split: Split, row: int, classes: Tensor) -> tuple[npt.NDArray[np.int64], int]:
        """(kinds, levels) vectors recognized, and how many there are; of an utterance's crops the first."""
        clip = CropReader(split).read(row, *crop_of(split, row, reader.spec, 0))
        audio = as_audio([clip], self._subject.device)
        names = (self._settings.seed, "noise", split.manifest.split, str(split.index.key[row]))
        generator = torch.Generator().manual_seed(stream_seed(*names))
        directions = {"noise": torch.randn(audio.shape, generator=generator).to(audio.device)}
        if self._settings.attack == "fgsm":
            directions["fgsm"] = gradient_sign(audio, lambda x: _loss(reader.logits(x, split, row), classes))
        counts = []
        with torch.no_grad():
            clean = _hits(reader.logits(audio, split, row), classes)
            for kind in KINDS[self._settings.attack]:
                noisy = [at_snr(audio, directions[kind], snr) for snr in self._snrs]
                counts.append([clean[0], *(_hits(reader.logits(one, split, row), classes)[0] for one in noisy)])
        return np.array(counts), clean[1]


def gradient_sign(audio: Tensor, loss: Callable[[Tensor], Tensor]) -> Tensor:
    """The sign of a loss's gradient with respect to audio, of the audio's shape."""
    varied = audio.clone().requires_grad_()
    with torch.enable_grad():
        (gradient,) = torch.autograd.grad(loss(varied), varied)
    return gradient.sign()


def _loss(logits: Tensor, classes: Tensor) -> Tensor:
    logits, classes = match(logits, classes.to(logits.device))
    return F.cross_entropy(logits, classes.clamp(min=0), reduction="none")[classes >= 0].sum()


def _hits(logits: Tensor, classes: Tensor) -> tuple[int, int]:
    logits, classes = match(logits, classes.to(logits.device))
    kept = classes >= 0
    return int((logits.argmax(1) == classes)[kept].sum()), int(kept.sum())


def _point(
    level: float | None, correct: npt.NDArray[np.int64], total: npt.NDArray[np.int64], seed: int
) -> dict[str, Any]:
    score, _ = scores(correct[:, None], total[:, None], BOOTSTRAP, seed)
    return {"snr_db": CLEAN if level is None else level, "accuracy": score.value, "low": score.low, "high": score.high}


def figure_of(curves: dict[str, list[dict[str, Any]]], majority: float, title: str) -> Figure:
    """Accuracy against SNR, one line per kind of noise, with 95 % intervals."""
    figure = style.new_figure(6, 3.8)
    axes = figure.subplots()
    names = {"noise": "white noise", "fgsm": "adversary (FGSM)"}
    for number, (kind, points) in enumerate(curves.items()):
        clean, noisy = points[0], points[1:]
        snrs = [point["snr_db"] for point in noisy]
        style.line(axes, number, snrs, [point["accuracy"] for point in noisy], names[kind])
        low, high = ([point[key] for point in noisy] for key in ("low", "high"))
        axes.fill_between(snrs, low, high, color=style.color(number), alpha=0.15, linewidth=0)
        if number == 0:
            axes.axhline(clean["accuracy"], color=style.color(2), linestyle="--", label="clean audio")
    axes.axhline(majority, color=style.GREY, linestyle=":", label="majority class")
    axes.invert_xaxis()
    axes.set_ylim(0, 1)
    style.finish(axes, "signal-to-noise ratio (dB)", "test accuracy (share; 95 % interval)", title)
    return figure


def _sentence(label: str, kind: str, points: list[dict[str, Any]]) -> str:
    levels = [f"{p['snr_db']}{'' if p['snr_db'] == CLEAN else ' dB'} {100 * p['accuracy']:.1f} %" for p in points]
    return f"{label}, {kind}: {', '.join(levels)}"
