"""`slurm/train.sbatch` on a real SLURM: whatever ends a job, the run ends with the weights of one never stopped."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from slurm.testbed import cluster
from tests.support.slurm_jobs import Slurm, Training, await_

ONE_TASK = ("--ntasks-per-node=1", "--gpus-per-node=0", "--cpus-per-task=1")
TWO_TASKS = ("--ntasks-per-node=2", "--gpus-per-node=0", "--cpus-per-task=1")


def submit(testbed: Slurm, training: Training, *options: str, **variables: str) -> str:
    """Submit train.sbatch; returns the job's number."""
    words = [*options, f"--output={training.log}", "slurm/train.sbatch", *training.arguments]
    return testbed.submit(*words, **training.variables, **variables)


def test_preempted_with_grace_it_saves_and_comes_back(
    testbed: Slurm, training: Training, undisturbed: Callable[[int], Training]
) -> None:
    job = submit(testbed, training, "--partition=low", "--nodelist=n1", *TWO_TASKS)
    training.await_step(15)
    testbed.preempt("n1")
    training.let_go()
    end = testbed.await_state(job, "COMPLETED")
    stops = training.events("stopped")
    assert len(stops) == 1, training.tail()
    assert [event["step"] for event in training.events("resumed")] == [stops[0]["step"]]
    assert [event["step"] for event in training.events("requeued")] == [stops[0]["step"]]
    assert end["Restarts"] == "1"
    assert training.weights() == undisturbed(2).weights()


def test_preempted_without_grace_it_comes_back_from_the_last_checkpoint(
    testbed: Slurm, training: Training, undisturbed: Callable[[int], Training]
) -> None:
    # SIGTERM comes five seconds before SIGKILL even so; a step that is longer has no use of it
    training = replace(training, rest_from=15, rest_seconds=3600)
    job = submit(testbed, training, "--partition=abrupt", "--nodelist=n2", *ONE_TASK)
    training.await_step(15)
    testbed.preempt("n2")
    training.let_go()
    testbed.await_state(job, "COMPLETED")
    assert training.events("stopped") == []
    assert [event["step"] for event in training.events("resumed")] == [10]
    assert training.weights() == undisturbed(1).weights()


def test_an_operator_requeues_it(testbed: Slurm, training: Training, undisturbed: Callable[[int], Training]) -> None:
    job = submit(testbed, training, "--partition=low", *ONE_TASK)
    training.await_step(15)
    testbed.ask("scontrol", "requeue", job)
    training.let_go()
    end = testbed.await_state(job, "COMPLETED")
    assert end["Restarts"] == "1"
    assert training.weights() == undisturbed(1).weights()


def test_cancelled_it_stays_away_until_it_is_submitted_again(
    testbed: Slurm, training: Training, undisturbed: Callable[[int], Training]
) -> None:
    job = submit(testbed, training, "--partition=low", *ONE_TASK)
    training.await_step(15)
    testbed.ask("scancel", job)
    await_(lambda: job not in testbed.ask("squeue", "--noheader", "--format=%i").split(), "its end", training.tail)
    training.let_go()
    again = submit(testbed, training, "--partition=low", *ONE_TASK)
    testbed.await_state(again, "COMPLETED")
    assert testbed.job(job)["JobState"] == "CANCELLED"
    assert training.events("requeued") == []
    assert training.weights() == undisturbed(1).weights()


def test_a_node_dies_with_all_that_runs_on_it(
    testbed: Slurm, training: Training, undisturbed: Callable[[int], Training]
) -> None:
    job = submit(testbed, training, "--partition=low", *ONE_TASK)
    training.await_step(15)
    node = testbed.job(job)["NodeList"]
    cluster.kill_node(testbed.layout, node)
    try:
        training.let_go()
        end = testbed.await_state(job, "COMPLETED")
    finally:
        cluster.start_node(testbed.layout, node)
    assert end["NodeList"] != node
    assert training.weights() == undisturbed(1).weights()


def test_the_time_limit_comes_several_times(
    testbed: Slurm, training: Training, undisturbed: Callable[[int], Training]
) -> None:
    job = submit(testbed, training, "--partition=low", "--time=1", "--signal=USR2@55", *ONE_TASK)
    training.await_events("stopped")
    training.await_events("resumed")
    while len(training.events("stopped")) < 2:
        training.await_step(training.step + 1)
    training.let_go()
    end = testbed.await_state(job, "COMPLETED")
    stops = training.events("stopped")
    assert len(stops) >= 2
    saved = [event["step"] for event in stops if event["step"]]  # on a slow machine, none before the first limit
    assert [event["step"] for event in training.events("resumed")] == saved
    assert end["Restarts"] == str(len(stops)) == str(len(training.events("requeued")))
    assert training.weights() == undisturbed(1).weights()


def test_a_node_dies_and_its_tasks_live_on(
    testbed: Slurm, training: Training, undisturbed: Callable[[int], Training]
) -> None:
    job = submit(testbed, training, "--partition=low", *ONE_TASK)
    training.await_step(15)
    node = testbed.job(job)["NodeList"]
    cluster.kill_node(testbed.layout, node, with_tasks=False)
    try:
        await_(lambda: testbed.job(job)["Restarts"] == "1", "the restart", training.tail)
        await_(lambda: testbed.job(job)["JobState"] == "RUNNING", "the restart", training.tail)
        training.let_go()
        testbed.await_state(job, "COMPLETED")
    finally:
        cluster.start_node(testbed.layout, node)
    assert training.weights() == undisturbed(1).weights()


def test_without_scontrol_a_successor_takes_over(
    testbed: Slurm, training: Training, undisturbed: Callable[[int], Training], tmp_path: Path
) -> None:
    programs = tmp_path / "bin"
    programs.mkdir()
    for program in Path("/usr/bin").iterdir():
        if program.name != "scontrol":
            (programs / program.name).symlink_to(program)
    path = f"{Path(sys.executable).parent}:{programs}"
    job = submit(testbed, training, "--partition=low", *ONE_TASK, PATH=path)
    training.await_step(15)
    testbed.ask("scancel", "--signal=USR2", job)
    training.await_events("resumed")
    training.let_go()
    await_((training.folder / "DONE").exists, "the successor to finish", training.tail)
    assert testbed.job(job)["Restarts"] == "0"
    assert training.events("requeued") == []
    assert "exit code 75 asks for a successor" in training.log.read_text()
    assert "finished: 80 steps" in training.log.read_text()  # the successor writes the same log
    assert training.weights() == undisturbed(1).weights()


def test_two_nodes_with_two_tasks_each(
    testbed: Slurm, training: Training, undisturbed: Callable[[int], Training]
) -> None:
    training.let_go()
    job = submit(testbed, training, "--partition=low", "--nodes=2", *TWO_TASKS)
    testbed.await_state(job, "COMPLETED")
    assert training.events("start")[0]["world_size"] == 4
    assert training.weights() == undisturbed(4).weights()
