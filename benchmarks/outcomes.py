"""What every benchmark answers with: numbers beside their targets, and times measured in turns."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table


@dataclass(frozen=True)
class Outcome:
    """One number of `make bench`."""

    what: str
    """The question."""
    value: float
    """The answer; not a number where it was not measured, and `detail` says why."""
    target: float | None = None
    """What was wanted; None for a number that only informs."""
    at_least: bool = True
    """Whether more is better than the target."""
    unit: str = "x"
    """`x` for a ratio."""
    detail: str = ""
    """The numbers behind it."""

    @property
    def is_met(self) -> bool:
        """Whether the value is on the right side of the target; without a target it is."""
        return self.target is None or (self.value >= self.target if self.at_least else self.value <= self.target)


def show(title: str, outcomes: Sequence[Outcome]) -> None:
    """Print the table."""
    table = Table("what", "measured", "target", "", "detail", title=title)
    for outcome in outcomes:
        target = (
            "" if outcome.target is None else f"{'≥' if outcome.at_least else '≤'} {outcome.target:g} {outcome.unit}"
        )
        met = "" if outcome.target is None else "met" if outcome.is_met else "missed"
        value = "skipped" if math.isnan(outcome.value) else f"{outcome.value:.3g} {outcome.unit}"
        table.add_row(outcome.what, value, target, met, outcome.detail)
    Console(width=160).print(table)


def in_turns(functions: Mapping[str, Callable[[], object]], rounds: int, warm_up: int = 1) -> dict[str, float]:
    """Median seconds of each function; every round calls them one after the other, so that all see the same machine."""
    for _ in range(warm_up):
        for function in functions.values():
            function()
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(rounds):
        for name, function in functions.items():
            start = time.perf_counter()
            function()
            seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in seconds.items()}
