"""One training step: forward, loss, backward and update of one greedy module after the other.

Only one module's graph is alive at a time, so peak memory is that of the largest module; and module m's gradients are
averaged over ranks by its own DDP wrapper while nothing above it waits for them.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Generic

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from typing_extensions import TypeVar

from simdist.core.random_streams import stream_seed
from simdist.models.module import GreedyModule, ModuleLoss, RandomInputs, active_units
from simdist.training.reduction import OverlappedReduction

ModuleT = TypeVar("ModuleT", bound=nn.Module, default=GreedyModule)


class RandomStreams:
    """Noise, negatives and windows from (seed, purpose, step, rank, module) alone.

    Args:
        seed: the experiment's seed.
        rank: this process; windows do not depend on it.
        device: where noise and negatives are drawn.
    """

    def __init__(self, seed: int, rank: int, device: torch.device) -> None:
        self._seed, self._rank = seed, rank
        self._generator = torch.Generator(device)
        self._host = torch.Generator()

    def draw(self, purpose: str, step: int, trainer: NumberedModule, batch: int, frames: list[int]) -> RandomInputs:
        """The draws of one module in one step of training or validation (`purpose`)."""
        self._host.manual_seed(stream_seed(self._seed, purpose, step, trainer.number, *_attempt(trainer)))
        generator = self.noise(purpose, step, trainer)
        return trainer.module.draw(batch, frames[trainer.number], generator, self._host)

    def noise(self, purpose: str, step: int, trainer: NumberedModule[Any]) -> torch.Generator:
        """The rank's generator, set to where one module begins in one step."""
        names = (self._seed, purpose, step, trainer.number, self._rank, *_attempt(trainer))
        return self._generator.manual_seed(stream_seed(*names))


def _attempt(trainer: NumberedModule[Any]) -> tuple[str, ...]:
    """What tells a module's draws from those before it was rolled back."""
    return (f"attempt {trainer.course.reseeds}",) if trainer.course.reseeds else ()


@dataclass(frozen=True)
class Step:
    """What a training step is told beside its batch."""

    number: int
    """How many steps were taken before it; decides the draws."""
    lr: float
    """Learning rate."""
    beta: float
    """Weight of the KL."""
    measure: bool = False
    """Whether metrics are wanted."""


@dataclass(frozen=True)
class StepOutcome:
    """What a training step returns."""

    metrics: list[dict[str, Tensor]]
    """Of each module that learns, scalar tensors; [] unless they were wanted."""
    bad: Tensor
    """(modules,) 1 where a loss or gradient was not finite, so that the module was not updated; else 0."""


@dataclass
class Course:
    """What rolling a module back has changed for it."""

    lr_scale: float = 1.0
    """Factor on the learning rate."""
    reseeds: int = 0
    """How often it was given other noise and negatives."""
    rollbacks: int = 0
    """How often it went back to a checkpoint."""
    fruitless: int = 0
    """How often since it last took a step."""


@dataclass
class NumberedModule(Generic[ModuleT]):
    """A greedy module, or another part that is trained on its own, and its place."""

    number: int
    """Which module of the encoder, from 0."""
    module: ModuleT
    """The bare module."""
    course: Course = field(default_factory=Course, kw_only=True)
    """How it departs from the others' schedule."""


@dataclass
class ModuleTrainer(NumberedModule[ModuleT]):
    """A greedy module with everything that trains it."""

    wrapped: nn.Module
    """What is called in training: the module under DDP where there are several processes."""
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler  # pyright: ignore[reportPrivateImportUsage]
    """Scales the loss in fp16; passes it through otherwise."""
    clip_grad_norm: float | None
    reduction: OverlappedReduction | None = None
    """Averages gradients over ranks; None in a single process."""

    def backward(self, loss: Tensor) -> None:
        """Add the loss's gradients to the module's, and begin to average them over ranks.

        A loss that is not finite makes all of them NaN, so that every rank learns of it from the average.
        """
        gate = torch.where(loss.detach().isfinite(), 1.0, torch.nan)
        self.scaler.scale(loss).backward(gate.to(loss.dtype))

    def update(self, lr: float, buffers: list[Tensor]) -> tuple[Tensor, Tensor]:
        """One optimizer step with averaged gradients, unless one is not finite: then nothing changes.

        The device decides, so that no step waits for the host: the fused optimizer skips by its `found_inf`.

        Args:
            lr: the step's learning rate.
            buffers: what `running_statistics` returned before the forward; taken back if the step is skipped.

        Returns:
            The gradients' norm, and 1 if the step was skipped, else 0; scalars.
        """
        if self.reduction is not None:
            self.reduction.wait()
        self.scaler.unscale_(self.optimizer)
        gradients = [p.grad for p in self.module.parameters() if p.grad is not None]
        norm = nn.utils.get_total_norm(gradients, foreach=True)
        if self.clip_grad_norm is not None:
            nn.utils.clip_grads_with_norm_(self.module.parameters(), self.clip_grad_norm, norm, foreach=True)
        for group in self.optimizer.param_groups:
            group["lr"] = lr * self.course.lr_scale
        bad = (~norm.isfinite()).float()
        if not self.scaler.is_enabled():  # the scaler sets it by itself
            self.optimizer.found_inf = bad  # pyright: ignore[reportAttributeAccessIssue]
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        take_back(self.module, buffers, bad)
        return norm, bad

    def state(self) -> dict[str, Any]:
        """State of optimizer and scaler."""
        return {"optimizer": self.optimizer.state_dict(), "scaler": self.scaler.state_dict()}

    def load_state(self, state: dict[str, Any]) -> None:
        """Take up the state that `state` returned."""
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])


