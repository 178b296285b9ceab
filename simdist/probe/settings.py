"""Options of `simdist.probe`: a flat dataclass, one option per field. Imports no torch.

Fields marked with `TUNING` change where or how fast, never a number; all others are part of a probe's identity.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from simdist.config.schema import ADDED, DATA_ROOT, RUN_DIR, TUNING, ModelConfig
from simdist.core.errors import InputError, require_option
from simdist.runs.checkpoints import checkpoint_folders, choose_checkpoint

FRAME_LABEL = "phone"  # one class per 10 ms; every other label has one class per utterance
SOURCES = ("trained", "untrained", "mfcc", "supervised")
COMMAND = {"identity": False, "command": True}  # says which probes are wanted; each probe's own value is elsewhere
FEW_LABELS_MOST = 32  # examples per class in a batch of the thesis's few-label probes

_THESIS: dict[str, Any] = {  # the thesis's classifiers of syllables and vowels (commit 91eee48 of the authors' code)
    "probe": "linear",
    "standardize": None,
    "latents": "resampled",
    "epochs": 100,
    "lr": 1e-3,
    "batch_size": 171,
    "drop_last": True,
    "weight_decay": 1e-5,
}
_PAPER: dict[str, Any] = {
    "probe": "linear",
    "standardize": None,
    "pooling": "mean",
    "latents": "deterministic",
    "bias": True,
    "weight_decay": 0.0,
}
_PAPER_LIBRISPEECH = {**_PAPER, "epochs": 10, "clip_grad_norm": 1.0}  # as the README's commands set them
_PAPER_ARTIFICIAL = {**_PAPER, "epochs": 50, "lr": 1e-3, "batch_size": 64, "drop_last": True, "clip_grad_norm": 0.0}
PROTOCOLS: dict[str, dict[str, dict[str, Any]]] = {
    "thesis": {
        "syllable": {**_THESIS, "pooling": "flatten", "bias": True},
        "vowel": {**_THESIS, "pooling": "max", "bias": False},
    },
    "paper": {  # ten crops: one per epoch, as a loader that crops at random gives
        "speaker": {**_PAPER_LIBRISPEECH, "lr": 1e-3, "batch_size": 8, "drop_last": True, "crops": 10},
        "phone": {**_PAPER_LIBRISPEECH, "lr": 1e-4, "batch_size": 1, "drop_last": False},
        "syllable": _PAPER_ARTIFICIAL,
        "vowel": _PAPER_ARTIFICIAL,
    },
}
"""For each protocol and label, the options that it sets."""


@dataclass(frozen=True)
class ProbeSettings:
    """Options of `simdist.probe`."""

    run: Path | None = field(default=None, metadata={**COMMAND, "options": RUN_DIR, "required": True})
    """Run folder of the encoder. Results go to its folder `probes`."""
    label: str = field(default="", metadata=COMMAND)
    """Labels to predict, such as speaker,phone. The shards may have speaker, phone, syllable,
    vowel and session."""
    module: str = field(default="all", metadata=COMMAND)
    """Greedy modules to probe: numbers from 0, such as 0,2; -1 for the last; or all."""
    layer: str | None = field(default=None, metadata=COMMAND)
    """Layers inside these modules to probe, such as the convolutions of CPC: numbers from 0, such as 0,2; or all.
    Default: each module's output, after its heads and its GRU."""
    all: bool = field(default=False, metadata=COMMAND)
    """Probe every label of the shards but `session` at every module, or with --layer at these layers."""
    features: str = field(default="trained", metadata=COMMAND)
    """Input of the probes, such as trained,mfcc: the `trained` encoder, or as baselines the `untrained` encoder,
    `mfcc`, and a `supervised` encoder, which is trained together with the probe."""
    checkpoints: str = field(default="latest", metadata=COMMAND)
    """Checkpoints of the encoder: latest, all, or steps such as 100,200. Several also plot accuracy over steps."""
    protocol: Literal["thesis", "paper"] | None = field(default=None, metadata=COMMAND)
    """Defaults for the options below, as in published experiments: `thesis` (V-GIM; syllables and vowels) or `paper`
    (SIM). Options that are given win, and the result says so."""
    probe: Literal["linear", "lbfgs", "mlp"] = "linear"
    """The classifier. `linear`: a linear layer trained with Adam for --epochs, as in the reference implementation.
    `lbfgs`: the same layer with an L2 penalty, trained by L-BFGS until it converges. `mlp`: a network with one hidden
    layer, trained with Adam."""
    pooling: Literal["mean", "max", "flatten"] | None = None
    """How the frames of an utterance, or of a crop of it, become one vector. `flatten` concatenates them, which needs
    clips of equal length. Phones are not pooled. Default: mean."""
    bias: bool | None = None
    """Whether the last linear layer has a bias. Default: true."""
    latents: Literal["deterministic", "sampled", "resampled"] | None = None
    """What to use of variational modules: the means of their Gaussians (`deterministic`, the default), one sample
    (`sampled`), or a new sample of every module in each batch (`resampled`)."""
    clip: Literal["auto", "crop", "utterance"] = "auto"
    """For labels of utterances: classify crops or whole utterances. `auto` uses crops if any utterance is longer than
    --crop."""
    crop: int | None = None
    """Length of a crop in samples at 16 kHz. Default: the run's data.crop."""
    crops: int | None = None
    """Number of random crops per utterance. Each epoch trains on one of them, in turn; all are tested. Default: 8."""
    align: Literal["auto", "front", "center"] = "auto"
    """For phones: which frame belongs to a label of 10 ms. `front`: the first to the first, and so on, as in the
    reference implementation. `center`: the mean of those with their center in these 10 ms, or else the nearest. `auto`
    uses `front` if frames are 10 ms apart."""
    epochs: int | None = None
    """Passes over the training examples. Default: 20 for phones, 50 for other labels."""
    lr: float | None = None
    """Adam's learning rate. Default: 1e-4 for phones, 1e-3 for other labels."""
    batch_size: int | None = None
    """Utterances per step; with --examples-per-class, examples per step. Default: 1 for phones, 64 for other labels."""
    drop_last: bool | None = field(default=None, metadata=ADDED)
    """Leave out the last batch of an epoch if it is incomplete. Default: false."""
    weight_decay: float | None = field(default=None, metadata=ADDED)
    """Weight of the L2 penalty that Adam adds to the gradient. Default: 0."""
    clip_grad_norm: float | None = field(default=None, metadata=ADDED)
    """Maximum norm of the gradient. Default: 0, which disables clipping."""
    hidden: int = 512
    """Width of the hidden layer of `mlp`."""
    l2: float | None = None
    """Weight of the L2 penalty of `lbfgs`, which makes the optimum finite and unique. Default: chosen by
    cross-validation over recordings; with --examples-per-class 1e-4."""
    tolerance: float = 1e-5
    """`lbfgs` has converged when no entry of the gradient is larger."""
    max_iterations: int = 1000
    """Maximum number of iterations of `lbfgs`. The result says whether it converged."""
    standardize: bool | None = None
    """Scale features to mean 0 and variance 1. Default: for `lbfgs` and mfcc only."""
    examples_per_class: str | None = field(default=None, metadata=COMMAND)
    """Few labels: train on these numbers of examples per class, such as 1,2,4,8, and plot accuracy over them."""
    repetitions: int | None = field(default=None, metadata=COMMAND)
    """Number of probes that differ only in their seed: --seed, --seed + 1, …, on the same features. With
    --examples-per-class, number of random draws of the examples. Default: 1; with --examples-per-class 5."""
    unseen: Literal["fail", "drop"] = "fail"
    """What to do with test classes that have no training examples: fail, or drop them from the test."""
    bootstrap: int = 1000
    """Bootstrap resamples of the test utterances for the 95 % interval."""
    seed: int = 0
    """Seed for crops, order, the probe's initial weights, noise and resampling."""
    data_root: Path | None = field(default=None, metadata={**TUNING, "options": DATA_ROOT})
    """Folder of the packed splits. Default: the run's."""
    train_split: str | None = field(default=None, metadata=TUNING)
    """Split to train probes on; needs --test-split. Default: the run's, or for a label that it lacks another pair in
    the folder, such as syllables_train and syllables_test."""
    test_split: str | None = field(default=None, metadata=TUNING)
    """Split to test probes on; needs --train-split. Default: the one that belongs to the training split."""
    cached: bool = field(default=True, metadata=TUNING)
    """Encode the corpus once and cache the features. false encodes every batch from audio, as the reference
    implementation does."""
    cache: Path | None = field(default=None, metadata=TUNING)
    """Folder of the feature cache. Runs and jobs can share one. Default: RUN/probes/features."""
    cache_gb: float = field(default=20.0, metadata=TUNING)
    """Size limit of the cache in GB; the least recently used features are removed first."""
    force: bool = field(default=False, metadata=TUNING)
    """Repeat a probe even if its result exists."""

    def __post_init__(self) -> None:
        for name in ("crops", "hidden", "max_iterations", "repetitions", "bootstrap"):
            value = getattr(self, name)
            require_option(value is None or value > 0, name, value, "at least 1")
        for name in ("crop", "epochs", "batch_size", "lr"):
            value = getattr(self, name)
            require_option(value is None or value > 0, name, value, "positive")
        for name in ("weight_decay", "clip_grad_norm"):
            value = getattr(self, name)
            require_option(value is None or value >= 0, name, value, "0 or more")
        positive = "positive (without a penalty separable classes have no optimum)"
        require_option(self.l2 is None or self.l2 > 0, "l2", self.l2, positive)
        for name in ("tolerance", "cache_gb"):
            require_option(getattr(self, name) > 0, name, getattr(self, name), "positive")
        require_option(self.seed >= 0, "seed", self.seed, "0 or more")


