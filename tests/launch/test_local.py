"""Sweeps on this machine: order, preemption, failure, signals, and what a second command does again: nothing."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from launch.cancel import local_owner
from launch.local import Outcome, run_here, run_locally, visible_gpus
from launch.plan import Job, Plan
from launch.records import Records, last_lines
from launch.states import done_jobs, find_states
from simdist.core.signals import SignalHandler

ACTING = Path(__file__).parent.parent / "support" / "acting"
PATIENCE = 120.0


@pytest.fixture
def acting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Jobs have the command `act`."""
    monkeypatch.setenv("PYTHONPATH", str(ACTING))


def chain(root: Path, *hows: str, together: bool = False) -> Plan:
    """A job each that behaves as said, each after the one before it unless they are `together`; then a report."""
    jobs: dict[str, Job] = {}
    for number, how in enumerate(hows):
        file = root / "out" / str(number)
        parents = (f"act/{number - 1}",) if number and not together else ()
        command = ("act", str(root / "journal"), how, str(file))
        jobs[f"act/{number}"] = Job(f"act/{number}", "act", "train", command, file.parent, (file,), parents)
    marker = root / "report" / "done.json"
    command = ("act", str(root / "journal"), "report")
    jobs["report"] = Job("report", "report", "report", command, marker.parent, (marker,), tuple(jobs))
    return Plan("chain", root / "sweeps" / "chain", {}, jobs, [])


def do(plan: Plan, number: int = 1, devices: tuple[str, ...] = ()) -> tuple[Outcome, list[str]]:
    said: list[str] = []
    return run_locally(plan, number, said.append, SignalHandler(), devices), said


def journal(root: Path) -> list[str]:
    """What jobs wrote, without their process numbers."""
    return [line.partition(" ")[2] for line in (root / "journal").read_text().splitlines()]


@pytest.mark.usefixtures("acting")
def test_children_run_after_their_parents_and_nothing_is_done_twice(tmp_path: Path) -> None:
    plan = chain(tmp_path, "a", "b", "c")
    outcome, _ = do(plan, 3)
    assert outcome.code == 0
    assert [line.split()[1] for line in journal(tmp_path) if line.startswith("begin")] == ["a", "b", "c", "report"]
    assert done_jobs(plan) == set(plan.jobs)
    before = journal(tmp_path)
    again, said = do(plan, 3)
    assert (again.code, said, journal(tmp_path)) == (0, [], before)
    (tmp_path / "out" / "1").unlink()
    do(plan, 3)
    assert [line.split()[1] for line in journal(tmp_path)[len(before) :] if line.startswith("begin")] == ["b", "report"]


@pytest.mark.usefixtures("acting")
def test_a_preempted_job_goes_on_before_its_children_begin(tmp_path: Path) -> None:
    outcome, said = do(chain(tmp_path, "preempted", "b"))
    assert outcome.code == 0
    begun = [line.split()[1] for line in journal(tmp_path) if line.startswith("begin")]
    assert begun == ["preempted", "preempted", "preempted", "b", "report"]
    assert sum("was preempted" in line for line in said) == 2


@pytest.mark.usefixtures("acting")
def test_children_of_a_failed_job_never_run_and_the_report_still_does(tmp_path: Path) -> None:
    plan = chain(tmp_path, "fail", "b")
    outcome, _ = do(plan)
    assert (outcome.code, outcome.failed) == (1, {"act/0": 2})
    assert not any(" b " in line for line in journal(tmp_path))
    assert "report" in outcome.done
    assert "report" not in done_jobs(plan)  # it reported on half of the sweep
    records = Records(plan.folder).latest()
    assert last_lines(records["act/0"], 1) == ["error: this job was made to fail; take another"]
    states = find_states(plan, done_jobs(plan), records)
    assert (states["act/0"].status, states["act/0"].reason) == ("failed", "exit code 2")
    assert (states["act/1"].status, states["act/1"].reason) == ("blocked", "act/0 failed")


@pytest.mark.usefixtures("acting")
def test_each_job_at_a_time_has_a_gpu_of_its_own(tmp_path: Path) -> None:
    outcome, _ = do(chain(tmp_path, "a", "b", "c", together=True), 2, ("4", "7"))
    assert outcome.code == 0
    devices = [line.split()[-1] for line in journal(tmp_path) if line.startswith("begin")]
    assert set(devices) == {"4", "7"}