def train_step(
    trainers: list[ModuleTrainer],
    inputs: Tensor,
    frames: list[int],
    step: Step,
    draws: RandomStreams,
    accumulate: int = 1,
) -> StepOutcome:
    """Train every module on one batch, from the audio upwards.

    A module is updated after the next one's forward, so that its gradients are averaged over ranks meanwhile. This
    changes no number: the next module's input was computed before.

    Args:
        trainers: the greedy modules that learn, in order.
        inputs: (B, T, 1) audio, or the (B, L, C) latent of the module below the first of them.
        frames: length of every module's latent for a crop.
        step: which step, and its learning rate and beta.
        draws: source of noise, negatives and windows.
        accumulate: parts that the batch is trained in; gradients are averaged over them. Metrics are the last part's.
    """
    parts = inputs.chunk(accumulate)  # (B, L, C) -> accumulate x (B / accumulate, L, C)
    buffers = [[buffer.clone() for buffer in running_statistics(trainer.module)] for trainer in trainers]
    measured: list[dict[str, Tensor]] = []
    updates: list[tuple[Tensor, Tensor]] = []
    for number, x in enumerate(parts):
        is_last = number == accumulate - 1
        for m, trainer in enumerate(trainers):
            with nullcontext() if is_last else unreduced(trainer.wrapped):
                drawn = draws.draw("train", step.number * accumulate + number, trainer, len(x), frames)
                outcome: ModuleLoss = trainer.wrapped(x, drawn, step.beta)
                if is_last and m > 0:
                    updates.append(trainers[m - 1].update(step.lr, buffers[m - 1]))
                trainer.backward(outcome.loss / accumulate)
            if is_last and step.measure:
                measured.append(metrics_of(outcome))
            x = outcome.latent
    updates.append(trainers[-1].update(step.lr, buffers[-1]))
    for metrics, (norm, _) in zip(measured, updates, strict=step.measure):
        metrics["grad_norm"] = norm.float()
    return StepOutcome(measured, torch.stack([bad for _, bad in updates]))


def running_statistics(module: nn.Module) -> list[Tensor]:
    """BatchNorm's running means and variances."""
    return [buffer for buffer in module.buffers() if buffer.is_floating_point()]


def take_back(module: nn.Module, buffers: list[Tensor], bad: Tensor) -> None:
    """Give a module the running statistics it had before a forward, if that was `bad`; else change nothing."""
    for now, before in zip(running_statistics(module), buffers, strict=True):
        now.copy_(torch.where(bad > 0, before, now))


def unreduced(module: nn.Module) -> AbstractContextManager[None]:
    """DDP's `no_sync`: gradients stay on this rank and add up."""
    return module.no_sync() if isinstance(module, DistributedDataParallel) else nullcontext()


@torch.no_grad()
def validation_step(
    trainers: Sequence[NumberedModule], x: Tensor, frames: list[int], number: int, draws: RandomStreams, beta: float
) -> list[dict[str, Tensor]]:
    """Metrics of modules on one batch (B, L, C); they are in eval mode, latents are sampled as in training."""
    measured = []
    for trainer in trainers:
        outcome: ModuleLoss = trainer.module(x, draws.draw("validation", number, trainer, len(x), frames), beta)
        measured.append(metrics_of(outcome))
        x = outcome.latent
    return measured


@torch.no_grad()
def frozen_latent(trainers: Sequence[NumberedModule], x: Tensor, step: int, draws: RandomStreams) -> Tensor:
    """What frozen modules, in eval mode, make of (B, T, 1) audio: a sample of the last one's latent, (B, L, C)."""
    for trainer in trainers:
        x = trainer.module.sample(x, draws.noise("frozen", step, trainer)).latent
    return x


def metrics_of(outcome: ModuleLoss) -> dict[str, Tensor]:
    """Scalars of one module's forward, float32."""
    return {
        "loss": outcome.loss.detach(),
        "nce": outcome.nce,
        "kl": outcome.kl,
        "accuracy": outcome.accuracy,
        "active_units": active_units(outcome.mu),
    }
