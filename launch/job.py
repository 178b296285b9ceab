"""Run one simdist command inside a job, and write a marker when it succeeds.

`python -m launch.job MARKER LOCK COMMAND ARGUMENT…` on this machine (`-` for no marker or no lock), `Task` on SLURM.

submitit's signal handlers do not act here. Its `checkpoint()` would run on rank 0 alone, between any two lines of a
training step, and must never run a collective; so a `Task` has none, and first of all replaces the handlers. Until the
command has put up its own, which save at the end of a step, there is nothing to save, and a signal ends the process
with 75, run me again.

A job on SLURM writes down how it ended (`launch.endings`) and asks to be requeued, whatever its command: from here when
the command returned, or from the end of the batch script when its processes were killed.
"""

from __future__ import annotations

import ctypes
import fcntl
import importlib
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from simdist.core.console import run
from simdist.core.errors import EXIT_FAILED, EXIT_OK, EXIT_PREEMPTED
from simdist.core.files import write_json
from simdist.core.requeue import requeue_if_dying

from .endings import Ending, conclude, restarts

NOTHING = "-"
ASKS_ITSELF = ("train", "decode")  # to be requeued, once everything is saved; the end of the batch script is second
ASKED_TO_END = (signal.SIGTERM, signal.SIGUSR2)
PARENT = "SIMDIST_SWEEP_PID"  # set by the sweep that started this process
PR_SET_PDEATHSIG = 1


@dataclass(frozen=True)
class Task:
    """A job as submitit pickles it."""

    command: tuple[str, ...]
    marker: str | None = None
    folder: str = ""
    """What the job writes to, in which its progress shows."""
    max_requeues: int = 0

    def __call__(self) -> None:
        """Run the command; the process ends with its exit code."""
        marker = Path(self.marker) if self.marker else None
        if not _is_first_rank():
            sys.exit(work(self.command, marker))
        ending = Ending.of_this_job(Path(os.environ["SUBMITIT_FOLDER"]))
        ending.begin(Path(self.folder))

        def end(code: int) -> None:
            ending.end(code)
            if code == EXIT_PREEMPTED and self.command[0] not in ASKS_ITSELF:
                conclude(ending, code, self.max_requeues)

        with _requeued_when_dying(self.max_requeues):
            code = work(self.command, marker, lambda: end(EXIT_PREEMPTED))
        end(code)
        sys.exit(code)


def work(command: Sequence[str], marker: Path | None, before_leaving: Callable[[], None] = lambda: None) -> int:
    """Run `simdist.COMMAND` with its arguments in this process; returns its exit code.

    Args:
        command: the command's name, then its arguments.
        marker: written when it returns 0, by the first of several ranks.
        before_leaving: called if a signal ends the process before the command listens for signals.
    """

    def leave(number: int, frame: FrameType | None) -> None:
        """Not by an exception: below it may be torch's C++ at its import, which aborts the process then."""
        del number, frame
        before_leaving()
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError, ValueError):
                stream.flush()
        os._exit(EXIT_PREEMPTED)

    for number in ASKED_TO_END:
        signal.signal(number, leave)
    begin = time.time()
    code = _run(command)
    if code == EXIT_OK and marker is not None and _is_first_rank():
        marker.parent.mkdir(parents=True, exist_ok=True)
        seconds = time.time() - begin
        place = {"host": socket.gethostname(), "partition": os.environ.get("SLURM_JOB_PARTITION")}
        write_json(marker, {"command": list(command), "seconds": seconds, "time": begin, **place})
    return code


def _run(command: Sequence[str]) -> int:
    name, *arguments = command
    sys.argv = [f"simdist.{name}", *arguments]  # what a run's environment.json records
    try:
        run(importlib.import_module(f"simdist.{name}.__main__").main, arguments)
    except SystemExit as ended:
        if isinstance(ended.code, str):
            print(ended.code, file=sys.stderr)
            return EXIT_FAILED
        return ended.code or EXIT_OK


def _is_first_rank() -> bool:
    return os.environ.get("RANK", os.environ.get("SLURM_PROCID", "0")) == "0"


@contextmanager
def _requeued_when_dying(limit: int) -> Iterator[None]:
    """Request a requeue as soon as SIGTERM arrives, if the preemption has no grace time.

    Python's handlers run between two steps of the interpreter, which may be long in coming; the number of a signal goes
    into this pipe at once, and a thread of its own reads it.
    """
    read, write = os.pipe()
    os.set_blocking(write, False)
    before = signal.set_wakeup_fd(write, warn_on_full_buffer=False)

    def watch() -> None:
        while numbers := os.read(read, 64):
            if signal.SIGTERM in numbers and requeue_if_dying(os.environ, restarts(), limit):
                return

    threading.Thread(target=watch, name="requeue", daemon=True).start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)
        os.close(write)


# --- on this machine --------------------------------------------------------------------------------------------------


def main(argv: Sequence[str]) -> int:
    """A job that a sweep started on this machine; returns the exit code."""
    marker, lock, *command = argv
    _end_with_parent()
    with _held(lock):
        return work(command, None if marker == NOTHING else Path(marker))


def _end_with_parent() -> None:
    """Let the jobs of a killed sweep get SIGTERM, so that they save and the next sweep continues them."""
    parent = os.environ.get(PARENT)
    if parent is None or not sys.platform.startswith("linux"):
        return
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != int(parent):  # it died before
        sys.exit(EXIT_PREEMPTED)


@contextmanager
def _held(path: str) -> Iterator[None]:
    """Hold a lock file; of a sweep that was killed, a job may still be saving, and the next one waits for it."""
    if path == NOTHING:
        yield
        return
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a") as file:
        with suppress(OSError):  # a file system without locks
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                print("an earlier process of this job is still ending; waiting for it", flush=True)
                fcntl.flock(file, fcntl.LOCK_EX)
        yield


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
