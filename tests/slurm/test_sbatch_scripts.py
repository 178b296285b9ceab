"""The sbatch scripts around what they start: exit code 75 goes back to the queue; probing and packing run as jobs."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from tests.support.slurm_jobs import Slurm, Training, await_

CPU = ("--gpus-per-node=0", "--cpus-per-task=1")


def submit_counted(testbed: Slurm, folder: Path, runs: int, end: str = "exit 75", **variables: str) -> str:
    """Submit a job whose command ends like this until it was run so many times; it writes a line each time."""
    script, count = folder / "job.sbatch", folder / "count"
    command = f"echo once >> {count}; [[ $(wc -l < {count}) -ge {runs} ]] || {end}"
    script.write_text(
        f"#!/bin/bash\n#SBATCH --requeue\nsource slurm/run_and_requeue.sh\nrun_and_requeue bash -c '{command}'\n"
    )
    return testbed.submit(f"--output={folder}/log", str(script), **variables)


def test_exit_code_75_is_run_again(testbed: Slurm, tmp_path: Path) -> None:
    job = submit_counted(testbed, tmp_path, runs=3)
    assert testbed.await_state(job, "COMPLETED")["Restarts"] == "2"
    assert (tmp_path / "count").read_text() == "once\n" * 3


def test_a_command_that_the_warning_killed_at_its_start_is_run_again(testbed: Slurm, tmp_path: Path) -> None:
    job = submit_counted(testbed, tmp_path, runs=2, end="kill -USR2 $$")
    assert testbed.await_state(job, "COMPLETED")["Restarts"] == "1"


def test_but_not_for_ever(testbed: Slurm, tmp_path: Path) -> None:
    job = submit_counted(testbed, tmp_path, runs=100, SIMDIST_MAX_REQUEUES="1")
    await_(lambda: testbed.job(job)["JobState"] == "FAILED", "the job to give up", lambda: str(testbed.job(job)))
    assert testbed.job(job)["ExitCode"] == "75:0"
    assert (tmp_path / "count").read_text() == "once\n" * 2
    assert "was requeued 1 times, the maximum" in (tmp_path / "log").read_text()


def test_another_exit_code_is_not(testbed: Slurm, tmp_path: Path) -> None:
    job = testbed.submit(f"--output={tmp_path}/log", *CPU, "slurm/pack.sbatch", "no-such-corpus")
    await_(lambda: testbed.job(job)["JobState"] == "FAILED", "the job to fail", lambda: str(testbed.job(job)))
    assert testbed.job(job)["ExitCode"] == "2:0"
    assert testbed.job(job)["Restarts"] == "0"


def test_packing_as_a_job(testbed: Slurm, speech: Path, tmp_path: Path) -> None:
    corpus = ["synthetic", str(speech.parent / "source"), str(tmp_path / "shards"), "--speakers=4", "--minutes=2"]
    job = testbed.submit(f"--output={tmp_path}/log", *CPU, "slurm/pack.sbatch", *corpus)
    testbed.await_state(job, "COMPLETED")
    packed, expected = (
        json.loads((root / "train" / "manifest.json").read_text())["fingerprint"]
        for root in (tmp_path / "shards", speech)
    )
    assert packed == expected


def test_probing_as_a_job_of_two_tasks(testbed: Slurm, undisturbed: Callable[[int], Training], tmp_path: Path) -> None:
    run = undisturbed(1).folder
    probes = ["--run-dir", str(run), "--label=speaker", "--probe=lbfgs", "--module=0"]
    job = testbed.submit(f"--output={tmp_path}/log", *CPU, "--ntasks-per-node=2", "slurm/probe.sbatch", *probes)
    testbed.await_state(job, "COMPLETED")
    assert "world size 2" in (tmp_path / "log").read_text()
    results = [json.loads(path.read_text()) for path in run.glob("probes/**/result.json")]
    assert [result["label"] for result in results] == ["speaker"]
