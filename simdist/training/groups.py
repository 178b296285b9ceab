"""Groups of clips that see each other: how a global batch falls into them, and which of them are this rank's.

Negatives come from a group, BatchNorm normalizes over a group, and random numbers are seeded by its number. So what is
computed depends on `data.group`, and not on the number of ranks: a rank holds whole groups, or a group spans ranks.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

import torch.distributed as dist

from simdist.config.schema import DataConfig
from simdist.core.errors import InputError
from simdist.data.loader import rank_share


class Part(NamedTuple):
    """Neighboring clips of one group."""

    group: int
    """Number of the group in the global batch."""
    first: int
    """The first of these clips, counted in the group."""
    end: int
    """The clip behind the last."""


@dataclass(frozen=True)
class Groups:
    """The groups of a global batch, seen from one rank."""

    size: int
    """Clips of a group."""
    share: int
    """Clips of each rank."""
    rank: int = 0

    @classmethod
    def of(cls, data: DataConfig, rank: int, world_size: int) -> Groups:
        """The groups of a global batch. Without `data.group`, each rank's share is one.

        Raises:
            InputError: the ranks' shares are not equal, or neither whole groups nor equal parts of one.
        """
        share = rank_share(data.batch_size, world_size)
        size = min(data.group or share, data.batch_size)
        if share % size and size % share:
            possible = [n for n in range(1, data.batch_size + 1) if data.batch_size % n == 0]
            fitting = [n for n in possible if share % n == 0 or n % share == 0]
            raise InputError(
                f"data.group={size} fits neither way into the {share} clips per rank of data.batch_size="
                f"{data.batch_size} on {world_size} ranks: whole groups per rank, or whole ranks per group. "
                f"Use {', '.join(map(str, fitting[:-1]))} or {fitting[-1]}, or another number of processes"
            )
        return cls(size, share, rank)

    @property
    def ranks(self) -> int:
        """Ranks that share a group; 1 if each holds whole ones."""
        return max(1, self.size // self.share)

    def at(self, first: int, count: int) -> list[Part]:
        """Where `count` of this rank's clips fall, from its clip `first` on."""
        begin = self.rank * self.share + first
        parts = []
        for number in range(begin // self.size, (begin + count - 1) // self.size + 1):
            start = number * self.size
            parts.append(Part(number, max(begin - start, 0), min(begin + count - start, self.size)))
        return parts

    def passes(self, at_once: int | None) -> int:
        """Forward passes per step, if a rank computes so many groups at once; None: all of them.

        Raises:
            InputError: it does not divide the rank's groups.
        """
        held = max(1, self.share // self.size)
        if at_once is None:
            return 1
        if held % at_once:
            raise InputError(
                f"train.groups_at_once={at_once} does not divide the {held} group{'s' * (held > 1)} per rank "
                f"({self.share} clips, data.group={self.size}). Use a divisor of {held}"
                + ("; set --data.group to compute on fewer clips at once" if held == 1 else "")
            )
        return held // at_once

    def of_fewer(self, share: int) -> Groups:
        """Groups of a smaller batch, which a short test split has: as many ranks share one, or as many clips as fit."""
        return replace(self, size=share * self.ranks if self.ranks > 1 else min(self.size, share), share=share)

    def peers(self, world_size: int) -> dist.ProcessGroup | None:
        """The ranks that share a group with this one; None if it holds whole groups. Called on all ranks."""
        if self.ranks == 1:
            return None
        firsts = range(0, world_size, self.ranks)
        group = [dist.new_group(range(first, first + self.ranks)) for first in firsts][self.rank // self.ranks]
        assert isinstance(group, dist.ProcessGroup)
        return group
