"""Options of `simdist.probe`: a flat dataclass, one option per field. Imports no torch.

Fields marked with `TUNING` change where or how fast, never a number; all others are part of a probe's identity.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from simdist.config.schema import RUN_DIR, TUNING
from simdist.core.errors import InputError, require_option
from simdist.runs.checkpoints import checkpoint_folders, choose_checkpoint

FRAME_LABEL = "phone"  # one class per 10 ms; every other label has one class per utterance
SOURCES = ("trained", "untrained", "mfcc", "supervised")
COMMAND = {"identity": False, "command": True}  # says which probes are wanted; each probe's own value is elsewhere


@dataclass(frozen=True)
class ProbeSettings:
    """Options of `simdist.probe`."""

    run: Path | None = field(default=None, metadata={**COMMAND, "options": RUN_DIR})
    """Run folder of the encoder; results go to its folder `probes`."""
    label: str = field(default="", metadata=COMMAND)
    """Labels to predict, as speaker,phone; the shards may have speaker, phone, syllable and vowel."""
    module: str = field(default="all", metadata=COMMAND)
    """Greedy modules: 0,2 or -1 (the last) or all."""
    all: bool = field(default=False, metadata=COMMAND)
    """Probe every label of the shards at every module."""
    features: str = field(default="trained", metadata=COMMAND)
    """Features: trained (the encoder) and the baselines untrained, mfcc, supervised; several as trained,mfcc."""
    checkpoints: str = field(default="latest", metadata=COMMAND)
    """Checkpoints of the encoder: latest, steps as 100,200, or all. Several also plot accuracy over steps."""
    probe: Literal["linear", "lbfgs", "mlp"] = "linear"
    """A linear layer trained with Adam, the same at its optimum by L-BFGS, or a network with one hidden layer."""
    pooling: Literal["mean", "max", "flatten"] = "mean"
    """Temporal pooling of an utterance's frames into one vector; flatten needs clips of equal length."""
    bias: bool = True
    """Whether the (last) linear layer has a bias."""
    latents: Literal["deterministic", "sampled"] = "deterministic"
    """Use a variational module's mean, or one sample of its latent."""
    clip: Literal["auto", "crop", "utterance"] = "auto"
    """For utterance labels: classify crops or whole utterances; auto crops those longer than --crop."""
    crop: int | None = None
    """Length of a crop in samples at 16 kHz; null takes the run's data.crop."""
    crops: int = 8
    """Crops per utterance: epoch e trains on crop e modulo this number; all are tested."""
    align: Literal["auto", "front", "centre"] = "auto"
    """Alignment of frames to 10 ms labels: front (as in the reference implementation) or by time (centre). auto takes
    front where frames are 10 ms apart."""
    epochs: int | None = None
    """Passes over the training examples; null takes 20 for phones, 50 for other labels."""
    lr: float | None = None
    """Adam's learning rate; null takes 1e-4 for phones, 1e-3 for other labels."""
    batch_size: int | None = None
    """Utterances per step (with few labels, examples per step). null takes 1 for phones, 64 otherwise."""
    hidden: int = 512
    """Width of the hidden layer of mlp."""
    l2: float = 1e-4
    """L2 penalty of L-BFGS on standardized features; makes the optimum finite and unique."""
    tolerance: float = 1e-5
    """L-BFGS stops when no entry of the gradient is larger."""
    max_iterations: int = 1000
    """Maximum number of L-BFGS iterations; the result says whether it converged."""
    standardize: bool | None = None
    """Scale features to mean 0 and variance 1. null does so for lbfgs and mfcc."""
    examples_per_class: str | None = field(default=None, metadata=COMMAND)
    """Few labels: train on 1,2,4,8 (for example) examples per class, and plot the curve."""
    repetitions: int = field(default=5, metadata=COMMAND)
    """Few labels: number of random draws of the examples."""
    unseen: Literal["fail", "drop"] = "fail"
    """Test classes without training examples: fail, or drop them from the test."""
    bootstrap: int = 1000
    """Bootstrap resamples of the test utterances for the 95 % interval."""
    seed: int = 0
    """Seed for crops, order, the probe's initial weights, noise and resampling."""
    data_root: Path | None = field(default=None, metadata=TUNING)
    """Folder of the packed splits; null takes the run's data.root."""
    train_split: str | None = field(default=None, metadata=TUNING)
    """Training split. null takes the run's, or the split of that ending that has the label."""
    test_split: str | None = field(default=None, metadata=TUNING)
    """Test split. null as for --train-split."""
    cached: bool = field(default=True, metadata=TUNING)
    """Encode once and cache the features. false encodes every batch from audio, as the reference code does."""
    cache: Path | None = field(default=None, metadata=TUNING)
    """Folder of the feature cache; null takes RUN/probes/features. Runs and jobs can share one."""
    cache_gb: float = field(default=20.0, metadata=TUNING)
    """Size limit of the cache in GB; the least recently used features are removed first."""
    force: bool = field(default=False, metadata=TUNING)
    """Repeat a probe even if its result exists."""

    def __post_init__(self) -> None:
        for name in ("crops", "hidden", "max_iterations", "repetitions", "bootstrap"):
            require_option(getattr(self, name) > 0, name, getattr(self, name), "at least 1")
        for name in ("crop", "epochs", "batch_size", "lr"):
            value = getattr(self, name)
            require_option(value is None or value > 0, name, value, "positive")
        require_option(self.l2 > 0, "l2", self.l2, "positive (without a penalty separable classes have no optimum)")
        for name in ("tolerance", "cache_gb"):
            require_option(getattr(self, name) > 0, name, getattr(self, name), "positive")
        require_option(self.seed >= 0, "seed", self.seed, "0 or more")


