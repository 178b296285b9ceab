"""Every analysis: its options, help, results in the report, and the class that computes it. Imports no torch.

This is the one file that a new analysis edits. The command line, the report's tables and its list of missing pieces
read it; see docs/tasks/adding_an_analysis.md.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

from simdist.analyze.settings import (
    COMMAND,
    TUNING,
    AnalysisSettings,
    ClipSettings,
    DecodedSettings,
    Definition,
    LabelSettings,
    numbers,
)
from simdist.config.schema import OMITTED
from simdist.core.errors import require_option

Settings = TypeVar("Settings", bound=AnalysisSettings)
Values = dict[str, Any]
Number = tuple[dict[str, Any], str, float]
"""What was measured in addition to analysis and module, the metric, and its value."""


@dataclass(frozen=True)
class Column:
    """How the report's table shows a metric."""

    metric: str
    heading: str
    scale: float = 1
    digits: int = 2
    is_count: bool = False


@dataclass(frozen=True)
class Table:
    """The report's table of an analysis: one row per encoder, module and value of the keys."""

    title: str
    columns: tuple[Column, ...]
    keys: tuple[str, ...] = ()
    """Keys of `Number` with a column of their own, before the module."""
    across: str = ""
    """A key whose values are the columns instead, for a single metric."""


@dataclass(frozen=True)
class RegisteredAnalysis:
    """One analysis as the command line and the report know it."""

    name: str
    settings: type[AnalysisSettings]
    implementation: str
    """`module:class`; the class is an `Analysis`."""
    short: str
    about: str
    heading: str
    needs: frozenset[str]
    measurements: Callable[[Values], Iterator[Number]] | None
    table: Table | None
    unlisted: tuple[str, ...]


ANALYSES: dict[str, RegisteredAnalysis] = {}
"""Every analysis by name, in the order of `--help`."""


def register(
    name: str,
    implementation: str,
    *,
    short: str,
    about: str,
    heading: str = "",
    needs: tuple[Literal["prior", "decoder", "unbiased probe"], ...] = (),
    measurements: Callable[[Values], Iterator[Number]] | None = None,
    table: Table | None = None,
    unlisted: tuple[str, ...] = (),
) -> Callable[[type[Settings]], type[Settings]]:
    """Class decorator that registers an analysis with the options that the decorated dataclass holds.

    Args:
        name: of the subcommand and of result folders.
        implementation: `module:class` of the `Analysis`, imported when it runs.
        short: one line for the list of subcommands.
        about: what it does, with examples.
        heading: the report's section. Every run is then expected to have the analysis, and the report gives the
            command where it is missing. Empty lists the analysis among the others.
        needs: what must exist before the command that the report gives can run.
        measurements: the numbers in a result's `values` that go into results.csv and the report's table.
        table: how the report shows these numbers.
        unlisted: inherited options without an effect here, which `--help` leaves out.
    """

    def decorate(settings: type[Settings]) -> type[Settings]:
        ANALYSES[name] = RegisteredAnalysis(
            name, settings, implementation, short, about, heading, frozenset(needs), measurements, table, unlisted
        )
        return settings

    return decorate


OVER_SEEDS = "mean ± standard deviation over seeds"


def _distributions(values: Values) -> Iterator[Number]:
    for metric in ("dimensions", "active_units", "collapsed_dimensions", "kl_nats_per_frame"):
        yield {}, metric, values[metric]
    for which in ("smallest", "median", "largest"):
        yield {}, f"ks_distance_{which}", values["ks_distance"][which]


