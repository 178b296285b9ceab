"""`slurm/train.sbatch` on a real SLURM: whatever ends a job, the run ends with the weights of one never stopped."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import cluster
from jobs import Slurm, Training

ONE_TASK = ("--ntasks-per-node=1", "--gpus-per-node=0", "--cpus-per-task=1")
TWO_TASKS = ("--ntasks-per-node=2", "--gpus-per-node=0", "--cpus-per-task=1")


def submit(testbed: Slurm, training: Training, *options: str, **variables: str) -> str:
    """Submit train.sbatch; returns the job's number."""
    words = [*options, f"--output={training.log}", "slurm/train.sbatch", *training.arguments]
    return testbed.submit(*words, **training.variables, **variables)


def test_preempted_with_grace_it_saves_and_comes_back(
    testbed: Slurm, training: Training, undisturbed: Callable[[int], str]
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
    assert training.weights() == undisturbed(2)


def test_preempted_without_grace_it_comes_back_from_the_last_checkpoint(
    testbed: Slurm, training: Training, undisturbed: Callable[[int], str]
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
    assert training.weights() == undisturbed(1)


def test_an_operator_requeues_it(testbed: Slurm, training: Training, undisturbed: Callable[[int], str]) -> None:
    job = submit(testbed, training, "--partition=low", *ONE_TASK)
    training.await_step(15)
    testbed.ask("scontrol", "requeue", job)
    training.let_go()
    end = testbed.await_state(job, "COMPLETED")
    assert end["Restarts"] == "1"
    assert training.weights() == undisturbed(1)


def test_a_node_dies_with_all_that_runs_on_it(
    testbed: Slurm, training: Training, undisturbed: Callable[[int], str]
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
    assert training.weights() == undisturbed(1)


def test_the_time_limit_comes_several_times(
    testbed: Slurm, training: Training, undisturbed: Callable[[int], str]
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
    assert [event["step"] for event in training.events("resumed")] == [event["step"] for event in stops]
    assert end["Restarts"] == str(len(stops)) == str(len(training.events("requeued")))
    assert training.weights() == undisturbed(1)


def test_two_nodes_with_two_tasks_each(testbed: Slurm, training: Training, undisturbed: Callable[[int], str]) -> None:
    training.let_go()
    job = submit(testbed, training, "--partition=low", "--nodes=2", *TWO_TASKS)
    testbed.await_state(job, "COMPLETED")
    assert training.events("start")[0]["world_size"] == 4
    assert training.weights() == undisturbed(4)
