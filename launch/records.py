"""Records of `sweeps/NAME/jobs.jsonl`: one line per start and end of a job, with its log.

Only this file ties a job's name to a number in SLURM's queue; the truth about a run stays in the run's folder. A group
of jobs is announced before `sbatch` and numbered after it, so that a submission that was killed in between is found
again by its comment in the queue.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from msgspec import Struct

from simdist.core.errors import InputError
from simdist.core.files import append_json, write_json
from simdist.runs.records import Amount, RecordError, Word, read_lines, read_record

from .endings import Ending
from .scheduler import JobId

FILE = "jobs.jsonl"
LOCK = ".sweep.lock"  # in a sweep's folder: held by whoever runs or submits the sweep
HELD = "held"  # in a sweep's folder: jobs of it wait for room in the queue, and each that ends submits some
TAIL_BYTES = 8192


class JobEvent(Struct, frozen=True):
    """A line of jobs.jsonl."""

    event: Literal["started", "ended", "cancelled", "announced", "numbered"]
    time: Amount
    job: Word = ""
    """Of the first three."""
    group: Word = ""
    """Of the last two."""
    cluster: Word = ""
    id: Word = ""
    log: str = ""
    host: Word = ""
    parents: dict[str, str] | None = None
    identity: Word = ""
    cluster_name: Word = ""
    code: int | None = None

    def __post_init__(self) -> None:
        needed = ("group",) if self.event in ("announced", "numbered") else ("job",)
        needed += ("cluster", "id", "log") * (self.event == "started")
        for name in needed:
            if not getattr(self, name):
                raise ValueError(f"{self.event!r} without {name!r}")


class HeldJobs(Struct, frozen=True):
    """The content of `held`."""

    cluster: Word
    jobs: list[str]


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
    host: str = ""
    """For local jobs, the machine."""
    time: float = 0.0
    code: int | None = None
    """Exit code, once a local job has ended."""
    parents: dict[str, str] = field(default_factory=dict)
    """Ids of the jobs that SLURM waits for, by name."""
    identity: str = ""
    """Of the job as it was then: its options may have changed since."""
    cancelled: bool = False
    """By `launch/cancel.py`: a training that saves when it is cancelled looks like a preempted one to SLURM."""
    starts: int = 1
    """Times that it was started or submitted."""
    cluster_name: str = ""
    """The cluster that gave the number, as SLURM calls it: another login node may submit to another one."""

    @property
    def job_id(self) -> JobId:
        """The job as its scheduler knows it."""
        return JobId(self.id, self.cluster_name)

    @property
    def ending(self) -> Ending:
        """Where a job on SLURM says how it ended."""
        return Ending.of(self.log.parent, self.id)


@dataclass(frozen=True)
class Held:
    """Jobs held back by a queue limit."""

    cluster: str = ""
    """What `--cluster` was."""
    jobs: tuple[str, ...] = ()

    @classmethod
    def read(cls, folder: Path) -> Held:
        """Of the sweep in `folder`; nothing if none is held back."""
        try:
            content = read_record(folder / HELD, HeldJobs)
        except (OSError, RecordError):
            return cls()
        return cls(content.cluster, tuple(content.jobs))

    def write(self, folder: Path) -> None:
        """For those who submit the jobs later; an empty one is no file."""
        if self.jobs:
            write_json(folder / HELD, {"cluster": self.cluster, "jobs": list(self.jobs)})
        else:
            (folder / HELD).unlink(missing_ok=True)


class Records:
    """A sweep's `jobs.jsonl`."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / FILE

    def started(self, record: Record) -> None:
        """Record that a local job started, or that a job got its number in the queue."""
        self._append(
            "started",
            job=record.job,
            cluster=record.cluster,
            id=record.id,
            log=str(record.log),
            host=socket.gethostname(),
            parents=record.parents,
            identity=record.identity,
            cluster_name=record.cluster_name,
        )

    def ended(self, job: str, code: int) -> None:
        """Record that a local job ended."""
        self._append("ended", job=job, code=code)

    def cancelled(self, jobs: Iterable[str]) -> None:
        """Record that a user cancelled these jobs."""
        for job in jobs:
            self._append("cancelled", job=job)

    def cancelled_jobs(self) -> set[str]:
        """Jobs that a user cancelled and that were not started since, submitted or not."""
        found: set[str] = set()
        for line in self._lines():
            if line.event == "cancelled":
                found.add(line.job)
            elif line.event == "started":
                found.discard(line.job)
        return found

    def announce(self, group: str, jobs: Iterable[str]) -> None:
        """Record that these jobs are about to be submitted together, with this comment."""
        self._append("announced", group=group, jobs=list(jobs))

    def numbered(self, group: str) -> None:
        """Record that all jobs of the group have numbers."""
        self._append("numbered", group=group)

    def lost_groups(self) -> set[str]:
        """Groups whose submission was interrupted before their numbers were recorded."""
        lines = self._lines()
        numbered = {line.group for line in lines if line.event == "numbered"}
        return {line.group for line in lines if line.event == "announced"} - numbered

    def latest(self) -> dict[str, Record]:
        """The latest start of every job, by name."""
        found: dict[str, Record] = {}
        for line in self._lines():
            before = found.get(line.job)
            if line.event == "started":
                found[line.job] = _record(line, 1 if before is None else before.starts + 1)
            elif line.event == "ended" and before is not None:
                found[line.job] = replace(before, code=line.code)
            elif line.event == "cancelled" and before is not None:
                found[line.job] = replace(before, cancelled=True)
        return found

    def damaged(self) -> list[str]:
        """A sentence on each line that cannot be read."""
        return [f"warning: {self._path} is damaged and read without {reason}" for reason in self._read()[1]]

    def _lines(self) -> list[JobEvent]:
        return self._read()[0]

    def _read(self) -> tuple[list[JobEvent], list[str]]:
        try:
            return read_lines(self._path, JobEvent)
        except OSError as error:
            raise InputError(f"{self._path} cannot be read ({error.strerror or error}). Look at it") from error

    def _append(self, event: Literal["started", "ended", "cancelled", "announced", "numbered"], **fields: Any) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        append_json(self._path, {"event": event, "time": time.time(), **fields})


def _record(line: JobEvent, starts: int) -> Record:
    return Record(
        job=line.job,
        cluster=line.cluster,
        id=line.id,
        log=Path(line.log),
        host=line.host,
        time=line.time,
        parents=line.parents or {},
        identity=line.identity,
        starts=starts,
        cluster_name=line.cluster_name,
    )


def last_lines(record: Record | None, count: int) -> list[str]:
    """The last lines of a job's log that are not empty; [] without a log."""
    if record is None or not record.log.is_file():
        return []
    with record.log.open("rb") as file:
        file.seek(max(0, record.log.stat().st_size - TAIL_BYTES))
        lines = file.read().decode(errors="replace").splitlines()
    return [line.rstrip() for line in lines if line.strip()][-count:]
