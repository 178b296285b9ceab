"""What is shown of sweeps, what their logs say, and what is cancelled; and that a thousand runs are no burden."""

from __future__ import annotations

import io
import json
import os
import re
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from rich.console import Console

import launch.cancel
import launch.logs
import launch.status
from launch.overview import loose_runs, overview
from launch.plan import Plan, build, write_plan
from launch.records import Record, Records
from launch.states import find_states
from launch.status import as_json, as_renderable, duration
from simdist.config.schema import Config, to_dict
from simdist.core.console import run
from simdist.core.errors import InputError
from simdist.core.files import append_json
from tests.support.sweeps import FakeSlurm, finish, of_kind, sweep_file


def planned(root: Path, **changes: Any) -> Plan:
    """The small sweep, written down."""
    config = {"name": "small", "data.root": str(root / "data"), "data.crop": 8000, "train.max_steps": 500}
    plan, configs = build(sweep_file(config=config, **changes), root / "runs", root / "sweeps")
    write_plan(plan, configs)
    return plan


def trains(folder: Path, step: int, heartbeat: float | None = None, resumed: int = 0) -> None:
    """What a training leaves in its folder by some step."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, event in enumerate(["start", *["resumed"] * resumed]):
        append_json(folder / "events.jsonl", {"event": event, "host": f"node{number}", "time": 0, "world_size": 2})
    for at in range(10, step + 1, 10):
        modules = [{"module": m, "loss": 3 - at / 1000 - m} for m in range(4)]
        line = {"kind": "train", "step": at, "modules": modules, "samples_per_s": 8.0}
        append_json(folder / "metrics.jsonl", line)
    if heartbeat is not None:
        claim = folder / "lease" / "00000001.json"
        claim.parent.mkdir()
        claim.write_text("{}")
        os.utime(claim, (heartbeat, heartbeat))


def started(plan: Plan, name: str, number: str, log: Path | None = None, cluster: str = "gpu") -> None:
    identity = plan.jobs[name].identity
    Records(plan.folder).started(Record(name, cluster, number, log or Path("none"), identity=identity))


@pytest.fixture
def sweep(tmp_path: Path) -> Plan:
    """Four runs: one finished, one that trains, one that failed, one that waits."""
    plan = planned(tmp_path)
    finish(plan, *of_kind(plan, "pack"))
    for split in ("train", "test"):
        (tmp_path / "data" / split / "manifest.json").write_text('{"num_samples": 400}')
    done, going, failed, waiting = of_kind(plan, "train")
    finish(plan, done)
    trains(plan.jobs[going].folder, 200, heartbeat=1000.0, resumed=2)
    log = tmp_path / "failed.log"
    log.write_text("step 10\nerror: the disk is full; make room\n")
    for number, name in enumerate((done, going, failed, waiting), 20):
        started(plan, name, str(number), log if name == failed else None)
    return plan


SLURM = FakeSlurm({"21": ("RUNNING", "None"), "23": ("PENDING", "Priority")}, {"22": ("FAILED", "1:0")})


def test_a_row_says_where_a_run_is_and_how_long_it_will_take(sweep: Plan) -> None:
    found = overview(sweep, SLURM.scheduler, now=1004.0)
    done, going, failed, waiting = found.rows
    assert (going.stage, going.status, going.node) == ("train", "running", "n1")
    progress = going.progress
    assert (progress.step, progress.total, progress.restarts, progress.heartbeat) == (200, 500, 2, 4.0)
    assert progress.losses == pytest.approx((2.8, 1.8, 0.8, -0.2))
    assert progress.seconds_left == pytest.approx(300 / (8.0 / 4))  # 8 clips/s in batches of 4
    assert (done.stage, done.status) == ("probe 0/4", "missing")
    assert (failed.status, failed.reason) == ("failed", "exit code 1")
    assert (waiting.status, waiting.reason) == ("queued", "Priority")
    assert found.count("blocked") == 4


def test_the_table_names_failures_their_logs_and_what_never_runs(
    sweep: Plan, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launch.status, "overview", lambda plan, scheduler: overview(plan, SLURM.scheduler, 1004.0))
    words = ["--runs", str(tmp_path / "runs"), "--sweeps", str(tmp_path / "sweeps")]
    assert launch.status.main(["small", *words]) == 0
    text = capsys.readouterr().out
    failed = of_kind(sweep, "train")[2]
    assert f"{failed} failed: exit code 1\n    step 10\n    error: the disk is full; make room" in text
    assert text.count(f"will never run: {failed} failed") == 4
    assert "queued (Priority)" in text
    assert re.search(r"200/500 +│ +2 min 30 s", text)
    assert launch.status.main(["--json", *words]) == 0
    (listed,) = json.loads(capsys.readouterr().out)
    assert listed["jobs"][failed] | {"starts": 1} == listed["jobs"][failed]
    assert listed["runs"][1]["seconds_left"] == 150.0


def test_a_run_that_has_no_gpu_says_so_in_the_table(sweep: Plan) -> None:
    going = of_kind(sweep, "train")[1]
    events = sweep.jobs[going].folder / "events.jsonl"
    append_json(events, {"event": "no_gpu", "text": "running on the CPU although the profile asked for 4", "time": 0})
    console = Console(file=io.StringIO(), width=240)
    console.print(as_renderable(overview(sweep, SLURM.scheduler, now=1004.0)))
    assert f"{sweep.jobs[going].run}: running on the CPU although" in console.file.getvalue()  # type: ignore[attr-defined]
    append_json(events, {"event": "resumed", "host": "n2", "time": 1})
    assert overview(sweep, SLURM.scheduler, now=1004.0).rows[1].progress.warning == ""


def test_slow_ranks_are_shown_until_the_next_start(sweep: Plan) -> None:
    folder = sweep.jobs[of_kind(sweep, "train")[1]].folder
    append_json(
        folder / "events.jsonl", {"event": "stragglers", "step": 150, "text": "rank 3 (n7) is slow.", "time": 0}
    )
    found = overview(sweep, SLURM.scheduler, now=1004.0)
    console = Console(file=io.StringIO(), width=240)
    console.print(as_renderable(found))
    assert f"{found.rows[1].run}: rank 3 (n7) is slow." in console.file.getvalue()  # type: ignore[attr-defined]
    append_json(folder / "events.jsonl", {"event": "resumed", "host": "n2", "time": 1})
    assert overview(sweep, SLURM.scheduler, now=1004.0).rows[1].progress.stragglers == ""


def test_records_of_a_thousand_ranks_are_read(sweep: Plan) -> None:
    folder = sweep.jobs[of_kind(sweep, "train")[1]].folder
    times = dict.fromkeys(("step", "data_wait", "collective_wait"), [0.1234] * 1024)
    line = {"kind": "train", "step": 210, "modules": [{"module": 0, "loss": 2.0}], "samples_per_s": 8.0, "ranks": times}
    append_json(folder / "metrics.jsonl", line)
    progress = overview(sweep, SLURM.scheduler, now=1004.0).rows[1].progress
    assert (progress.step, progress.losses) == (210, (2.0,))


def test_runs_of_no_sweep_are_shown_too(tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "by_hand"
    trains(folder, 50, heartbeat=995.0)
    config = to_dict(Config())
    config["train"]["max_steps"] = 80
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    (row,) = loose_runs(tmp_path / "runs", set(), now=1000.0).rows
    assert (row.run, row.status, row.progress.step, row.node) == ("by_hand", "running", 50, "node0")
    assert loose_runs(tmp_path / "runs", set(), now=2000.0).rows[0].status == "stopped"
    assert loose_runs(tmp_path / "runs", {folder.resolve()}).rows == []


def test_nothing_to_show_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as code:
        run(launch.status.main, ["--sweeps", str(tmp_path), "--runs", str(tmp_path)])
    assert code.value.code == 2
    assert "there is no sweep in" in capsys.readouterr().err.replace("\n", " ")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(None, ""), (0.2, "0 s"), (65, "1 min 5 s"), (3600, "1 h"), (90_061, "1 d 1 h"), (7_325, "2 h 2 min")],
)
def test_durations_are_for_people(seconds: float | None, text: str) -> None:
    assert duration(seconds) == text


def test_a_damaged_line_of_the_records_is_named(sweep: Plan) -> None:
    with (sweep.folder / "jobs.jsonl").open("a") as file:
        file.write('{"event": "started", "time": 1, "job": ["a"]}\n')
    found = overview(sweep, SLURM.scheduler, now=1001.0)
    (sentence,) = as_json(found)["damaged"]
    assert "jobs.jsonl is damaged and read without line 5: job: Expected" in sentence
    console = Console(file=io.StringIO(), width=240)
    with console.capture() as capture:
        console.print(as_renderable(found))
    assert sentence in capture.get().replace("\n", "")


def test_a_thousand_runs_are_shown_in_less_than_three_seconds(tmp_path: Path) -> None:
    """A thousand runs with four probes each, all begun; on the disk of this machine, without squeue's own time."""
    plan = planned(tmp_path, grid={"loss.beta": [n / 1000 for n in range(100)]}, seeds=list(range(10)))
    assert len(plan.runs) == 1000
    finish(plan, *of_kind(plan, "pack"))
    queue, records = {}, Records(plan.folder)
    for number, name in enumerate(of_kind(plan, "train")):
        trains(plan.jobs[name].folder, 60, heartbeat=1000.0, resumed=1)
        records.started(Record(name, "gpu", f"7_{number}", Path("none"), identity=plan.jobs[name].identity))
        queue[f"7_{number}"] = ("RUNNING", "None")
    slurm = FakeSlurm(queue)
    begin = time.process_time()  # of this process: others may use the machine
    from launch.plan import read_plan

    found = overview(read_plan(plan.folder), slurm.scheduler, now=1001.0)
    text = json.dumps(as_json(found))
    Console(file=io.StringIO(), width=240).print(as_renderable(found))
    seconds = time.process_time() - begin
    assert len(found.rows) == 1000
    assert found.count("running") == 1000
    assert len(text) > 100_000
    assert seconds < 3, f"{seconds:.1f} s"


