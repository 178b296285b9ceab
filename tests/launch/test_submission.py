"""What is submitted, taken back and left alone, out of what SLURM says."""

from __future__ import annotations

from pathlib import Path

import pytest
from sweeps import FakeSlurm, finish, of_kind, small_plan

from launch.graph import done_jobs
from launch.plan import Plan
from launch.records import Record, Records
from launch.squeue import Account, read_accounts, read_queue
from launch.states import FRESH, State, find_states
from launch.submission import dependency, groups, what_is_missing
from simdist.errors import InputError


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


def states_of(plan: Plan, records: dict[str, Record], slurm: FakeSlurm) -> dict[str, State]:
    return find_states(plan, done_jobs(plan), records, slurm, now=0.0)


def test_at_first_all_is_missing_and_nothing_is_asked(plan: Plan) -> None:
    slurm = FakeSlurm()
    states = states_of(plan, {}, slurm)
    assert {state.word for state in states.values()} == {"missing"}
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
        (("OUT_OF_MEMORY", "0:125"), "failed", "more `mem`"),
        (("COMPLETED", "0:0"), "failed", "without writing"),
        (("CANCELLED by 0", "0:15"), "cancelled", "cancelled"),
        (None, "stopped", "does not know it"),
    ],
)
def test_how_a_job_left_the_queue(plan: Plan, account: tuple[str, str] | None, word: str, reason: str) -> None:
    records = submitted(plan)
    finish(plan, of_kind(plan, "pack")[0])
    train, other = of_kind(plan, "train")
    queue = pending(records)
    del queue[records[train].id]
    states = states_of(plan, records, FakeSlurm(queue, {records[train].id: account} if account else {}))
    assert states[train].word == word
    assert reason in states[train].reason
    assert states[other].word == "queued"
    never = {name for name, state in states.items() if state.word == "never"}
    below = {name for name in of_kind(plan, "probe") if train in plan.jobs[name].parents}
    assert never == (below if word in ("failed", "cancelled") else set())


def test_a_training_that_saved_when_it_was_cancelled_is_not_taken_for_a_preempted_one(plan: Plan) -> None:
    log = Records(plan.folder)
    train = of_kind(plan, "train")[0]
    record = Record(train, "gpu", "9", Path("log"), identity=plan.jobs[train].identity)
    slurm = FakeSlurm({}, {"9": ("FAILED", "75:0")})
    log.started(record)
    assert states_of(plan, log.latest(), slurm)[train].word == "stopped"
    log.cancelled([train])
    states = states_of(plan, log.latest(), slurm)
    assert states[train].word == "cancelled"
    assert train not in what_is_missing(plan, states, log.latest(), retry=False).submit
    log.started(record)
    assert states_of(plan, log.latest(), slurm)[train].word == "stopped"


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
    lease = plan.jobs[train].folder / "lease.json"
    lease.parent.mkdir(parents=True)
    lease.write_text("{}")
    touched = lease.stat().st_mtime
    assert find_states(plan, set(), {}, now=touched + FRESH - 1)[train].word == "running"
    assert find_states(plan, set(), {}, now=touched + FRESH + 1)[train].word == "missing"


# --- groups -----------------------------------------------------------------------------------------------------------


def test_jobs_that_wait_for_the_same_parents_are_one_array(plan: Plan) -> None:
    made = groups(plan, plan.jobs, ())
    assert [(group.stage, len(group.jobs)) for group in made] == [
        ("pack", 1),
        ("train", 2),
        ("probe", 4),
        ("probe", 4),
        ("report", 1),
    ]
    trains = of_kind(plan, "train")
    assert [group.parents for group in made[2:4]] == [(trains[0],), (trains[1],)]
    finish(plan, of_kind(plan, "pack")[0])
    assert groups(plan, trains, done_jobs(plan))[0].parents == ()


def test_an_array_has_no_more_tasks_than_slurm_allows() -> None:
    plan = small_plan(grid={}, seeds=list(range(1003)))
    sizes = [len(group.jobs) for group in groups(plan, of_kind(plan, "train"), ())]
    assert sizes == [1000, 3]


def test_children_wait_for_success_and_the_report_for_the_end(plan: Plan) -> None:
    made = groups(plan, plan.jobs, of_kind(plan, "pack"))
    trains = of_kind(plan, "train")
    ids = {trains[0]: "17_0", trains[1]: "17_1"} | {name: f"18_{n}" for n, name in enumerate(of_kind(plan, "probe"))}
    assert dependency(made[1], ids) is None
    assert dependency(made[2], ids) == "afterok:17_0"
    assert dependency(made[-1], ids) == "afterany:17:18"


# --- SLURM's own words ------------------------------------------------------------------------------------------------


def test_a_queue_that_cannot_be_asked_is_an_error_and_an_accounting_is_not() -> None:
    def broken(words: object) -> str:
        raise FileNotFoundError(2, "No such file or directory")

    with pytest.raises(InputError, match=r"squeue cannot be asked .*login node"):
        read_queue(broken)
    assert read_accounts(["1"], broken) == {}


def test_lines_of_squeue_and_sacct() -> None:
    def answer(words: object) -> str:
        return "17_3|PENDING|DependencyNeverSatisfied||a|b\n18|RUNNING|None|n[1-2]|\n"

    queue = read_queue(answer)
    assert queue["17_3"].will_never_run
    assert queue["17_3"].comment == "a|b"
    assert queue["18"].is_running
    assert queue["18"].nodes == "n[1-2]"
    assert read_accounts(["3"], lambda words: "3|CANCELLED by 0|0:15|n1\n") == {"3": Account("CANCELLED", 143, "n1")}


def test_the_accounting_is_asked_about_many_jobs_in_few_calls() -> None:
    calls: list[list[str]] = []

    def answer(words: object) -> str:
        calls.append(list(words))  # type: ignore[call-overload]
        return ""

    read_accounts([str(number) for number in range(1000)], answer)
    assert len(calls) == 5


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
