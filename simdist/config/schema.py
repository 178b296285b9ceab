"""The experiment as one tree of frozen dataclasses: defaults < YAML files < command line.

The defaults are Smooth InfoMax on LibriSpeech (arXiv 2408.12936), so a preset in `configs/` holds only what differs.
This module imports no torch: the launcher and `--help` read it. Fields marked with `TUNING` may change between two
starts of one run (they change speed or reporting, never a number); all others make up the run's identity.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from simdist.core.secrets import is_secret

PREEMPT_SIGNALS = ("SIGTERM", "SIGUSR1", "SIGUSR2", "SIGHUP")
SAMPLE_RATE = 16_000  # Hz, everywhere in simdist
TUNING = {"identity": False}
RUN_DIR = ("--run-dir", "--run")  # the alias is for old commands; torchrun refuses it, for its own --run-path
PLACE = {
    "place": True
}  # part of a run's name, but a run may go on elsewhere: the data's fingerprint is checked instead


def _require(condition: bool, key: str, value: object, allowed: str) -> None:
    if not condition:
        raise ValueError(f"{key} is {value!r}; it must be {allowed}")


@dataclass(frozen=True)
class DataConfig:
    """Which shards are read, and how a global batch of crops is drawn from them."""

    root: str = field(default="data/librispeech", metadata=PLACE)
    """Folder that `simdist.pack` wrote; each split is a folder of shards inside it."""
    train_split: str = "train"
    """Split that is trained on."""
    test_split: str = "test"
    """Split that is validated on."""
    crop: int = 20_480
    """Length of a training clip, in samples at 16 kHz."""
    short_clips: Literal["pad", "skip"] = "pad"
    """Clips shorter than a crop: `pad` with zeros at the end, or `skip` them; either way they are counted."""
    batch_size: int = 8
    """Clips in a step over all ranks together; each rank takes an equal share."""
    shuffle_window: int = 16
    """Shards whose samples are shuffled together; keeps reads local on a parallel file system."""
    num_workers: int = field(default=2, metadata=TUNING)
    """Processes a rank that read and decode; 0 decodes in the training process."""
    cache: Literal["none", "memory", "device"] = field(default="none", metadata=TUNING)
    """Keep the decoded corpus (int16) nowhere, in each rank's memory, or on its GPU."""
    retry_seconds: float = field(default=60.0, metadata=TUNING)
    """How long a shard that cannot be read is tried again (a network file system may fail for a while); 0 never."""
    max_bad_samples: int = field(default=10, metadata=TUNING)
    """Samples that do not decode and are skipped before the run ends; 0 ends it at the first."""

    def __post_init__(self) -> None:
        _require(bool(self.train_split), "data.train_split", self.train_split, "the name of a split")
        _require(bool(self.test_split), "data.test_split", self.test_split, "the name of a split")
        _require(self.crop > 0, "data.crop", self.crop, "a positive number of samples")
        _require(self.batch_size > 0, "data.batch_size", self.batch_size, "at least 1")
        _require(self.shuffle_window > 0, "data.shuffle_window", self.shuffle_window, "at least 1 shard")
        _require(self.num_workers >= 0, "data.num_workers", self.num_workers, "0 or more")
        _require(self.retry_seconds >= 0, "data.retry_seconds", self.retry_seconds, "0 (never) or more")
        _require(self.max_bad_samples >= 0, "data.max_bad_samples", self.max_bad_samples, "0 or more")


@dataclass(frozen=True)
class LayerConfig:
    """One convolution (followed by BatchNorm if it is on, then ReLU) or one max-pooling."""

    kernel: int
    """Kernel size, in frames of the layer's input."""
    stride: int = 1
    """Stride, in frames of the layer's input."""
    padding: int = 0
    """Zeros added on each side."""
    kind: Literal["conv", "maxpool"] = "conv"
    """A convolution or a max-pooling."""

    def __post_init__(self) -> None:
        _require(self.kernel > 0, "layer.kernel", self.kernel, "at least 1")
        _require(self.stride > 0, "layer.stride", self.stride, "at least 1")
        _require(self.padding >= 0, "layer.padding", self.padding, "0 or more")
        if self.kind == "maxpool":
            _require(2 * self.padding <= self.kernel, "layer.padding", self.padding, "at most half a maxpool's kernel")

    def output_frames(self, frames: int) -> int:
        """Number of frames that come out of `frames`; 0 or less means that the input is too short."""
        return (frames + 2 * self.padding - self.kernel) // self.stride + 1