def for_label(settings: ProbeSettings, label: str) -> ProbeSettings:
    """The settings with values for this label where none were given: the protocol's, or else the usual (REFERENCE 3).

    `batch_size` remains None for few labels by the thesis's protocol, where it depends on the number of examples.

    Raises:
        InputError: the protocol does not say how to probe this label.
    """
    few, frames = settings.examples_per_class is not None, label == FRAME_LABEL
    usual: dict[str, Any] = {
        "pooling": "mean",
        "bias": True,
        "latents": "deterministic",
        "crops": 8,
        "epochs": 20 if frames else 50,
        "lr": 1e-4 if frames else 1e-3,
        "batch_size": 1 if frames and not few else 64,
        "drop_last": False,
        "weight_decay": 0.0,
        "clip_grad_norm": 0.0,
        "repetitions": 5 if few else 1,
        "l2": 1e-4 if few else None,
    }
    usual |= _protocol(settings.protocol, label, few)
    return replace(settings, **{name: value for name, value in usual.items() if getattr(settings, name) is None})


def _protocol(name: str | None, label: str, few: bool) -> dict[str, Any]:
    """The options that a protocol sets for a label; {} without one."""
    if name is None:
        return {}
    if label not in PROTOCOLS[name]:
        labels = ", ".join(PROTOCOLS[name])
        raise InputError(f"--protocol {name} is for the labels {labels}, not {label}. Probe {label} without it")
    return {**PROTOCOLS[name][label], **({"batch_size": None} if few and name == "thesis" else {})}


