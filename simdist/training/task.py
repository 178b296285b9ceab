"""The interface between the training loop and what it trains: an encoder (`EncoderTask`) or a decoder."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor, nn

from simdist.core.errors import InputError
from simdist.data.loader import Batch
from simdist.training.checkpoint import Checkpoint
from simdist.training.recovery import RecoveryState
from simdist.training.step import NumberedModule, Step, StepOutcome


@dataclass(frozen=True)
class Beginning:
    """What a run starts from that has no checkpoint of its own: another run's work."""

    checkpoint: Checkpoint
    records: list[dict[str, Any]] = field(default_factory=list)
    """Records of metrics of the steps before, which the run's own continue."""


class TrainingTask(Protocol):
    """The part of a training that knows its model. The loop, checkpoints, signals and metrics belong to `Trainer`.

    A training has one or more stages of `Schedule.stage_steps` steps. A task is a function of its weights, the batch
    and the step: it keeps no other state between steps, so that resuming is exact.
    """

    @property
    def model(self) -> nn.Module:
        """The model whose weights checkpoints contain."""
        ...

    @property
    def modules(self) -> Sequence[NumberedModule[Any]]:
        """The modules that are updated, skipped and rolled back independently."""
        ...

    @property
    def num_clips(self) -> int:
        """Number of usable clips of the training split, which make an epoch."""
        ...

    @property
    def fingerprint(self) -> str:
        """Fingerprint of the training split."""
        ...

    @property
    def test_fingerprint(self) -> str:
        """Fingerprint of the test split; empty without validation."""
        ...

    @property
    def validation_clips(self) -> int:
        """Number of clips of one validation."""
        ...

    def describe(self) -> list[str]:
        """What is about to be trained, for the terminal."""
        ...

    def learning(self, stage: int) -> Sequence[NumberedModule[Any]]:
        """The modules that learn in a stage, in the order of metrics and of `StepOutcome.nonfinite`."""
        ...

    def beginning(self) -> Beginning | None:
        """What a run without a checkpoint starts from; None for its initial weights. Called on all ranks.

        Raises:
            InputError: on all ranks; what another run should provide does not fit.
        """
        ...

    def batches(self, stage: int, first: int, last: int, log: Callable[[str], None]) -> Iterator[Batch]:
        """Prepare a stage and yield its batches.

        Args:
            stage: number of the stage.
            first, last: global sample numbers; batches start at `first` and end before `last`.
            log: prints a line on the terminal.

        Raises:
            StoppedError: on all ranks, if any was asked to stop during the preparation.
        """
        ...

    def step(self, stage: int, batch: Batch, step: Step) -> StepOutcome:
        """Train on one batch."""
        ...

    def validation(self, stage: int, step: Step) -> Generator[list[dict[str, Tensor]]]:
        """Metrics of every module that learns, per test batch; equally many on all ranks.

        May be closed early. Afterwards the task is ready to train again.
        """
        ...

    def show(self, step: int) -> dict[str, Path]:
        """After a validation: write audio examples to the run folder and return their names and paths, for trackers.

        Called on all ranks, without collectives.
        """
        ...

    def state(self) -> list[dict[str, Any]]:
        """State of each module's optimizer. Called on all ranks."""
        ...

    def load(self, model: dict[str, Tensor], optimizer: list[dict[str, Any]]) -> None:
        """Load weights and what `state` returned; an empty `optimizer` is a fresh start."""
        ...

    def load_module(self, number: int, model: dict[str, Tensor] | None, optimizer: dict[str, Any] | None) -> None:
        """Like `load` for one module of the whole `model`; None for both restores the initial state."""
        ...


def snapshot(
    task: TrainingTask, step: int, consumed: int, nonfinite_steps: Sequence[int], corrupt: Iterable[str]
) -> Checkpoint:
    """A checkpoint of a task; see its fields. Called on all ranks; its tensors are not copied."""
    states = [module.recovery for module in task.modules]
    return Checkpoint(
        step=step,
        consumed=consumed,
        fingerprint=task.fingerprint,
        test_fingerprint=task.test_fingerprint,
        model=task.model.state_dict(),
        optimizer=task.state(),
        recovery=[asdict(state) for state in states] if any(state != RecoveryState() for state in states) else [],
        nonfinite_steps=list(nonfinite_steps) if any(nonfinite_steps) else [],
        bad_samples=sorted(corrupt),
    )


def restore(task: TrainingTask, checkpoint: Checkpoint, folder: Path) -> None:
    """Load a checkpoint of the run in `folder` into its task.

    Raises:
        InputError: the run was trained or validated on other data.
    """
    for split, now, before in (
        ("training", task.fingerprint, checkpoint.fingerprint),
        ("test", task.test_fingerprint, checkpoint.test_fingerprint),
    ):
        if now and before and now != before:
            error = InputError(
                f"the {split} data differs from that of the run in {folder} (fingerprint {now[:12]}, was "
                f"{before[:12]}). Restore it, or move the folder away to start from scratch"
            )
            error.is_shared = True  # ranks have compared their data, and loaded one checkpoint
            raise error
    task.load(checkpoint.model, checkpoint.optimizer)
    for module, state in zip(task.modules, checkpoint.recovery, strict=False):
        module.recovery = RecoveryState(**state)
