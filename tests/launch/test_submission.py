"""What is submitted, taken back and left alone, out of what SLURM says."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from launch.batch_scripts import dependency, spelled_indices
from launch.graph import done_jobs
from launch.plan import Plan
from launch.records import Record, Records
from launch.scheduler import JobArray, JobId, JobStatus, SchedulerError
from launch.slurm import SlurmScheduler
from launch.states import JobState, find_states
from launch.submission import arrays, parts, throttles, what_is_missing
from simdist.cluster.discovery import Limits
from simdist.core.errors import InputError
from simdist.runs.lease import PATIENCE
from tests.support.sweeps import FakeSlurm, finish, of_kind, small_plan


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    return small_plan(tmp_path, grid={}, seeds=[0, 1])


def submitted(plan: Plan, first: int = 10, **parents: str) -> dict[str, Record]:
    """Every job of the plan with a number in the queue."""
    ids = {name: str(first + number) for number, name in enumerate(plan.jobs)}
    return {
        name: Record(
            name, "gpu", ids[name], Path("log"), parents={p: ids[p] for p in job.parents}, identity=job.identity
        )
        for name, job in plan.jobs.items()
    }


def pending(records: dict[str, Record]) -> dict[str, tuple[str, str]]:
    return {record.id: ("PENDING", "Dependency") for record in records.values()}


def states_of(plan: Plan, records: dict[str, Record], slurm: FakeSlurm) -> dict[str, JobState]:
    return find_states(plan, done_jobs(plan), records, slurm.scheduler, now=0.0)


def test_at_first_all_is_missing_and_nothing_is_asked(plan: Plan) -> None:
    slurm = FakeSlurm()
    states = states_of(plan, {}, slurm)
    assert {state.status for state in states.values()} == {"missing"}
    assert slurm.calls == []
    wanted = what_is_missing(plan, states, {})
    assert (wanted.submit, wanted.cancel) == (tuple(plan.jobs), ())


def test_what_is_on_its_way_is_not_submitted_again(plan: Plan) -> None:
    records = submitted(plan)
    states = states_of(plan, records, FakeSlurm(pending(records)))
    assert what_is_missing(plan, states, records).submit == ()


@pytest.mark.parametrize(
    ("account", "word", "reason"),
    [
        (("FAILED", "75:0"), "stopped", "preempted"),
        (("PREEMPTED", "0:15"), "stopped", "preempted"),
        (("NODE_FAIL", "1:0"), "stopped", "node fail"),
        (("TIMEOUT", "0:15"), "stopped", "timeout"),
        (("FAILED", "2:0"), "failed", "exit code 2"),
        (("FAILED", "0:9"), "failed", "exit code 137"),
        (("OUT_OF_MEMORY", "0:125"), "failed", "Increase `mem`"),
        (("COMPLETED", "0:0"), "failed", "without writing"),
        (("CANCELLED by 0", "0:15"), "cancelled", "cancelled"),
        (None, "cancelled", "left the queue before it began"),
    ],
)
def test_how_a_job_left_the_queue(plan: Plan, account: tuple[str, str] | None, word: str, reason: str) -> None:
    records = submitted(plan)
    finish(plan, of_kind(plan, "pack")[0])
    train, other = of_kind(plan, "train")
    queue = pending(records)
    del queue[records[train].id]
    states = states_of(plan, records, FakeSlurm(queue, {records[train].id: account} if account else {}))
    assert states[train].status == word
    assert reason in states[train].reason
    assert states[other].status == "queued"
    blocked = {name for name, state in states.items() if state.status == "blocked"}
    below = {name for name in of_kind(plan, "probe") if train in plan.jobs[name].parents}
    assert blocked == (below if word in ("failed", "cancelled") else set())


@pytest.mark.parametrize(
    ("code", "word", "reason"),
    [
        (2, "failed", "exit code 2"),
        (75, "stopped", "preempted"),
        (0, "failed", "without writing"),
        (None, "stopped", ""),
    ],
)
def test_a_job_says_itself_how_it_ended_where_there_is_no_accounting(
    plan: Plan, tmp_path: Path, code: int | None, word: str, reason: str
) -> None:
    records = submitted(plan)
    finish(plan, of_kind(plan, "pack")[0])
    train = of_kind(plan, "train")[0]
    records[train] = replace(records[train], log=tmp_path / "slurm" / "log.out")
    (tmp_path / "slurm").mkdir()
    records[train].ending.begin(tmp_path)
    if code is not None:
        records[train].ending.end(code)
    queue = pending(records)
    del queue[records[train].id]
    state = states_of(plan, records, FakeSlurm(queue))[train]
    assert state.status == word
    assert reason in state.reason


def test_a_report_that_was_made_without_jobs_that_failed_is_done(plan: Plan) -> None:
    records = submitted(plan)
    finish(plan, *of_kind(plan, "pack"), when=100.0)
    first, second = of_kind(plan, "train")
    finish(plan, first, *[name for name in of_kind(plan, "probe") if first in plan.jobs[name].parents], when=200.0)
    finish(plan, "report", when=300.0)
    slurm = FakeSlurm({}, {records[second].id: ("FAILED", "1:0")})
    state = states_of(plan, records, slurm)["report"]
    assert (state.status, state.reason) == ("done", "without 5 jobs, failed or cancelled")
    finish(plan, first, when=400.0)
    assert states_of(plan, records, slurm)["report"].status != "done"


def test_a_training_that_saved_when_it_was_cancelled_is_not_taken_for_a_preempted_one(plan: Plan) -> None:
    log = Records(plan.folder)
    train = of_kind(plan, "train")[0]
    record = Record(train, "gpu", "9", Path("log"), identity=plan.jobs[train].identity)
    slurm = FakeSlurm({}, {"9": ("FAILED", "75:0")})
    log.started(record)
    assert states_of(plan, log.latest(), slurm)[train].status == "stopped"
    log.cancelled([train])
    states = states_of(plan, log.latest(), slurm)
    assert states[train].status == "cancelled"
    assert train not in what_is_missing(plan, states, log.latest(), retry=False).submit
    log.started(record)
    assert states_of(plan, log.latest(), slurm)[train].status == "stopped"


def test_a_job_that_is_submitted_anew_takes_those_that_wait_for_it_along(plan: Plan) -> None:
    records = submitted(plan)
    finish(plan, of_kind(plan, "pack")[0])
    train = of_kind(plan, "train")[0]
    queue = pending(records)
    del queue[records[train].id]
    states = states_of(plan, records, FakeSlurm(queue, {records[train].id: ("FAILED", "75:0")}))
    wanted = what_is_missing(plan, states, records, retry=False)
    below = tuple(name for name in of_kind(plan, "probe") if train in plan.jobs[name].parents)
    assert wanted.submit == (train, *below, "report")
    assert set(wanted.cancel) == {*below, "report"}


def test_children_that_slurm_cancelled_come_back_with_their_parent(plan: Plan) -> None:
    records = submitted(plan)
    finish(plan, of_kind(plan, "pack")[0])
    train = of_kind(plan, "train")[0]
    below = [name for name in of_kind(plan, "probe") if train in plan.jobs[name].parents]
    queue = pending(records)
    gone = {records[train].id: ("NODE_FAIL", "1:0"), **{records[name].id: ("CANCELLED", "0:0") for name in below}}
    for number in gone:
        del queue[number]
    states = states_of(plan, records, FakeSlurm(queue, gone))
    assert what_is_missing(plan, states, records, retry=False).submit == (train, *below, "report")


def test_failed_jobs_are_tried_again_by_a_person_only(plan: Plan) -> None:
    records = submitted(plan)
    finish(plan, of_kind(plan, "pack")[0])
    train = of_kind(plan, "train")[0]
    queue = pending(records)
    del queue[records[train].id]
    states = states_of(plan, records, FakeSlurm(queue, {records[train].id: ("FAILED", "1:0")}))
    assert train not in what_is_missing(plan, states, records, retry=False).submit
    assert not any(name.startswith("probe") for name in what_is_missing(plan, states, records, retry=False).submit)
    by_hand = what_is_missing(plan, states, records, retry=True)
    assert by_hand.submit[0] == train
    assert {name for name in of_kind(plan, "probe") if train in plan.jobs[name].parents} <= set(by_hand.submit)


def test_a_submission_that_was_cut_off_is_repaired(plan: Plan) -> None:
    """The training got a new number, but the submission was killed before the probes did."""
    records = submitted(plan)
    train = of_kind(plan, "train")[0]
    records[train] = Record(train, "gpu", "99", Path("log"), identity=plan.jobs[train].identity)
    finish(plan, of_kind(plan, "pack")[0])
    states = states_of(plan, records, FakeSlurm(pending(records)))
    wanted = what_is_missing(plan, states, records)
    below = tuple(name for name in of_kind(plan, "probe") if train in plan.jobs[name].parents)
    assert wanted.submit == (*below, "report")
    assert wanted.cancel == wanted.submit


def test_a_changed_grid_adds_what_is_new_and_leaves_the_rest(tmp_path: Path) -> None:
    before = small_plan(tmp_path, grid={}, seeds=[0, 1])
    records = submitted(before)
    after = small_plan(tmp_path, grid={}, seeds=[1, 2])
    states = states_of(after, records, FakeSlurm(pending(records)))
    wanted = what_is_missing(after, states, records)
    new = set(after.runs) - set(before.runs)
    assert {after.jobs[name].run for name in wanted.submit} == {*new, None}
    assert wanted.cancel == ("report",)  # it is about other runs now


def test_a_run_that_somebody_else_trains_is_left_alone(plan: Plan) -> None:
    train = of_kind(plan, "train")[0]
    lease = plan.jobs[train].folder / "lease" / "00000001.json"
    lease.parent.mkdir(parents=True)
    lease.write_text("{}")
    touched = lease.stat().st_mtime
    assert find_states(plan, set(), {}, now=touched + PATIENCE - 1)[train].status == "running"
    assert find_states(plan, set(), {}, now=touched + PATIENCE + 1)[train].status == "missing"


# --- arrays -----------------------------------------------------------------------------------------------------------


def submitted_arrays(plan: Plan, names: Iterable[str], ids: Mapping[str, JobId] | None = None) -> list[JobArray]:
    """The arrays of these jobs, numbered from 17 on as they are submitted."""
    found: list[JobArray] = []
    numbers = dict(ids or {})
    for jobs in parts(plan, names):
        for array in arrays(jobs, numbers, Limits(), 16):
            number = str(17 + len(found))
            of_tasks = [f"{number}_{index}" for index in array.indices] or [number]
            numbers |= {job.name: JobId(task) for job, task in zip(array.jobs, of_tasks, strict=True)}
            found.append(array)
    return found


def test_each_part_of_a_stage_is_one_array_over_all_runs_whose_tasks_follow_each_other(plan: Plan) -> None:
    pack, train, *probes, report = submitted_arrays(plan, plan.jobs)
    assert (pack.indices, dependency(pack)) == ((), "")
    assert (train.indices, dependency(train)) == ((0, 1), "afterok:17")
    assert [(len(probe.jobs), probe.indices, dependency(probe)) for probe in probes] == [
        (2, (0, 1), "aftercorr:18")
    ] * 4
    assert dependency(report) == "afterany:17:18:19:20:21:22"
    for probe in probes:
        assert [job.run for job in probe.jobs] == [job.run for job in train.jobs]


def test_the_sweep_of_the_issue_takes_few_submissions() -> None:
    stages = {
        "probe": {"labels": ["speaker", "phone"], "modules": "all"},
        "decode": {"modules": [0, 1]},
        "analyze": {"which": ["robustness", "embedding"]},
        "report": None,
    }
    plan = small_plan(grid={}, seeds=list(range(60)), stages=stages)
    assert len(plan.jobs) == 421
    made = submitted_arrays(plan, plan.jobs)
    assert len(made) == 8
    analyses = [array for array in made if array.stage == "analyze"]
    assert [dependency(array) for array in analyses] == ["aftercorr:17:18:19:20:21"] * 2


def test_a_run_that_is_submitted_again_keeps_its_children_at_its_side(plan: Plan) -> None:
    first, second = of_kind(plan, "train")
    below = [name for name in of_kind(plan, "probe") if first in plan.jobs[name].parents]
    again = submitted_arrays(plan, [first, *below])
    assert [(array.indices, dependency(array)) for array in again] == [((), ""), ((0, 1, 2, 3), "afterok:17")]
    on_its_way = submitted_arrays(plan, of_kind(plan, "probe"), {first: JobId("9_3"), second: JobId("9_5")})
    assert [(array.indices, dependency(array)) for array in on_its_way] == [((3, 5), "aftercorr:9")] * 4
    apart = submitted_arrays(plan, of_kind(plan, "probe")[:1], {first: JobId("9_3")})
    assert [(array.indices, dependency(array)) for array in apart] == [((3,), "aftercorr:9")]
    together = submitted_arrays(plan, below, {first: JobId("9_3")})  # four jobs cannot have one index
    assert [(array.indices, dependency(array)) for array in together] == [((0, 1, 2, 3), "afterok:9_3")]


@pytest.mark.parametrize(("size", "sizes"), [(1000, [1000, 3]), (4, [4] * 250 + [3])])
def test_an_array_has_no_more_tasks_and_no_larger_index_than_slurm_allows(size: int, sizes: list[int]) -> None:
    plan = small_plan(grid={}, seeds=list(range(1003)))
    jobs = [plan.jobs[name] for name in of_kind(plan, "train")]
    made = arrays(jobs, {}, Limits(max_array_size=size), 16)
    assert [len(array.jobs) for array in made] == sizes
    assert max(index for array in made for index in array.indices) < size
    assert all(len(set(array.indices)) == len(array.jobs) for array in made if array.indices)


def test_a_stage_keeps_its_throttle_when_it_is_several_arrays() -> None:
    assert throttles(16, 6) == [3, 3, 3, 3, 2, 2]
    assert throttles(2, 3) == [1, 1, 1]


def test_indices_as_sbatch_takes_them() -> None:
    assert spelled_indices([0, 1, 2, 5, 7, 8]) == "0-2,5,7-8"


# --- SLURM's own words ------------------------------------------------------------------------------------------------

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


def test_watching_a_sweep_asks_the_accounting_less_and_less(plan: Plan) -> None:
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


def test_records_know_the_latest_start_and_submissions_that_were_cut_off(tmp_path: Path) -> None:
    records = Records(tmp_path)
    records.announce("first", ["a"])
    records.started(Record("a", "gpu", "7", Path("log"), parents={"b": "6"}, identity="i"))
    records.numbered("first")
    records.announce("second", ["b"])
    assert records.lost_groups() == {"second"}
    records.started(Record("a", "local", "8", Path("other")))
    records.ended("a", 75)
    latest = records.latest()["a"]
    assert (latest.id, latest.cluster, latest.code, latest.starts, latest.log) == ("8", "local", 75, 2, Path("other"))


def damage(records: Path, line: str) -> None:
    with records.open("a") as file:
        file.write(line + "\n")


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ('{"event": "started", "time": 1, "job": "a"}', "'started' without 'cluster'"),
        ('{"event": "ended", "time": 1, "code": 0}', "'ended' without 'job'"),
        ('{"event": "numbered", "time": 1, "job": "a"}', "'numbered' without 'group'"),
        ('{"event": "ended", "time": "x", "job": "a", "code": 0}', "time: Expected"),
        ('{"event": "ended", "time": 1, "job": ["a"], "code": 0}', "job: Expected"),
        ('{"event": "ended", "time": 1, "job": "a", "code": "0"}', "code: Expected"),
        ('{"event": "won", "time": 1}', "event: Invalid enum value"),
        ('{"time": 1}', "missing required field event"),
        ("[]", "Expected object"),
        ("\0\0\0", "it is no JSON"),
    ],
)
def test_a_damaged_line_of_the_records_is_named_and_left_out(tmp_path: Path, line: str, reason: str) -> None:
    records = Records(tmp_path)
    records.started(Record("a", "gpu", "7", Path("log")))
    before = records.latest(), records.lost_groups(), records.cancelled_jobs()
    damage(tmp_path / "jobs.jsonl", line)
    (sentence,) = records.damaged()
    assert sentence.startswith(f"warning: {tmp_path}/jobs.jsonl is damaged and read without line 2: ")
    assert reason in sentence
    assert (records.latest(), records.lost_groups(), records.cancelled_jobs()) == before


def test_records_that_are_no_file_are_one_sentence(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "jobs.jsonl")
    with pytest.raises(InputError, match=r"jobs\.jsonl cannot be read \(.*\)\. Look at it"):
        Records(tmp_path).latest()
