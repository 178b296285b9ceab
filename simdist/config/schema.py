"""An experiment as one tree of frozen dataclasses, which is also the command line of `simdist.train`.

The defaults are Smooth InfoMax on LibriSpeech (arXiv 2408.12936), so a preset in `configs/` only lists differences.
Fields marked `TUNING` affect speed or reporting but never a result, and may change when a run resumes. All other fields
form the run's identity.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from simdist.config.old_names import with_old_values
from simdist.core.errors import InputError, require
from simdist.core.secrets import is_secret

PREEMPT_SIGNALS = ("SIGTERM", "SIGUSR1", "SIGUSR2", "SIGHUP")
SAMPLE_RATE = 16_000  # Hz, everywhere in simdist
TUNING = {"identity": False}
RUN_DIR = ("--run-dir", "--run")  # `--run` for old commands; torchrun takes it for its own --run-path
DATA_ROOT = ("--data.root", "--data-root")  # of commands without a configuration; the second for old commands
ADDED = {"added": True}  # in a run's name only where it is not the default: runs of earlier versions keep theirs
OMITTED = {"omitted": True}  # left out of files and names where it is the default, for the same reason
PLACE = {"place": True}  # in a run's name, but a run may resume with another: the data's fingerprint is checked


def epoch_size(num_clips: int, batch_size: int, full_batches: bool) -> int:
    """Clips of an epoch: all, or those of full batches."""
    return num_clips // batch_size * batch_size if full_batches else num_clips


@dataclass(frozen=True)
class DataConfig:
    """The shards to read and how to draw global batches of crops from them."""

    root: str = field(default="data/librispeech", metadata=PLACE)
    """Folder written by `simdist.pack`, with one folder of shards per split."""
    train_split: str = "train"
    """Training split."""
    test_split: str = "test"
    """Validation split."""
    crop: int = 20_480
    """Length of a training clip in samples at 16 kHz."""
    short_clips: Literal["pad", "skip"] = "pad"
    """What to do with clips shorter than a crop: `pad` them with zeros at the end or `skip` them."""
    normalize: tuple[float, float] | None = field(default=None, metadata=ADDED)
    """Mean and standard deviation of the audio in [-1, 1]. The encoder subtracts the one and divides by the other
    before its first layer, whoever gives it audio; both are stored with its weights. null leaves audio as it is."""
    noise: float = field(default=0.0, metadata=ADDED)
    """Standard deviation of the white noise that is added to training clips in [-1, 1], new in each step. 0: none."""
    batch_size: int = 8
    """Global batch size in clips, split evenly over the ranks."""
    epoch: Literal["all", "full_batches"] = field(default="all", metadata=ADDED)
    """What an epoch is: `all` clips, so that a batch may span two epochs, or as many as fill their batches
    (`full_batches`), so that each epoch leaves out a few, not the same ones."""
    group: int | None = field(default=None, metadata=ADDED)
    """Clips that see each other: negatives come from a group, BatchNorm normalizes over a group, and noise is seeded by
    its number. With a group, results do not depend on the number of GPUs: a rank holds whole groups, or a group spans
    ranks, which then exchange latents. A smaller batch is one group. null: a group is what a rank holds of a batch."""
    shuffle_window: int = 16
    """Number of shards whose samples are shuffled together. Small values keep reads local."""
    num_workers: int = field(default=2, metadata=TUNING)
    """Loader processes per rank. 0 reads and decodes in the training process."""
    cache: Literal["none", "memory", "device"] = field(default="none", metadata=TUNING)
    """Where each rank keeps the decoded corpus (int16): nowhere, in memory, or on its GPU."""
    retry_seconds: float = field(default=60.0, metadata=TUNING)
    """Seconds to retry a shard that cannot be read, e.g. while a network file system fails. 0 disables retries."""
    max_bad_samples: int = field(default=10, metadata=TUNING)
    """Maximum number of corrupt samples to skip before the run fails. 0 fails at the first."""

    def __post_init__(self) -> None:
        require(bool(self.train_split), "data.train_split", self.train_split, "the name of a split")
        require(bool(self.test_split), "data.test_split", self.test_split, "the name of a split")
        require(self.crop > 0, "data.crop", self.crop, "a positive number of samples")
        if self.normalize is not None:
            mean, std = self.normalize
            usable = math.isfinite(mean) and 0 < std < math.inf
            require(usable, "data.normalize", list(self.normalize), "[mean, std] with a positive standard deviation")
        require(0 <= self.noise < math.inf, "data.noise", self.noise, "0 (none) or more")
        require(self.batch_size > 0, "data.batch_size", self.batch_size, "at least 1")
        if self.group is not None:
            divides = self.group > 0 and self.batch_size % min(self.group, self.batch_size) == 0
            require(divides, "data.group", self.group, f"a divisor of data.batch_size={self.batch_size}, or null")
        require(self.shuffle_window > 0, "data.shuffle_window", self.shuffle_window, "at least 1 shard")
        require(self.num_workers >= 0, "data.num_workers", self.num_workers, "0 or more")
        require(self.retry_seconds >= 0, "data.retry_seconds", self.retry_seconds, "0 (no retries) or more")
        require(self.max_bad_samples >= 0, "data.max_bad_samples", self.max_bad_samples, "0 or more")

    def epoch_size(self, num_clips: int) -> int:
        """Clips of an epoch, of a split that has `num_clips`."""
        return epoch_size(num_clips, self.batch_size, self.epoch == "full_batches")


@dataclass(frozen=True)
class LayerConfig:
    """A convolution, followed by BatchNorm if enabled and by a ReLU, or a max-pooling."""

    kernel: int
    """Kernel size in frames of the layer's input."""
    stride: int = 1
    """Stride in frames of the layer's input."""
    padding: int = 0
    """Zeros added to each side."""
    kind: Literal["conv", "maxpool"] = "conv"
    """Type of layer."""
    norm: bool = field(default=True, metadata=OMITTED)
    """Whether model.batch_norm applies to this convolution."""
    relu: bool = field(default=True, metadata=OMITTED)
    """Whether a ReLU follows this convolution."""

    def __post_init__(self) -> None:
        require(self.kernel > 0, "layer.kernel", self.kernel, "at least 1")
        require(self.stride > 0, "layer.stride", self.stride, "at least 1")
        if self.kind == "maxpool" and not (self.norm and self.relu):
            raise ValueError("layer.norm and layer.relu belong to convolutions; a maxpool has neither. Remove them")
        require(self.padding >= 0, "layer.padding", self.padding, "0 or more")
        if self.kind == "maxpool":
            require(2 * self.padding <= self.kernel, "layer.padding", self.padding, "at most half a maxpool's kernel")

    def output_frames(self, frames: int) -> int:
        """Number of output frames for `frames` input frames. 0 or less if the input is too short."""
        return (frames + 2 * self.padding - self.kernel) // self.stride + 1


