"""One greedy module: layers, heads, optional GRU, and its own loss.

Legend: B clips, L frames, C channels of the latent. Everything is (B, L, C), from the audio to the loss.

All randomness comes in as `RandomInputs`, from a generator seeded by (seed, step, module, group): a resumed run needs
no saved generator state, and a test can replay the reference implementation's draws.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from simdist.config.schema import LayerConfig, LossConfig, ModelConfig, ModuleConfig
from simdist.models import gaussian, stem
from simdist.models.convolution import convolve
from simdist.models.groups import GroupBatchNorm, gather_clips, group_variance
from simdist.models.infonce import draw_negatives, info_nce
from simdist.models.precision import wide

ACTIVE_VARIANCE = 0.01
CONSTANTS = ("audio_mean", "audio_std")  # buffers of module 0 that no training changes
LOG_VAR_RANGE = (-30.0, 20.0)  # exp of either end, and sums of it over a batch, are finite in float32


@dataclass(frozen=True)
class RandomInputs:
    """The random numbers of one training forward of one module."""

    start: int
    """First frame of the window that is scored."""
    negatives: Tensor
    """(B, A, N) or (B, A, K, N) int64, see `info_nce`; rows of the latents of this rank's groups, or of its group."""
    context_noise: Tensor | None = None
    """(B, W, C) standard normal, for the window; None without variational heads."""
    latent_noise: Tensor | None = None
    """(B, L, C) standard normal, independent of the former."""
    groups: int = field(default=1, kw_only=True)
    """Groups of clips that see each other, one after the other in the batch."""
    first_clip: int = field(default=0, kw_only=True)
    """Of a group that spans ranks: the clip of the group that is the batch's first."""


@dataclass(frozen=True)
class Encoding:
    """What a module makes of its input."""

    latent: Tensor
    """(B, L, C) target of its loss and input of the next module."""
    context: Tensor
    """(B, L, C) or (B, L, context_width): what predicts; the module's representation."""
    mu: Tensor
    """(B, L, C) mean of the latent (the latent itself without heads)."""
    log_var: Tensor | None
    """(B, L, C) log-variance of the latent, float32; None unless variational."""


@dataclass(frozen=True)
class ModuleLoss:
    """A training forward of one module. All scalars are float32."""

    loss: Tensor
    """InfoNCE + beta * KL, with gradient."""
    nce: Tensor
    kl: Tensor
    accuracy: Tensor
    latent: Tensor
    """(B, L, C) detached: the next module's input."""
    mu: Tensor
    """(B, L, C) detached: the latent's mean, for `active_units`."""


class ConvLayer(nn.Module):
    """Convolution, BatchNorm if asked for, ReLU unless left out: (B, L_in, C_in) -> (B, L, C)."""

    def __init__(self, config: LayerConfig, in_channels: int, model: ModelConfig) -> None:
        super().__init__()
        self.conv = nn.Conv1d(in_channels, model.width, config.kernel, config.stride, config.padding)
        self.norm = GroupBatchNorm(model.width) if model.batch_norm and config.norm else None
        self.has_relu = config.relu

    def forward(self, x: Tensor, groups: int = 1) -> Tensor:
        if stem.fits(x, self.conv):
            x = stem.first_layer(x, self.conv, self.norm, groups)
            return x.relu_() if self.has_relu else x
        return self.normalize(convolve(x, self.conv), groups)

    def normalize(self, x: Tensor, groups: int = 1) -> Tensor:
        """What follows the convolution, (B, L, C) -> (B, L, C)."""
        rows = x.reshape(-1, x.shape[2])  # (B, L, C) -> (B*L, C)
        rows = self.norm(rows, groups) if self.norm is not None else rows
        return (rows.relu_() if self.has_relu else rows).view(x.shape)  # in place: no backward reads what it overwrites


class MaxPool(nn.Module):
    """Max-pooling over frames: (B, L_in, C) -> (B, L, C)."""

    def __init__(self, config: LayerConfig) -> None:
        super().__init__()
        self.geometry = ((1, config.kernel), (1, config.stride), (0, config.padding))

    def forward(self, x: Tensor) -> Tensor:
        return stem.frames_of_image(F.max_pool2d(stem.image_of(x), *self.geometry))


