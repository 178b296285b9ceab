"""Back into the queue: what is asked of SLURM, and when it is not. `scontrol` is a script here, real in tests/slurm."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from simdist.core.errors import EXIT_PREEMPTED
from simdist.core.requeue import PREEMPTED, job_id, requeue, requeue_if_dying, wants_requeue, without_job
from tests.support import ROOT

JOB = {"SLURM_JOB_ID": "42"}


@pytest.fixture
def asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A `scontrol` that writes down what it was asked."""
    script = tmp_path / "bin" / "scontrol"
    script.parent.mkdir()
    script.write_text(
        f'#!/bin/sh\necho "$@" >> {tmp_path}/asked\n'
        f'[ "$1" = show ] && cat {tmp_path}/state && exit 0\n'
        f'[ -e {tmp_path}/refuse ] && echo "Requested operation is presently disabled" >&2 && exit 1\nexit 0\n'
    )
    script.chmod(0o755)
    (tmp_path / "state").write_text("JobId=42 JobName=train\n   JobState=RUNNING Reason=None\n")
    monkeypatch.setenv("PATH", str(script.parent), prepend=":")
    return tmp_path / "asked"


def test_outside_slurm_nothing_is_asked_or_said() -> None:
    assert requeue({}, 0, 10) == (False, "")


def test_a_job_and_an_array_task(asked: Path) -> None:
    assert requeue(JOB, 0, 10) == (True, "job 42 is requeued")
    array = JOB | {"SLURM_ARRAY_JOB_ID": "40", "SLURM_ARRAY_TASK_ID": "2"}
    assert job_id(array) == "40_2"
    assert requeue(array, 0, 10)[0]
    assert asked.read_text().splitlines() == ["show job 42", "requeue 42", "show job 40_2", "requeue 40_2"]


def test_a_scontrol_that_the_jobs_own_signal_kills_is_started_again(asked: Path) -> None:
    """SIGTERM goes to every process of a job, and one that has just been started is among them."""
    script = asked.parent / "bin" / "scontrol"
    once = f"[ -e {asked.parent}/killed_$1 ] || {{ touch {asked.parent}/killed_$1; kill -TERM $$; }}"
    script.write_text(script.read_text().replace("#!/bin/sh\n", f"#!/bin/sh\n{once}\n"))
    (asked.parent / "state").write_text("JobState=PREEMPTED Reason=None\n PreemptTime=2026-11-27T15:00:23\n")
    assert requeue_if_dying(JOB, 0, 10)
    assert {path.name for path in asked.parent.glob("killed_*")} == {"killed_show", "killed_requeue"}
    assert "requeue 42" in asked.read_text()


def test_an_endless_loop_ends(asked: Path) -> None:
    done, sentence = requeue(JOB, 10, 10)
    assert not done
    assert "was requeued 10 times, the maximum (max_requeues)" in sentence
    assert not asked.exists()


@pytest.mark.parametrize("state", ["CANCELLED", "COMPLETING", "PENDING"])
def test_a_job_that_was_cancelled_or_requeued_is_left_alone(asked: Path, state: str) -> None:
    (asked.parent / "state").write_text(f"JobId=42\n   JobState={state} Reason=None Dependency=(null)\n")
    done, sentence = requeue(JOB, 0, 10)
    assert not done
    assert sentence.startswith(f"job 42 is {state}: cancelled, or requeued by SLURM already")
    assert "requeue" not in asked.read_text()


def test_a_job_that_is_preempted_for_good_comes_back_and_a_cancelled_one_does_not(asked: Path) -> None:
    """`PreemptMode=CANCEL`: the job is COMPLETING as a cancelled one is, but says since when it is preempted."""
    state = "JobId=42\n   JobState=COMPLETING Reason=None Dependency=(null)\n"
    (asked.parent / "state").write_text(f"{state}   PreemptEligibleTime=1 PreemptTime=2026-11-26T01:18:35\n")
    assert requeue(JOB, 0, 10)[0]
    assert requeue_if_dying(JOB, 0, 10)
    (asked.parent / "state").write_text(f"{state}   PreemptEligibleTime=1 PreemptTime=None\n")
    assert not requeue(JOB, 0, 10)[0]
    assert not requeue_if_dying(JOB, 0, 10)
    times = "StartTime=2026-11-26T02:00:00 PreemptTime=2026-11-26T01:18:35"  # it was requeued, and is cancelled now
    (asked.parent / "state").write_text(f"{state}   {times}\n")
    assert not requeue(JOB, 0, 10)[0]


def test_a_job_that_has_grace_saves_before_it_asks(asked: Path) -> None:
    (asked.parent / "state").write_text("   JobState=RUNNING Reason=None\n   PreemptTime=2026-11-26T01:18:35\n")
    assert not requeue_if_dying(JOB, 0, 10)
    assert requeue(JOB, 0, 10)[0]


def test_sbatch_gets_nothing_of_the_job_that_it_is_called_from() -> None:
    of_a_job = {
        "SLURM_JOB_ID": "42",
        "SLURM_MEM_PER_CPU": "100",
        "SRUN_DEBUG": "3",
        "RANK": "1",
        "SUBMITIT_FOLDER": "x",
    }
    of_a_user = {"SLURM_CONF": "/etc/slurm.conf", "SBATCH_ACCOUNT": "me", "PATH": "/bin", "WANDB_MODE": "offline"}
    assert without_job(of_a_job | of_a_user) == of_a_user
    outside = {"SLURM_TIME_FORMAT": "relative", "RANK": "0"}
    assert without_job(outside) == outside


def test_a_job_whose_time_is_over_comes_back(asked: Path) -> None:
    (asked.parent / "state").write_text("JobId=42\n   JobState=COMPLETING Reason=TimeLimit Dependency=(null)\n")
    assert requeue(JOB, 0, 10)[0]


def test_slurm_refuses(asked: Path) -> None:
    (asked.parent / "refuse").touch()
    done, sentence = requeue(JOB, 0, 10)
    assert not done
    assert sentence == "SLURM does not requeue job 42: Requested operation is presently disabled"


def test_no_scontrol(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    done, sentence = requeue(JOB, 0, 10)
    assert not done
    assert "scontrol is not available here (No such file or directory); exit code 75 asks for a successor" in sentence


@pytest.mark.parametrize(
    ("code", "has_progressed", "expected"),
    [
        (75, False, True),
        (128 + 12, False, True),
        (137, False, False),
        (137, True, True),
        (0, True, False),
        (2, True, False),
    ],
)
def test_which_exit_codes_run_again(code: int, has_progressed: bool, expected: bool) -> None:
    assert wants_requeue(code, has_progressed) is expected


def test_the_rules_run_as_a_program_of_the_standard_library(tmp_path: Path) -> None:
    """slurm/*.sbatch run them with the host's Python, which has no packages; without scontrol a successor is needed."""
    rules = ROOT / "simdist" / "core" / "requeue.py"

    def run(*words: str) -> tuple[int, str]:
        command = [sys.executable, "-I", "-S", str(rules), *words]
        ended = subprocess.run(
            command, env={"SLURM_JOB_ID": "42", "PATH": str(tmp_path)}, capture_output=True, text=True
        )
        return ended.returncode, ended.stderr

    assert run("2", "0", "100") == (1, "")
    assert run("75", "100", "100")[0] == 1
    code, said = run("75", "0", "100")
    assert code == 3
    assert "scontrol is not available here" in said


def test_the_exit_code_is_that_of_every_command() -> None:
    """The rules cannot import simdist, so they have the number once more."""
    assert PREEMPTED == EXIT_PREEMPTED
