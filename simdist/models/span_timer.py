"""Time of parts of a training step, on the CPU or on a GPU's stream, without a step that waits for the GPU.

The collectives of a step lie deep in a model and in its backward pass, so there is one timer of them per process,
`COLLECTIVES`, which a training starts and reads.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch


class SpanTimer:
    """Adds up spans, of which one is open at a time.

    A span on a GPU is what its current stream takes from begin to end; for a collective, from when this rank's data is
    ready until all ranks' data has arrived.
    """

    def __init__(self) -> None:
        self.is_running = False
        """Spans are measured only while this is set."""
        self.reset()

    def reset(self) -> None:
        """Forget all spans."""
        self._seconds, self._since = 0.0, 0.0
        self._begin: torch.cuda.Event | None = None
        self._events: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []

    @contextmanager
    def span(self, device: torch.device) -> Iterator[None]:
        """Measure the context."""
        if not self.is_running:
            yield
            return
        self._open(device)
        try:
            yield
        finally:
            self._close(device)

    def seconds(self) -> float:
        """The sum. Waits for the GPU if a span on it is not complete."""
        if self._events:
            self._events[-1][1].synchronize()
        return self._seconds + sum(begin.elapsed_time(end) for begin, end in self._events) / 1000

    def _open(self, device: torch.device) -> None:
        if device.type == "cuda":
            self._begin = torch.cuda.Event(enable_timing=True)
            self._begin.record()
        else:
            self._since = time.perf_counter()

    def _close(self, device: torch.device) -> None:
        if device.type == "cuda":
            end = torch.cuda.Event(enable_timing=True)
            end.record()
            assert self._begin is not None
            self._events.append((self._begin, end))
        else:
            self._seconds += time.perf_counter() - self._since


COLLECTIVES = SpanTimer()
"""Of this process's training steps."""
