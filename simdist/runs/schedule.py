"""The schedule of a run: learning rate, beta, validations and checkpoints as pure functions of the step."""

from __future__ import annotations

import math
from dataclasses import dataclass

from simdist.config.schema import Config, Experiment


def stage_steps(epochs: float, epoch_size: int, batch_size: int, max_steps: int | None) -> int:
    """Optimizer steps of one stage: those of all epochs, the last batch included, or `max_steps` if that is less."""
    steps = math.ceil(round(epochs * epoch_size / batch_size, 6))
    return steps if max_steps is None else min(steps, max_steps)


@dataclass(frozen=True)
class Schedule:
    """The schedule of one run.

    Args:
        config: the experiment.
        num_clips: number of usable clips of the training split.
    """

    config: Experiment
    num_clips: int

    @property
    def epoch_size(self) -> int:
        """Clips of an epoch."""
        return self.config.data.epoch_size(self.num_clips)

    @property
    def stages(self) -> int:
        """Number of stages, each over all epochs; one for decoders."""
        return self.config.stages if isinstance(self.config, Config) else 1

    @property
    def stage_steps(self) -> int:
        """Optimizer steps of one stage."""
        train = self.config.train
        return stage_steps(train.epochs, self.epoch_size, self.config.data.batch_size, train.max_steps)

    def describe(self) -> str:
        """The length of the run, for the terminal."""
        epochs = f"{self.epoch_after(self.total_steps):.4g} epochs"
        if self.stages == 1:
            return f"{self.total_steps} steps = {epochs}"
        return f"{self.total_steps} steps: {self.stages} stages of {self.stage_steps} steps = {epochs}"

    @property
    def is_cut_short(self) -> bool:
        """Whether max_steps ends the run before the epochs."""
        return self.stage_steps == self.config.train.max_steps

    @property
    def total_steps(self) -> int:
        """Optimizer steps of the whole run."""
        return self.stage_steps * self.stages

    def stage(self, step: int) -> int:
        """The stage of step number `step`; after the last step, the last stage."""
        return min(step // self.stage_steps, self.stages - 1)

    def consumed(self, step: int) -> int:
        """Samples consumed by all ranks in this stage before step number `step`."""
        return (step - self.stage(step) * self.stage_steps) * self.config.data.batch_size

    def epoch(self, step: int) -> float:
        """Epochs of this stage before step number `step`."""
        return self.consumed(step) / self.epoch_size

    def epoch_after(self, step: int) -> float:
        """Epochs of the stage after the `step`-th step."""
        return self._batches(((step - 1) % self.stage_steps) + 1) if step else 0.0

    def _batches(self, count: int) -> float:
        return count * self.config.data.batch_size / self.epoch_size

    def lr(self, step: int) -> float:
        """Learning rate of step number `step`."""
        optim, epoch = self.config.optim, self.epoch(step)
        if epoch < optim.warmup_epochs:
            return optim.lr * self.epoch_after(step + 1) / max(optim.warmup_epochs, self.epoch_after(step + 1))
        if optim.schedule == "exponential":
            return optim.lr * optim.lr_decay ** math.floor(epoch)
        if optim.schedule == "cosine":
            end = self._batches(self.stage_steps)
            return (
                optim.lr * 0.5 * (1 + math.cos(math.pi * (epoch - optim.warmup_epochs) / (end - optim.warmup_epochs)))
            )
        return optim.lr

    def beta(self, step: int) -> float:
        """Weight of the KL in step number `step`; 0 for decoders. Modules may have another, with the same warm-up."""
        return self.config.loss.beta * self.beta_share(step) if isinstance(self.config, Config) else 0.0

    def beta_share(self, step: int) -> float:
        """Share of beta in step number `step`, which rises linearly from 0 to 1 during the warm-up."""
        warmup = self.config.loss.beta_warmup_epochs if isinstance(self.config, Config) else 0.0
        return min(1.0, self.epoch(step) / warmup) if warmup else 1.0

    def validates(self, step: int) -> bool:
        """Whether a validation is due after `step` steps."""
        every = self.config.train.validate_every
        if every == 0 or step == 0:
            return False
        passed = math.floor(self.epoch_after(step) / every) > math.floor(self.epoch(step - 1) / every)
        return passed or self.ends_stage(step)

    def ends_stage(self, step: int) -> bool:
        """Whether a stage is complete after `step` steps."""
        return step > 0 and step % self.stage_steps == 0

    def saves(self, step: int) -> bool:
        """Whether a checkpoint is due after `step` steps."""
        return step % self.config.train.checkpoint_every == 0 or self.ends_stage(step)

    def logs(self, step: int) -> bool:
        """Whether to record metrics of the `step`-th step."""
        return (
            step % self.config.train.log_every == 0 or self.ends_stage(step) or self.ends_stage(step - 1) or step == 1
        )
