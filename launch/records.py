"""What was started where: `sweeps/NAME/jobs.jsonl`, a line for each start and each end of a job, and its log.

Only this file ties a job's name to a number in SLURM's queue; the truth about a run stays in the run's folder. A group
of jobs is announced before `sbatch` and numbered after it, so that a submission that was killed in between is found
again by its comment in the queue.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from simdist.durable import append_json, read_json_lines

FILE = "jobs.jsonl"
TAIL_BYTES = 8192


@dataclass(frozen=True)
class Record:
    """The latest start of a job."""

    job: str
    cluster: str
    """`local`, or the profile's name."""
    id: str
    """SLURM's number (`17_3` for a task of an array), or a process's."""
    log: Path
    """What the first task printed."""
    errors: Path | None = None
    """What it printed to stderr, where that is apart."""
    host: str = ""
    """For local jobs, the machine."""
    time: float = 0.0
    code: int | None = None
    """Exit code, once a local job has ended."""
    parents: dict[str, str] = field(default_factory=dict)
    """Ids of the jobs that SLURM waits for, by name."""
    identity: str = ""
    """Of the job as it was then: its options may have changed since."""
    starts: int = 1
    """Times that it was started or submitted."""


class Records:
    """A sweep's `jobs.jsonl`."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / FILE

    def started(self, record: Record) -> None:
        """A local job has begun, or a job has its number in the queue."""
        self._append(
            "started",
            job=record.job,
            cluster=record.cluster,
            id=record.id,
            log=str(record.log),
            errors=str(record.errors) if record.errors else None,
            host=socket.gethostname(),
            parents=record.parents,
            identity=record.identity,
        )

    def ended(self, job: str, code: int) -> None:
        """A local job has ended."""
        self._append("ended", job=job, code=code)

    def announce(self, group: str, jobs: Iterable[str]) -> None:
        """These jobs are about to be submitted together, under this comment."""
        self._append("announced", group=group, jobs=list(jobs))

    def numbered(self, group: str) -> None:
        """All jobs of the group have their numbers."""
        self._append("numbered", group=group)

    def lost_groups(self) -> set[str]:
        """Groups whose submission was cut off before their numbers were written down."""
        lines = read_json_lines(self._path)
        announced = {line["group"] for line in lines if line["event"] == "announced"}
        return announced - {line["group"] for line in lines if line["event"] == "numbered"}

    def latest(self) -> dict[str, Record]:
        """The latest start of every job, by name."""
        found: dict[str, dict[str, Any]] = {}
        for line in read_json_lines(self._path):
            if line["event"] == "started":
                starts = found.get(line["job"], {}).get("starts", 0) + 1
                found[line["job"]] = {**line, "starts": starts}
            elif line["event"] == "ended" and line["job"] in found:
                found[line["job"]]["code"] = line["code"]
        return {name: _record(line) for name, line in found.items()}

    def _append(self, event: Literal["started", "ended", "announced", "numbered"], **fields: Any) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        append_json(self._path, {"event": event, "time": time.time(), **fields})


def _record(line: dict[str, Any]) -> Record:
    return Record(
        job=line["job"],
        cluster=line["cluster"],
        id=line["id"],
        log=Path(line["log"]),
        errors=Path(line["errors"]) if line.get("errors") else None,
        host=line.get("host", ""),
        time=line["time"],
        code=line.get("code"),
        parents=line.get("parents") or {},
        identity=line.get("identity", ""),
        starts=line["starts"],
    )


def last_lines(paths: Sequence[Path | None], count: int) -> list[str]:
    """The last lines that are not empty of the first of these logs that has any; [] without a log."""
    for path in paths:
        if path is None or not path.is_file():
            continue
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - TAIL_BYTES))
            lines = file.read().decode(errors="replace").splitlines()
        lines = [line.rstrip() for line in lines if line.strip()]
        if lines:
            return lines[-count:]
    return []
