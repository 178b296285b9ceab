"""Ranks that are slower than the others, which wait for them in every step.

A step takes the same time on all ranks, so what is compared is a rank's own work: its step without the time that it
waits for other ranks. What DeepSpeed waits for inside of its engine is not measured, so there only ranks that wait for
data are found.
"""

from __future__ import annotations

import socket
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from statistics import median_low
from typing import Any

from simdist.runs.folder import STRAGGLERS
from simdist.training.distributed import CpuGroup
from simdist.training.recovery import EventWriter
from simdist.training.throughput import RankTimes

WINDOW = 100  # steps over which ranks are compared
SLOW = 1.3  # multiple of the median rank's own work
RECOVERED = 1.2  # below which a rank that was named is no longer slow
SHOWN_NODES = 10
RECORDED = ("step", "data_wait", "collective_wait")


@dataclass(frozen=True)
class Straggler:
    """A slow rank."""

    rank: int
    node: str
    ratio: float
    """Multiple of the median rank's own work."""
    cause: str
    """`data` if more than half of the difference is waiting for data, else `compute`."""


class StragglerWatch:
    """Gathers the times of all ranks for their record, and names those that stay slow.

    Called on all ranks.

    Args:
        group: of all ranks.
        log: prints a line.
        event: writes an event.
    """

    def __init__(self, group: CpuGroup, log: Callable[[str], None], event: EventWriter) -> None:
        self._group, self._log, self._event = group, log, event
        self._nodes: list[str] = group.gather(socket.gethostname())
        self._named: set[int] = set()
        self.restart()

    def restart(self) -> None:
        """Forget the window. The next times are not compared: those of a first step are far from those of others."""
        self._window: deque[list[RankTimes]] = deque()
        self._is_first = True

    def record(self, mine: RankTimes, step: int) -> dict[str, Any]:
        """The times of all ranks, for the record of metrics; nothing for a single rank.

        Args:
            mine: of this rank.
            step: number of completed steps.
        """
        if len(self._nodes) == 1:
            return {}
        gathered = self._group.gather_numbers([mine.step, mine.data_wait, mine.collective_wait])
        if not self._is_first:
            self._window.append([RankTimes(mine.num_steps, *times) for times in gathered])
            self._judge(step)
        self._is_first = False
        columns = zip(RECORDED, zip(*gathered, strict=True), strict=True)
        return {"ranks": {name: [float(f"{seconds:.4g}") for seconds in column] for name, column in columns}}

    def _judge(self, step: int) -> None:
        """Name the slow ranks if they are not those that were named last."""
        steps = sum(times[0].num_steps for times in self._window)
        while steps - self._window[0][0].num_steps >= WINDOW:
            steps -= self._window.popleft()[0].num_steps
        if steps < WINDOW:
            return
        slow = find_stragglers(self._window, self._nodes, self._named)
        if {each.rank for each in slow} == self._named:
            return
        self._named = {each.rank for each in slow}
        by_ratio = sorted(slow, key=lambda each: -each.ratio)
        nodes = list(dict.fromkeys(each.node for each in by_ratio))
        sentences = [describe(slow, node, steps) for node in nodes[:SHOWN_NODES]]
        sentences += [f"{len(nodes) - SHOWN_NODES} more nodes have slow ranks."] * (len(nodes) > SHOWN_NODES)
        for sentence in sentences or [f"no rank is slow any more, at step {step}"]:
            self._log(f"warning: {sentence}" if slow else sentence)
        self._event(STRAGGLERS, step=step, ranks=[asdict(each) for each in slow], text=" ".join(sentences))


def find_stragglers(window: Sequence[Sequence[RankTimes]], nodes: Sequence[str], named: set[int]) -> list[Straggler]:
    """Ranks whose own work takes `SLOW` times as long as the median rank's (of an even number, the lower one).

    Args:
        window: times of each rank, over consecutive parts of the training.
        nodes: host name of each rank.
        named: ranks that are slow until they fall below `RECOVERED`.
    """
    ranks = range(len(nodes))
    by_rank = [[times[rank] for times in window] for rank in ranks]
    work = [sum(each.num_steps * (each.step - each.collective_wait) for each in own) for own in by_rank]
    data = [sum(each.num_steps * each.data_wait for each in own) for own in by_rank]
    usual_work, usual_data = median_low(work), median_low(data)
    return [
        Straggler(
            rank,
            nodes[rank],
            round(work[rank] / usual_work, 2),
            "data" if 2 * (data[rank] - usual_data) > work[rank] - usual_work else "compute",
        )
        for rank in ranks
        if work[rank] > (RECOVERED if rank in named else SLOW) * usual_work
    ]


def describe(slow: Sequence[Straggler], node: str, steps: int) -> str:
    """One sentence about the slow ranks of a node."""
    here = [each for each in slow if each.node == node]
    ranks = ", ".join(str(each.rank) for each in here)
    who = f"rank {ranks} ({node}) is" if len(here) == 1 else f"ranks {ranks} ({node}) are up to"
    worst = max(here, key=lambda each: each.ratio)
    why = (
        "mostly waiting for data. Check how this node reads the shards"
        if worst.cause == "data"
        else "mostly computing. Check the node for other processes and throttling"
    )
    return f"{who} {worst.ratio:.2f} x slower than the median rank over the last {steps} steps, {why}."
