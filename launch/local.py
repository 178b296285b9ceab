"""A sweep on this machine: so many processes at a time, children after their parents.

Ctrl-C asks every running job to save and end; the same command goes on. If the sweep itself is killed, its jobs get
SIGTERM from the kernel, save, and free their locks, for which their successors wait (`launch.job`).
"""

from __future__ import annotations

import itertools
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from simdist.errors import EXIT_FAILED, EXIT_OK, EXIT_PREEMPTED
from simdist.stopping import Stop, exit_code

from .graph import blocked_by, done_jobs, ready
from .job import NOTHING, PARENT
from .naming import CODE, JOB_MODULE
from .plan import Job, Plan
from .records import Record, Records

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
class _Running:
    job: Job
    process: subprocess.Popen[bytes]
    device: str | None
    since: float


class LocalExecutor:
    """Runs a plan as processes of this machine.

    Args:
        plan: the graph.
        jobs: processes at a time.
        say: takes a line for the person at the terminal.
        stop: asked between two looks at the processes.
        devices: GPUs that jobs take turns on, one each; none for the CPU.
    """

    def __init__(
        self, plan: Plan, jobs: int, say: Callable[[str], None], stop: Stop, devices: tuple[str, ...] = ()
    ) -> None:
        self._plan, self._jobs, self._say, self._stop = plan, jobs, say, stop
        self._devices = list(devices)
        self._records = Records(plan.folder)
        self._running: dict[str, _Running] = {}
        self._starts = dict.fromkeys(plan.jobs, 0)
        self._outcome = Outcome()

    def run(self) -> Outcome:
        """Do what is missing, until all is done, nothing more can be, or a signal comes."""
        outcome = self._outcome
        outcome.done = done_jobs(self._plan)
        waiting = [name for name in self._plan.jobs if name not in outcome.done]
        while (waiting or self._running) and not self._stop.signal_number:
            hopeless = {*outcome.failed, *blocked_by(self._plan, outcome.failed)}
            waiting = [name for name in waiting if name not in hopeless]
            for name in list(waiting):
                if len(self._running) < self._jobs and ready(self._plan, name, outcome.done, hopeless):
                    waiting.remove(name)
                    self._start(self._plan.jobs[name])
            if not self._running:
                break
            time.sleep(POLL_SECONDS)
            waiting += [name for name in list(self._running) if self._collect(name) == EXIT_PREEMPTED]
        if self._stop.signal_number:
            outcome.signal_number = self._stop.signal_number
            self._end_all(outcome.signal_number)
        return outcome

    def _start(self, job: Job) -> None:
        log = self._plan.folder / "logs" / f"{job.name}.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        lock = self._plan.folder / "locks" / f"{job.name}.lock"
        words = [str(job.marker or NOTHING), str(lock), *job.command]
        device = self._devices.pop(0) if self._devices else None
        with log.open("ab") as file:
            process = subprocess.Popen(
                [sys.executable, "-m", JOB_MODULE, *words],
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                env=self._environment(device),
                start_new_session=True,  # the terminal's Ctrl-C reaches the sweep, which then asks its jobs
            )
        self._running[job.name] = _Running(job, process, device, time.monotonic())
        self._starts[job.name] += 1
        self._records.started(Record(job.name, "local", str(process.pid), log, identity=job.identity))
        self._say(f"{job.name} started")

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

    def _collect(self, name: str) -> int | None:
        """The exit code of a job that has ended, written down and said; None while it runs."""
        running = self._running[name]
        code = running.process.poll()
        if code is None:
            return None
        del self._running[name]
        if running.device is not None:
            self._devices.append(running.device)
        self._records.ended(name, code)
        job, seconds = running.job, time.monotonic() - running.since
        missing = [str(path) for path in job.done if not path.exists()]
        if code == EXIT_OK and not missing:
            self._outcome.done.add(name)
            self._say(f"{name} finished in {seconds:.0f} s ({len(self._outcome.done)} of {len(self._plan.jobs)})")
        elif code == EXIT_PREEMPTED and self._starts[name] < MAX_STARTS:
            self._say(f"{name} was preempted after {seconds:.0f} s; it goes on in a moment")
            return code
        else:
            self._outcome.failed[name] = code
            wrote = f", without {missing[0]}" if code == EXIT_OK else ""
            self._say(f"{name} failed with exit code {code}{wrote}")
        return EXIT_FAILED if name in self._outcome.failed else EXIT_OK

    def _end_all(self, number: int) -> None:
        """Hand the signal on, and wait until every job has saved; a second signal to this process ends it at once."""
        self._say(
            f"asking {len(self._running)} running jobs to save and end" if self._running else "nothing was running"
        )
        for running in self._running.values():
            running.process.send_signal(signal.SIGTERM if number != signal.SIGINT else signal.SIGINT)
        for name, running in self._running.items():
            code = running.process.wait()
            self._records.ended(name, code)
            self._say(f"{name} ended with exit code {code}")


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