@dataclass(frozen=True)
class ModuleConfig:
    """A greedy module: layers and heads, a GRU over the module below, or both (CPC)."""

    layers: tuple[LayerConfig, ...] = ()
    """Convolutions and poolings in order. Empty for a module that is only a GRU."""
    gru: bool = False
    """Add a GRU on the latent. Its output is the context; the latent remains the target."""
    prediction_steps: int | None = None
    """Number of future frames that this module predicts. null uses loss.prediction_steps."""
    width: int | None = field(default=None, metadata=OMITTED)
    """Channels of its convolutions and heads. null uses model.width."""
    num_negatives: int | None = field(default=None, metadata=OMITTED)
    """Number of negative samples per positive. null uses loss.num_negatives."""
    beta: float | None = field(default=None, metadata=OMITTED)
    """Weight of the KL after the warm-up. null uses loss.beta."""
    lr: float | None = field(default=None, metadata=OMITTED)
    """Learning rate, which optim.schedule changes as it does optim.lr. null uses optim.lr."""

    def __post_init__(self) -> None:
        require(bool(self.layers) or self.gru, "module", "empty", "given layers, a GRU, or both")
        for key in ("prediction_steps", "width", "num_negatives"):
            value = getattr(self, key)
            require(value is None or value > 0, f"module.{key}", value, "at least 1, or null")
        require(self.beta is None or self.beta >= 0, "module.beta", self.beta, "0 or more, or null")
        require(self.lr is None or self.lr > 0, "module.lr", self.lr, "positive or null")


SIM_MODULES = (
    ModuleConfig(layers=(LayerConfig(10, 5, 2), LayerConfig(8, 4, 2))),
    ModuleConfig(layers=(LayerConfig(4, 2, 2), LayerConfig(4, 2, 2))),
    ModuleConfig(layers=(LayerConfig(4, 2, 1),)),
    ModuleConfig(gru=True),
)


