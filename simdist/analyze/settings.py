"""What each analysis can be asked: flat dataclasses, one option a field. Imports no torch.

Fields marked with `TUNING` say where or how fast; all others are part of a result's identity.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from simdist.config.schema import RUN_DIR, TUNING
from simdist.core.errors import InputError

COMMAND = {"identity": False}  # which results are wanted; each result has its own value elsewhere


def _require(condition: bool, name: str, value: object, allowed: str) -> None:
    if not condition:
        raise ValueError(f"--{name.replace('_', '-')} is {value!r}; it must be {allowed}")


def numbers(option: str, text: str, kind: type = int) -> list[Any]:
    """The numbers in a comma-separated list; [] of an empty text.

    Raises:
        InputError: something else is in it.
    """
    try:
        return [kind(part) for part in text.strip().strip("[]").split(",") if part.strip()]
    except ValueError:
        example = "0,5,7" if kind is int else "20,10,0"
        raise InputError(f"{option} is {text!r}; it must be numbers such as {example}") from None


@dataclass(frozen=True)
class AnalysisSettings:
    """Options of every analysis."""

    run: Path | None = field(default=None, metadata={**COMMAND, "options": RUN_DIR})
    """Run folder that is analysed; results go into its folder `analysis`."""
    module: str = field(default="all", metadata=COMMAND)
    """Greedy modules, as 0,2 or -1 (the last) or all that the analysis fits."""
    checkpoint: str = field(default="latest", metadata=COMMAND)
    """Checkpoint of the encoder: latest, or a step such as 200."""
    data_root: Path | None = field(default=None, metadata=TUNING)
    """Folder of the packed splits; null takes the run's data.root."""
    seed: int = 0
    """Decides which clips and frames are looked at, and all noise."""
    device: Literal["auto", "cpu", "cuda"] = field(default="auto", metadata=TUNING)
    """Where the networks run; auto takes a GPU if there is one."""
    force: bool = field(default=False, metadata=TUNING)
    """Analyse again although the result is there."""

    def __post_init__(self) -> None:
        _require(self.seed >= 0, "seed", self.seed, "0 or more")


@dataclass(frozen=True)
class ClipSettings(AnalysisSettings):
    """Options of analyses that read clips without labels."""

    split: str | None = None
    """Split that clips come from; null takes the run's data.test_split."""
    clips: int = 200
    """Clips to look at, drawn at random; all there are if fewer."""
    crop: int | None = None
    """Length of a clip in samples at 16 kHz; null takes the run's data.crop."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _require(self.clips > 0, "clips", self.clips, "at least 1")
        _require(self.crop is None or self.crop > 0, "crop", self.crop, "positive")


@dataclass(frozen=True)
class WeightsSettings(AnalysisSettings):
    """Options of `weights`."""

    label: str = ""
    """Labels whose probes are looked at, as syllable,vowel; empty takes every label with a probe that fits."""
    probe: Literal["linear", "lbfgs"] = "linear"
    """Kind of probe, as simdist.probe names it, trained without bias."""
    pooling: Literal["mean", "max"] = "mean"
    """How the probe's features were pooled over time; phones are read frame by frame."""
    folder: str = field(default="", metadata=COMMAND)
    """One folder of RUN/probes to take instead, by its name, bias or not."""
    others: str = ""
    """More run folders, comma-separated: the density of their probes' weights is drawn, too."""
    origin: Literal["zero", "mean"] = "zero"
    """Where the dimensions stand that the decision map does not show: at zero, or at the mean of the probe's data."""


@dataclass(frozen=True)
class ContributionSettings(ClipSettings):
    """Options of `contribution`."""

    loss: str | None = None
    """Loss of the decoder that is used, as simdist.decode names it; null takes the module's own if it has one."""
    sizes: str = "2,4,8,16,32,64,128,256,512"
    """Numbers of dimensions that are replaced; those above the latent's width replace all."""
    precision: Literal["float32", "bf16"] = "float32"
    """Precision of decoding; bf16 is about twice as fast, and the result warns where it is too coarse."""
    batch: int = field(default=16, metadata=TUNING)
    """Clips decoded together; few stay in a CPU's cache, a GPU wants hundreds."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _require(self.clips > 1, "clips", self.clips, "at least 2: the score compares pairs")
        _require(self.batch > 0, "batch", self.batch, "at least 1")
        _require(
            all(n > 0 for n in numbers("--sizes", self.sizes)) and bool(self.sizes.strip()),
            "sizes",
            self.sizes,
            "numbers of 1 or more such as 2,4,8",
        )


@dataclass(frozen=True)
class TotalCorrelationSettings(ClipSettings):
    """Options of `total-correlation`."""

    sizes: str = "2,5,10,50,100,512"
    """Numbers of dimensions to measure; those above the latent's width take all of it."""
    frames: int = 2000
    """Frames to estimate from, drawn at random from the clips."""
    bandwidth: float = 0.1
    """Standard deviation of the Gaussian kernels."""
    latents: Literal["deterministic", "sampled"] = "deterministic"
    """A variational module's mean, or one draw of its latent."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _require(self.frames > 1, "frames", self.frames, "at least 2")
        _require(self.bandwidth > 0, "bandwidth", self.bandwidth, "positive")
        sizes = numbers("--sizes", self.sizes)
        _require(bool(sizes) and min(sizes) > 1, "sizes", self.sizes, "numbers of 2 or more such as 10,50")


@dataclass(frozen=True)
class DistributionsSettings(ClipSettings):
    """Options of `distributions`."""

    shown: int = 12
    """Dimensions whose histograms are drawn: those of the largest and smallest KL."""
    collapsed_below: float = 0.01
    """A dimension with a smaller KL, in nats a frame, counts as collapsed onto the prior."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _require(self.shown > 0, "shown", self.shown, "at least 1")


