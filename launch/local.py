"""This machine as a scheduler: a fixed number of processes at a time, children after their parents; or this process.

Ctrl-C asks every running job to save and end; the same command resumes. If the sweep itself is killed, its jobs get
SIGTERM from the kernel, save, and free their locks, for which their successors wait (`launch.job`).
"""

from __future__ import annotations

import itertools
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from simdist.cluster.discovery import Limits
from simdist.core.errors import EXIT_FAILED, EXIT_INTERRUPTED, EXIT_OK, EXIT_PREEMPTED
from simdist.core.signals import SignalHandler, exit_code

from .job import NOTHING, PARENT, work
from .naming import CODE, JOB_MODULE
from .plan import Job, Plan
from .records import Record, Records
from .scheduler import JobArray, JobId, JobStatus
from .states import blocked_by, done_jobs

POLL_SECONDS = 0.2
MAX_STARTS = 20  # of one job that is preempted again and again, in one sweep command


@dataclass
class Outcome:
    """How a sweep ended on this machine."""

    done: set[str] = field(default_factory=set)
    failed: dict[str, int] = field(default_factory=dict)
    """Exit codes."""
    signal_number: int = 0

    @property
    def code(self) -> int:
        """The sweep's exit code."""
        if self.signal_number:
            return exit_code(self.signal_number)
        return EXIT_FAILED if self.failed else EXIT_OK


@dataclass
class _Entry:
    """A job that was submitted."""

    job: Job
    after_success: tuple[JobId, ...]
    after_end: tuple[JobId, ...]
    status: JobStatus = field(default_factory=lambda: JobStatus("queued"))
    process: subprocess.Popen[bytes] | None = None
    device: str | None = None
    starts: int = 0
    since: float = 0.0