@dataclass(frozen=True)
class ModelConfig:
    """The stack of greedy modules. Module m reads the detached latent of module m-1."""

    width: int = 512
    """Channels of all convolutions and heads."""
    context_width: int = 256
    """Channels of a GRU's output."""
    head: Literal["variational", "mu", "none"] = "variational"
    """What a module's latent is, given its layers' output: `variational`, a sample of a Gaussian whose mean and log
    variance are convolutions of it (SIM); `mu`, one convolution of it (GIM, CPC); `none`, the output itself (GIM by
    Löwe et al.)."""
    head_kernel: int = 1
    """Kernel size in frames of the head's convolutions: an odd number, zero-padded to keep the number of frames."""
    bptt: bool = field(default=True, metadata=ADDED)
    """Whether a GRU's gradient flows back through time; false stops it at the state before each frame."""
    batch_norm: bool = True
    """Whether to use BatchNorm1d between each convolution and its ReLU. It normalizes over a `data.group`."""
    modules: tuple[ModuleConfig, ...] = SIM_MODULES
    """The greedy modules, starting at the audio: a list with `layers` (a list with `kernel`, `stride`, `padding`,
    `kind`, which is conv or maxpool, and `norm` and `relu`, which a convolution has unless they are false), `gru`, and
    its own `prediction_steps`, `width`, `num_negatives`, `beta` and `lr`, of each. Default: the four of SIM."""

    def __post_init__(self) -> None:
        require(self.width > 0, "model.width", self.width, "at least 1")
        require(self.context_width > 0, "model.context_width", self.context_width, "at least 1")
        require(self.head_kernel % 2 == 1, "model.head_kernel", self.head_kernel, "odd")
        require(len(self.modules) > 0, "model.modules", list(self.modules), "at least one module")
        require(bool(self.modules[0].layers), "model.modules[0]", "a GRU alone", "given layers: it reads raw audio")

    def layers_up_to(self, module: int, layer: int | None = None) -> tuple[LayerConfig, ...]:
        """The layers from the audio up to one layer of a module, which is counted from 0, or up to its last.

        Raises:
            InputError: no such module, or it has no such layer.
        """
        last = len(self.modules) - 1
        if not 0 <= module <= last:
            raise InputError(f"module {module} does not exist; this encoder has modules 0 to {last}")
        own = self.modules[module].layers
        if layer is not None and not own:
            raise InputError(f"module {module} is a GRU alone and has no layer {layer}; leave the layer out")
        if layer is not None and not 0 <= layer < len(own):
            raise InputError(f"module {module} has no layer {layer}; its layers are 0 to {len(own) - 1}")
        below = [each for config in self.modules[:module] for each in config.layers]
        return (*below, *own[: None if layer is None else layer + 1])

    def of(self, module: ModuleConfig) -> ModelConfig:
        """The model as one module sees it, with its own width."""
        return self if module.width is None else dataclasses.replace(self, width=module.width)

    def channels(self, module: int, layer: int | None = None) -> int:
        """Channels of a module's latent, or of what one of its layers outputs; 1 if no layer up to there makes more.

        Raises:
            InputError: no such module, or it has no such layer.
        """
        self.layers_up_to(module, layer)
        channels = 1
        for m, config in enumerate(self.modules[: module + 1]):
            layers = config.layers if m < module or layer is None else config.layers[: layer + 1]
            has_head = bool(config.layers) and self.head != "none" and (m < module or layer is None)
            if has_head or any(each.kind == "conv" for each in layers):
                channels = config.width or self.width
        return channels

    def num_frames(self, num_samples: int) -> list[int]:
        """Frames of each module's latent for a clip of `num_samples`. Raises ValueError if the clip is too short."""
        frames, counts = num_samples, []
        for m, module in enumerate(self.modules):
            for layer in module.layers:
                frames = layer.output_frames(frames)
                if frames < 1:
                    raise ValueError(f"a clip of {num_samples} samples is too short: module {m} outputs no frames")
            counts.append(frames)
        return counts


def place_name(module: int, layer: int | None = None) -> str:
    """`module 0`, or of a layer inside it `module 0, layer 3`."""
    return f"module {module}" + ("" if layer is None else f", layer {layer}")