@dataclass(frozen=True)
class LabelSettings(AnalysisSettings):
    """Options of analyses that read vectors with labels."""

    label: str = ""
    """Labels, as syllable,vowel; empty takes all that the shards carry with two classes or more."""
    examples: int = 1000
    """Vectors to look at, drawn at random: time-averaged clips, or frames where `phone` is among the labels."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _require(self.examples > 1, "examples", self.examples, "at least 2")


@dataclass(frozen=True)
class EmbeddingSettings(LabelSettings):
    """Options of `embedding`."""

    method: Literal["tsne", "umap"] = "tsne"
    """t-SNE, or UMAP where the package umap-learn is installed."""
    perplexity: float | None = None
    """Of t-SNE: how many neighbours a point has, about; UMAP takes it as its number of neighbours. null is 30, or a
    quarter of the vectors where there are few."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _require(self.perplexity is None or self.perplexity > 1, "perplexity", self.perplexity, "more than 1")


@dataclass(frozen=True)
class ScatterSettings(LabelSettings):
    """Options of `scatter`."""

    dimensions: str = ""
    """Three latent dimensions, as 0,5,7; empty takes those that tell the label's classes apart best (largest F)."""


@dataclass(frozen=True)
class DisentanglementSettings(LabelSettings):
    """Options of `disentanglement`."""

    bins: int = 20
    """Equal-width bins of a dimension for mutual information (MIG)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _require(self.bins > 1, "bins", self.bins, "at least 2")


@dataclass(frozen=True)
class RobustnessSettings(AnalysisSettings):
    """Options of `robustness`."""

    label: str = ""
    """Labels whose probes are tested, as syllable,vowel; empty takes every label with a probe that fits."""
    probe: Literal["linear", "lbfgs", "mlp"] = "linear"
    """Kind of probe, as simdist.probe names it, trained with bias."""
    pooling: Literal["mean", "max", "flatten"] = "mean"
    """How the probe's features were pooled over time; phones are read frame by frame."""
    snr: str = "40,30,20,10,5,0,-5"
    """Signal-to-noise ratios in dB of the noise that is added; clean audio is always among them."""
    attack: Literal["none", "fgsm"] = "fgsm"
    """Also a step along the gradient's sign (FGSM) at the same ratios."""
    examples: int = 400
    """Test utterances, drawn at random; all there are if fewer."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _require(self.examples > 1, "examples", self.examples, "at least 2")
        _require(bool(numbers("--snr", self.snr, float)), "snr", self.snr, "numbers in dB such as 20,10,0")


@dataclass(frozen=True)
class DecodedSettings(ClipSettings):
    """Options of analyses that decode latents to audio."""

    loss: str | None = None
    """Loss of the decoder that is used, as simdist.decode names it; null takes the module's own if it has one."""


@dataclass(frozen=True)
class TraversalSettings(DecodedSettings):
    """Options of `traversal`."""

    start: str = field(default="zero", metadata={"options": ("--start-at", "--start")})
    """Where a traversal starts: zero (the prior's mean), or the key of a clip of the split."""
    dimensions: str = ""
    """Latent dimensions to move, as 0,5; empty takes the four that change the audio most."""
    steps: int = 5
    """Points of a traversal."""
    reach: float = 2.68
    """A dimension moves from minus to plus this value, in every frame."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _require(self.steps > 1, "steps", self.steps, "at least 2")
        _require(self.reach > 0, "reach", self.reach, "positive")


@dataclass(frozen=True)
class InterpolationSettings(DecodedSettings):
    """Options of `interpolation`."""

    keys: str = ""
    """Keys of two clips of the split, comma-separated; empty draws two."""
    steps: int = 5
    """Points on the line between them, ends included."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _require(self.steps > 1, "steps", self.steps, "at least 2")


@dataclass(frozen=True)
class SamplesSettings(DecodedSettings):
    """Options of `samples`."""

    samples: int = 6
    """Latents drawn from N(0, I) and decoded."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _require(self.samples > 0, "samples", self.samples, "at least 1")


@dataclass(frozen=True)
class CompareSettings:
    """Options of `compare`; each analysis has its own defaults for everything else."""

    module: str = "all"
    """Greedy modules, as 0,2 or -1 (the last) or all."""
    label: str = ""
    """Labels whose probes' weights are compared, as syllable,vowel; empty takes what both runs have."""
    loss: str | None = None
    """Loss of the decoders whose contribution curves are compared; null takes one that both runs have."""
    clips: int = 200
    """Clips to look at, drawn at random; all there are if fewer."""
    data_root: Path | None = None
    """Folder of the packed splits; null takes each run's data.root."""
    seed: int = 0
    """Decides which clips and frames are looked at."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where the networks run; auto takes a GPU if there is one."""

    def __post_init__(self) -> None:
        _require(self.seed >= 0, "seed", self.seed, "0 or more")
        _require(self.clips > 1, "clips", self.clips, "at least 2")
