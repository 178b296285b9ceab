"""Processes of one cluster: started so that they can be found again, asked, and killed."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from slurm.testbed.settings import Layout

MARK = "SIMDIST_TESTBED"  # in the environment of every daemon: whose it is
NODE = "SIMDIST_TESTBED_NODE"  # in that of a slurmd and of the steps it starts
PATIENCE = 90.0  # seconds that a daemon may take to answer; it takes about one
ANSWER = 30.0  # seconds that one question may take


class TestbedError(Exception):
    """Why there is no cluster, and what to do."""


def start_daemon(
    at: Layout, program: str, *words: str, name: str | None = None, environment: dict[str, str] | None = None
) -> None:
    """Start a daemon as nobody's child, in a session of its own, so that Ctrl-C at the terminal does not reach it."""
    output = at.log(name or program).with_suffix(".out")  # SLURM's daemons also write logs of their own
    with output.open("ab") as log:
        words = ("setsid", "--fork", program, *words)
        clean = environment_of(at) | (environment or {})
        subprocess.run(words, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=clean, check=True)


def environment_of(at: Layout) -> dict[str, str]:
    """What daemons and commands run with: this cluster's, and nothing of a job that `up` may run in."""
    clean = {key: value for key, value in os.environ.items() if not key.startswith(("SLURM", "MUNGE", "MYSQL"))}
    return clean | {"SLURM_CONF": str(at.conf), MARK: str(at.root)}


def await_answer(daemon: str, answers: Callable[[], bool]) -> None:
    """Wait until a daemon answers; raises `TestbedError` if it does not."""
    deadline = time.monotonic() + PATIENCE
    while not answers():
        if time.monotonic() > deadline:
            raise TestbedError(f"{daemon} did not answer within {PATIENCE:.0f} s; the end of its log is above")
        time.sleep(0.1)


def ask(at: Layout, *words: str) -> str:
    """Output of a command on this cluster; empty if it does not end."""
    try:
        return subprocess.run(words, capture_output=True, text=True, env=environment_of(at), timeout=ANSWER).stdout
    except subprocess.TimeoutExpired:  # a daemon that is starting, on a machine that is busy
        return ""


def succeeds(at: Layout, *words: str) -> bool:
    """Whether a command on this cluster ends with 0."""
    try:
        return not subprocess.run(words, capture_output=True, env=environment_of(at), timeout=ANSWER).returncode
    except subprocess.TimeoutExpired:
        return False


def listens(port: int) -> bool:
    """Whether somebody listens on a port of this machine."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def kill(pid: int) -> None:
    """End a process at once; it may be gone already."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def find_processes(root: Path) -> Iterator[tuple[int, list[bytes]]]:
    """Daemons of the cluster and steps that they started, and the tasks of its jobs; zombies have no environment."""
    mark = f"{MARK}={root}".encode()
    conf = f"SLURM_CONF={root / 'etc' / 'slurm.conf'}".encode()
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit() or int(folder.name) in (os.getpid(), os.getppid()):
            continue
        with contextlib.suppress(OSError):
            environment = (folder / "environ").read_bytes().split(b"\0")
            is_task = conf in environment and any(entry.startswith(b"SLURM_JOB_ID=") for entry in environment)
            if mark in environment or is_task:
                yield int(folder.name), environment