@dataclass(frozen=True)
class LossConfig:
    """InfoNCE per module (arXiv 1807.03748, eq. 4), plus beta times the KL to N(0, I) with variational heads."""

    prediction_steps: int = 10
    """K: a frame's context predicts the next 1..K latents. Modules may override it."""
    num_negatives: int = 10
    """N: number of negative samples per positive."""
    negatives: Literal["batch", "sequence", "other_positives"] = "batch"
    """Source of negatives: latents of all clips of a `data.group` (`batch`), or of the anchor's `sequence`, or what the
    group's other anchors predict at the same step, drawn for each step (`other_positives`, slow)."""
    exclude_positive: bool = False
    """Whether to keep the K latents that follow an anchor out of its negatives; the reference implementation sometimes
    draws them. `other_positives` never draws the positive itself."""
    window: int = 128
    """Maximum number of consecutive frames per clip, at a random position, whose InfoNCE is computed. 0 uses all."""
    beta: float = 0.001
    """Weight of the KL divergence of variational latents from N(0, I) in the loss."""
    beta_warmup_epochs: float = 0.0
    """Epochs in which beta rises linearly from 0, against posterior collapse."""
    kl_reduction: Literal["sum", "mean"] = "sum"
    """Reduction of the KL over a clip's frames, after the mean over clips and channels: `sum`, as in the reference
    implementation, grows with data.crop; `mean` does not."""

    def __post_init__(self) -> None:
        require(self.prediction_steps > 0, "loss.prediction_steps", self.prediction_steps, "at least 1")
        require(self.num_negatives > 0, "loss.num_negatives", self.num_negatives, "at least 1")
        require(self.window >= 0, "loss.window", self.window, "0 (off) or a number of frames")
        require(self.beta >= 0, "loss.beta", self.beta, "0 or more")
        require(self.beta_warmup_epochs >= 0, "loss.beta_warmup_epochs", self.beta_warmup_epochs, "0 or more")

    def of(self, module: ModuleConfig) -> LossConfig:
        """The loss of one module, with its own values."""
        own = {key: getattr(module, key) for key in ("prediction_steps", "num_negatives", "beta")}
        return dataclasses.replace(self, **{key: value for key, value in own.items() if value is not None})


@dataclass(frozen=True)
class OptimConfig:
    """Adam, one instance per greedy module."""

    lr: float = 2e-4
    """Learning rate."""
    schedule: Literal["constant", "exponential", "cosine"] = "constant"
    """Learning rate schedule: `exponential` multiplies by lr_decay after each epoch, `cosine` ends at 0."""
    lr_decay: float = 0.995
    """Factor per epoch of the exponential schedule."""
    warmup_epochs: float = 0.0
    """Epochs of linear warm-up from 0 before the schedule."""
    weight_decay: float = 0.0
    """Decoupled weight decay (AdamW). 0 is plain Adam."""
    clip_grad_norm: float | None = None
    """Maximum gradient norm per module. null disables clipping."""

    def __post_init__(self) -> None:
        require(self.lr > 0, "optim.lr", self.lr, "positive")
        require(0 < self.lr_decay <= 1, "optim.lr_decay", self.lr_decay, "in (0, 1]")
        require(self.warmup_epochs >= 0, "optim.warmup_epochs", self.warmup_epochs, "0 or more")
        require(self.weight_decay >= 0, "optim.weight_decay", self.weight_decay, "0 or more")
        clip = self.clip_grad_norm
        require(clip is None or clip > 0, "optim.clip_grad_norm", clip, "positive or null")


