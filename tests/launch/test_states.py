"""What is done, the state of jobs out of what SLURM says, and so what is submitted, taken back and left alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from launch.plan import Plan
from launch.records import Record, Records
from launch.states import JobState, blocked_by, done_jobs, find_states
from launch.submit import what_is_missing
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


def test_what_is_done_is_what_left_its_files(tmp_path: Path) -> None:
    plan = small_plan(tmp_path)
    assert done_jobs(plan) == set()
    train, probes = of_kind(plan, "train"), of_kind(plan, "probe")
    finish(plan, "pack/" + of_kind(plan, "pack")[0].partition("/")[2], train[0])
    assert done_jobs(plan) == {of_kind(plan, "pack")[0], train[0]}
    finish(plan, *train, *probes, when=1000.0)
    for path in plan.jobs[of_kind(plan, "pack")[0]].done:
        path.unlink()
    assert done_jobs(plan) == set(plan.jobs) - {"report"}  # a corpus that nobody needs any more may be gone


def test_a_report_is_done_only_when_it_is_younger_than_what_it_reports_on(tmp_path: Path) -> None:
    plan = small_plan(tmp_path)
    finish(plan, *plan.jobs, when=1000.0)
    assert "report" in done_jobs(plan)
    finish(plan, of_kind(plan, "probe")[0], when=2000.0)
    assert "report" not in done_jobs(plan)
    finish(plan, "report", when=2000.0)
    assert "report" in done_jobs(plan)
    plan.jobs[of_kind(plan, "train")[1]].done[0].unlink()
    assert "report" not in done_jobs(plan)


def test_what_waits_for_a_failed_job_never_runs_but_the_report_does() -> None:
    plan = small_plan()
    failed = of_kind(plan, "train")[0]
    blocked = blocked_by(plan, {failed})
    assert blocked == {job.name: failed for job in plan.jobs.values() if failed in job.parents and job.kind == "probe"}
    assert blocked_by(plan, {"pack/data-small"}).keys() == {
        j.name for j in plan.jobs.values() if j.kind in ("train", "probe")
    }


# --- states -----------------------------------------------------------------------------------------------------------


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
