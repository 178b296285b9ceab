"""One training step: forward, loss, backward and update of one greedy module after the other.

Only one module's graph is alive at a time, so peak memory is that of the largest module. Each module's gradients are
averaged over ranks while the next module runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Generic, TypedDict, Unpack

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from typing_extensions import TypeVar

from simdist.config.schema import Config, ModuleConfig, OptimConfig
from simdist.models.encoder import GreedyEncoder
from simdist.models.groups import GroupBatchNorm
from simdist.models.module import GreedyModule, ModuleLoss
from simdist.runs.schedule import Schedule
from simdist.training.distributed import OverlappedReduction, under_ddp
from simdist.training.random_streams import RandomStreams
from simdist.training.recovery import RecoveryState

ModuleT = TypeVar("ModuleT", bound=nn.Module, default=GreedyModule)


@dataclass(frozen=True)
class Step:
    """The settings of one training step."""

    number: int
    """Number of steps taken before; decides the random inputs."""
    lr: float
    """Learning rate."""
    beta: float
    """Weight of the KL."""
    warmup: float = 1.0
    """Share of its final value that it has, as do those of modules with their own."""
    measure: bool = False
    """Whether to return metrics."""

    @classmethod
    def at(cls, step: int, schedule: Schedule) -> Step:
        """The step after the first `step` ones."""
        share = schedule.beta_share(step)
        return cls(step, schedule.lr(step), schedule.beta(step), share, measure=schedule.logs(step + 1))


@dataclass(frozen=True)
class StepOutcome:
    """The result of one training step."""

    metrics: list[dict[str, Tensor]]
    """Scalar tensors of each module that learns; [] unless `Step.measure`."""
    nonfinite: Tensor
    """(modules,) 1 where a loss or gradient was not finite and the module was not updated, else 0."""


class OwnSettings(TypedDict, total=False):
    """Fields of a `NumberedModule` that its module's configuration decides."""

    lr_scale: float
    own_beta: float | None


@dataclass
class NumberedModule(Generic[ModuleT]):
    """A greedy module, or another module that is trained on its own, with its number."""

    number: int
    """Index in the encoder."""
    module: ModuleT
    """The module without DDP."""
    recovery: RecoveryState = field(default_factory=RecoveryState, kw_only=True)
    """How rollbacks changed its training."""
    lr_scale: float = field(default=1.0, kw_only=True)
    """Its learning rate over the run's."""
    own_beta: float | None = field(default=None, kw_only=True)
    """Its weight of the KL after the warm-up; None takes the run's."""

    def lr(self, lr: float) -> float:
        """Its learning rate where the run's is `lr`."""
        return lr * self.lr_scale * self.recovery.lr_scale

    def beta(self, step: Step) -> float:
        """Its weight of the KL in a step."""
        return step.beta if self.own_beta is None else self.own_beta * step.warmup


@dataclass
class ModuleTrainer(NumberedModule[ModuleT]):
    """A greedy module with its DDP wrapper, optimizer and gradient scaler."""

    wrapped: nn.Module
    """What training calls: the module, under DDP if there are several processes."""
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler  # pyright: ignore[reportPrivateImportUsage]
    """Scales the loss in fp16, otherwise passes it through."""
    clip_grad_norm: float | None
    reduction: OverlappedReduction | None = None
    """Averages gradients over ranks. None for a single process."""

    def backward(self, loss: Tensor) -> None:
        """Accumulate gradients and start to average them over ranks.

        A non-finite loss makes all gradients NaN, so that every rank learns about it from the average.
        """
        gate = torch.where(loss.detach().isfinite(), 1.0, torch.nan)
        self.scaler.scale(loss).backward(gate.to(loss.dtype))

    def update(self, lr: float, statistics: RunningStatistics | None = None) -> tuple[Tensor, Tensor]:
        """Take an optimizer step with the averaged gradients, or change nothing if any is not finite.

        The device decides, by `found_inf` of the fused optimizer, so that no step waits for the host.

        Args:
            lr: learning rate of the step.
            statistics: of the module's BatchNorm, which keep their values if the step is skipped.

        Returns:
            Norm of the gradients, and 1 if the step was skipped, else 0; scalars.
        """
        if self.reduction is not None:
            self.reduction.wait()
        self.scaler.unscale_(self.optimizer)
        gradients = [p.grad for p in self.module.parameters() if p.grad is not None]
        norm = nn.utils.get_total_norm(gradients, foreach=True)
        if self.clip_grad_norm is not None:
            nn.utils.clip_grads_with_norm_(self.module.parameters(), self.clip_grad_norm, norm, foreach=True)
        for group in self.optimizer.param_groups:
            group["lr"] = self.lr(lr)
        nonfinite = (~norm.isfinite()).float()
        if not self.scaler.is_enabled():  # otherwise the scaler sets it
            self.optimizer.found_inf = nonfinite  # pyright: ignore[reportAttributeAccessIssue]
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        if statistics is not None:
            statistics.settle(nonfinite)
        return norm, nonfinite

    def state(self) -> dict[str, Any]:
        """The state of optimizer and scaler."""
        return {"optimizer": self.optimizer.state_dict(), "scaler": self.scaler.state_dict()}

    def load_state(self, state: dict[str, Any]) -> None:
        """Load what `state` returned."""
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])