@register(
    "distributions",
    "simdist.analyze.distributions:Distributions",
    short="Compare each dimension with N(0, 1): histogram, distance, KL, collapse.",
    about="""\
Compare each dimension of a variational latent with N(0, 1): histogram, Kolmogorov-Smirnov distance, KL, and whether it
is active. Warns about posterior collapse.

  python -m simdist.analyze distributions --run-dir runs/sim --module 0""",
    heading="Distributions of the latent",
    needs=("prior",),
    measurements=_distributions,
    table=Table(
        f"Distributions of the latent: {OVER_SEEDS}",
        (
            Column("active_units", "active dimensions", is_count=True),
            Column("collapsed_dimensions", "collapsed", is_count=True),
            Column("dimensions", "of dimensions", is_count=True),
            Column("kl_nats_per_frame", "KL (nats per frame)"),
            Column("ks_distance_median", "KS to N(0, 1), median", digits=3),
            Column("ks_distance_largest", "KS, largest", digits=3),
        ),
    ),
)
@dataclass(frozen=True)
class DistributionsSettings(ClipSettings):
    """Options of `distributions`."""

    shown: int = 12
    """Number of dimensions whose histograms are drawn, half with the largest and half with the smallest KL."""
    collapsed_below: float = 0.01
    """A dimension with a smaller KL, in nats per frame, counts as collapsed onto the prior."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_option(self.shown > 0, "shown", self.shown, "at least 1")


def _weights(values: Values) -> Iterator[Number]:
    for label, found in values["labels"].items():
        for metric in ("small_share", "kurtosis", "dimensions_for_90_percent", "dimensions", "accuracy"):
            yield {"label": label}, metric, found[metric]


@register(
    "weights",
    "simdist.analyze.weights:Weights",
    short="Show which latent dimensions linear probes use.",
    about="""\
Plot the weights of a module's bias-free probes: heat map, density (over several runs), the most important dimensions,
and a decision map over the two most important ones.

  python -m simdist.probe --run-dir runs/sim --label vowel --bias false
  python -m simdist.analyze weights --run-dir runs/sim --label vowel
  python -m simdist.analyze weights --run-dir runs/cpc --label vowel --layer all
  python -m simdist.analyze weights --run-dir runs/sim --others runs/sim_seed1,runs/sim_seed2""",
    heading="Weights of the probes",
    needs=("unbiased probe",),
    measurements=_weights,
    table=Table(
        f"Weights of linear probes without bias: {OVER_SEEDS}",
        (
            Column("small_share", "below a tenth, %", 100, 1),
            Column("kurtosis", "excess kurtosis"),
            Column("dimensions_for_90_percent", "dimensions for 90 %", is_count=True),
            Column("dimensions", "of dimensions", is_count=True),
            Column("accuracy", "probe's accuracy, %", 100, 1),
        ),
        ("label",),
    ),
)
@dataclass(frozen=True)
class WeightsSettings(AnalysisSettings):
    """Options of `weights`."""

    label: str = ""
    """Labels whose probes are plotted, such as syllable,vowel. Default: every label with a matching probe."""
    probe: Literal["linear", "lbfgs"] = "linear"
    """The --probe of simdist.probe that was trained, with --bias false."""
    pooling: Literal["mean", "max"] = "mean"
    """The --pooling of simdist.probe that it was trained with. Probes of phones have none."""
    folder: str = field(default="", metadata=COMMAND)
    """Plot this probe instead, with or without bias: the name of a folder in RUN/probes."""
    others: str = ""
    """More run folders, separated by commas, whose densities of weights are drawn into the same plot."""
    layer: str | None = field(default=None, metadata=COMMAND)
    """Layers inside the modules, whose probes are plotted: numbers from 0, such as 0,2; or all. Default: each module's
    output."""
    definition: Definition = field(default="simdist", metadata=COMMAND)
    """How each class's weights are scaled to [-1, 1]: `simdist`, by its largest magnitude, so that zero stays zero; or
    `paper`, from its minimum to its maximum."""
    origin: Literal["zero", "mean"] = "zero"
    """Value of the dimensions that the decision map does not vary: zero, or their mean over the training data."""


def _contribution(values: Values) -> Iterator[Number]:
    for point in values["curve"]:
        yield {"replaced": point["dimensions"]}, "remaining", point["median" if "median" in point else "ratio"]
        for metric in ("median", "lower_quartile", "upper_quartile", "ratio", "error"):
            if metric in point:
                yield {"replaced": point["dimensions"]}, metric, point[metric]


@register(
    "contribution",
    "simdist.analyze.contribution:Contribution",
    short="Measure how few dimensions carry the difference between two clips.",
    about="""\
