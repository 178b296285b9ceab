"""One training step: forward, loss, backward and update of one greedy module after the other.

Only one module's graph is alive at a time, so peak memory is that of the largest module; and module m's gradients are
averaged over ranks by its own DDP wrapper while nothing above it waits for them.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from simdist.models.module import Draws, GreedyModule, ModuleLoss

ACTIVE_VARIANCE = 0.01  # a latent dimension is active if its mean varies more than this (Burda et al. 2016)


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

    def draw(self, purpose: str, step: int, m: int, module: GreedyModule, batch: int, frames: int) -> Draws:
        """The draws of module `m` in one step of training or validation (`purpose`)."""
        self._generator.manual_seed(stream_seed(self._seed, purpose, step, m, self._rank))
        self._host.manual_seed(stream_seed(self._seed, purpose, step, m))
        return module.draw(batch, frames, self._generator, self._host)


@dataclass
class ModuleTrainer:
    """A greedy module with everything that trains it."""

    module: GreedyModule
    """The bare module."""
    wrapped: nn.Module
    """What is called in training: the module under DDP where there are several processes."""
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler  # pyright: ignore[reportPrivateImportUsage]
    """Scales the loss in fp16; passes it through otherwise."""
    clip_grad_norm: float | None

    def update(self, loss: Tensor, lr: float, measure: bool) -> Tensor | None:
        """Backward and one optimizer step; returns the gradient norm if it clips or is asked to `measure`."""
        self.scaler.scale(loss).backward()
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
    audio: Tensor,
    frames: list[int],
    step: int,
    draws: DrawSource,
    *,
    lr: float,
    beta: float,
    measure: bool = False,
) -> list[dict[str, Tensor]]:
    """Train every module on one batch, from the audio upwards.

    Args:
        trainers: the greedy modules in order.
        audio: (B, 1, T).
        frames: length of each module's latent for T samples.
        step: number of the step; decides the draws.
        draws: source of noise, negatives and windows.
        lr, beta: of this step.
        measure: also return metrics.

    Returns:
        Each module's metrics as scalar tensors, [] unless `measure`.
    """
    x, measured = audio.transpose(1, 2), []  # (B, 1, T) -> (B, T, 1)
    for m, trainer in enumerate(trainers):
        drawn = draws.draw("train", step, m, trainer.module, len(audio), frames[m])
        outcome: ModuleLoss = trainer.wrapped(x, drawn, beta)
        norm = trainer.update(outcome.loss, lr, measure)
        if measure:
            measured.append(metrics_of(outcome) | ({} if norm is None else {"grad_norm": norm.float()}))
        x = outcome.latent
    return measured


@torch.no_grad()
def validation_step(
    modules: list[GreedyModule], audio: Tensor, frames: list[int], number: int, draws: DrawSource, beta: float
) -> list[dict[str, Tensor]]:
    """Metrics of every module on one batch; modules are in eval mode, latents are sampled as in training."""
    x, measured = audio.transpose(1, 2), []
    for m, module in enumerate(modules):
        outcome: ModuleLoss = module(x, draws.draw("validation", number, m, module, len(audio), frames[m]), beta)
        measured.append(metrics_of(outcome))
        x = outcome.latent
    return measured


def metrics_of(outcome: ModuleLoss) -> dict[str, Tensor]:
    """Scalars of one module's forward, float32."""
    variance = outcome.mu.float().flatten(0, 1).var(dim=0)  # (B, L, C) -> (C,)
    return {
        "loss": outcome.loss.detach(),
        "nce": outcome.nce,
        "kl": outcome.kl,
        "accuracy": outcome.accuracy,
        "active_units": (variance > ACTIVE_VARIANCE).float().sum(),
    }