def train_step(
    trainers: list[ModuleTrainer],
    inputs: Tensor,
    frames: list[int],
    step: Step,
    draws: RandomStreams,
    passes: int = 1,
) -> StepOutcome:
    """Train every module on one batch, from the audio upwards.

    A module is updated after the next one's forward, so that its gradients are averaged meanwhile. This changes
    no result, because the next module's input is already computed.

    Args:
        trainers: the greedy modules that learn, in order.
        inputs: (B, T, 1) audio, or the (B, L, C) latent of the module below the first one.
        frames: number of frames of every module's latent.
        step: number, learning rate and beta of the step.
        draws: source of noise, negatives and windows.
        passes: forward passes, each of as many of this rank's groups; their gradients are averaged.
    """
    parts = inputs.chunk(passes)  # (B, L, C) -> passes x (B / passes, L, C)
    statistics = [RunningStatistics(trainer.module, trainer.reduction) for trainer in trainers]
    measured: list[list[dict[str, Tensor]]] = [[] for _ in trainers]
    updates: list[tuple[Tensor, Tensor]] = []
    for number, x in enumerate(parts):
        is_last, first = number == passes - 1, number * len(x)
        for m, trainer in enumerate(trainers):
            with nullcontext() if is_last else unreduced(trainer.wrapped):
                drawn = draws.draw("train", step.number, trainer, len(x), frames, first)
                statistics[m].begin()
                outcome: ModuleLoss = trainer.wrapped(x, drawn, trainer.beta(step))
                statistics[m].add(is_last)
                if is_last and m > 0:
                    updates.append(trainers[m - 1].update(step.lr, statistics[m - 1]))
                trainer.backward(outcome.loss / passes)
            if step.measure:
                measured[m].append(metrics_of(trainer.module, outcome, drawn.groups))
            x = outcome.latent
    updates.append(trainers[-1].update(step.lr, statistics[-1]))
    metrics = [mean_of(each) for each in measured if each]
    for values, (norm, _) in zip(metrics, updates, strict=step.measure):
        values["grad_norm"] = norm.float()
    return StepOutcome(metrics, torch.stack([nonfinite for _, nonfinite in updates]))


class RunningStatistics:
    """Running means and variances of a module's BatchNorm in one step: their mean over passes and ranks.

    They move linearly towards the statistics of each forward pass, so if every pass starts from the same values, the
    mean of the results is the move towards the mean over all groups. Until `settle`, backward passes read the buffers.

    Args:
        module: the module.
        reduction: averages them over ranks along with the gradients; None for a single process.
    """

    def __init__(self, module: nn.Module, reduction: OverlappedReduction | None = None) -> None:
        norms = [each for each in module.modules() if isinstance(each, GroupBatchNorm)]
        self._buffers = [buffer for norm in norms for buffer in norm.buffers()]
        self._before = [buffer.clone() for buffer in self._buffers]
        self._passes: list[list[Tensor]] = []
        self._reduction = reduction
        self.mean: list[Tensor] = []
        """What the means and variances become; averaged over ranks by whoever has several."""

    def begin(self) -> None:
        """Start a forward pass from the values before the step."""
        if self._passes:
            for buffer, before in zip(self._buffers, self._before, strict=True):
                buffer.copy_(before)

    def add(self, is_last: bool) -> None:
        """Take what a forward pass left; after the last, hand the mean to the reduction."""
        self._passes.append([buffer.clone() for buffer in self._floating(self._buffers)])
        if is_last:
            self.mean = [torch.stack(values).mean(0) for values in zip(*self._passes, strict=True)]
            if self._reduction is not None:
                self._reduction.add(self.mean)

    def settle(self, nonfinite: Tensor) -> None:
        """Store the mean, or the values before the step if `nonfinite` is 1."""
        buffers, before = self._floating(self._buffers), self._floating(self._before)
        for now, old, new in zip(buffers, before, self.mean, strict=True):
            now.copy_(torch.where(nonfinite > 0, old, new))

    @staticmethod
    def _floating(buffers: list[Tensor]) -> list[Tensor]:
        return [buffer for buffer in buffers if buffer.is_floating_point()]


