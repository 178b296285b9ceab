"""A run that makes no progress ends by itself: real processes that hang, are stopped and are killed."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from simdist.training.watchdog import Watchdog

HEAD = """
    import ctypes, os, sys, threading, time
    from pathlib import Path
    from simdist.training.watchdog import Watchdog

    folder, rank, num_ranks = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    watchdog = Watchdog(0.6, folder, rank, num_ranks)
    watchdog.started()
    def wait_for_a_rank_that_is_gone():
        threading.Event().wait()
    def hold_the_gil():
        ctypes.PyDLL(None).read(os.pipe()[0], ctypes.create_string_buffer(1), 1)
    def steps(number):
        for step in range(number):
            watchdog.progress("training", step)
            time.sleep(0.05)
"""
HANGS = """
    with watchdog.watching():
        steps(20)  # longer than the timeout, with progress
        print("alive", flush=True)
        watchdog.progress("agreeing with the other ranks", 20)
        wait_for_a_rank_that_is_gone()
"""
HOLDS = """
    with watchdog.watching():
        steps(3)
        print("alive", flush=True)
        watchdog.progress("loading data", 3)
        hold_the_gil()
"""
WORKS = """
    with watchdog.watching():
        steps(10)
        print("alive", flush=True)
        steps(30)
        print("finished", flush=True)
"""
HERE = socket.gethostname()
Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def start(tmp_path: Path) -> Start:
    def start(body: str, rank: int = 0, num_ranks: int = 1) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", textwrap.dedent(HEAD + body), str(tmp_path), str(rank), str(num_ranks)]
        return subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
        )

    return start


def watcher_of(process: subprocess.Popen[str]) -> int:
    (child,) = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    return int(child)


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def until_alive(process: subprocess.Popen[str]) -> None:
    assert process.stdout is not None
    assert process.stdout.readline() == "alive\n"


def test_a_hang_ends_with_all_stacks_and_a_code_that_says_again(tmp_path: Path, start: Start) -> None:
    process = start(HANGS)
    printed, errors = process.communicate(timeout=120)
    assert (printed, process.returncode) == ("alive\n", 75)
    report = (tmp_path / "stacks-rank0.txt").read_text()
    assert report.startswith(f"rank 0 ({HERE}): agreeing with the other ranks, step 20\n")
    assert "in wait_for_a_rank_that_is_gone" in report
    assert "in wait_for_a_rank_that_is_gone" in errors
    assert (
        f"error: no progress in 1 s (train.hang_timeout) of rank 0 ({HERE}): agreeing with the other ranks, step 20. "
        f"All stacks are above and in {tmp_path}/stacks-rank0.txt. Exiting; the same command resumes"
    ) in errors


def test_a_library_that_hangs_with_the_gil_is_killed_and_its_stack_shown(tmp_path: Path, start: Start) -> None:
    process = start(HOLDS)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == -signal.SIGKILL
    assert "in hold_the_gil" in (tmp_path / "stacks-rank0.txt").read_text()
    assert "rank 0 cannot end by itself, and is killed" in errors


def test_the_report_names_what_other_ranks_do_and_who_is_silent(tmp_path: Path, start: Start) -> None:
    processes = [start(HANGS, 0, 3), start(HOLDS, 1, 3)]
    until_alive(processes[1])
    errors = [process.communicate(timeout=120)[1] for process in processes]
    assert [process.returncode for process in processes] == [75, -signal.SIGKILL]
    assert f"; rank 1 ({HERE}): loading data, step 3; no report of rank 2. All stacks" in errors[0]
    assert f"; rank 0 ({HERE}): agreeing with the other ranks, step 20; no report of rank 2. All" in errors[1]


@pytest.mark.parametrize("whole_group", [False, True])
def test_to_be_stopped_is_no_hang(start: Start, whole_group: bool) -> None:
    """`scontrol suspend` stops the group, a debugger or `kill -STOP` the process."""
    process = start(WORKS)
    until_alive(process)
    send = os.killpg if whole_group else os.kill
    send(process.pid, signal.SIGSTOP)
    time.sleep(1.8)
    send(process.pid, signal.SIGCONT)
    printed, errors = process.communicate(timeout=120)
    assert (printed, errors, process.returncode) == ("finished\n", "", 0)


def test_the_report_of_an_earlier_start_is_kept_and_is_nobodys_now(tmp_path: Path, start: Start) -> None:
    (tmp_path / "stacks-rank1.txt").write_text("rank 1 (elsewhere): loading data, step 7\n")
    processes = [start(HANGS, 0, 2), start(WORKS, 1, 2)]
    errors = [process.communicate(timeout=120)[1] for process in processes]
    assert "no report of rank 1. All stacks" in errors[0]
    assert (tmp_path / "stacks-rank1.previous.txt").read_text().startswith("rank 1 (elsewhere)")


def test_training_outlives_its_watcher(start: Start) -> None:
    process = start(WORKS)
    until_alive(process)
    os.kill(watcher_of(process), signal.SIGKILL)
    printed, errors = process.communicate(timeout=120)
    assert (printed, process.returncode) == ("finished\n", 0)
    assert errors == "warning: the process that watches for hangs was killed; training continues without it\n"


def test_the_watcher_ends_with_what_it_watches_and_not_with_its_group(start: Start) -> None:
    process = start(WORKS.replace("steps(30)", "signal.signal(signal.SIGTERM, signal.SIG_IGN); steps(30)").replace(
        "    with", "    import signal\n    with", 1))  # fmt: skip
    until_alive(process)
    watcher = watcher_of(process)
    time.sleep(0.2)
    for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT, signal.SIGHUP):
        os.kill(watcher, number)
    os.killpg(process.pid, signal.SIGTERM)
    time.sleep(0.3)
    assert is_running(watcher)
    process.kill()
    process.communicate(timeout=120)
    deadline = time.monotonic() + 10
    while is_running(watcher):
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.parametrize("timeout", [0.0, 5.0])
def test_off_and_after_the_end_it_ends_nothing(tmp_path: Path, timeout: float) -> None:
    with Watchdog(timeout, tmp_path).watching():
        pass
    assert not list(tmp_path.iterdir())
