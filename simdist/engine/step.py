"""One training step: forward, loss, backward and update of one greedy module after the other.

Only one module's graph is alive at a time, so peak memory is that of the largest module; and module m's gradients are
averaged over ranks by its own DDP wrapper while nothing above it waits for them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from simdist.engine.reduction import OverlappedReduction
from simdist.models.module import Draws, GreedyModule, ModuleLoss, active_units


def stream_seed(*names: int | str) -> int:
    """A 63-bit seed for the random numbers that `names` identify: (seed, step, rank, module), say."""
    digest = hashlib.blake2b("/".join(map(str, names)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


class DrawSource:
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

    def draw(self, purpose: str, step: int, trainer: NumberedModule, batch: int, frames: list[int]) -> Draws:
        """The draws of one module in one step of training or validation (`purpose`)."""
        self._host.manual_seed(stream_seed(self._seed, purpose, step, trainer.number))
        generator = self.noise(purpose, step, trainer)
        return trainer.module.draw(batch, frames[trainer.number], generator, self._host)

    def noise(self, purpose: str, step: int, trainer: NumberedModule) -> torch.Generator:
        """The rank's generator, set to where one module begins in one step."""
        return self._generator.manual_seed(stream_seed(self._seed, purpose, step, trainer.number, self._rank))


@dataclass
class NumberedModule:
    """A greedy module and its place."""

    number: int
    """Which module of the encoder, from 0."""
    module: GreedyModule
    """The bare module."""


@dataclass
class ModuleTrainer(NumberedModule):
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
        """Add the loss's gradients to the module's, and begin to average them over ranks."""
        self.scaler.scale(loss).backward()

    def update(self, lr: float, measure: bool) -> Tensor | None:
        """One optimizer step with averaged gradients; returns their norm if it clips or is asked to `measure`."""
        if self.reduction is not None:
            self.reduction.wait()
        self.scaler.unscale_(self.optimizer)
        norm = None
        if measure or self.clip_grad_norm is not None:
            norm = nn.utils.clip_grad_norm_(self.module.parameters(), self.clip_grad_norm or float("inf"), foreach=True)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        return norm

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
    step: int,
    draws: DrawSource,
    *,
    lr: float,
    beta: float,
    accumulate: int = 1,
    measure: bool = False,
) -> list[dict[str, Tensor]]:
    """Train every module on one batch, from the audio upwards.

    A module is updated after the next one's forward, so that its gradients are averaged over ranks meanwhile. This
    changes no number: the next module's input was computed before.

    Args:
        trainers: the greedy modules that learn, in order.
        inputs: (B, T, 1) audio, or the (B, L, C) latent of the module below the first of them.
        frames: length of every module's latent for a crop.
        step: number of the step; decides the draws.
        draws: source of noise, negatives and windows.
        lr, beta: of this step.
        accumulate: parts that the batch is trained in; gradients are averaged over them.
        measure: also return metrics, those of the last part.

    Returns:
        Each module's metrics as scalar tensors, [] unless `measure`.
    """
    parts = inputs.chunk(accumulate)  # (B, L, C) -> accumulate x (B / accumulate, L, C)
    measured: list[dict[str, Tensor]] = []
    for number, x in enumerate(parts):
        is_last = number == accumulate - 1
        below: ModuleTrainer | None = None
        for trainer in trainers:
            with nullcontext() if is_last else _unreduced(trainer.wrapped):
                outcome: ModuleLoss = trainer.wrapped(
                    x, draws.draw("train", step * accumulate + number, trainer, len(x), frames), beta
                )
                if is_last and below is not None:
                    _finish(below, measured, lr, measure)
                trainer.backward(outcome.loss / accumulate)
            if is_last and measure:
                measured.append(metrics_of(outcome))
            below, x = trainer, outcome.latent
        if is_last and below is not None:
            _finish(below, measured, lr, measure)
    return measured


def _finish(trainer: ModuleTrainer, measured: list[dict[str, Tensor]], lr: float, measure: bool) -> None:
    norm = trainer.update(lr, measure)
    if measure and norm is not None:
        measured[-1]["grad_norm"] = norm.float()


def _unreduced(module: nn.Module) -> AbstractContextManager[None]:
    """DDP's `no_sync`: gradients stay on this rank and add up."""
    return module.no_sync() if isinstance(module, DistributedDataParallel) else nullcontext()


@torch.no_grad()
def validation_step(
    trainers: Sequence[NumberedModule], x: Tensor, frames: list[int], number: int, draws: DrawSource, beta: float
) -> list[dict[str, Tensor]]:
    """Metrics of modules on one batch (B, L, C); they are in eval mode, latents are sampled as in training."""
    measured = []
    for trainer in trainers:
        outcome: ModuleLoss = trainer.module(x, draws.draw("validation", number, trainer, len(x), frames), beta)
        measured.append(metrics_of(outcome))
        x = outcome.latent
    return measured


@torch.no_grad()
def frozen_latent(trainers: Sequence[NumberedModule], x: Tensor, step: int, draws: DrawSource) -> Tensor:
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
