"""Random inputs of the greedy modules, from (seed, purpose, step, rank, module) alone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from simdist.core.random_streams import stream_seed
from simdist.models.module import RandomInputs

if TYPE_CHECKING:
    from simdist.training.step import NumberedModule


class RandomStreams:
    """Noise, negatives and windows of every module in every step.

    Args:
        seed: the experiment's seed.
        rank: this process. Windows do not depend on it.
        device: where noise and negatives are drawn.
    """

    def __init__(self, seed: int, rank: int, device: torch.device) -> None:
        self._seed, self._rank = seed, rank
        self._generator = torch.Generator(device)
        self._cpu_generator = torch.Generator()

    def draw(self, purpose: str, step: int, trainer: NumberedModule, batch: int, frames: list[int]) -> RandomInputs:
        """The random inputs of one module in one step of `purpose`, such as training or validation."""
        self._cpu_generator.manual_seed(stream_seed(self._seed, purpose, step, trainer.number, *_attempt(trainer)))
        generator = self.noise(purpose, step, trainer)
        return trainer.module.draw(batch, frames[trainer.number], generator, self._cpu_generator)

    def noise(self, purpose: str, step: int, trainer: NumberedModule[Any]) -> torch.Generator:
        """This rank's generator, seeded for one module in one step."""
        names = (self._seed, purpose, step, trainer.number, self._rank, *_attempt(trainer))
        return self._generator.manual_seed(stream_seed(*names))


def _attempt(trainer: NumberedModule[Any]) -> tuple[str, ...]:
    """A name that distinguishes the streams of a module that was rolled back from those before."""
    count = trainer.recovery.reseed_count
    return (f"attempt {count}",) if count else ()
