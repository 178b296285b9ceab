"""The progress of a training, read from the ends of its files: fast even with a thousand runs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from simdist.runs.folder import METRICS
from simdist.runs.reader import heartbeat_age, last_records, starts
from simdist.runs.records import MetricsRecord

from .estimate import total_steps
from .plan import Length


@dataclass(frozen=True)
class Progress:
    """Progress read from a run folder."""

    step: int
    total: int | None
    """None while the corpus is not packed."""
    losses: tuple[float, ...]
    """Of each module, at the last recorded step."""
    steps_per_s: float | None
    restarts: int
    """Times that it was continued from a checkpoint."""
    host: str
    """Where it was started last."""
    heartbeat: float | None
    """Seconds since its process last touched its lease; None if none holds it."""
    warning: str = ""
    """What a person should know, such as that it runs on the CPU although there are GPUs; empty if nothing."""
    stragglers: str = ""
    """Ranks that are slower than the others, by node; empty if there are none."""

    @property
    def seconds_left(self) -> float | None:
        """Seconds until the last step at the latest rate; None if unknown."""
        if self.total is None or not self.steps_per_s:
            return None
        return max(0, self.total - self.step) / self.steps_per_s


def read_progress(folder: Path, length: Length, now: float) -> Progress:
    """The progress of the run in `folder`, which need not have begun."""
    newest: MetricsRecord | None = None
    losses: dict[int, float] = {}
    for record in last_records(folder / METRICS):
        if record.kind != "train":
            continue
        newest = newest or record
        losses = {m: module.loss for m, module in record.by_module().items() if module.loss is not None} | losses
        if length.stages == 1 or len(losses) == length.stages:  # a stagewise run's records hold one module each
            break
    rate = newest.samples_per_s if newest is not None else None
    started = starts(folder)
    return Progress(
        step=newest.step if newest is not None else 0,
        total=total_steps(length),
        losses=tuple(losses[module] for module in sorted(losses)),
        steps_per_s=rate / length.batch_size if rate else None,
        restarts=started.restarts,
        host=started.host,
        heartbeat=heartbeat_age(folder, now),
        warning=started.warning,
        stragglers=started.stragglers,
    )
