"""What a probing command asks for: a flat dataclass, one option each. Imports no torch.

Fields marked with `TUNING` change where or how fast, never a number; all others are part of a probe's identity.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from simdist.config.schema import RUN_DIR, TUNING
from simdist.core.errors import InputError

FRAME_LABEL = "phone"  # one class each 10 ms; every other label is one class an utterance
SOURCES = ("trained", "untrained", "mfcc", "supervised")
COMMAND = {"identity": False, "command": True}  # says which probes are wanted; each probe's own value is elsewhere


@dataclass(frozen=True)
class ProbeSettings:
    """Options of `simdist.probe`."""

    run: Path | None = field(default=None, metadata={**COMMAND, "options": RUN_DIR})
    """Run folder whose encoder is probed; results go into its folder `probes`."""
    label: str = field(default="", metadata=COMMAND)
    """Labels to probe for, as speaker,phone: what the shards carry of speaker, phone, syllable, vowel."""
    module: str = field(default="all", metadata=COMMAND)
    """Greedy modules to probe, as 0,2 or -1 (the last) or all."""
    all: bool = field(default=False, metadata=COMMAND)
    """Every label that the shards carry, at every module."""
    features: str = field(default="trained", metadata=COMMAND)
    """What is probed, several as trained,untrained,mfcc,supervised: the encoder, or one of three baselines."""
    checkpoints: str = field(default="latest", metadata=COMMAND)
    """Checkpoints of the trained encoder: latest, steps as 100,200, or all, which also plots accuracy over steps."""
    probe: Literal["linear", "lbfgs", "mlp"] = "linear"
    """A linear layer trained with Adam, its exact optimum by L-BFGS, or a network with one hidden layer."""
    pooling: Literal["mean", "max", "flatten"] = "mean"
    """How an utterance's frames become one vector; flatten needs clips of one length."""
    bias: bool = True
    """Whether the (last) linear layer has a bias."""
    latents: Literal["deterministic", "sampled"] = "deterministic"
    """A variational module's mean, or one draw of its latent."""
    clip: Literal["auto", "crop", "utterance"] = "auto"
    """Utterance labels: classify crops or whole utterances; auto crops those longer than --crop."""
    crop: int | None = None
    """Length of a crop in samples at 16 kHz; null takes the run's data.crop."""
    crops: int = 8
    """Different crops of an utterance: epoch e trains on crop e modulo so many, and all of them are tested."""
    align: Literal["auto", "front", "centre"] = "auto"
    """Frames to 10 ms labels: cut from the front (upstream), or by time; auto cuts where frames are 10 ms apart."""
    epochs: int | None = None
    """Passes over the training examples; null is 20 for phones and 50 for other labels."""
    lr: float | None = None
    """Adam's learning rate; null is 1e-4 for phones and 1e-3 for other labels."""
    batch_size: int | None = None
    """Utterances a step; null is 1 for phones and 64 for other labels; with few labels, examples a step, 64."""
    hidden: int = 512
    """Width of the mlp's hidden layer."""
    l2: float = 1e-4
    """Penalty on the squared weights in L-BFGS, on standardised features; makes the optimum finite and unique."""
    tolerance: float = 1e-5
    """L-BFGS ends when no entry of the gradient is larger."""
    max_iterations: int = 1000
    """L-BFGS gives up after so many iterations, and the result says so."""
    standardize: bool | None = None
    """Scale features to mean 0 and variance 1; null does so for lbfgs and mfcc."""
    examples_per_class: str | None = field(default=None, metadata=COMMAND)
    """Few labels: train on so many examples a class, as 1,2,4,8, and plot the curve."""
    repetitions: int = field(default=5, metadata=COMMAND)
    """Random draws of the few examples."""
    unseen: Literal["fail", "drop"] = "fail"
    """Test classes that training never shows: an error, or left out of the test."""
    bootstrap: int = 1000
    """Resamplings of the test utterances for the 95 % interval."""
    seed: int = 0
    """Decides crops, order, the probe's first weights, noise and resamplings."""
    data_root: Path | None = field(default=None, metadata=TUNING)
    """Folder of the packed splits; null takes the run's data.root."""
    train_split: str | None = field(default=None, metadata=TUNING)
    """Split the probe is trained on; null takes the run's, or the one ending like it that has the label."""
    test_split: str | None = field(default=None, metadata=TUNING)
    """Split the probe is tested on; null as for --train-split."""
    cached: bool = field(default=True, metadata=TUNING)
    """Encode once and keep the features; otherwise encode every batch from audio, as upstream does."""
    cache: Path | None = field(default=None, metadata=TUNING)
    """Folder of the cached features; null is RUN/probes/features. Several runs and jobs may share one."""
    cache_gb: float = field(default=20.0, metadata=TUNING)
    """Most that the cache may hold, in GB; the features used longest ago make room."""
    force: bool = field(default=False, metadata=TUNING)
    """Probe again although a result is there."""

    def __post_init__(self) -> None:
        for name in ("crops", "hidden", "max_iterations", "repetitions", "bootstrap"):
            _require(getattr(self, name) > 0, name, getattr(self, name), "at least 1")
        for name in ("crop", "epochs", "batch_size", "lr"):
            value = getattr(self, name)
            _require(value is None or value > 0, name, value, "positive")
        _require(self.l2 > 0, "l2", self.l2, "positive (without a penalty separable classes have no optimum)")
        for name in ("tolerance", "cache_gb"):
            _require(getattr(self, name) > 0, name, getattr(self, name), "positive")
        _require(self.seed >= 0, "seed", self.seed, "0 or more")


def _require(condition: bool, name: str, value: object, allowed: str) -> None:
    if not condition:
        raise ValueError(f"--{name.replace('_', '-')} is {value!r}; it must be {allowed}")


def for_label(settings: ProbeSettings, label: str) -> ProbeSettings:
    """The settings with upstream's values for this label where none were given (REFERENCE 3)."""
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


def modules_of(settings: ProbeSettings, num_modules: int) -> list[int]:
    """The modules asked for, from 0; see `modules_in`."""
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


def sources_of(settings: ProbeSettings) -> list[str]:
    """The kinds of features asked for.

    Raises:
        InputError: one that does not exist.
    """
    wanted = names_in(settings.features)
    wrong = [name for name in wanted if name not in SOURCES]
    if wrong or not wanted:
        raise InputError(f"--features is {settings.features!r}; it must be among {', '.join(SOURCES)}")
    return wanted


def few_label_sizes(settings: ProbeSettings) -> list[int]:
    """Numbers of examples a class, ascending; [] for all examples.

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
