"""Read run folders while they are being written: one reader for status, estimates and the report. Imports no torch.

Files are read as far as they fit the schema in `records`: other lines are left out, and what does not exist yet is
empty.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from simdist.core.files import open_regular
from simdist.runs.checkpoints import checkpoint_folders, step_of
from simdist.runs.folder import CHECKPOINTS, EVENTS, STRAGGLERS
from simdist.runs.lease import PATIENCE, newest_claim
from simdist.runs.records import EventRecord, MetricsRecord, RecordError, parse_json, read_lines

TAIL_BYTES = 65_536  # a record has up to 30 bytes per rank
STEP_EVENTS = ("start", "resumed", "stopped", "finished")


def last_records(path: Path) -> Iterator[MetricsRecord]:
    """The last records of a file of metrics that fit, newest first; reads only the end of the file."""
    try:
        with open_regular(path, None) as file:
            size = file.seek(0, 2)
            file.seek(max(0, size - TAIL_BYTES))
            text = file.read(TAIL_BYTES)
    except OSError:
        return
    for line in reversed(text.splitlines()[1 if size > TAIL_BYTES else 0 :]):
        with suppress(RecordError):
            yield parse_json(line, MetricsRecord)


def saved_step(folder: Path) -> int:
    """The step of the newest checkpoint, complete or not; 0 without one."""
    return max((step_of(path) for path in checkpoint_folders(folder / CHECKPOINTS)[:1]), default=0)


def reported_step(events: Sequence[EventRecord]) -> int:
    """The step of the last event that has one, which may be later than the last record of metrics; 0 without one."""
    told = [event.step for event in events if event.event in STEP_EVENTS and event.step is not None]
    return told[-1] if told else 0


@dataclass(frozen=True)
class Starts:
    """How often and where a run was started."""

    restarts: int
    """Times that it resumed from a checkpoint."""
    host: str
    """Host of the last start."""
    warning: str
    """The last warning since then, such as a missing GPU; empty if there is none."""
    stragglers: str
    """Ranks that are slow now, by node; empty if there are none."""


def starts(folder: Path) -> Starts:
    """Restarts, last host, warning and slow ranks of a run."""
    restarts, host, warning, stragglers = 0, "", "", ""
    with suppress(OSError):
        for event in read_lines(folder / EVENTS, EventRecord)[0]:
            restarts += event.event == "resumed"
            if event.event in ("start", "resumed"):
                host, warning, stragglers = event.host, "", ""
            elif event.event == "no_gpu":
                warning = event.text
            elif event.event == STRAGGLERS:
                stragglers = event.text
    return Starts(restarts, host, warning, stragglers)


def heartbeat_age(folder: Path, now: float) -> float | None:
    """Seconds since a process of the run last touched its lease; None if none holds it."""
    with suppress(OSError):
        claim = newest_claim(folder)
        if claim is not None and not claim.is_released:
            return max(0.0, now - claim.path.stat().st_mtime)
    return None


def is_held(folder: Path, now: float) -> bool:
    """Whether a living process trains the run."""
    age = heartbeat_age(folder, now)
    return age is not None and age < PATIENCE