Compute the interpolation contribution score: how close a decoded clip gets to another one when only the dimensions in
which they differ most are replaced. Needs a decoder.

  python -m simdist.decode --run-dir runs/sim --module 0 --loss mse
  python -m simdist.analyze contribution --run-dir runs/sim --module 0 --clips 200
  python -m simdist.analyze contribution --run-dir runs/sim --module 0 --definition paper""",
    heading="Contribution of dimensions",
    needs=("decoder",),
    measurements=_contribution,
    table=Table(
        f"Contribution: remaining error by dimensions replaced, medians of pairs (paper: ratio of means), {OVER_SEEDS}",
        (Column("remaining", "", digits=3),),
        across="replaced",
    ),
)
@dataclass(frozen=True)
class ContributionSettings(DecodedSettings):
    """Options of `contribution`."""

    sizes: str = "2,4,8,16,32,64,128,256,512"
    """How many dimensions to replace, one point of the curve each: numbers from 1, such as 2,4,8. One above the
    latent's width replaces all."""
    definition: Definition = field(default="simdist", metadata=COMMAND)
    """Which score: `simdist`, each pair's remaining error as a share of that with nothing replaced, on means; or
    `paper`, the mean remaining error over the mean with nothing replaced, on samples, along with the errors."""
    precision: Literal["float32", "bf16"] = "float32"
    """Precision of decoding. bf16 is about twice as fast; the command warns if it is too coarse."""
    batch: int = field(default=16, metadata=TUNING)
    """Clips decoded together. Small batches fit a CPU's cache; use hundreds on a GPU."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_option(self.clips > 1, "clips", self.clips, "at least 2: the score compares pairs")
        require_option(self.batch > 0, "batch", self.batch, "at least 1")
        sizes = numbers("--sizes", self.sizes)
        require_option(bool(sizes) and min(sizes) > 0, "sizes", self.sizes, "numbers of 1 or more such as 2,4,8")


@register(
    "traversal",
    "simdist.analyze.latent_audio:Traversal",
    short="Vary one dimension, decode, and write audio.",
    about="""\
