"""When things happen and how large they are: pure functions of the step, so that nothing of it needs saving."""

from __future__ import annotations

import math
from dataclasses import dataclass

from simdist.config import Config


@dataclass(frozen=True)
class Timetable:
    """The course of one run.

    Args:
        config: the experiment.
        num_samples: usable clips of the training split, N; an epoch is N of them.
    """

    config: Config
    num_samples: int

    @property
    def total_steps(self) -> int:
        """Optimizer steps of the whole run."""
        steps = math.ceil(round(self.config.train.epochs * self.num_samples / self.config.data.batch_size, 6))
        limit = self.config.train.max_steps
        return steps if limit is None else min(steps, limit)

    def consumed(self, step: int) -> int:
        """Samples consumed by all ranks before step number `step`."""
        return step * self.config.data.batch_size

    def epoch(self, step: int) -> float:
        """Passes over the training split completed before step number `step`."""
        return self.consumed(step) / self.num_samples

    def lr(self, step: int) -> float:
        """Learning rate of step number `step`."""
        optim, epoch = self.config.optim, self.epoch(step)
        if epoch < optim.warmup_epochs:
            return optim.lr * self.epoch(step + 1) / max(optim.warmup_epochs, self.epoch(step + 1))
        if optim.schedule == "exponential":
            return optim.lr * optim.lr_decay ** math.floor(epoch)
        if optim.schedule == "cosine":
            end = self.epoch(self.total_steps)
            return (
                optim.lr * 0.5 * (1 + math.cos(math.pi * (epoch - optim.warmup_epochs) / (end - optim.warmup_epochs)))
            )
        return optim.lr

    def beta(self, step: int) -> float:
        """Weight of the KL in step number `step`: rises linearly from 0 during the warm-up."""
        loss = self.config.loss
        return (
            loss.beta * min(1.0, self.epoch(step) / loss.beta_warmup_epochs) if loss.beta_warmup_epochs else loss.beta
        )

    def validates(self, step: int) -> bool:
        """Whether a validation is due once `step` steps have been taken."""
        every = self.config.train.validate_every
        if every == 0 or step == 0:
            return False
        passed = math.floor(self.epoch(step) / every) > math.floor(self.epoch(step - 1) / every)
        return passed or step == self.total_steps

    def saves(self, step: int) -> bool:
        """Whether a checkpoint is due once `step` steps have been taken."""
        return step % self.config.train.checkpoint_every == 0 or step == self.total_steps

    def logs(self, step: int) -> bool:
        """Whether metrics of the `step`-th step are recorded."""
        return step % self.config.train.log_every == 0 or step in (1, self.total_steps)