# --- logs -------------------------------------------------------------------------------------------------------------


def test_a_run_is_found_by_the_beginning_of_its_name(
    sweep: Plan, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    failed = of_kind(sweep, "train")[2]
    name = sweep.jobs[failed].run
    assert name is not None
    place = ["--sweeps", str(tmp_path / "sweeps")]
    assert launch.logs.main([name[:10], "--lines", "1", *place]) == 0
    assert capsys.readouterr().out.splitlines()[1:] == ["error: the disk is full; make room"]
    assert launch.logs.main([failed, "--list", *place]) == 0
    assert capsys.readouterr().out == f"{failed}: {tmp_path / 'failed.log'}\n"
    with pytest.raises(InputError, match="'small' is ambiguous: it begins the names of 4 runs: small-"):
        launch.logs.main(["small", *place])
    with pytest.raises(InputError, match=r"there is no run or job 'other'\. Runs: small-"):
        launch.logs.main(["other", *place])


def test_following_goes_on_in_a_successors_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(launch.logs, "LOOK_SECONDS", 0.01)
    monkeypatch.setattr(launch.logs, "RECORD_SECONDS", 0.02)
    plan = planned(tmp_path)
    train = of_kind(plan, "train")[0]
    first, second = tmp_path / "first.log", tmp_path / "second.log"
    first.write_text("one\ntwo\n")
    started(plan, train, "1", first)
    (found,) = launch.logs.find_jobs(train, tmp_path / "sweeps")
    shown = launch.logs.contents(found, 1, follow=True)
    assert next(shown) == "two\n"

    def go_on() -> None:
        with first.open("a") as file:
            file.write("three\n")

    threading.Timer(0.1, go_on).start()
    assert next(shown) == "three\n"
    second.write_text("again\n")
    started(plan, train, "2", second)
    assert next(shown) == f"==> {train}: {second}\n"
    assert next(shown) == "again\n"


# --- cancelling -------------------------------------------------------------------------------------------------------


def test_children_are_cancelled_before_their_parents(
    sweep: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    going = of_kind(sweep, "train")[1]
    probe = next(name for name in of_kind(sweep, "probe") if going in sweep.jobs[name].parents)
    started(sweep, probe, "30")
    slurm = FakeSlurm({**SLURM.queue, "30": ("PENDING", "DependencyNeverSatisfied")}, SLURM.accounts)
    cancelled = slurm.cancelled
    monkeypatch.setattr(launch.cancel, "SlurmScheduler", lambda: slurm.scheduler)
    monkeypatch.setattr(
        launch.cancel, "find_states", lambda plan, done, records, asked: find_states(plan, done, records, asked, 1004.0)
    )
    place = ["--sweeps", str(tmp_path / "sweeps")]
    run_name = sweep.jobs[going].run
    assert run_name is not None
    launch.cancel.main(["small", run_name, "--stage", "probe", *place])
    assert cancelled == ["30"]
    cancelled.clear()
    launch.cancel.main(["small", *place])
    assert set(cancelled) == {"30", "23", "21"}
    assert cancelled.index("30") < cancelled.index("21")
    assert "cancelled 3 jobs of small" in capsys.readouterr().out
    with pytest.raises(InputError, match="small has no run 'other'"):
        launch.cancel.main(["small", "other", *place])
    with pytest.raises(InputError, match="small has no stage 'decode'; it has pack, train, probe, report"):
        launch.cancel.main(["small", "--stage", "decode", *place])
