"""Latents made audible through a decoder: traversals, interpolations and samples of the prior (arXiv 2408.12936).

A traversal gives one dimension the same value in every frame while all others stay fixed; how much a dimension changes
the audio is the root mean square of the difference between the decoded ends, measured for all dimensions. An
interpolation is the straight line between two clips' latents. A sample of the prior draws each frame independently, as
the prior does, so its audio says nothing about how frames follow each other.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from matplotlib.figure import Figure
from torch import Tensor

from simdist.analyze import style
from simdist.analyze.distributions import why_not
from simdist.analyze.encoder_under_test import EncoderUnderTest, choose_clips, latents_of
from simdist.analyze.registry import InterpolationSettings, SamplesSettings, TraversalSettings
from simdist.analyze.result_writer import AnalysisResult, ModuleError, ResultWriter
from simdist.analyze.settings import DecodedSettings, layer_of, numbers
from simdist.config.decoder import DecodingConfig, decoder_command
from simdist.config.load import read_tree
from simdist.config.schema import SAMPLE_RATE, place_name
from simdist.core.errors import InputError
from simdist.core.random_streams import stream_seed
from simdist.loading import find_decoder, load_decoder
from simdist.models.decoder import Decoder, mirrored
from simdist.models.encoder import hash_weights
from simdist.probe.settings import names_in
from simdist.runs.folder import CONFIG, DONE

Wave = npt.NDArray[np.float32]
RANGE = 80.0  # dB below the loudest frequency that are shown
MOST_TRAVERSED = 4  # dimensions that are traversed by default
BATCH = 32  # latents decoded together
BINS = 257  # of a drawn spectrum: neighboring frequencies are averaged, because single ones of a long clip are noise


def open_decoder(encoder: EncoderUnderTest, module: int, loss: str | None, layer: int | None = None) -> Decoder:
    """The trained decoder of a module, or of a layer inside it, on the subject's device.

    Raises:
        ModuleError: there is none (with the command that makes it), it is not finished, or it was trained on other
            weights.
    """
    run = encoder.run.folder
    try:
        mirrored(encoder.run.config.model, module, layer)
        folder = find_decoder(run, module, loss, False, layer)
        decoder = load_decoder(run, module, loss, layer=layer)
    except InputError as error:
        raise ModuleError(str(error)) from error
    made = read_tree(DecodingConfig, folder / CONFIG)
    command = decoder_command(run, module, made.loss, layer=layer)
    if not (folder / DONE).exists():
        raise ModuleError(f"{folder} is not finished. Resume it with: {command}")
    if made.encoder_weights not in ("", hash_weights(encoder.network)[:16]):
        raise ModuleError(
            f"{folder} was trained on step {made.checkpoint} of the encoder, not on step {encoder.step}; name that "
            f"one with --checkpoint, or train it from scratch: {command} --force"
        )
    return decoder.to(encoder.device)


class DecodedAnalysis:
    """What the analyses through a decoder share."""

    def __init__(
        self,
        encoder: EncoderUnderTest,
        module: int,
        settings: DecodedSettings,
        keys: list[str] | None = None,
    ) -> None:
        self.encoder, self.module, self.layer = encoder, module, layer_of(settings)
        self.decoder = open_decoder(encoder, module, settings.loss, self.layer)
        self.clips = choose_clips(encoder, settings, keys)
        self.frames = self.decoder.lengths(self.clips.samples)[0]
        self.where = f"{encoder.run.folder.name}, {place_name(module, self.layer)}"
        self.inputs = [hash_weights(self.decoder), self.clips.split.manifest.fingerprint]

    def latents(self, check: Callable[[], None] = lambda: None) -> Tensor:
        """(N, L, C) of the clips, without noise, on the CPU; `check` is called between batches and may raise."""
        return latents_of(self.encoder, self.module, self.layer, self.clips, check)

    def decode(self, latent: Tensor) -> Wave:
        """(B, L, C) -> (B, T) waveforms, as long as the clips."""
        audio = self.decoder.decode(latent.to(self.encoder.device), self.clips.samples)
        return audio[:, 0].float().cpu().numpy()


def spectrum(audio: Wave) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Frequencies in kHz and power in dB (relative to full scale) of (T,) audio, a Hann window over all of it.

    Powers of neighboring frequencies are averaged to at most `BINS` points.
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
        left.plot(np.arange(len(wave)) / SAMPLE_RATE, wave, color=style.color(0), linewidth=0.4)
        right.plot(frequencies, decibels, color=style.color(1), linewidth=0.7)
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


def write_audio(writer: ResultWriter, stem: str, waves: list[Wave], names: list[str]) -> None:
    """One WAV a sound, STEM-00.wav …, and a table that says which is which and how loud."""
    rows = []
    for number, (wave, name) in enumerate(zip(waves, names, strict=True)):
        writer.sound(f"{stem}-{number:02d}", wave)
        rms, peak = float(np.sqrt((wave**2).mean())), float(np.abs(wave).max())
        rows.append({"file": f"{stem}-{number:02d}.wav", "sound": name, "rms": rms, "peak": peak})
    writer.table(f"{stem}-sounds", rows)


def moved(start: Tensor, dimension: int, values: list[float]) -> Tensor:
    """(L, C) latent -> (len(values), L, C): in each, one dimension has one of the values in all frames."""
    latents = start.repeat(len(values), 1, 1)
    latents[:, :, dimension] = torch.tensor(values, dtype=start.dtype)[:, None]
    return latents


class Traversal(DecodedAnalysis):
    """One dimension varies, all others stay fixed; an `Analysis`."""

    def __init__(self, encoder: EncoderUnderTest, module: int, settings: TraversalSettings) -> None:
        super().__init__(encoder, module, settings, None if settings.start == "zero" else [settings.start])
        self._settings, self._dimensions = settings, numbers("--dimensions", settings.dimensions)
        self._width = self.decoder.in_channels
        if not all(0 <= d < self._width for d in self._dimensions):
            raise InputError(f"--dimensions is {settings.dimensions!r}; this latent has 0 to {self._width - 1}")

    def work(self, writer: ResultWriter) -> AnalysisResult:
        """See `Analysis`."""
        settings, start = self._settings, self._start()
        effects = self._effects(start, writer)
        writer.table("effects", [{"dimension": d, "rms_change": float(e)} for d, e in enumerate(effects)])
        self._draw_effects(effects, writer)
        chosen = self._dimensions or np.argsort(-effects, kind="stable")[:MOST_TRAVERSED].tolist()
        values = np.linspace(-settings.reach, settings.reach, settings.steps).tolist()
        for dimension in chosen:
            writer.stop.check()
            waves = list(self.decode(moved(start, dimension, values)))
            names = [f"dimension {dimension} = {value:+.2f}" for value in values]
            title = f"traversal of dimension {dimension} from {self._called()}: {self.where}"
            writer.figure(f"dimension-{dimension:03d}", draw_audio(waves, names, title))
            write_audio(writer, f"dimension-{dimension:03d}", waves, names)
        most = ", ".join(f"{d} ({effects[d]:.2g})" for d in chosen)
        median = float(np.median(effects))
        return AnalysisResult(
            {"dimensions": chosen, "values": values, "rms_change": effects.tolist(), "median_rms_change": median},
            [f"RMS change of the audio from end to end: dimensions {most}; median of all {median:.2g}"],
        )

    def _start(self) -> Tensor:
        """(L, C)."""
        if self._settings.start == "zero":
            return torch.zeros(self.frames, self._width)
        return self.latents()[0]

    def _called(self) -> str:
        return "the zero latent" if self._settings.start == "zero" else self._settings.start

    def _effects(self, start: Tensor, writer: ResultWriter) -> npt.NDArray[np.float64]:
        """(C,) RMS of the difference between the two ends of every dimension's traversal."""
        ends, found = [-self._settings.reach, self._settings.reach], []
        with writer.bar("decoding the ends of each dimension", self._width, "dimensions") as advance:
            for first in range(0, self._width, BATCH // 2):
                writer.stop.check()
                part = range(first, min(first + BATCH // 2, self._width))
                waves = self.decode(torch.cat([moved(start, d, ends) for d in part])).astype(np.float64)
                found.append(np.sqrt(((waves[1::2] - waves[::2]) ** 2).mean(axis=1)))
                advance(len(part))
        return np.concatenate(found)

    def _draw_effects(self, effects: npt.NDArray[np.float64], writer: ResultWriter) -> None:
        figure = style.new_figure(6.5, 3.4)
        axes = figure.subplots()
        rank = np.arange(1, len(effects) + 1)
        axes.plot(rank, np.sort(effects)[::-1], color=style.color(0), marker="o", markersize=3)
        axes.set_ylim(bottom=0)
        style.finish(axes, "latent dimension, by effect", "RMS change of the audio (full scale 1)", self.where)
        writer.figure("effects", figure)


def between(first: torch.Tensor, second: torch.Tensor, steps: int) -> torch.Tensor:
    """(L, C) each -> (steps, L, C) from the first to the second, evenly."""
    share = torch.linspace(0, 1, steps)[:, None, None]
    return (1 - share) * first + share * second


class Interpolation(DecodedAnalysis):
    """The line between two clips' latents; an `Analysis`."""

    def __init__(self, encoder: EncoderUnderTest, module: int, settings: InterpolationSettings) -> None:
        keys = names_in(settings.keys)
        if keys and len(keys) != 2:
            raise InputError(f"--keys is {settings.keys!r}; it must be the keys of two different clips: KEY_A,KEY_B")
        super().__init__(encoder, module, settings, keys or None)
        self._settings = settings
        if len(self.clips) < 2:
            raise InputError(f"{len(self.clips)} clips are too few to interpolate between; raise --clips to 2")

    def work(self, writer: ResultWriter) -> AnalysisResult:
        """See `Analysis`."""
        steps, keys = self._settings.steps, self.clips.keys[:2]
        first, second = self.latents()[:2]
        shares = np.linspace(0, 1, steps)
        names = [f"{100 * (1 - share):.0f} % {keys[0]}, {100 * share:.0f} % {keys[1]}" for share in shares]
        names = [f"original {keys[0]}", *names, f"original {keys[1]}"]
        originals = self.clips.audio(slice(0, 2), torch.device("cpu"))[:, 0].numpy()
        levels: dict[int | None, list[float]] = {}
        for count in numbers("--dimensions", self._settings.dimensions) or [None]:
            end = second if count is None else with_most_different(first, second, count)
            waves = [originals[0], *self.decode(between(first, end, steps)), originals[1]]
            stem = "interpolation" if count is None else f"interpolation-{count:03d}"
            moving = "" if count is None else f" of the {count} most different dimensions"
            writer.figure(stem, draw_audio(waves, names, f"interpolation{moving}: {self.where}"))
            write_audio(writer, stem, waves, names)
            levels[count] = [float(np.sqrt((wave.astype(np.float64) ** 2).mean())) for wave in waves]
            writer.stop.check()
        lines = [
            f"from {keys[0]} to {keys[1]} in {steps} steps{'' if count is None else f', {count} dimensions'}; "
            f"RMS {', '.join(f'{value:.3f}' for value in rms[1:-1])}"
            for count, rms in levels.items()
        ]
        values: dict[str, Any] = {"keys": keys, "shares": shares.tolist()}
        if None in levels:
            return AnalysisResult(values | {"rms": levels[None]}, lines)
        return AnalysisResult(values | {"rms_by_dimensions": {str(n): rms for n, rms in levels.items()}}, lines)


def with_most_different(first: Tensor, second: Tensor, count: int) -> Tensor:
    """The first of two (L, C) latents with the second's values in the dimensions whose time averages differ most."""
    order = (first.mean(0) - second.mean(0)).square().argsort(descending=True, stable=True)
    mixed = first.clone()
    mixed[:, order[:count]] = second[:, order[:count]]
    return mixed


class Samples(DecodedAnalysis):
    """Latents drawn from N(0, I), decoded; an `Analysis`."""

    def __init__(self, encoder: EncoderUnderTest, module: int, settings: SamplesSettings) -> None:
        if settings.layer is not None:
            raise InputError("--layer is not for samples: only a module's latent has a prior to draw from. Remove it")
        if encoder.module(module).log_var is None:
            raise ModuleError(
                f"module {module} of {encoder.run.folder} has no prior to draw from ({why_not(encoder, module)}); "
                "only variational modules have: train with --model.head variational, as SIM does"
            )
        super().__init__(encoder, module, settings)
        self._settings = settings

    def work(self, writer: ResultWriter) -> AnalysisResult:
        """See `Analysis`."""
        count = self._settings.samples
        generator = torch.Generator().manual_seed(stream_seed(self._settings.seed, "prior"))
        drawn = torch.randn(count, self.frames, self.decoder.in_channels, generator=generator)
        waves = list(self.decode(drawn))
        names = [f"draw {number} of N(0, I)" for number in range(count)]
        writer.figure("samples", draw_audio(waves, names, f"draws of the prior, decoded: {self.where}"))
        write_audio(writer, "samples", waves, names)
        real = self.decode(self.latents())
        ours, theirs = (float(np.sqrt((np.asarray(w, dtype=np.float64) ** 2).mean())) for w in (waves, real))
        line = f"RMS {ours:.3f}, of {len(real)} decoded clips {theirs:.3f}"
        return AnalysisResult({"samples": count, "rms": ours, "rms_of_decoded_clips": theirs}, [line])
