"""A decoder's experiment as one tree of frozen dataclasses, like `simdist.config.schema`. Imports no torch.

What a decoder shares with its encoder (`FROM_RUN`) is taken from the encoder's run unless it is given; learning rate
and epochs are those of the paper's decoders, for an encoder's may be fifty times as large.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal, get_args

from simdist.config.schema import ADDED, TUNING, Config, DataConfig, OptimConfig, TrainConfig, WandbConfig

DECODERS = "decoders"  # in a run's folder
DecoderLoss = Literal["mse", "spectral", "fft", "mel", "stft", "mse+spectral", "mse+fft", "mse+mel", "mse+stft"]
LOSS_NAMES: tuple[str, ...] = get_args(DecoderLoss)
DEFAULT_LOSS = "mse"
EPOCHS, VALIDATE_EVERY = 200.0, 10.0
TRAIN_FROM_RUN = ("validate_batches", "checkpoint_every", "keep_last", "log_every")
FROM_RUN = ("seed", "data.*", "wandb.*", *(f"train.{key}" for key in TRAIN_FROM_RUN))
"""Keys whose defaults are the encoder's run's."""
ENCODERS_ONLY = ("data.normalize", "data.noise", "train.schedule", "train.cache_latents", "train.trunk*")
"""Keys that a decoder cannot change. Its encoder normalizes audio; what it reconstructs is the audio as it was."""


@dataclass(frozen=True)
class DecodingConfig:
    """A decoder of one greedy module, on the frozen encoder of a run."""

    module: int = 0
    """Greedy module to decode, counted from 0."""
    layer: int | None = field(default=None, metadata=ADDED, kw_only=True)
    """Layer inside the module to decode, counted from 0, such as a convolution of CPC. Default: the module's latent."""
    loss: DecoderLoss = DEFAULT_LOSS
    """Distance between the decoded and the original waveform. `mse`: samples. `spectral`: STFT power. `fft`: magnitudes
    and phases of the whole clip's Fourier transform. `mel`: mel bands in dB. `stft`: STFT magnitudes at three
    resolutions. `mse+…`: the sum of two."""
    latents: Literal["sampled", "deterministic"] = "sampled"
    """What to decode of a variational module: a new sample of its Gaussian in each step, so that the decoder also fits
    traversals and samples of the prior, or its mean (`deterministic`). No difference for other modules."""
    width: int | None = None
    """Channels between the decoder's layers. Default: the encoder's model.width."""
    untrained: bool = False
    """Decode the encoder as it was before training, with the initial weights of the run's seed, as a baseline."""
    checkpoint: int | None = None
    """Step of the encoder's checkpoint. Default: the one the decoder was started on, or else the latest."""
    encoder_weights: str = ""
    """Hash of the encoder's weights; filled in, so that a decoder is never resumed on another encoder."""
    examples: int = field(default=4, metadata=TUNING)
    """Test clips to decode and write as WAV at each validation."""
    seed: int = 0
    """Seed for the decoder's initial weights, order, crops and noise."""
    data: DataConfig = field(default_factory=DataConfig)
    """Shards and batches."""
    optim: OptimConfig = field(default_factory=OptimConfig)
    """The optimizer."""
    train: TrainConfig = field(default_factory=lambda: TrainConfig(epochs=EPOCHS, validate_every=VALIDATE_EVERY))
    """The training loop."""
    wandb: WandbConfig = field(default_factory=WandbConfig)
    """Experiment tracking."""

    def __post_init__(self) -> None:
        for name, lowest in (("module", 0), ("layer", 0), ("examples", 0), ("seed", 0), ("width", 1)):
            value = getattr(self, name)
            if value is not None and value < lowest:
                raise ValueError(f"{name} is {value}; it must be {lowest} or more")
        if self.data.normalize is not None:
            raise ValueError("data.normalize belongs to the encoder, which normalizes by its own. Remove it here")
        if self.data.noise:
            raise ValueError(
                "data.noise belongs to an encoder; a decoder reconstructs the audio as it is. Remove it here"
            )
        if self.train.trunk is not None:
            raise ValueError("train.trunk belongs to an encoder; a decoder has no modules to take over. Remove it here")
        if self.train.schedule != "joint":
            raise ValueError(f"train.schedule is {self.train.schedule!r}; a decoder has one stage: it must be 'joint'")

    @property
    def folder_name(self) -> str:
        """`2-mse+mel`, `2-mse+mel-untrained` on the untrained encoder, `0-layer2-mse` of a layer inside module 0."""
        return folder_name(self.module, self.loss, self.untrained, self.layer)


def folder_name(module: int, loss: str, untrained: bool = False, layer: int | None = None) -> str:
    """Name of a decoder's folder in RUN/decoders."""
    inside = "" if layer is None else f"-layer{layer}"
    return f"{module}{inside}-{loss}" + "-untrained" * untrained


def defaults_for(config: Config) -> DecodingConfig:
    """What a decoder of this run has where nothing else is given."""
    train = config.train
    return DecodingConfig(
        seed=config.seed,
        data=replace(config.data, normalize=None, noise=0.0),
        train=TrainConfig(
            epochs=EPOCHS,
            validate_every=VALIDATE_EVERY,
            **{key: getattr(train, key) for key in TRAIN_FROM_RUN},
        ),
        wandb=config.wandb,
    )


def decoder_command(
    run: Path, module: int, loss: str = DEFAULT_LOSS, untrained: bool = False, layer: int | None = None
) -> str:
    """The command that trains a decoder."""
    inside = "" if layer is None else f" --layer {layer}"
    command = f"accelerate launch -m simdist.decode --run-dir {run} --module {module}{inside} --loss {loss}"
    return command + " --untrained" * untrained
