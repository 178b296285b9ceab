"""How fast a run is, and what it waits for."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from simdist.config.schema import SAMPLE_RATE, Experiment


class Throughput:
    """Throughput since the last reading, and the share of that time spent waiting for data."""

    def __init__(self, config: Experiment) -> None:
        self._batch, self._seconds = config.data.batch_size, config.data.crop / SAMPLE_RATE
        self._waited, self._since, self._step = 0.0, time.perf_counter(), 0

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Count the time inside as waiting for data."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self._waited += time.perf_counter() - start

    def reset(self, step: int) -> None:
        """Begin a new measurement at `step`."""
        self._waited, self._since, self._step = 0.0, time.perf_counter(), step

    def read(self, step: int) -> dict[str, float]:
        """Clips and seconds of audio per second of all ranks, share of time waiting; begins anew."""
        elapsed = time.perf_counter() - self._since
        rate = (step - self._step) * self._batch / elapsed
        share = self._waited / elapsed
        self.reset(step)
        return {"samples_per_s": rate, "audio_s_per_s": rate * self._seconds, "data_wait": share}