@dataclass(frozen=True)
class ModuleConfig:
    """A greedy module: layers, then heads; or a GRU over the module below; or both (CPC)."""

    layers: tuple[LayerConfig, ...] = ()
    """Convolutions and poolings in order; none for a module that is a GRU alone."""
    gru: bool = False
    """Put a GRU on the latent; its output is the context, the latent stays the target."""
    prediction_steps: int | None = None
    """Steps ahead that this module predicts; null takes loss.prediction_steps."""

    def __post_init__(self) -> None:
        _require(bool(self.layers) or self.gru, "module", "empty", "given layers, a GRU, or both")
        if self.prediction_steps is not None:
            _require(self.prediction_steps > 0, "module.prediction_steps", self.prediction_steps, "at least 1")


SIM_MODULES = (
    ModuleConfig(layers=(LayerConfig(10, 5, 2), LayerConfig(8, 4, 2))),
    ModuleConfig(layers=(LayerConfig(4, 2, 2), LayerConfig(4, 2, 2))),
    ModuleConfig(layers=(LayerConfig(4, 2, 1),)),
    ModuleConfig(gru=True),
)


@dataclass(frozen=True)
class ModelConfig:
    """The stack of greedy modules; module m sees the detached latent of module m-1."""

    width: int = 512
    """Channels of every convolution and of the heads."""
    context_width: int = 256
    """Channels of a GRU's output."""
    head: Literal["variational", "mu", "none"] = "variational"
    """On a module's layers: `variational` mu and log_var (SIM), `mu` alone (GIM, CPC), or `none` (Löwe's GIM)."""
    head_kernel: int = 1
    """Kernel of the heads, odd, padded to keep the number of frames (thesis: 3)."""
    batch_norm: bool = True
    """BatchNorm1d between each convolution and its ReLU."""
    sync_batch_norm: bool = False
    """BatchNorm over the batches of all ranks; otherwise each rank normalises by its own share of the batch."""
    modules: tuple[ModuleConfig, ...] = SIM_MODULES
    """The greedy modules from the audio upwards."""

    def __post_init__(self) -> None:
        _require(self.width > 0, "model.width", self.width, "at least 1")
        _require(self.context_width > 0, "model.context_width", self.context_width, "at least 1")
        _require(self.head_kernel % 2 == 1, "model.head_kernel", self.head_kernel, "odd")
        _require(len(self.modules) > 0, "model.modules", list(self.modules), "at least one module")
        _require(bool(self.modules[0].layers), "model.modules[0]", "a GRU alone", "given layers: it reads raw audio")

    def num_frames(self, num_samples: int) -> list[int]:
        """Frames of each module's latent for a clip of `num_samples`; raises ValueError if a layer runs dry."""
        frames, counts = num_samples, []
        for m, module in enumerate(self.modules):
            for layer in module.layers:
                frames = layer.output_frames(frames)
                if frames < 1:
                    raise ValueError(f"a clip of {num_samples} samples is too short: nothing is left in module {m}")
            counts.append(frames)
        return counts


@dataclass(frozen=True)
class LossConfig:
    """InfoNCE of each module (arXiv 1807.03748, eq. 4) plus, with variational heads, beta times the KL to N(0, I)."""

    prediction_steps: int = 10
    """K: a frame's context predicts the next 1..K latents, unless the module says otherwise."""
    num_negatives: int = 10
    """N: wrong candidates beside each right one."""
    negatives: Literal["batch", "sequence", "global"] = "batch"
    """Negatives come from the latents of a rank's `batch`, of all ranks (`global`), or of the anchor's `sequence`."""
    exclude_positive: bool = False
    """Never draw a latent that the anchor is to predict as a negative (upstream sometimes does)."""
    window: int = 128
    """Longer latents are scored in one random window of so many frames; 0 scores all frames."""
    beta: float = 0.001
    """Weight of the KL."""
    beta_warmup_epochs: float = 0.0
    """Epochs over which beta rises linearly from 0; keeps variational modules from collapsing."""
    kl_reduction: Literal["upstream", "mean"] = "upstream"
    """`upstream` sums the KL over time and so depends on the crop; `mean` averages it."""

    def __post_init__(self) -> None:
        _require(self.prediction_steps > 0, "loss.prediction_steps", self.prediction_steps, "at least 1")
        _require(self.num_negatives > 0, "loss.num_negatives", self.num_negatives, "at least 1")
        _require(self.window >= 0, "loss.window", self.window, "0 (off) or a number of frames")
        _require(self.beta >= 0, "loss.beta", self.beta, "0 or more")
        _require(self.beta_warmup_epochs >= 0, "loss.beta_warmup_epochs", self.beta_warmup_epochs, "0 or more")