def for_label(settings: ProbeSettings, label: str) -> ProbeSettings:
    """The settings with the reference values for this label where none were given (REFERENCE 3)."""
    frames = label == FRAME_LABEL
    return replace(
        settings,
        epochs=settings.epochs or (20 if frames else 50),
        lr=settings.lr or (1e-4 if frames else 1e-3),
        batch_size=settings.batch_size or (1 if frames and settings.examples_per_class is None else 64),
    )


def names_in(text: str) -> list[str]:
    """The names in a comma-separated list, brackets and quotes allowed, each once."""
    names = [name.strip().strip("'\"") for name in text.strip().strip("[]").split(",")]
    return list(dict.fromkeys(name for name in names if name))


def numbers_in(option: str, text: str, allowed: str) -> list[int]:
    """The integers in a comma-separated list.

    Raises:
        InputError: something else is in it, or nothing at all.
    """
    try:
        numbers = [int(name) for name in names_in(text)]
    except ValueError:
        numbers = []
    if not numbers:
        raise InputError(f"{option} is {text!r}; it must be {allowed}")
    return numbers


def checkpoints_of(settings: ProbeSettings, run: Path) -> list[Path]:
    """The checkpoint folders that `--checkpoints` names, oldest first.

    Raises:
        InputError: there is none, or none of a requested step.
    """
    found = checkpoint_folders(run / "checkpoints")[::-1]
    if not found:
        raise InputError(f"run {run} has no checkpoint. Train it first, or probe --features untrained,mfcc")
    if settings.checkpoints == "all":
        return found
    if settings.checkpoints == "latest":
        return [choose_checkpoint(run)]
    steps = numbers_in("--checkpoints", settings.checkpoints, "latest, all, or steps such as 100,200")
    return [choose_checkpoint(run, step) for step in sorted(set(steps))]


def modules_of(settings: ProbeSettings, num_modules: int) -> list[int]:
    """The requested modules, from 0; see `modules_in`."""
    return modules_in("all" if settings.all else settings.module, num_modules)


def modules_in(text: str, num_modules: int) -> list[int]:
    """The modules that `--module` names, from 0.

    Raises:
        InputError: one that the encoder does not have.
    """
    if text.strip() == "all":
        return list(range(num_modules))
    wanted = numbers_in("--module", text, "module numbers such as 0,2, or all")
    for number in wanted:
        if not -num_modules <= number < num_modules:
            raise InputError(f"module {number} does not exist; this encoder has modules 0 to {num_modules - 1}")
    return list(dict.fromkeys(number % num_modules for number in wanted))


def feature_kinds(settings: ProbeSettings) -> list[str]:
    """The requested kinds of features.

    Raises:
        InputError: one that does not exist.
    """
    wanted = names_in(settings.features)
    wrong = [name for name in wanted if name not in SOURCES]
    if wrong or not wanted:
        raise InputError(f"--features is {settings.features!r}; it must be among {', '.join(SOURCES)}")
    return wanted


def few_label_sizes(settings: ProbeSettings) -> list[int]:
    """Numbers of examples per class, ascending; [] for all examples.

    Raises:
        InputError: not numbers of 1 or more.
    """
    if settings.examples_per_class is None:
        return []
    allowed = "numbers of 1 or more such as 1,2,4,8"
    sizes = numbers_in("--examples-per-class", settings.examples_per_class, allowed)
    if min(sizes) < 1:
        raise InputError(f"--examples-per-class is {settings.examples_per_class!r}; it must be {allowed}")
    return sorted(set(sizes))
