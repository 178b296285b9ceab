"""Recovery from non-finite losses and gradients: a module skips such steps and is rolled back if they do not end.

The device decides whether a step is skipped; flags are counted on the host later, without waiting. A module above one
that skipped a step has read a broken latent and skips it, too, but only the lowest such module is rolled back.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from simdist.config.schema import TrainConfig
from simdist.core.errors import FailedError

if TYPE_CHECKING:
    from simdist.training.checkpoint import Checkpoint
    from simdist.training.step import NumberedModule
    from simdist.training.task import TrainingTask


@dataclass
class RecoveryState:
    """How rollbacks changed the training of a module."""

    lr_scale: float = 1.0
    """Factor on the learning rate."""
    reseed_count: int = 0
    """Number of times that it was given other noise and negatives."""
    rollbacks: int = 0
    """Number of rollbacks."""
    failed_rollbacks: int = 0
    """Number of rollbacks since its last successful step."""


class EventWriter(Protocol):
    """Appends to events.jsonl, on rank 0."""

    def __call__(self, name: str, **fields: Any) -> None: ...


class Recovery:
    """Counts the steps that modules skip, and rolls modules back.

    Args:
        task: what is trained.
        settings: `max_nonfinite_steps`, `after_rollback` and `max_rollbacks`.
        device: where flags are computed. Those of a GPU are read one step later, when they have arrived.
        checkpoints: loads the run's checkpoints, newest first; called on all ranks.
        log: prints a line on the terminal.
        event: writes an event.
    """

    def __init__(
        self,
        task: TrainingTask,
        settings: TrainConfig,
        device: torch.device,
        checkpoints: Callable[[], Iterator[Checkpoint]],
        log: Callable[[str], None],
        event: EventWriter,
    ) -> None:
        self._task, self._settings, self._checkpoints, self._log, self._event = task, settings, checkpoints, log, event
        self.skipped = [0] * len(task.modules)
        """Number of consecutive steps that each module has skipped."""
        self._lag = 1 if device.type == "cuda" else 0
        self._pending: deque[tuple[list[int], Tensor, torch.cuda.Event | None]] = deque()

    def push(self, learning: Sequence[NumberedModule[Any]], nonfinite: Tensor) -> None:
        """Take the flags of one step, one per module that learns."""
        flags, arrived = nonfinite.to("cpu", non_blocking=True), None
        if nonfinite.is_cuda:
            arrived = torch.cuda.Event()
            arrived.record()
        self._pending.append(([trainer.number for trainer in learning], flags, arrived))

    def flags(self, everything: bool = False) -> list[int]:
        """Flags of all modules for each step that can be read now, for `count`; equally many on all ranks."""
        found: list[int] = []
        while len(self._pending) > (0 if everything else self._lag):
            numbers, flags, event = self._pending.popleft()
            if event is not None:
                event.synchronize()
            nonfinite = dict(zip(numbers, flags.int().tolist(), strict=True))
            found += [nonfinite.get(number, 0) for number in range(len(self.skipped))]
        return found

    def count(self, flags: Sequence[int], step: int) -> None:
        """Count flags on which the ranks have agreed, and roll a module back if it has skipped too many steps.

        Raises:
            FailedError: it was rolled back too often.
        """
        for first in range(0, len(flags), len(self.skipped)):
            self._count_step(flags[first : first + len(self.skipped)], step)

    def _count_step(self, flags: Sequence[int], step: int) -> None:
        for number, flag in enumerate(flags):
            if not flag:
                self.skipped[number] = 0
                self._task.modules[number].recovery.failed_rollbacks = 0
        if 1 not in flags:
            return
        lowest = flags.index(1)
        self.skipped[lowest] += 1
        if self.skipped[lowest] == 1:
            self._log(f"module {lowest} skips a step before step {step}: loss or gradient is not finite")
            self._event("bad_step", step=step, module=lowest)
        if self.skipped[lowest] >= self._settings.max_nonfinite_steps:
            self._roll_back(lowest, step)

    def _roll_back(self, number: int, step: int) -> None:
        """Restore one module, and only that one, from the last checkpoint, and change how it is trained."""
        state = self._task.modules[number].recovery
        reason = f"module {number} had non-finite losses or gradients in {self.skipped[number]} consecutive steps"
        if state.rollbacks >= self._settings.max_rollbacks:
            raise FailedError(
                f"{reason} up to step {step}, after {state.rollbacks} rollbacks (train.max_rollbacks). Check its losses"
                " in metrics.jsonl and start a new run with a lower --optim.lr or with --optim.clip_grad_norm 1"
            )
        trained = (checkpoint for checkpoint in self._checkpoints() if _took_steps(checkpoint, number))
        checkpoint = next(islice(trained, state.failed_rollbacks, None), None)  # older after each failed rollback
        if checkpoint is None:
            self._task.load_module(number, None, None)
        else:
            optimizer = checkpoint.optimizer[number] if checkpoint.optimizer else None
            self._task.load_module(number, checkpoint.model, optimizer)
        self.skipped[number] = 0
        state.rollbacks += 1
        state.failed_rollbacks += 1
        if self._settings.after_rollback == "lr":
            state.lr_scale /= 2
            change = f"its learning rate times {state.lr_scale:g}"
        else:
            state.reseed_count += 1
            change = "other noise and negatives"
        to = checkpoint.step if checkpoint else 0
        self._log(f"{reason} up to step {step}: rolled back to its weights of step {to}, with {change}")
        self._event("rolled_back", step=step, module=number, to_step=to, **asdict(state))


def _took_steps(checkpoint: Checkpoint, number: int) -> bool:
    """Whether a module took the step before; otherwise the checkpoint has the weights with which it could not."""
    skipped = checkpoint.nonfinite_steps[number] if checkpoint.nonfinite_steps else 0
    return not skipped and not (checkpoint.recovery and checkpoint.recovery[number].get("failed_rollbacks"))