@dataclass(frozen=True)
class OptimConfig:
    """Adam, one instance a greedy module."""

    lr: float = 2e-4
    """Learning rate."""
    schedule: Literal["constant", "exponential", "cosine"] = "constant"
    """`exponential` multiplies by lr_decay each epoch; `cosine` falls to 0 at the last step."""
    lr_decay: float = 0.995
    """Factor an epoch of the exponential schedule."""
    warmup_epochs: float = 0.0
    """Epochs of linear warm-up from 0, before the schedule."""
    weight_decay: float = 0.0
    """Decoupled weight decay (AdamW); 0 is plain Adam."""
    clip_grad_norm: float | None = None
    """Largest gradient norm of a module; null does not clip."""

    def __post_init__(self) -> None:
        _require(self.lr > 0, "optim.lr", self.lr, "positive")
        _require(0 < self.lr_decay <= 1, "optim.lr_decay", self.lr_decay, "in (0, 1]")
        _require(self.warmup_epochs >= 0, "optim.warmup_epochs", self.warmup_epochs, "0 or more")
        _require(self.weight_decay >= 0, "optim.weight_decay", self.weight_decay, "0 or more")
        clip = self.clip_grad_norm
        _require(clip is None or clip > 0, "optim.clip_grad_norm", clip, "positive or null")


@dataclass(frozen=True)
class TrainConfig:
    """How long, in which precision, and how often to look."""

    epochs: float = 100.0
    """Passes over the training split; a fraction is allowed."""
    max_steps: int | None = None
    """End after so many steps, if that comes first."""
    schedule: Literal["joint", "stagewise"] = "joint"
    """All modules in every step, or one after the other: each to its end, then frozen; epochs and steps are each's."""
    cache_latents: bool = False
    """Stagewise: write a frozen module's latents to the run once, and train the next module from them."""
    accumulate: int = 1
    """Parts a rank's share of the batch is trained in before an update; negatives come from within a part."""
    compress_gradients: bool = False
    """Average gradients over ranks in bf16, half the bytes."""
    precision: Literal["auto", "no", "bf16", "fp16"] = "auto"
    """Mixed precision; `auto` takes `accelerate launch --mixed_precision`, but no bf16 where a CPU emulates it."""
    validate_every: float = 1.0
    """Epochs between validations on the test split; 0 never validates."""
    validate_batches: int | None = field(default=None, metadata=TUNING)
    """Look at so many global batches of the test split at most; null looks at all."""
    checkpoint_every: int = field(default=1000, metadata=TUNING)
    """Steps between checkpoints; one is always written at the end and when the run is stopped."""
    keep_last: int = field(default=2, metadata=TUNING)
    """Newest checkpoints that are kept."""
    keep_every: int = field(default=0, metadata=TUNING)
    """Also keep each checkpoint whose step is a multiple of this; 0 keeps none for that."""
    log_every: int = field(default=20, metadata=TUNING)
    """Steps between lines of metrics."""
    preempt_signals: tuple[str, ...] = field(default=("SIGTERM", "SIGUSR2"), metadata=TUNING)
    """Signals that ask a run to save and end with exit code 75, beside Ctrl-C (130)."""
    max_requeues: int = field(default=100, metadata=TUNING)
    """How often a run that is preempted under SLURM asks to be requeued; 0 never does."""
    hang_timeout: float = field(default=1800.0, metadata=TUNING)
    """Seconds without a step after which a run writes down all stacks and ends with exit code 75; 0 waits for ever."""
    max_bad_steps: int = field(default=10, metadata=TUNING)
    """Steps in a row that a module may skip for a loss or gradient that is not finite, before it is rolled back."""
    after_rollback: Literal["lr", "seed"] = field(default="lr", metadata=TUNING)
    """What is different for a module that was rolled back: half its learning rate, or other noise and negatives."""
    max_rollbacks: int = field(default=5, metadata=TUNING)
    """How often one module may be rolled back before the run ends as failed."""

    def __post_init__(self) -> None:
        _require(self.epochs > 0, "train.epochs", self.epochs, "positive")
        _require(self.max_steps is None or self.max_steps > 0, "train.max_steps", self.max_steps, "positive or null")
        _require(self.validate_every >= 0, "train.validate_every", self.validate_every, "0 or more epochs")
        limit = self.validate_batches
        _require(limit is None or limit > 0, "train.validate_batches", limit, "positive or null")
        if self.cache_latents and self.schedule != "stagewise":
            raise ValueError("train.cache_latents is true; it needs train.schedule stagewise: joint latents never rest")
        for key in ("checkpoint_every", "keep_last", "log_every", "accumulate", "max_bad_steps"):
            _require(getattr(self, key) > 0, f"train.{key}", getattr(self, key), "at least 1")
        for key in ("keep_every", "max_requeues", "hang_timeout", "max_rollbacks"):
            _require(getattr(self, key) >= 0, f"train.{key}", getattr(self, key), "0 or more")
        for name in self.preempt_signals:
            _require(name in PREEMPT_SIGNALS, "train.preempt_signals", name, f"among {', '.join(PREEMPT_SIGNALS)}")


