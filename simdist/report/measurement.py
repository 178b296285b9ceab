"""One number of a run: the form in which everything is collected, averaged over seeds and written as CSV."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

Family = Literal["encoder", "probe", "few-labels", "decoder", "analysis"]


@dataclass(frozen=True)
class Measurement:
    """One number of one module of one run."""

    run: str
    family: Family
    what: dict[str, Any]
    """What was measured: the split of a loss; a probe's label, features, settings; the examples a class; a decoder's
    loss; the name of an analysis."""
    module: int | None
    """None for what has no module, such as MFCC."""
    metric: str
    value: float
    interval: tuple[float, float] | None = None
    """95 %, where it was measured."""