def mean_of(metrics: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """The mean of scalars over passes."""
    return {name: torch.stack([each[name] for each in metrics]).mean() for name in metrics[0]}


def unreduced(module: nn.Module) -> AbstractContextManager[None]:
    """DDP's `no_sync`: gradients accumulate on this rank."""
    return module.no_sync() if isinstance(module, DistributedDataParallel) else nullcontext()


@torch.no_grad()
def validation_step(
    trainers: Sequence[NumberedModule], x: Tensor, frames: list[int], number: int, draws: RandomStreams, step: Step
) -> list[dict[str, Tensor]]:
    """Metrics of modules in eval mode on batch `number`, (B, L, C). Latents are sampled as in training."""
    measured = []
    for trainer in trainers:
        drawn = draws.draw("validation", number, trainer, len(x), frames)
        outcome: ModuleLoss = trainer.module(x, drawn, trainer.beta(step))
        measured.append(metrics_of(trainer.module, outcome, drawn.groups))
        x = outcome.latent
    return measured


@torch.no_grad()
def frozen_latent(trainers: Sequence[NumberedModule], x: Tensor, step: int, draws: RandomStreams) -> Tensor:
    """A sample of the last frozen module's latent, (B, L, C), for (B, T, 1) audio. Modules are in eval mode."""
    for trainer in trainers:
        noise = partial(draws.normal, "frozen", step, trainer)
        x = trainer.module.sample_from(*trainer.module.distribution(x), noise).latent
    return x


def metrics_of(module: GreedyModule, outcome: ModuleLoss, groups: int) -> dict[str, Tensor]:
    """Scalar float32 metrics of one module's forward."""
    return {
        "loss": outcome.loss.detach(),
        "nce": outcome.nce,
        "kl": outcome.kl,
        "accuracy": outcome.accuracy,
        "active_units": module.active_units(outcome.mu, groups),
    }


def prepare_module(
    accelerator: Accelerator,
    number: int,
    module: ModuleT,
    optim: OptimConfig,
    compress: bool,
    **own: Unpack[OwnSettings],
) -> ModuleTrainer[ModuleT]:
    """A module with its DDP wrapper, optimizer and scaler.

    Args:
        accelerator: of this process.
        number: index in the encoder.
        module: what is trained.
        optim: the optimizer's settings.
        compress: send gradients in bf16.
        own: what `own_settings` returned for a greedy module.
    """
    wrapped = under_ddp(accelerator, module)
    optimizer = torch.optim.AdamW(module.parameters(), lr=optim.lr, weight_decay=optim.weight_decay, fused=True)
    scaler = torch.amp.GradScaler(  # pyright: ignore[reportPrivateImportUsage]
        accelerator.device.type, enabled=accelerator.mixed_precision == "fp16"
    )
    reduction = OverlappedReduction(wrapped, compress) if isinstance(wrapped, DistributedDataParallel) else None
    return ModuleTrainer(number, module, wrapped, optimizer, scaler, optim.clip_grad_norm, reduction, **own)


def own_settings(config: ModuleConfig, optim: OptimConfig) -> OwnSettings:
    """What a greedy module's configuration changes of its training, for `NumberedModule`."""
    return {"lr_scale": 1.0 if config.lr is None else config.lr / optim.lr, "own_beta": config.beta}


class LocalEngine:
    """Trains greedy modules one after the other in a step, each with its own DDP wrapper, optimizer and scaler.

    Args:
        accelerator: of this process.
        encoder: its greedy modules are trained.
        config: the experiment.
        streams: source of noise, negatives and windows.
    """

    def __init__(
        self, accelerator: Accelerator, encoder: GreedyEncoder, config: Config, streams: RandomStreams
    ) -> None:
        self._accelerator, self._streams = accelerator, streams
        self._frames = config.model.num_frames(config.data.crop)
        self._passes = streams.groups.passes(config.train.groups_at_once) if streams.groups is not None else 1
        optim, compress = config.optim, config.train.compress_gradients
        self._trainers = [
            prepare_module(accelerator, number, module, optim, compress, **own_settings(module.config, optim))
            for number, module in enumerate(encoder.stack)
        ]

    @property
    def name(self) -> str:
        return self._accelerator.distributed_type.value if self._accelerator.num_processes > 1 else ""

    @property
    def modules(self) -> Sequence[NumberedModule]:
        return self._trainers

    def step(self, modules: Sequence[NumberedModule], inputs: Tensor, step: Step) -> StepOutcome:
        trainers = [self._trainers[module.number] for module in modules]
        return train_step(trainers, inputs, self._frames, step, self._streams, self._passes)

    def state(self) -> list[dict[str, Any]]:
        return [trainer.state() for trainer in self._trainers]

    def load_state(self, states: list[dict[str, Any]]) -> None:
        if states:  # empty in a run that started from imported weights
            for trainer, state in zip(self._trainers, states, strict=True):
                trainer.load_state(state)

    def load_module(self, number: int, state: dict[str, Any] | None) -> None:
        trainer = self._trainers[number]
        if state is None:
            trainer.optimizer.state.clear()
        else:
            trainer.load_state(state)