def protocol_of(settings: ProbeSettings, label: str) -> str | None:
    """The protocol that was asked for, or that the settings fulfill, with what deviates: `thesis, but epochs 50`."""
    found = for_label(settings, label)
    names = [settings.protocol] if settings.protocol else [name for name in PROTOCOLS if label in PROTOCOLS[name]]
    for name in names:
        wanted = _protocol(name, label, settings.examples_per_class is not None)
        values = {key: getattr(found, key) for key in wanted}
        unlike = {key: value for key, value in values.items() if (value or None) != (wanted[key] or None)}
        if not unlike:
            return name
        if settings.protocol:
            changed = ", ".join(f"{key} {str(value).lower()}" for key, value in unlike.items())
            return f"{name}, but {changed}"
    return None


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


Place = tuple[int, int | None]
"""A module, and a layer inside it or None for the module's output."""


def places_in(module: str, layer: str | None, model: ModelConfig) -> list[Place]:
    """What `--module` and `--layer` name.

    Raises:
        InputError: a module or a layer that the encoder does not have; with all modules, a layer that none has.
    """
    modules = modules_in(module, len(model.modules))
    if layer is None:
        return [(number, None) for number in modules]
    every = {number: range(len(model.modules[number].layers)) for number in modules}
    if layer.strip() == "all":
        found: list[Place] = [(number, own) for number in modules for own in every[number]]
        if not found:
            raise InputError(f"module {modules[0]} is a GRU alone and has no layers. Leave out --layer")
        return found
    wanted = numbers_in("--layer", layer, "layer numbers from 0 such as 0,2, or all")
    for own in wanted:
        lacking = [number for number in modules if own not in every[number]]
        if lacking and (module.strip() != "all" or len(lacking) == len(modules)):
            model.layers_up_to(lacking[0], own)  # raises
    return [(number, own) for number in modules for own in wanted if own in every[number]]


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