@dataclass(frozen=True)
class WandbConfig:
    """Mirror metrics.jsonl to Weights & Biases, from rank 0, under one stable run id."""

    mode: Literal["disabled", "offline", "online"] = field(default="disabled", metadata=TUNING)
    """`offline` writes below the run folder for `wandb sync` later (compute nodes without internet)."""
    project: str = field(default="simdist", metadata=TUNING)
    """Project name."""
    entity: str | None = field(default=None, metadata=TUNING)
    """Team or user; null takes wandb's default."""


@dataclass(frozen=True)
class Config:
    """One experiment."""

    name: str = field(default="sim_librispeech", metadata=TUNING)
    """Begins the run folder's name; the hash of the configuration ends it."""
    seed: int = 0
    """Decides weights, order, crops, noise and negatives."""
    data: DataConfig = field(default_factory=DataConfig)
    """Shards and batches."""
    model: ModelConfig = field(default_factory=ModelConfig)
    """The encoder."""
    loss: LossConfig = field(default_factory=LossConfig)
    """The objective."""
    optim: OptimConfig = field(default_factory=OptimConfig)
    """The optimizer."""
    train: TrainConfig = field(default_factory=TrainConfig)
    """The training loop."""
    wandb: WandbConfig = field(default_factory=WandbConfig)
    """Experiment tracking."""

    def __post_init__(self) -> None:
        _require(bool(self.name) and "/" not in self.name, "name", self.name, "a file name")
        _require(self.seed >= 0, "seed", self.seed, "0 or more")
        for key, value in (("name", self.name), ("project", self.wandb.project), ("entity", self.wandb.entity)):
            if value and is_secret(value):
                raise ValueError(f"{key} holds what looks like an API key; export it as WANDB_API_KEY instead")
        try:
            frames = self.model.num_frames(self.data.crop)
        except ValueError as error:
            raise ValueError(f"data.crop is {self.data.crop}; {error}; take a longer crop") from None
        for m, module in enumerate(self.model.modules):
            steps = module.prediction_steps or self.loss.prediction_steps
            window = min(frames[m], self.loss.window or frames[m])
            if window <= steps:
                raise ValueError(
                    f"module {m} predicts {steps} steps ahead, but has only {window} frames of a crop to do it in; "
                    "take a longer data.crop, a larger loss.window or a smaller loss.prediction_steps"
                )


class Experiment(Protocol):
    """What every training has: an encoder's `Config`, or the tree of whatever else is trained."""

    @property
    def seed(self) -> int: ...
    @property
    def data(self) -> DataConfig: ...
    @property
    def optim(self) -> OptimConfig: ...
    @property
    def train(self) -> TrainConfig: ...
    @property
    def wandb(self) -> WandbConfig: ...


def to_dict(config: Any) -> dict[str, Any]:
    """The dataclass tree as plain dicts, lists and scalars, ready for YAML or JSON."""
    return json.loads(json.dumps(dataclasses.asdict(config)))


def _identity_items(config: Any, prefix: str = "", places: bool = True) -> Iterator[tuple[str, Any]]:
    for item in dataclasses.fields(config):
        value, key = getattr(config, item.name), prefix + item.name
        if not item.metadata.get("identity", True) or (item.metadata.get("place") and not places):
            continue
        if dataclasses.is_dataclass(value):
            yield from _identity_items(value, key + ".", places)
        else:
            yield key, json.loads(json.dumps(value, default=dataclasses.asdict))


def identity_keys(config: Experiment) -> list[str]:
    """The dotted keys of every field that can change a number."""
    return [key for key, _ in _identity_items(config)]


def identity(config: Experiment) -> str:
    """Sixteen hex digits of the sha256 over every field that can change a number; the run's identity."""
    text = json.dumps(dict(_identity_items(config)), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def differences(old: Experiment, new: Experiment) -> list[str]:
    """`key: old -> new` for every field in which the two would give other numbers; the data's place gives none."""
    before, after = dict(_identity_items(old, places=False)), dict(_identity_items(new, places=False))
    return [f"{key}: {before[key]!r} -> {after[key]!r}" for key in after if before[key] != after[key]]
