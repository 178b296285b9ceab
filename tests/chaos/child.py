"""What runs in each process that the faults hit: `simdist.train` as it is.

Added to the command are only its traces: the keys of each batch and the phases it is in, one write a line, so that a
kill cannot tear them; and, where asked for, numbers that are not finite, and a lease with less patience.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Order:
    """What a process is to do."""

    argv: list[str]
    traces: str
    """Folder for its log, keys and phases."""
    rank: int = 0
    environ: dict[str, str] = field(default_factory=dict)
    not_finite: dict[str, list[int]] = field(default_factory=dict)
    """Modules whose loss is NaN, by step; no more once a module was rolled back."""
    patience: float | None = None
    """Of the lease, in seconds."""


def obey(order: dict[str, Any]) -> None:
    """The process's whole life, given the fields of its `Order`."""
    _obey(Order(**order))


def _obey(order: Order) -> None:
    from simdist.core.console import run
    from simdist.train import __main__ as train_command

    _trace_keys(order)
    _trace_phases(order)
    if order.not_finite:
        _spoil(order.not_finite)
    if order.patience is not None:
        from simdist.runs.lease import Lease

        Lease.__init__.__defaults__ = (order.patience / 10, order.patience)
    run(train_command.main, order.argv)


def _trace(order: Order, name: str) -> Path:
    return Path(order.traces) / f"{name}.{order.rank}"


def _append(path: Path, record: Any) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    os.write(descriptor, (json.dumps(record) + "\n").encode())
    os.close(descriptor)


def _trace_keys(order: Order) -> None:
    """One line for each batch that is trained on: where it comes from, its number, its keys."""
    from simdist.data.loader import Batch
    from simdist.train.encoder_task import EncoderTask

    original = EncoderTask.step

    def step(self: EncoderTask, stage: int, batch: Batch, step: Any) -> Any:
        source = self._source.loader._dataset._clips.split
        keys = [str(source.index.key[row]) for row in batch.rows.tolist()]
        _append(_trace(order, "keys"), [stage, batch.consumed, keys])
        return original(self, stage, batch, step)

    EncoderTask.step = step


def _trace_phases(order: Order) -> None:
    from simdist.train.encoder_task import EncoderTask
    from simdist.training import checkpoint
    from simdist.training.latents import LatentCache

    path = _trace(order, "phases")

    def marked(name: str, original: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            _append(path, name)
            return original(*args, **kwargs)

        return call

    EncoderTask.validation = marked("validation", EncoderTask.validation)
    EncoderTask.step = marked("step", EncoderTask.step)
    LatentCache._write_shard = marked("latents", LatentCache._write_shard)
    checkpoint.save_checkpoint = marked("save", checkpoint.save_checkpoint)


def _spoil(not_finite: dict[str, list[int]]) -> None:
    """Make losses NaN in a forward, as an overflow would."""
    from simdist.models.module import GreedyModule
    from simdist.train.encoder_task import EncoderTask

    spoiled: set[int] = set()
    whole_step, forward = EncoderTask.step, GreedyModule.forward

    @contextmanager
    def spoiling(task: EncoderTask, number: int) -> Iterator[None]:
        chosen = [task.modules[m] for m in not_finite.get(str(number), [])]
        spoiled.update(id(each.module) for each in chosen if not each.recovery.rollbacks)
        yield
        spoiled.clear()

    def spoiled_step(self: EncoderTask, stage: int, batch: Any, step: Any) -> Any:
        with spoiling(self, step.number):
            return whole_step(self, stage, batch, step)

    def spoiled_forward(self: GreedyModule, *args: Any, **kwargs: Any) -> Any:
        outcome = forward(self, *args, **kwargs)
        return replace(outcome, loss=outcome.loss * float("nan")) if id(self) in spoiled else outcome

    EncoderTask.step, GreedyModule.forward = spoiled_step, spoiled_forward
