"""Random inputs of the greedy modules, from (seed, purpose, step, group, module) alone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from simdist.core.random_streams import stream_seed
from simdist.models.module import RandomInputs
from simdist.training.groups import Groups, Part

if TYPE_CHECKING:
    from simdist.training.step import NumberedModule


class RandomStreams:
    """Noise, negatives and windows of every module in every step.

    What belongs to a group of clips is drawn for the whole group, also if this rank has only a part of it.

    Args:
        seed: the experiment's seed.
        rank: this process.
        device: where noise and negatives are drawn.
        groups: of the global batch; None: each rank's clips are one group, whose number is the rank's.
    """

    def __init__(self, seed: int, rank: int, device: torch.device, groups: Groups | None = None) -> None:
        self._seed, self._rank, self.groups = seed, rank, groups
        self._generator = torch.Generator(device)
        self._cpu_generator = torch.Generator()

    def draw(
        self, purpose: str, step: int, trainer: NumberedModule, batch: int, frames: list[int], first: int = 0
    ) -> RandomInputs:
        """The random inputs of one module in one step of `purpose`, such as training or validation.

        Args:
            purpose: names the stream.
            step: number of the step.
            trainer: the module.
            batch: clips of the forward pass.
            frames: frames of every module's latent.
            first: the first of these clips among those of this rank.
        """
        drawn = []
        parts = self._parts(first, batch)
        for part in parts:
            names = (self._seed, purpose, step, trainer.number, *_attempt(trainer))
            self._cpu_generator.manual_seed(stream_seed(*names))  # the same window for all groups
            generator = self.noise(purpose, step, trainer, part.group)
            size = self.groups.size if self.groups is not None else batch
            drawn.append(trainer.module.draw(size, frames[trainer.number], generator, self._cpu_generator))
        return _joined(drawn, parts, frames[trainer.number])

    def normal(
        self, purpose: str, step: int, trainer: NumberedModule[Any], shape: torch.Size, first: int = 0
    ) -> Tensor:
        """Standard normal numbers (B, L, C) of the clips of a forward pass, on the streams' device."""
        noise = []
        for part in self._parts(first, shape[0]):
            size = self.groups.size if self.groups is not None else shape[0]
            generator = self.noise(purpose, step, trainer, part.group)
            whole = torch.randn(size, *shape[1:], generator=generator, device=generator.device)
            noise.append(whole[part.first : part.end])
        return torch.cat(noise)

    def noise(self, purpose: str, step: int, trainer: NumberedModule[Any], group: int | None = None) -> torch.Generator:
        """The generator of a group, seeded for one module in one step; of this rank's only group if it is None."""
        number = self._rank if group is None else group
        names = (self._seed, purpose, step, trainer.number, number, *_attempt(trainer))
        return self._generator.manual_seed(stream_seed(*names))

    def _parts(self, first: int, batch: int) -> list[Part]:
        return [Part(self._rank, 0, batch)] if self.groups is None else self.groups.at(first, batch)


def _joined(drawn: list[RandomInputs], parts: list[Part], frames: int) -> RandomInputs:
    """Random inputs of the clips in `parts`, from those of their groups."""
    if len(drawn) == 1:
        (whole,), (part,) = drawn, parts
        if part.end - part.first == len(whole.negatives):
            return whole
        own = slice(part.first, part.end)
        noise = (None if each is None else each[own] for each in (whole.context_noise, whole.latent_noise))
        return RandomInputs(whole.start, whole.negatives[own], *noise, first_clip=part.first)
    rows = [each.negatives + number * len(each.negatives) * frames for number, each in enumerate(drawn)]
    context = [each.context_noise for each in drawn if each.context_noise is not None]
    latent = [each.latent_noise for each in drawn if each.latent_noise is not None]
    noise = (torch.cat(each) if each else None for each in (context, latent))
    return RandomInputs(drawn[0].start, torch.cat(rows), *noise, groups=len(drawn))


def _attempt(trainer: NumberedModule[Any]) -> tuple[str, ...]:
    """A name that distinguishes the streams of a module that was rolled back from those before."""
    count = trainer.recovery.reseed_count
    return (f"attempt {count}",) if count else ()