class GreedyModule(nn.Module):
    """A module of SIM, GIM or CPC that trains on its own loss.

    Args:
        config: its layers and whether it has a GRU.
        model: width, heads, BatchNorm.
        loss: InfoNCE and KL.
        in_channels: channels of its input: 1 for audio.
        normalize: mean and standard deviation of its input, which become buffers; None takes it as it is.
    """

    audio_mean: Tensor | None
    audio_std: Tensor | None
    peers: dist.ProcessGroup | None = None
    """The ranks that share one group of clips with this one; None if the groups are whole (`share_group`)."""

    def __init__(
        self,
        config: ModuleConfig,
        model: ModelConfig,
        loss: LossConfig,
        in_channels: int,
        normalize: tuple[float, float] | None = None,
    ) -> None:
        super().__init__()
        model = model.of(config)
        for name, value in zip(CONSTANTS, normalize or (None, None), strict=True):
            self.register_buffer(name, None if value is None else torch.tensor(value))
        self.config, self.loss_config = config, loss.of(config)
        self.steps, self._bptt = self.loss_config.prediction_steps, model.bptt
        self.layers = nn.ModuleList()
        for layer in config.layers:
            if layer.kind == "conv":
                self.layers.append(ConvLayer(layer, in_channels, model))
                in_channels = model.width
            else:
                self.layers.append(MaxPool(layer))
        has_head = bool(config.layers) and model.head != "none"
        self.mu = _head(in_channels, model) if has_head else None
        self.log_var = _head(in_channels, model) if has_head and model.head == "variational" else None
        self.gru = nn.GRU(in_channels, model.context_width, batch_first=True) if config.gru else None
        self.latent_channels = in_channels
        self.context_channels = model.context_width if config.gru else in_channels
        self.predictor = nn.Linear(self.context_channels, self.steps * in_channels, bias=False)

    def distribution(self, x: Tensor, groups: int = 1) -> tuple[Tensor, Tensor | None]:
        """Mean and float32 log-variance of the latent, both (B, L, C), of an input (B, L_in, C_in)."""
        hidden = self.features(x, groups)
        mu = convolve(hidden, self.mu) if self.mu is not None else hidden
        if self.log_var is None:
            return mu, None
        return mu, convolve(hidden, self.log_var, limits=LOG_VAR_RANGE)

    def features(self, x: Tensor, groups: int = 1, depth: int | None = None) -> Tensor:
        """What the layers, or the first `depth`, make of (B, L_in, C_in): (B, L, C). Only here is audio normalized.

        In training BatchNorm normalizes each of the groups of clips by itself.
        """
        if self.audio_mean is not None and self.audio_std is not None:
            x = (x - self.audio_mean) / self.audio_std
        layers = [*self.layers][:depth]
        first, second, *others = [*layers, None, None]
        if not (isinstance(first, ConvLayer) and first.has_relu and stem.fits(x, first.conv)):
            others = layers
        elif isinstance(second, ConvLayer):
            x = second.normalize(stem.first_two_layers(x, first.conv, first.norm, second.conv, groups), groups)
        elif isinstance(second, MaxPool):
            x = stem.first_layer_pooled(x, first.conv, first.norm, second.geometry, groups)
        else:
            others = layers
        for layer in others:
            if layer is not None:
                x = layer(x, groups) if isinstance(layer, ConvLayer) else layer(x)
        return x

    def encode(self, x: Tensor) -> Encoding:
        """Encode (B, L_in, C_in) without noise (`deterministic`): latent and context are the mean."""
        mu, log_var = self.distribution(x)
        return Encoding(mu, self.gru(mu)[0] if self.gru is not None else mu, mu, log_var)

    def sample(self, x: Tensor, generator: torch.Generator | None) -> Encoding:
        """Encode (B, L_in, C_in) with one draw of the latent, which is the context as well."""
        return self.sample_from(*self.distribution(x), generator)

    def sample_from(
        self, mu: Tensor, log_var: Tensor | None, noise: torch.Generator | Callable[[torch.Size], Tensor] | None
    ) -> Encoding:
        """The rest of `sample`, from what `distribution` returned.

        Args:
            mu, log_var: of the latent, (B, L, C).
            noise: draws (B, L, C) standard normal numbers, or a generator of them; not used without variational heads.
        """
        latent = mu
        if log_var is not None:
            drawn = noise(mu.shape) if callable(noise) else torch.randn(mu.shape, generator=noise, device=mu.device)
            latent = wide(mu) + (log_var / 2).exp() * drawn
        return Encoding(latent, self.gru(latent)[0] if self.gru is not None else latent, mu, log_var)

    def window(self, frames: int) -> int:
        """Frames that are scored of a latent with so many."""
        return min(frames, self.loss_config.window or frames)

    def draw(self, batch: int, frames: int, generator: torch.Generator, host: torch.Generator) -> RandomInputs:
        """Draw what one training forward needs for one group of clips.

        Args:
            batch, frames: G and L of this module's latent.
            generator: on the module's device, for noise and negatives.
            host: on the CPU, equal for all groups, for the window: "the same for the whole batch".
        """
        window, loss = self.window(frames), self.loss_config
        start = int(torch.randint(frames - window + 1, (), generator=host))
        lengths = (window, frames) if self.log_var is not None else ()
        noise = [
            torch.randn(batch, length, self.latent_channels, generator=generator, device=generator.device)
            for length in lengths
        ]
        negatives = draw_negatives(
            batch,
            frames,
            start,
            window - 1,
            self.steps,
            loss.num_negatives,
            source=loss.negatives,
            exclude_positive=loss.exclude_positive,
            generator=generator,
        )
        return RandomInputs(start, negatives, *noise)

    def forward(self, x: Tensor, draws: RandomInputs, beta: float) -> ModuleLoss:
        """Loss of one batch (B, L_in, C_in); the latent that it returns carries no gradient."""
        mu, log_var = self.distribution(x, draws.groups)
        window = self.window(mu.shape[1])
        shown = slice(draws.start, draws.start + window)
        latent = context = mu
        kl = torch.zeros((), device=mu.device)
        if log_var is not None:
            assert draws.latent_noise is not None
            assert draws.context_noise is not None
            latent, context, kl = gaussian.sample(
                mu, log_var, draws.latent_noise, draws.context_noise, draws.start, self.loss_config.kl_reduction
            )
        if self.gru is not None:
            context = self.gru(latent)[0] if self._bptt else frame_by_frame(self.gru, latent)
        if context.shape[1] > window:
            context = context[:, shown]
        nce, accuracy = self.score(context, latent, draws)
        return ModuleLoss(nce + beta * kl, nce.detach(), kl.detach(), accuracy, latent.detach(), mu.detach())

    def score(self, context: Tensor, latent: Tensor, draws: RandomInputs) -> tuple[Tensor, Tensor]:
        """InfoNCE and accuracy of the window's context (B, W, C_context) against the latent (B, L, C)."""
        return info_nce(
            context,
            gather_clips(latent, self.peers),
            self.predictor.weight,
            draws.negatives,
            start=draws.start,
            steps=self.steps,
            first_clip=draws.first_clip,
        )

    def active_units(self, mu: Tensor, groups: int = 1) -> Tensor:
        """How many dimensions of (B, L, C) means have a variance above 0.01 (Burda et al. 2016); mean over groups."""
        active = group_variance(mu, groups, self.peers) > ACTIVE_VARIANCE  # (groups, C)
        return active.sum(dim=1).float().mean()


def frame_by_frame(gru: nn.GRU, latent: Tensor) -> Tensor:
    """A GRU's states (B, L, H) for (B, L, C), without backpropagation through time: each state before is a constant.

    All frames are computed in one step of the cell, from the states that a pass without gradient left. This is Greedy
    InfoMax's `remove_BPTT` (Löwe et al. 2019, "biologically plausible" variant), which loops over frames.
    """
    with torch.no_grad():
        states = gru(latent)[0]  # (B, L, H)
    before = F.pad(states[:, :-1], (0, 0, 1, 0))  # (B, L, H), the first zero
    names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
    weights = [gru.get_parameter(f"{name}_l0") for name in names]
    return torch.gru_cell(latent.flatten(0, 1), before.flatten(0, 1), *weights).view_as(states)


def _head(channels: int, model: ModelConfig) -> nn.Conv1d:
    return nn.Conv1d(channels, model.width, model.head_kernel, padding=model.head_kernel // 2)