@dataclass(frozen=True)
class TrainConfig:
    """Duration, precision, validation, checkpoints, and recovery."""

    epochs: float = 100.0
    """Passes over the training split. May be a fraction."""
    max_steps: int | None = None
    """Maximum number of optimizer steps: the run ends there if the epochs have more. null trains all epochs."""
    schedule: Literal["joint", "stagewise"] = "joint"
    """Train all modules in every step (`joint`) or one after the other (`stagewise`, epochs and steps per module)."""
    trunk: str | None = field(default=None, metadata={**ADDED, **PLACE})
    """Folder of a finished run, whose lowest modules this run takes over and keeps as they are: only those above are
    trained. null trains all modules."""
    trunk_modules: int = field(default=0, metadata=ADDED)
    """With `trunk`: how many modules to take over."""
    trunk_name: str = field(default="", metadata=ADDED)
    """Name and configuration of the trunk's run, without its seed; filled in, so that a run keeps its trunk."""
    cache_latents: bool = False
    """With `stagewise` or a `trunk`: write the latents of the highest module that does not change to disk once, and
    train those above on them. All runs with one trunk share them, in the trunk's folder."""
    groups_at_once: int | None = field(default=None, metadata=TUNING)
    """Number of a rank's groups (`data.group`) that are computed together: fewer need less memory, and their gradients
    are accumulated, so that an update stays one of data.batch_size clips. null computes all of them together."""
    compress_gradients: bool = False
    """All-reduce gradients in bf16, which halves the traffic."""
    precision: Literal["auto", "no", "bf16", "fp16"] = "auto"
    """Mixed precision. `auto` follows `accelerate launch --mixed_precision`, except for emulated bf16 on CPUs."""
    validate_every: float = 1.0
    """Epochs between validations. 0 disables validation."""
    validate_batches: int | None = field(default=None, metadata=TUNING)
    """Maximum number of validation batches. null uses the whole test split."""
    checkpoint_every: int = field(default=1000, metadata=TUNING)
    """Steps between checkpoints. One is always written at the end and when the run is stopped."""
    keep_last: int = field(default=2, metadata=TUNING)
    """Number of newest checkpoints to keep."""
    keep_every: int = field(default=0, metadata=TUNING)
    """Also keep every checkpoint whose step is a multiple of this number. 0 keeps only the newest."""
    log_every: int = field(default=20, metadata=TUNING)
    """Steps between records in metrics.jsonl."""
    preempt_signals: tuple[str, ...] = field(default=("SIGTERM", "SIGUSR2"), metadata=TUNING)
    """Signals on which a run saves and exits with 75, among SIGTERM, SIGUSR1, SIGUSR2 and SIGHUP. Ctrl-C always saves
    and exits with 130."""
    max_requeues: int = field(default=100, metadata=TUNING)
    """Maximum number of times that a preempted run requeues its SLURM job. 0 disables requeueing."""
    hang_timeout: float = field(default=1800.0, metadata=TUNING)
    """Seconds without progress before the run dumps all stacks and exits with 75; three times as long until the first
    step is complete. 0 disables the watchdog."""
    max_nonfinite_steps: int = field(default=10, metadata=TUNING)
    """Consecutive steps with a non-finite loss or gradient before a module is rolled back to its last checkpoint."""
    after_rollback: Literal["lr", "seed"] = field(default="lr", metadata=TUNING)
    """What is different after a module was rolled back, so that it does not fail again: `lr` halves its learning rate,
    `seed` draws other noise and negatives."""
    max_rollbacks: int = field(default=5, metadata=TUNING)
    """Maximum number of rollbacks per module before the run fails."""

    def __post_init__(self) -> None:
        require(self.epochs > 0, "train.epochs", self.epochs, "positive")
        require(self.max_steps is None or self.max_steps > 0, "train.max_steps", self.max_steps, "positive or null")
        require(self.validate_every >= 0, "train.validate_every", self.validate_every, "0 or more epochs")
        limit = self.validate_batches
        require(limit is None or limit > 0, "train.validate_batches", limit, "positive or null")
        if (self.trunk is None) != (self.trunk_modules == 0):
            raise ValueError(
                f"train.trunk={self.trunk} and train.trunk_modules={self.trunk_modules} belong together: a finished "
                "run, and how many of its modules to take over, at least 1. Set both or neither"
            )
        require(self.trunk_modules >= 0, "train.trunk_modules", self.trunk_modules, "at least 1 with a trunk")
        if self.cache_latents and self.schedule != "stagewise" and self.trunk is None:
            raise ValueError(
                "train.cache_latents=True requires train.schedule=stagewise or a train.trunk, because joint latents "
                "change in every step"
            )
        at_once = self.groups_at_once
        require(at_once is None or at_once > 0, "train.groups_at_once", at_once, "positive or null")
        for key in ("checkpoint_every", "keep_last", "log_every", "max_nonfinite_steps"):
            require(getattr(self, key) > 0, f"train.{key}", getattr(self, key), "at least 1")
        for key in ("keep_every", "max_requeues", "hang_timeout", "max_rollbacks"):
            require(getattr(self, key) >= 0, f"train.{key}", getattr(self, key), "0 or more")
        for name in self.preempt_signals:
            require(name in PREEMPT_SIGNALS, "train.preempt_signals", name, f"among {', '.join(PREEMPT_SIGNALS)}")


