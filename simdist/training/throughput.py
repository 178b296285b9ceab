"""Throughput of a run, and how each rank spends its time: working, waiting for data, waiting for other ranks."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Literal, get_args

import torch

from simdist.config.schema import SAMPLE_RATE, Experiment
from simdist.models.span_timer import COLLECTIVES, SpanTimer

Spent = Literal["data", "agreement", "saving"]
"""Waiting for a batch; for the GPU and the agreement of ranks; recording and saving, which rank 0 does for all."""


@dataclass(frozen=True)
class RankTimes:
    """Mean seconds per step of one rank. Its own work takes `step - collective_wait`."""

    num_steps: int
    """Over which these are means."""
    step: float
    """Without recording metrics and saving."""
    data_wait: float
    collective_wait: float
    """Waiting for other ranks, transfers included."""


class Throughput:
    """Measures throughput and times of this rank between two readings.

    A GPU works while its host prepares the next step, so a rank's own work is that of its host or that of its GPU,
    whichever takes longer.

    Args:
        config: the experiment.
        device: of the training.
        num_ranks: a single one does not wait in collectives.
    """

    def __init__(self, config: Experiment, device: torch.device, num_ranks: int) -> None:
        self._batch, self._seconds = config.data.batch_size, config.data.crop / SAMPLE_RATE
        self._device, self._steps, COLLECTIVES.is_running = device, SpanTimer(), num_ranks > 1
        self._steps.is_running = num_ranks > 1 and device.type == "cuda"
        self.reset(0)

    def reset(self, step: int, now: float | None = None) -> None:
        """Start a new measurement at `step`."""
        self._spent: dict[Spent, float] = dict.fromkeys(get_args(Spent), 0.0)
        self._since, self._step = time.perf_counter() if now is None else now, step
        self._steps.reset()
        COLLECTIVES.reset()

    @contextmanager
    def spending(self, kind: Spent) -> Iterator[None]:
        """Count the time that the host spends in the context."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self._spent[kind] += time.perf_counter() - start

    def taking_step(self) -> AbstractContextManager[None]:
        """Measure the GPU's work on a step."""
        return self._steps.span(self._device)

    def read(self, step: int) -> tuple[dict[str, float], RankTimes]:
        """Clips and seconds of audio per second over all ranks, the share of time waiting; times of this rank. Resets.

        Args:
            step: number of completed steps, more than at the last reset.
        """
        now = time.perf_counter()
        elapsed, steps, data_wait = now - self._since, step - self._step, self._spent["data"]
        rate = steps * self._batch / elapsed
        speed = {"samples_per_s": rate, "audio_s_per_s": rate * self._seconds, "data_wait": data_wait / elapsed}
        length = elapsed - self._spent["saving"]
        work, in_steps = length - self._spent["agreement"], COLLECTIVES.seconds()
        work = max(work, self._steps.seconds() - in_steps) if self._device.type == "cuda" else work - in_steps
        self.reset(step, now)
        self._spent["saving"] = time.perf_counter() - now  # waiting for the GPU's events
        return speed, RankTimes(steps, length / steps, data_wait / steps, max(0.0, length - work) / steps)
