"""Throughput of a run, and its share of time waiting for data."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from simdist.config.schema import SAMPLE_RATE, Experiment


class Throughput:
    """Measures throughput and data waiting time between two readings."""

    def __init__(self, config: Experiment) -> None:
        self._batch, self._seconds = config.data.batch_size, config.data.crop / SAMPLE_RATE
        self._waited, self._since, self._step = 0.0, time.perf_counter(), 0

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Count the time in the context as waiting for data."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self._waited += time.perf_counter() - start

    def reset(self, step: int) -> None:
        """Start a new measurement at `step`."""
        self._waited, self._since, self._step = 0.0, time.perf_counter(), step

    def read(self, step: int) -> dict[str, float]:
        """Clips and seconds of audio per second over all ranks, and the share of time waiting. Resets."""
        elapsed = time.perf_counter() - self._since
        rate = (step - self._step) * self._batch / elapsed
        share = self._waited / elapsed
        self.reset(step)
        return {"samples_per_s": rate, "audio_s_per_s": rate * self._seconds, "data_wait": share}