class LocalScheduler:
    """Runs jobs as processes of this machine, inside repeated calls of `advance`.

    Args:
        folder: the sweep's folder, for logs, locks and records.
        jobs: processes at a time.
        log: takes a line for the person at the terminal.
        devices: GPUs that jobs take turns on, one each; none for the CPU.
        num_done: jobs of the sweep that were done before, for the count at the terminal.
    """

    def __init__(
        self, folder: Path, jobs: int, log: Callable[[str], None], devices: Sequence[str] = (), num_done: int = 0
    ) -> None:
        self._folder, self._jobs, self._log, self._num_done = folder, jobs, log, num_done
        self._devices = list(devices)
        self._records = Records(folder)
        self._entries: dict[JobId, _Entry] = {}

    def submit(self, array: JobArray, tag: str = "") -> list[JobId]:
        """Put jobs at the end of the queue; nothing carries a tag, since no submission can be cut off."""
        ids = [JobId(job.name) for job in array.jobs]
        for id, job in zip(ids, array.jobs, strict=True):
            self._entries[id] = _Entry(job, array.after_success, array.after_end)
        return ids

    def look(self, ids: Iterable[JobId]) -> dict[JobId, JobStatus]:
        """The status of these jobs."""
        return {id: self._entries[id].status if id in self._entries else JobStatus("gone") for id in ids}

    def cancel(self, ids: Sequence[JobId], number: signal.Signals = signal.SIGTERM) -> None:
        """Signal running jobs and wait until they have saved; remove the others from the queue."""
        entries = [self._entries[id] for id in ids if id in self._entries]
        for entry in entries:
            if entry.process is not None:
                entry.process.send_signal(number)
        for entry in entries:
            if entry.process is not None:
                code = self._end(entry, entry.process.wait())
                self._log(f"{entry.job.name} ended with exit code {code}")
                if code == EXIT_OK and all(path.exists() for path in entry.job.done):  # it was about to end anyway
                    entry.status = JobStatus("completed", code=code)
            elif entry.status.is_alive:
                entry.status = JobStatus("cancelled", code=entry.status.code)

    def limits(self) -> Limits:
        """There is none."""
        return Limits()

    def num_submitted(self) -> int:
        """Number of queued and running jobs."""
        return sum(entry.status.is_alive for entry in self._entries.values())

    def tagged(self, tags: Collection[str]) -> list[JobId]:
        """None: jobs of a sweep that was killed have ended with it."""
        return []

    def requeue(self, requeues: int, limit: int) -> tuple[bool, str]:
        """Nothing to do: a job that ends with 75 is restarted anyway."""
        return requeues < limit, ""

    def hosts(self) -> list[str]:
        """This machine."""
        return [socket.gethostname()]

    def advance(self) -> bool:
        """Handle ended processes and start ready jobs; returns whether any job is left."""
        for entry in self._entries.values():
            code = entry.process.poll() if entry.process else None
            if code is not None:
                self._conclude(entry, self._end(entry, code))
        for entry in self._entries.values():
            if entry.status.phase == "queued":
                self._consider(entry)
        return any(entry.process for entry in self._entries.values())

    def _consider(self, entry: _Entry) -> None:
        """Start a job whose parents are done, where there is room; one that a parent failed of never runs."""
        needed = [self._entries[id].status for id in entry.after_success]
        if any(not status.is_alive and status.phase != "completed" for status in needed):
            entry.status = JobStatus("cancelled", "what it depends on failed")
            return
        waited = [*needed, *(self._entries[id].status for id in entry.after_end)]
        running = sum(other.process is not None for other in self._entries.values())
        if running < self._jobs and not any(status.is_alive for status in waited):
            self._start(entry)

    def _start(self, entry: _Entry) -> None:
        job = entry.job
        log = self._folder / "logs" / f"{job.name}.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        lock = self._folder / "locks" / f"{job.name}.lock"
        words = [str(job.marker or NOTHING), str(lock), *job.command]
        entry.device = self._devices.pop(0) if self._devices else None
        with log.open("ab") as file:
            entry.process = subprocess.Popen(
                [sys.executable, "-m", JOB_MODULE, *words],
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                env=self._environment(entry.device),
                start_new_session=True,  # the terminal's Ctrl-C reaches the sweep, which then asks its jobs
            )
        entry.status, entry.since = JobStatus("running", nodes=socket.gethostname()), time.monotonic()
        entry.starts += 1
        self._records.started(Record(job.name, "local", str(entry.process.pid), log, identity=job.identity))
        self._log(f"{job.name} started")

    def _environment(self, device: str | None) -> dict[str, str]:
        threads = str(max(1, (os.cpu_count() or 1) // self._jobs))
        environment = {"OMP_NUM_THREADS": threads, **os.environ}
        path = environment.get("PYTHONPATH")
        environment |= {
            "PYTHONPATH": f"{CODE}{os.pathsep}{path}" if path else str(CODE),
            "PYTHONUNBUFFERED": "1",
            PARENT: str(os.getpid()),
        }
        return environment | ({"CUDA_VISIBLE_DEVICES": device} if device is not None else {})

    def _end(self, entry: _Entry, code: int) -> int:
        """Free the GPU of an ended process and record its exit code."""
        entry.process = None
        if entry.device is not None:
            self._devices.append(entry.device)
        self._records.ended(entry.job.name, code)
        saved = code in (EXIT_PREEMPTED, EXIT_INTERRUPTED)
        entry.status = JobStatus("interrupted" if saved else "failed", code=code)
        return code

    def _conclude(self, entry: _Entry, code: int) -> None:
        """Act on an exit code: done, restart, or failed."""
        job, seconds = entry.job, time.monotonic() - entry.since
        missing = [str(path) for path in job.done if not path.exists()]
        if code == EXIT_OK and not missing:
            entry.status = JobStatus("completed", code=code)
            done = self._num_done + sum(other.status.phase == "completed" for other in self._entries.values())
            total = self._num_done + len(self._entries)
            self._log(f"{job.name} finished in {seconds:.0f} s ({done} of {total})")
        elif code == EXIT_PREEMPTED and entry.starts < MAX_STARTS:
            entry.status = JobStatus("queued", "preempted")
            self._log(f"{job.name} was preempted after {seconds:.0f} s; restarting it")
        else:
            wrote = f", without {missing[0]}" if code == EXIT_OK else ""
            self._log(f"{job.name} failed with exit code {code}{wrote}")


def run_locally(
    plan: Plan, jobs: int, log: Callable[[str], None], stop: SignalHandler, devices: Sequence[str] = ()
) -> Outcome:
    """Run the missing jobs of a sweep on this machine, until none can run or a signal arrives.

    Args:
        plan: the graph.
        jobs: processes at a time.
        log: takes a line for the person at the terminal.
        stop: asked between two looks at the processes.
        devices: GPUs that jobs take turns on.
    """
    done = done_jobs(plan)
    scheduler = LocalScheduler(plan.folder, jobs, log, devices, len(done))
    submitted: list[JobId] = []
    for job in plan.jobs.values():  # parents stand before their children
        if job.name not in done:
            waits = tuple(JobId(parent) for parent in job.parents if parent not in done)
            success, end = ((), waits) if job.runs_after_failure else (waits, ())
            submitted += scheduler.submit(JobArray((job,), after_success=success, after_end=end))
    while not stop.signal_number and scheduler.advance():
        time.sleep(POLL_SECONDS)
    if stop.signal_number:
        running = [id for id, status in scheduler.look(submitted).items() if status.phase == "running"]
        log(f"asking {len(running)} running jobs to save and end" if running else "nothing was running")
        scheduler.cancel(running, signal.SIGINT if stop.signal_number == signal.SIGINT else signal.SIGTERM)
    outcome = Outcome(done, signal_number=stop.signal_number)
    for id, status in scheduler.look(submitted).items():
        if status.phase == "completed":
            outcome.done.add(id.number)
        elif status.phase == "failed" or (status.phase == "interrupted" and not stop.signal_number):
            outcome.failed[id.number] = EXIT_FAILED if status.code in (EXIT_OK, None) else status.code
    return outcome


def visible_gpus(environ: Mapping[str, str]) -> tuple[str, ...]:
    """The GPUs of this machine, as CUDA_VISIBLE_DEVICES names them; () without any."""
    if environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true", "yes"):
        return ()
    if "CUDA_VISIBLE_DEVICES" in environ:
        names = (name.strip() for name in environ["CUDA_VISIBLE_DEVICES"].split(","))
        return tuple(itertools.takewhile(lambda name: name not in ("", "-1", "NoDevFiles"), names))
    if shutil.which("nvidia-smi") is None:
        return ()
    command = ["nvidia-smi", "--query-gpu=index", "--format=csv,noheader"]
    listed = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    return tuple(listed.stdout.split()) if listed.returncode == 0 else ()


# --- --cluster debug --------------------------------------------------------------------------------------------------


def run_here(plan: Plan, log: Callable[[str], None]) -> Outcome:
    """Run the missing jobs in this process, one after the other, until the first preemption or Ctrl-C."""
    outcome = Outcome(done=done_jobs(plan))
    for job in plan.jobs.values():
        if job.name in outcome.done or job.name in blocked_by(plan, outcome.failed):
            continue  # the others' parents stand before them: they are done, or failed and the job is a report
        log(f"{job.name}: python -m simdist.{' '.join(job.command)}")
        code = work(job.command, job.marker)
        accelerate = sys.modules.get("accelerate.state")
        if accelerate is not None:  # it keeps one state and precision per process
            accelerate.AcceleratorState._reset_state(reset_partial_state=True)
            accelerate.GradientState._reset_state()
        if code in (EXIT_PREEMPTED, EXIT_INTERRUPTED):
            outcome.signal_number = 2 if code == EXIT_INTERRUPTED else 15
            break
        if code == EXIT_OK:
            outcome.done.add(job.name)
        else:
            outcome.failed[job.name] = code
    return outcome
