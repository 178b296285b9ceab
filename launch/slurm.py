"""SLURM as a scheduler: `sbatch` through submitit, one `squeue` for all that is alive, `sacct` for the rest.

squeue is asked for jobs of every state: those that ended within MinJobAge (five minutes, unless the cluster says
otherwise) are still there. What it does not know is asked of the accounting, once for a state that is final, and less
and less often for a job that the accounting does not know either: watching a sweep must not load the database.
"""

from __future__ import annotations

import functools
import os
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from simdist.cluster.discovery import Limits
from simdist.core.requeue import requeue
from simdist.core.slurm import expand_nodes

from .scheduler import JobArray, JobId, JobStatus, LimitReachedError, NoAnswerError, Phase, SchedulerError

if TYPE_CHECKING:  # submitit takes half a second to import
    from .batch_scripts import BatchContext

Command = Callable[[Sequence[str]], str]
"""Runs a command and returns what it printed; raises OSError or SubprocessError."""
SECONDS = 60.0  # a slurmctld that is busy with a large array may take half of it
JOBS_PER_CALL = 2000  # numbers of arrays and jobs in one question: Linux takes arguments of 128 KiB
RUNNING = ("RUNNING", "COMPLETING", "CONFIGURING", "SIGNALING", "STAGE_OUT", "RESIZING", "SUSPENDED", "STOPPED")
QUEUED = ("PENDING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "SPECIAL_EXIT", "RESV_DEL_HOLD")
INTERRUPTED = ("PREEMPTED", "NODE_FAIL", "TIMEOUT", "BOOT_FAIL", "DEADLINE", "REVOKED")
FILTERS = ("SQUEUE_", "SACCT_", "SCANCEL_")
NEVER = "DependencyNeverSatisfied"
LIMIT = re.compile(r"(QOS|Assoc)\w*Submit\w*|MaxJobCount|temporarily unable to accept", re.IGNORECASE)
FIRST_RETRY, LAST_RETRY = 15.0, 1800.0  # seconds until the accounting is asked again for what it does not know


@dataclass
class _Unknown:
    """A job that the accounting does not know: when to ask again."""

    wait: float
    again: float


@dataclass
class SlurmScheduler:
    """SLURM, asked by its own commands.

    Args:
        context: what batch scripts are made of; None where nothing is submitted.
        given_limits: how much may be submitted.
        run: runs a command.
        clock: seconds that only grow.
    """

    context: BatchContext | None = None
    given_limits: Limits = field(default_factory=Limits)
    run: Command = field(default_factory=lambda: call)
    clock: Callable[[], float] = time.monotonic
    _ended: dict[JobId, JobStatus] = field(default_factory=dict)
    _unknown: dict[JobId, _Unknown] = field(default_factory=dict)

    def submit(self, array: JobArray, tag: str) -> list[JobId]:
        """One `sbatch`."""
        from submitit.core.utils import FailedJobError

        from .batch_scripts import batch_executor

        assert self.context is not None, "a scheduler that only looks cannot submit"
        executor = batch_executor(self.context, array, tag)
        try:
            numbers = executor.submit_jobs(self.context.tasks(array))
        except (FailedJobError, OSError, subprocess.SubprocessError) as error:
            text = said(error)
            if LIMIT.search(text):
                raise LimitReachedError(f"SLURM accepts no more jobs now: {text}") from error
            raise SchedulerError(f"sbatch rejected stage {array.stage}: {text}", f"See {executor.folder}") from error
        cluster = executor.cluster or self.cluster_name
        return [JobId(number, cluster) for number in numbers]

    def look(self, ids: Iterable[JobId]) -> dict[JobId, JobStatus]:
        """One `squeue` for each cluster, and at most one `sacct`."""
        wanted = list(dict.fromkeys(ids))
        found: dict[JobId, JobStatus] = {}
        for cluster, part in self._by_cluster(wanted).items():
            queue = self._queue(cluster)
            found |= {id: queue[id.number] for id in part if id.number in queue}
        for id, status in found.items():
            self._unknown.pop(id, None)
            if status.is_alive:
                self._ended.pop(id, None)  # requeued: what was final is not
            else:
                self._ended[id] = status  # squeue forgets it after MinJobAge
        missing = [id for id in wanted if id not in found and id not in self._ended]
        now = self.clock()
        found |= self._ask_accounting(
            [id for id in missing if id not in self._unknown or now >= self._unknown[id].again]
        )
        gone = JobStatus("gone", "it left the queue, and the accounting has no record of it")
        return {id: found.get(id) or self._ended.get(id, gone) for id in wanted}

    def cancel(self, ids: Sequence[JobId]) -> None:
        """`scancel`; jobs that have ended are no error."""
        for cluster, part in self._by_cluster(ids).items():
            for begin in range(0, len(part), JOBS_PER_CALL):
                numbers = [id.number for id in part[begin : begin + JOBS_PER_CALL]]
                try:
                    self.run(["scancel", *_on(cluster), "--quiet", *numbers])
                except (OSError, subprocess.SubprocessError) as error:
                    raise SchedulerError(f"scancel failed ({said(error)}); try `scancel {numbers[0]}`") from error

    def limits(self) -> Limits:
        """The limits found in the cluster (`simdist.cluster`)."""
        return self.given_limits

    def num_submitted(self) -> int:
        """Tasks of this user in the queue of the cluster that jobs go to."""
        return sum(status.is_alive for status in self._queue(self._target).values())

    def tagged(self, tags: Collection[str]) -> list[JobId]:
        """Found by their comment, which contains the tag as a separate word."""
        words = set(tags)
        rows = self._rows(self._target)
        return [
            JobId(row[0], self._target) for row in rows if row[1] in (*RUNNING, *QUEUED) and words & set(row[4].split())
        ]

    def requeue(self, requeues: int, limit: int) -> tuple[bool, str]:
        """Uses `simdist.core.requeue`, as training does."""
        return requeue(os.environ, requeues, limit)

    def hosts(self) -> list[str]:
        """The nodes of this job."""
        return expand_nodes(os.environ["SLURM_JOB_NODELIST"])

    @functools.cached_property
    def cluster_name(self) -> str:
        """ClusterName of the cluster that this machine submits to; empty if it does not say."""
        found = re.search(r"^ClusterName *= *(\S+)", self._try("scontrol", "show", "config"), re.MULTILINE)
        return found[1] if found else ""

    @property
    def _target(self) -> str:
        """The cluster that the profile names for its jobs; empty for the default one."""
        return str(self.context.profile.extra.get("clusters", "")) if self.context else ""

    def _try(self, *words: str) -> str:
        """Output of a command; empty if it fails, for clusters without accounting."""
        try:
            return self.run(list(words))
        except (OSError, subprocess.SubprocessError):
            return ""

    def _by_cluster(self, ids: Iterable[JobId]) -> dict[str, list[JobId]]:
        """Jobs by cluster, as `-M` takes it; empty for the default cluster."""
        found: dict[str, list[JobId]] = {}
        for id in ids:
            name = "" if not id.cluster or id.cluster == self.cluster_name else id.cluster
            found.setdefault(name, []).append(id)
        return found

    def _rows(self, cluster: str) -> list[list[str]]:
        words = ["squeue", *_on(cluster), "--me", "--all", "--noheader", "--array", "--states=all"]
        try:
            text = self.run([*words, "--format=%i|%T|%r|%N|%k"])
        except (OSError, subprocess.SubprocessError) as error:
            where = f" on cluster {cluster}" if cluster else ". Is this a login node, and is SLURM running?"
            raise NoAnswerError(f"squeue failed{where} ({said(error)})") from error
        return [line.split("|", 4) for line in text.splitlines() if line.count("|") >= 4]

    def _queue(self, cluster: str) -> dict[str, JobStatus]:
        return {row[0]: _status(*row[1:4]) for row in self._rows(cluster)}

    def _ask_accounting(self, ids: list[JobId]) -> dict[JobId, JobStatus]:
        """Jobs that are alive; caches final states, and queries missing ones again later."""
        alive: dict[JobId, JobStatus] = {}
        for cluster, part in self._by_cluster(ids).items():
            numbers = list(dict.fromkeys(id.array.number for id in part))[:JOBS_PER_CALL]  # the rest at the next look
            words = ["sacct", *_on(cluster), "--noheader", "--parsable2", "--allocations"]
            text = self._try(*words, f"--jobs={','.join(numbers)}", "--format=JobID,State,ExitCode,NodeList")
            rows = {row[0]: row[1:] for row in (line.split("|") for line in text.splitlines()) if len(row) == 4}
            for id in part:
                status = _accounted(*rows[id.number]) if id.number in rows else None
                if status is not None and status.is_alive:  # it lags behind: look again soon
                    alive[id] = status
                elif status is not None:
                    self._ended[id] = status
                    self._unknown.pop(id, None)
                elif id.array.number in numbers:
                    wait = min(2 * self._unknown[id].wait, LAST_RETRY) if id in self._unknown else FIRST_RETRY
                    self._unknown[id] = _Unknown(wait, self.clock() + wait)
        return alive


def call(words: Sequence[str]) -> str:
    """Run a SLURM command and return its output, without the user's variables that filter it."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(FILTERS)}
    return subprocess.run(words, capture_output=True, text=True, timeout=SECONDS, check=True, env=clean).stdout


def has_slurm() -> bool:
    """Whether SLURM's commands are on this machine."""
    return shutil.which("squeue") is not None


def said(error: Exception) -> str:
    """The message of a failed command, in one line; also of one that was given up, whose output is bytes."""
    text = getattr(error, "stderr", None) or str(error)
    text = text.decode(errors="replace") if isinstance(text, bytes) else str(text)
    return re.sub(r"\s*\n\s*", " ", text).strip()


def _on(cluster: str) -> list[str]:
    return [f"--clusters={cluster}"] if cluster else []


def _status(state: str, reason: str, nodes: str) -> JobStatus:
    """One line of squeue."""
    if state in QUEUED:
        shown = "" if reason in ("None", "(null)") else reason
        return JobStatus("blocked" if state == "PENDING" and reason == NEVER else "queued", shown, nodes)
    if state in RUNNING:
        return JobStatus("running", "", nodes)
    ended = _ended_as(state)
    return replace(ended, reason=NEVER, nodes=nodes) if reason == NEVER else replace(ended, nodes=nodes)


def _accounted(state: str, code: str, nodes: str) -> JobStatus:
    """One line of sacct; `CANCELLED by 0` is CANCELLED, exit code `0:9` is 137."""
    state = state.split(" ")[0]
    if state in (*RUNNING, *QUEUED):
        return JobStatus("queued", "leaving the queue", nodes)
    first, _, killed = code.partition(":")
    number = int(first or 0) or (128 + int(killed) if killed not in ("", "0") else 0)
    return replace(_ended_as(state), nodes=nodes, code=number)


def _ended_as(state: str) -> JobStatus:
    """The status of an ended job in SLURM's terms."""
    words = state.lower().replace("_", " ")
    phases: dict[str, Phase] = {"COMPLETED": "completed", "CANCELLED": "cancelled"}
    if state in INTERRUPTED:
        return JobStatus("interrupted", words)
    if state == "OUT_OF_MEMORY":
        return JobStatus("failed", "out of memory. Increase `mem` in the resources of the stage")
    return JobStatus(phases.get(state, "failed"), words)
