"""How far a training has come, read from the ends of its files: quick with a thousand runs."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from simdist.runs.folder import EVENTS, METRICS

from .estimate import total_steps
from .plan import Length
from .states import heartbeat_age

TAIL_BYTES = 16_384
RESTARTS = ("resumed",)


@dataclass(frozen=True)
class Progress:
    """What a run's folder says."""

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

    @property
    def seconds_left(self) -> float | None:
        """Until the last step, at the rate of the last one; None if that is not known."""
        if self.total is None or not self.steps_per_s:
            return None
        return max(0, self.total - self.step) / self.steps_per_s


def read_progress(folder: Path, length: Length, now: float) -> Progress:
    """The progress of the run in `folder`, which need not have begun."""
    lines: list[dict[str, Any]] = []
    losses: dict[int, float] = {}
    for line in tail_of(folder / METRICS):
        if line.get("kind") != "train":
            continue
        lines.append(line)
        losses = {module.get("module", m): module["loss"] for m, module in enumerate(line["modules"])} | losses
        if length.stages == 1 or len(losses) == length.stages:  # a stagewise run's lines hold one module each
            break
    rate = lines[0].get("samples_per_s") if lines else None
    restarts, host, warning = _events(folder / EVENTS)
    return Progress(
        step=lines[0]["step"] if lines else 0,
        total=total_steps(length),
        losses=tuple(losses[module] for module in sorted(losses)),
        steps_per_s=rate / length.batch_size if rate else None,
        restarts=restarts,
        host=host,
        heartbeat=heartbeat_age(folder, now),
        warning=warning,
    )


def tail_of(path: Path) -> Iterator[dict[str, Any]]:
    """The last whole lines of a JSON-lines file, the last one first; nothing if there is none."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, 2)
            file.seek(max(0, size - TAIL_BYTES))
            text = file.read()
    except OSError:
        return
    for line in reversed(text.splitlines()[1 if size > TAIL_BYTES else 0 :]):
        with suppress(ValueError):
            yield json.loads(line)


def _events(path: Path) -> tuple[int, str, str]:
    """Restarts, the host of the last start, and the last warning since then."""
    restarts, host, warning = 0, "", ""
    try:
        lines = path.read_bytes().splitlines()
    except OSError:
        return restarts, host, warning
    for line in lines:
        with suppress(ValueError):
            event = json.loads(line)
            restarts += event["event"] in RESTARTS
            if event["event"] in ("start", *RESTARTS):
                host, warning = event["host"], ""
            elif event["event"] == "no_gpu":
                warning = event["text"]
    return restarts, host, warning
