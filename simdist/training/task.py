"""What a `Trainer` trains: an encoder's greedy modules (`EncoderTask`), a decoder, whatever takes steps on batches."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor, nn

from simdist.data.loader import Batch
from simdist.training.step import NumberedModule, Step, StepOutcome


class Task(Protocol):
    """The part of a training that knows its model; the loop, checkpoints, signals and metrics are the trainer's.

    A training has one or more stages of `Schedule.stage_steps` steps. Everything a task does is a function of its
    weights, the batch and the step: it keeps no other state from step to step, so that resuming is exact.
    """

    @property
    def model(self) -> nn.Module:
        """What a checkpoint's weights are."""
        ...

    @property
    def modules(self) -> Sequence[NumberedModule[Any]]:
        """The parts that are updated, skipped and rolled back on their own."""
        ...

    @property
    def num_clips(self) -> int:
        """Usable clips of the training split: an epoch."""
        ...

    @property
    def fingerprint(self) -> str:
        """The training split's."""
        ...

    @property
    def validation_clips(self) -> int:
        """Clips that one validation looks at."""
        ...

    def describe(self) -> list[str]:
        """What is about to be trained, for the terminal."""
        ...

    def learning(self, stage: int) -> Sequence[NumberedModule[Any]]:
        """Those of `modules` that learn in a stage: the order of metrics and of `StepOutcome.bad`."""
        ...

    def batches(self, stage: int, first: int, last: int, log: Callable[[str], None]) -> Iterator[Batch] | None:
        """Get ready to train a stage, and yield its batches.

        Args:
            stage: which one.
            first, last: global sample numbers; batches begin at `first` and end before `last`.
            say: prints a line on the terminal.

        Returns:
            None if a stop request came before it was ready.
        """
        ...

    def step(self, stage: int, batch: Batch, step: Step) -> StepOutcome:
        """Train on one batch."""
        ...

    def validation(self, stage: int, step: Step) -> Generator[list[dict[str, Tensor]]]:
        """Metrics of every module that learns, test batch after test batch; all ranks yield equally many.

        It may be closed before its end. Afterwards the task is ready to train again.
        """
        ...

    def show(self, step: int) -> dict[str, Path]:
        """After a validation: write WAV files of what was learnt to the run's folder; their names, for trackers.

        Called on all ranks; without collectives.
        """
        ...

    def state(self) -> list[dict[str, Any]]:
        """Each module's optimizer state; called on all ranks."""
        ...

    def load(self, model: dict[str, Tensor], optimizer: list[dict[str, Any]]) -> None:
        """Take up weights and what `state` returned; an empty `optimizer` is a fresh start."""
        ...

    def load_module(self, number: int, model: dict[str, Tensor] | None, optimizer: dict[str, Any] | None) -> None:
        """The same for one module, out of the whole `model`; None for both is how the run began."""
        ...