@dataclass(frozen=True)
class WandbConfig:
    """Mirroring of metrics.jsonl to Weights & Biases from rank 0, with one run id over all restarts."""

    mode: Literal["disabled", "offline", "online"] = field(default="disabled", metadata=TUNING)
    """`offline` writes to the run folder for a later `wandb sync`, for compute nodes without internet access."""
    project: str = field(default="simdist", metadata=TUNING)
    """Project name."""
    entity: str | None = field(default=None, metadata=TUNING)
    """Team or user. null uses wandb's default."""


@dataclass(frozen=True)
class Config:
    """One experiment."""

    name: str = field(default="sim_librispeech", metadata=TUNING)
    """Name of the experiment. The default run folder is runs/NAME-HASH, with a hash of the configuration."""
    seed: int = 0
    """Seed of weights, data order, crops, noise, and negatives."""
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
        require(bool(self.name) and "/" not in self.name, "name", self.name, "a file name")
        require(self.seed >= 0, "seed", self.seed, "0 or more")
        for key, value in (("name", self.name), ("project", self.wandb.project), ("entity", self.wandb.entity)):
            if value and is_secret(value):
                raise ValueError(f"{key} looks like an API key. Export it as WANDB_API_KEY instead")
        if self.data.noise and self.train.cache_latents:
            raise ValueError(
                f"data.noise={self.data.noise} requires train.cache_latents=False, because cached latents are of audio "
                "without noise"
            )
        if self.train.trunk_modules >= len(self.model.modules):
            raise ValueError(
                f"train.trunk_modules={self.train.trunk_modules} leaves nothing to train of {len(self.model.modules)} "
                "modules. Take fewer, or add modules above them to model.modules"
            )
        try:
            frames = self.model.num_frames(self.data.crop)
        except ValueError as error:
            raise ValueError(f"data.crop={self.data.crop}: {error}. Use a longer crop") from None
        for m, module in enumerate(self.model.modules):
            steps = self.loss.of(module).prediction_steps
            window = min(frames[m], self.loss.window or frames[m])
            if window <= steps:
                raise ValueError(
                    f"module {m} predicts {steps} steps ahead but has only {window} frames per crop. "
                    "Use a longer data.crop, a larger loss.window, or fewer loss.prediction_steps"
                )

    @property
    def stages(self) -> int:
        """Parts of a training that each go through all epochs: one, or one per module that learns with `stagewise`."""
        return len(self.model.modules) - self.train.trunk_modules if self.train.schedule == "stagewise" else 1


class Experiment(Protocol):
    """What the configurations of all trainings share: an encoder's `Config`, a decoder's `DecodingConfig`."""

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


def to_dict(config: Any) -> Any:
    """A dataclass tree, or a value in one, as plain dicts, lists, and scalars for YAML or JSON."""
    return json.loads(json.dumps(config, default=_fields))


def _fields(tree: Any) -> dict[str, Any]:
    """The fields of one dataclass."""
    items = [(item, getattr(tree, item.name)) for item in dataclasses.fields(tree)]
    return {item.name: value for item, value in items if not item.metadata.get("omitted") or value != item.default}


def _identity_items(
    config: Any, prefix: str = "", places: bool = True, added: bool = True
) -> Iterator[tuple[str, Any]]:
    for item in dataclasses.fields(config):
        value, key = getattr(config, item.name), prefix + item.name
        if not item.metadata.get("identity", True) or (item.metadata.get("place") and not places):
            continue
        if item.metadata.get("added") and not added and value == item.default:
            continue
        if dataclasses.is_dataclass(value):
            yield from _identity_items(value, key + ".", places, added)
        else:
            yield key, to_dict(value)


def identity_keys(config: Experiment) -> list[str]:
    """Dotted keys of all fields that can change a result."""
    return [key for key, _ in _identity_items(config)]


def identity_values(config: Experiment) -> dict[str, Any]:
    """All fields that can change a result, except the location of the data, by dotted key."""
    return dict(_identity_items(config, places=False))


def identity(config: Experiment) -> str:
    """The run's identity: 16 hex digits of the sha256 over all fields that can change a result."""
    text = json.dumps(with_old_values(dict(_identity_items(config, added=False))), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def differences(old: Experiment, new: Experiment) -> list[str]:
    """`key: old -> new` for every field that can change a result, except the location of the data."""
    before, after = identity_values(old), identity_values(new)
    return [f"{key}: {before[key]!r} -> {after[key]!r}" for key in after if before[key] != after[key]]