def test_gpus_are_those_that_may_be_seen() -> None:
    assert visible_gpus({"CUDA_VISIBLE_DEVICES": "2,3"}) == ("2", "3")
    assert visible_gpus({"CUDA_VISIBLE_DEVICES": ""}) == visible_gpus({"CUDA_VISIBLE_DEVICES": "-1"}) == ()
    assert visible_gpus({"CUDA_VISIBLE_DEVICES": "0", "ACCELERATE_USE_CPU": "true"}) == ()


def test_in_this_process_a_job_runs_as_it_would_in_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import simdist

    monkeypatch.setattr(simdist, "__path__", [*simdist.__path__, str(ACTING)])
    monkeypatch.setattr(sys, "argv", ["test"])
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR2)}
    try:
        said: list[str] = []
        outcome = run_here(chain(tmp_path, "a", "fail", "c"), said.append)
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    assert (outcome.code, outcome.failed) == (1, {"act/1": 2})
    assert len(said) == 3
    assert said[0].startswith("act/0: python -m simdist.act ")


# --- a sweep that is stopped or killed --------------------------------------------------------------------------------

PROGRAM = """
import sys
from pathlib import Path
from tests.launch.test_local import chain
from launch.cancel import write_owner
from launch.local import run_locally
from simdist.core.signals import SignalHandler
plan = chain(Path({root!r}), "a", "wait", "c")
stop = SignalHandler()
plan.folder.mkdir(parents=True, exist_ok=True)
write_owner(plan.folder)
with stop.installed():
    outcome = run_locally(plan, 1, print, stop)
sys.exit(outcome.code)
"""


def start(root: Path) -> subprocess.Popen[Any]:
    """The chain `a`, `wait`, `c` in a process of its own, once its second job waits for a signal."""
    here = Path(__file__).parent
    program = PROGRAM.format(root=str(root))
    path = f"{here.parent.parent}{os.pathsep}{ACTING}"
    process = subprocess.Popen([sys.executable, "-c", program, "sweep"], env=os.environ | {"PYTHONPATH": path})
    deadline = time.monotonic() + PATIENCE
    while not (root / "journal").exists() or "waits" not in (root / "journal").read_text():
        assert process.poll() is None, "the sweep ended"
        assert time.monotonic() < deadline, "the second job never began to wait"
        time.sleep(0.1)
    return process


@pytest.mark.usefixtures("acting")
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 75)])
def test_a_signal_lets_jobs_save_and_the_same_command_finishes(
    number: signal.Signals, code: int, tmp_path: Path
) -> None:
    process = start(tmp_path)
    plan = chain(tmp_path, "a", "wait", "c")
    assert find_states(plan, done_jobs(plan), Records(plan.folder).latest())["act/1"].status == "running"
    assert local_owner(plan.folder) == process.pid
    process.send_signal(number)
    assert process.wait(PATIENCE) == code
    assert journal(tmp_path)[-1] == f"saved after {number.name}"
    assert find_states(plan, done_jobs(plan), Records(plan.folder).latest())["act/1"].status == "stopped"
    assert local_owner(plan.folder) is None
    outcome, _ = do(plan)
    assert outcome.code == 0
    assert sum(line.startswith("begin a ") for line in journal(tmp_path)) == 1


@pytest.mark.usefixtures("acting")
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux tells a process that its parent died")
def test_a_killed_sweep_takes_its_jobs_along_and_the_next_one_waits_for_them(tmp_path: Path) -> None:
    process = start(tmp_path)
    process.kill()
    process.wait(PATIENCE)
    outcome, _ = do(chain(tmp_path, "a", "wait", "c"))
    assert outcome.code == 0
    lines = (tmp_path / "journal").read_text().splitlines()
    saved = next(number for number, line in enumerate(lines) if "saved after SIGTERM" in line)
    begun = [number for number, line in enumerate(lines) if re.search(r"begin wait", line)]
    assert len(begun) == 2
    assert begun[0] < saved < begun[1]  # never two processes of one job
    assert sum(" begin a " in line for line in lines) == 1
