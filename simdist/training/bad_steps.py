"""Steps that a module skipped because a loss or gradient was not finite, counted on the host without waiting for it."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from simdist.training.step import NumberedModule


class BadSteps:
    """How many steps in a row each module has skipped.

    A module above one that was skipped saw its broken latent: it skips too, but is not to blame.

    Args:
        num_modules: of the encoder.
        device: where flags are computed. On a GPU they are read a step later, when they have long arrived.
    """

    def __init__(self, num_modules: int, device: torch.device) -> None:
        self.in_a_row = [0] * num_modules
        self._lag = 1 if device.type == "cuda" else 0
        self._pending: deque[tuple[list[int], Tensor, torch.cuda.Event | None]] = deque()

    def push(self, learning: Sequence[NumberedModule[Any]], bad: Tensor) -> None:
        """Note what a step said of the modules that learnt in it."""
        flags, arrived = bad.to("cpu", non_blocking=True), None
        if bad.is_cuda:
            arrived = torch.cuda.Event()
            arrived.record()
        self._pending.append(([trainer.number for trainer in learning], flags, arrived))

    def arrived(self, everything: bool = False) -> list[list[int]]:
        """Flags of all modules for each step that may be read now, one list a step; equally many on all ranks."""
        steps = []
        while len(self._pending) > (0 if everything else self._lag):
            numbers, flags, event = self._pending.popleft()
            if event is not None:
                event.synchronize()
            bad = dict(zip(numbers, flags.int().tolist(), strict=True))
            steps.append([bad.get(number, 0) for number in range(len(self.in_a_row))])
        return steps

    def count(self, flags: list[int]) -> int | None:
        """Count one step's flags, after ranks have agreed on them; returns the module to blame, if any."""
        blamed = flags.index(1) if 1 in flags else None
        for number, flag in enumerate(flags):
            if not flag:
                self.in_a_row[number] = 0
        if blamed is not None:
            self.in_a_row[blamed] += 1
        return blamed
