"""What squeue and sacct say, and how often they are asked."""

from __future__ import annotations

from typing import Any

import pytest

from launch.scheduler import JobId, JobStatus, SchedulerError
from launch.slurm import SlurmScheduler
from tests.support.sweeps import FakeSlurm

IDS = [JobId("17_3"), JobId("18"), JobId("19"), JobId("20")]


def test_a_queue_that_cannot_be_asked_is_an_error_and_an_accounting_is_not() -> None:
    def broken(words: Any) -> str:
        raise FileNotFoundError(2, "No such file or directory")

    with pytest.raises(SchedulerError, match=r"squeue failed.*login node"):
        SlurmScheduler(run=broken).look(IDS)

    def no_accounting(words: Any) -> str:
        return "" if words[0] == "squeue" else broken(words)

    assert {status.phase for status in SlurmScheduler(run=no_accounting).look(IDS).values()} == {"gone"}


def test_lines_of_squeue_and_sacct() -> None:
    def answer(words: Any) -> str:
        if words[0] == "squeue":
            return "17_3|PENDING|DependencyNeverSatisfied||a|b\n18|RUNNING|None|n[1-2]|\n20|CANCELLED|Dependency||\n"
        return "19|CANCELLED by 0|0:15|n1\n" if words[0] == "sacct" else ""

    found = SlurmScheduler(run=answer).look(IDS)
    assert found[IDS[0]].phase == "blocked"
    assert found[IDS[1]] == JobStatus("running", "", "n[1-2]")
    assert found[IDS[2]] == JobStatus("cancelled", "cancelled", "n1", 143)
    assert found[IDS[3]].phase == "cancelled"


def test_watching_a_sweep_asks_the_accounting_less_and_less() -> None:
    slurm, now = FakeSlurm({}, {"17_3": ("CANCELLED", "0:15")}), [0.0]
    scheduler, found = SlurmScheduler(run=slurm, clock=lambda: now[0]), {}
    for _ in range(720):  # an hour of looks, one each five seconds
        found = scheduler.look(IDS)
        now[0] += 5.0
    assert found[IDS[0]].phase == "cancelled"
    assert found[IDS[1]].phase == "gone"
    asked = [call for call in slurm.calls if call[0] == "sacct"]
    assert 2 < len(asked) < 10
    assert all("--jobs=18,19,20" in call for call in asked[1:])
    slurm.queue["17_3"] = ("RUNNING", "None")  # requeued
    assert scheduler.look(IDS)[IDS[0]].phase == "running"


def test_what_squeue_said_at_the_end_is_remembered() -> None:
    """It forgets a job after MinJobAge; without accounting a cancelled job would then look preempted."""
    slurm = FakeSlurm({"18": ("CANCELLED", "None")})
    scheduler = SlurmScheduler(run=slurm)
    assert scheduler.look(IDS)[IDS[1]].phase == "cancelled"
    slurm.queue.clear()
    assert scheduler.look(IDS)[IDS[1]].phase == "cancelled"


def test_a_thousand_jobs_are_asked_about_in_one_call() -> None:
    slurm = FakeSlurm()
    SlurmScheduler(run=slurm).look([JobId(str(number)) for number in range(1000)])
    assert [call[0] for call in slurm.calls].count("sacct") == 1


def test_jobs_of_another_cluster_are_asked_of_that_cluster() -> None:
    asked: list[list[str]] = []

    def answer(words: Any) -> str:
        asked.append(list(words))
        if words[0] == "scontrol":
            return "ClusterName             = here\n"
        if words[0] == "squeue":
            return "5|RUNNING|None|n1|\n" if "--clusters=there" in words else "5|PENDING|Priority||\n"
        return ""

    scheduler = SlurmScheduler(run=answer)
    ids = [JobId("5", "there"), JobId("5", "here"), JobId("5")]
    assert [scheduler.look(ids)[id].phase for id in ids] == ["running", "queued", "queued"]
    scheduler.cancel(ids)
    assert [call for call in asked if call[0] == "scancel"] == [
        ["scancel", "--clusters=there", "--quiet", "5"],
        ["scancel", "--quiet", "5", "5"],
    ]