Vary one latent dimension while all others stay fixed, decode, and write audio, waveform and spectrum. Needs a decoder.

  python -m simdist.analyze traversal --run-dir runs/sim --module 0
  python -m simdist.analyze traversal --run-dir runs/sim --module 0 --start-at KEY --dimensions 3,17""",
    heading="Traversals",
    needs=("decoder",),
    unlisted=("clips",),
)
@dataclass(frozen=True)
class TraversalSettings(DecodedSettings):
    """Options of `traversal`."""

    start: str = field(default="zero", metadata={"options": ("--start-at", "--start")})
    """Latent to start from: zero (the prior's mean), or that of the clip with this key in the split."""
    dimensions: str = ""
    """Latent dimensions to vary, such as 0,5. Default: the four that change the audio most."""
    steps: int = 5
    """Number of values per dimension, evenly spaced."""
    reach: float = 2.68
    """Vary the dimension from -REACH to REACH, the same in every frame. The prior's standard deviation is 1."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_option(self.steps > 1, "steps", self.steps, "at least 2")
        require_option(self.reach > 0, "reach", self.reach, "positive")


@register(
    "interpolation",
    "simdist.analyze.latent_audio:Interpolation",
    short="Interpolate between two clips' latents, decode, and write audio.",
    about="""\
Decode points on the straight line between two clips' latents: audio, waveform and spectrum. Needs a decoder.

  python -m simdist.analyze interpolation --run-dir runs/sim --module 0
  python -m simdist.analyze interpolation --run-dir runs/sim --module 0 --keys KEY_A,KEY_B --steps 9""",
    heading="Interpolations",
    needs=("decoder",),
    unlisted=("clips",),
)
@dataclass(frozen=True)
class InterpolationSettings(DecodedSettings):
    """Options of `interpolation`."""

    keys: str = ""
    """Keys of two clips in the split: KEY_A,KEY_B. Default: two drawn at random."""
    steps: int = 5
    """Number of points on the line, both ends included."""
    dimensions: str = field(default="", metadata=OMITTED)
    """Move only so many dimensions, those in which the clips' time averages differ most; a line of sounds for each
    number, such as 2,8,32. Default: all dimensions."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_option(self.steps > 1, "steps", self.steps, "at least 2")
        sizes = numbers("--dimensions", self.dimensions)
        require_option(min(sizes, default=1) > 0, "dimensions", self.dimensions, "numbers of 1 or more such as 2,8,32")


@register(
    "masking",
    "simdist.analyze.masking:Masking",
    short="Set dimensions to zero, decode, and write audio.",
    about="""\
Decode clips with dimensions of the latent set to zero: each alone, some of them, or all but some. Says how much of the
sound changes, and writes audio, waveform and spectrum. Needs a decoder.

  python -m simdist.analyze masking --run-dir runs/sim --module 0
  python -m simdist.analyze masking --run-dir runs/sim --module 0 --mask 3,9
  python -m simdist.analyze masking --run-dir runs/sim --module 0 --keep 3,9
  python -m simdist.analyze masking --run-dir runs/sim --module 0 --keep vowel:4""",
    heading="Masked dimensions",
    needs=("decoder",),
)
@dataclass(frozen=True)
class MaskingSettings(DecodedSettings):
    """Options of `masking`."""

    mask: str = ""
    """Latent dimensions to set to zero together, such as 3,9; or vowel:4, the four most important to the mean-pooled,
    bias-free linear probe of vowels. Without this and --keep, each is set to zero alone."""
    keep: str = ""
    """Latent dimensions to keep, such as 3,9 or vowel:4; all others are set to zero."""
    clips: int = 8
    """Number of clips to decode, drawn at random. If the split has fewer, all of them. Audio is of the first."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_option(not (self.mask and self.keep), "keep", self.keep, "left out where --mask is given")
        for name in ("mask", "keep"):
            value = getattr(self, name)
            label, has_probe, count = value.partition(":")
            if has_probe:
                is_right = "," not in label and label.strip() and count.isdecimal() and int(count) > 0
                require_option(bool(is_right), name, value, "LABEL:COUNT such as vowel:4, or numbers such as 3,9")
            else:
                is_right = min(numbers(f"--{name}", value), default=0) >= 0
                require_option(is_right, name, value, "numbers from 0 such as 3,9")


@register(
    "samples",
    "simdist.analyze.latent_audio:Samples",
    short="Decode samples of the prior to audio.",
    about="""\
Decode latents drawn from N(0, I): audio, waveform and spectrum. Needs a decoder and a variational module.

  python -m simdist.analyze samples --run-dir runs/sim --module 0 --samples 6""",
    heading="Samples from the prior",
    needs=("prior", "decoder"),
    unlisted=("layer",),
)
@dataclass(frozen=True)
class SamplesSettings(DecodedSettings):
    """Options of `samples`."""

    samples: int = 6
    """Number of latents to draw from N(0, I) and decode."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_option(self.samples > 0, "samples", self.samples, "at least 1")


def _total_correlation(values: Values) -> Iterator[Number]:
    estimates = [name for name in ("kde", "kde_standardized", "gaussian") if name == "kde" or "draws" not in values]
    for estimate in estimates:  # the paper's draws have the first only
        for point in values[estimate]:
            for metric in ("total_correlation", "shuffled", "excess"):
                yield {"estimate": estimate, "width": point["dimensions"]}, metric, point[metric]


@register(
    "total-correlation",
    "simdist.analyze.total_correlation:TotalCorrelation",
    short="Measure how much the dimensions depend on each other.",
    about="""\
Estimate the total correlation in nats (how much the dimensions depend on each other) of 2, 5, 10, … dimensions, with
Gaussian kernels and in closed form for a Gaussian latent. Each is compared with the same estimate on independent
dimensions.

  python -m simdist.analyze total-correlation --run-dir runs/sim
  python -m simdist.analyze total-correlation --run-dir runs/sim --latents sampled --frames 4000
  python -m simdist.analyze total-correlation --run-dir runs/sim --definition paper --sizes 10,50,100,512""",
    measurements=_total_correlation,
    table=Table(
        f"Total correlation: {OVER_SEEDS}",
        (
            Column("total_correlation", "nats"),
            Column("shuffled", "nats, shuffled"),
            Column("excess", "difference", digits=3),
        ),
        ("estimate", "width"),
    ),
)
@dataclass(frozen=True)
class TotalCorrelationSettings(ClipSettings):
    """Options of `total-correlation`."""

    sizes: str = "2,5,10,50,100,512"
    """How many dimensions to measure, one estimate each: numbers from 2, such as 2,10,50. One above the latent's width
    uses all."""
    frames: int = 2000
    """Frames to estimate from, drawn at random from the clips."""
    bandwidth: float = 0.1
    """Standard deviation of the Gaussian kernels."""
    latents: Literal["deterministic", "sampled"] = "deterministic"
    """What to use of a variational module: the mean of its Gaussian (`deterministic`), or one sample of it."""
    definition: Definition = field(default="simdist", metadata=COMMAND)
    """Which frames: `simdist`, --frames of --clips, once; or `paper`, 5 sampled frames of each of 1,000 clips, three
    draws, by kernels only."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_option(self.frames > 1, "frames", self.frames, "at least 2")
        require_option(self.bandwidth > 0, "bandwidth", self.bandwidth, "positive")
        sizes = numbers("--sizes", self.sizes)
        require_option(bool(sizes) and min(sizes) > 1, "sizes", self.sizes, "numbers of 2 or more such as 10,50")


def _disentanglement(values: Values) -> Iterator[Number]:
    for factors, found in values["factors"].items():
        for metric in ("mig", "sap", "disentanglement", "completeness", "informativeness"):
            yield {"factors": factors}, metric, found[metric]


@register(
    "disentanglement",
    "simdist.analyze.disentanglement:Disentanglement",
    short="Score how well dimensions match factors (MIG, SAP, DCI).",
    about="""\
Score how far each dimension of the latent belongs to a single factor (speaker, phone, syllable, vowel), and each factor
to a single dimension: mutual information gap (MIG), separated attribute predictability (SAP), and disentanglement,
completeness and informativeness (DCI).

  python -m simdist.analyze disentanglement --run-dir runs/sim
  python -m simdist.analyze disentanglement --run-dir runs/sim --label speaker,phone --examples 5000""",
    measurements=_disentanglement,
    table=Table(
        f"Disentanglement: {OVER_SEEDS}",
        (
            Column("mig", "MIG", digits=3),
            Column("sap", "SAP", digits=3),
            Column("disentanglement", "DCI D", digits=3),
            Column("completeness", "DCI C", digits=3),
            Column("informativeness", "DCI I", digits=3),
        ),
        ("factors",),
    ),
)
@dataclass(frozen=True)
class DisentanglementSettings(LabelSettings):
    """Options of `disentanglement`."""

    bins: int = 20
    """Number of equal-width bins per dimension, from which MIG estimates mutual information."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_option(self.bins > 1, "bins", self.bins, "at least 2")


def _robustness(values: Values) -> Iterator[Number]:
    for label, found in values["labels"].items():
        for noise, curve in found["curves"].items():
            for point in curve:
                yield {"label": label, "noise": noise, "snr_db": point["snr_db"]}, "accuracy", point["accuracy"]


@register(
    "robustness",
    "simdist.analyze.robustness:Robustness",
    short="Test probes under noise and an adversarial perturbation (FGSM).",
    about="""\
Measure the accuracy of a module's trained probes against the signal-to-noise ratio when white noise, or a step along
the gradient's sign (FGSM), is added to the audio.

  python -m simdist.probe --run-dir runs/sim --label vowel
  python -m simdist.analyze robustness --run-dir runs/sim --label vowel --snr 40,20,10,0""",
    measurements=_robustness,
    table=Table(
        f"Robustness: accuracy in % by signal-to-noise ratio in dB, {OVER_SEEDS}",
        (Column("accuracy", "", 100, 1),),
        ("label", "noise"),
        across="snr_db",
    ),
)
@dataclass(frozen=True)
class RobustnessSettings(AnalysisSettings):
    """Options of `robustness`."""

    label: str = ""
    """Labels whose probes are tested, such as syllable,vowel. Default: every label with a matching probe."""
    probe: Literal["linear", "lbfgs", "mlp"] = "linear"
    """The --probe of simdist.probe that was trained, with a bias."""
    pooling: Literal["mean", "max", "flatten"] = "mean"
    """The --pooling of simdist.probe that it was trained with. Probes of phones have none."""
    snr: str = "40,30,20,10,5,0,-5"
    """Signal-to-noise ratios in dB, such as 20,10,0. Audio without noise is always tested as well."""
    attack: Literal["none", "fgsm"] = "fgsm"
    """Adversarial perturbation to test at the same ratios: a step along the sign of the gradient (`fgsm`), or none."""
    examples: int = 400
    """Number of test utterances, drawn at random. If there are fewer, all of them."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_option(self.examples > 1, "examples", self.examples, "at least 2")
        require_option(bool(numbers("--snr", self.snr, float)), "snr", self.snr, "numbers in dB such as 20,10,0")


@register(
    "embedding",
    "simdist.analyze.embedding:Embedding",
    short="Plot latents in two dimensions (t-SNE or UMAP), colored by label.",
    about="""\
Plot time-averaged latents of labeled clips (single frames for phones) in two dimensions by t-SNE or UMAP, colored by
label.

  python -m simdist.analyze embedding --run-dir runs/sim --label syllable,vowel
  python -m simdist.analyze embedding --run-dir runs/sim --label phone --examples 3000 --method umap""",
)
@dataclass(frozen=True)
class EmbeddingSettings(LabelSettings):
    """Options of `embedding`."""

    method: Literal["tsne", "umap"] = "tsne"
    """t-SNE, or UMAP (needs the package umap-learn)."""
    perplexity: float | None = None
    """Approximate number of neighbors of a point, for both methods. Default: 30, or a quarter of the vectors if that is
    less."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_option(self.perplexity is None or self.perplexity > 1, "perplexity", self.perplexity, "more than 1")


@register(
    "scatter",
    "simdist.analyze.scatter:Scatter",
    short="Plot three latent dimensions, colored by label.",
    about="""\
Plot three latent dimensions of labeled clips in space and in each plane, colored by label.

  python -m simdist.analyze scatter --run-dir runs/sim --label vowel
  python -m simdist.analyze scatter --run-dir runs/sim --label vowel --dimensions 0,5,7""",
)
@dataclass(frozen=True)
class ScatterSettings(LabelSettings):
    """Options of `scatter`."""

    dimensions: str = ""
    """Three latent dimensions, such as 0,5,7. Default: those that separate the label's classes best (largest F in an
    analysis of variance)."""
