"""Submission: arrays and their order, repairs, limits of the queue, --wait, and the time that a hundred runs take."""

from __future__ import annotations

import json
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

import launch.cancel
import launch.dry_run
import launch.submit
from launch.plan import build, write_plan
from launch.records import Records
from launch.scheduler import JobId
from launch.slurm import SlurmScheduler
from launch.snapshot import take_snapshot
from launch.states import done_jobs
from launch.submit import feed, submit_sweep
from simdist.cluster.choice import Choice
from simdist.cluster.discovery import Limits
from simdist.cluster.profile import Profile
from simdist.core.errors import InputError
from tests.support.fake_slurm import scripts, submit
from tests.support.sweeps import finish, of_kind, small_plan, sweep_file


def test_a_sweep_is_submitted_once_in_the_order_of_its_graph(slurm: Path, tmp_path: Path) -> None:
    plan = small_plan(tmp_path)
    said = submit(plan)
    assert "submitting 22" in said
    assert f"small --watch --sweeps {tmp_path / 'sweeps'}" in said
    texts = scripts(slurm)
    assert [text.split("--job-name=small.")[1].split()[0] for text in texts] == [
        "pack",
        "train",
        *["probe"] * 4,
        "report",
    ]
    assert "--dependency" not in texts[0]
    assert "--dependency=afterok:100\n" in texts[1]
    assert [text.split("--dependency=")[1].split()[0] for text in texts[2:6]] == ["aftercorr:101"] * 4
    assert "--dependency=afterany:100:101:102:103:104:105\n" in texts[6]
    assert "submitting 0" in submit(plan)
    assert len(scripts(slurm)) == 7


def test_a_snapshot_is_what_the_job_imports(slurm: Path, tmp_path: Path) -> None:
    plan = small_plan(tmp_path)
    submit(plan)
    (snapshot,) = (plan.folder / "code").iterdir()
    assert (snapshot / "launch" / "one.py").read_text() == "1"
    assert all(f'export PYTHONPATH="{snapshot.absolute()}${{' in text for text in scripts(slurm))
    assert json.loads((snapshot / "snapshot.json").read_text())["root"] == str(tmp_path / "code")


def test_a_job_that_submits_others_gives_them_its_own_snapshot(slurm: Path, tmp_path: Path) -> None:
    """In a clone, sweeps/ is ignored by git: a snapshot of a snapshot would be empty."""
    first = take_snapshot(launch.submit.CODE, tmp_path / "sweeps" / "small" / "code")
    subprocess.run(["git", "init", "--quiet", tmp_path], check=True)
    (tmp_path / ".gitignore").write_text("/sweeps/\n")
    assert take_snapshot(first, tmp_path / "sweeps" / "small" / "code") == first


def test_a_submission_and_its_dry_run_name_untracked_code_once(
    slurm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan, configs = build(sweep_file(), tmp_path / "runs", tmp_path / "sweeps")
    code = launch.submit.CODE
    for words in (["init", "--quiet"], ["add", "launch"]):
        subprocess.run(["git", "-C", code, *words], check=True)
    (code / "tool.py").write_text("1")
    monkeypatch.setattr(launch.dry_run, "CODE", code)
    console = Console(width=200)
    with console.capture() as planned:
        launch.dry_run.show(plan, configs, "slurm", console, choice=Choice(Profile(), "a test's"))
    said = "1 untracked file looks like code, but jobs get no copy: tool.py. `git add` what jobs need"
    assert planned.get().count(said) == 1
    assert submit(plan).count(said) == 1
    assert said not in submit(plan), "nothing was submitted"


def test_only_what_is_missing_is_submitted_after_a_loss(slurm: Path, tmp_path: Path) -> None:
    plan = small_plan(tmp_path)
    submit(plan)
    finish(plan, of_kind(plan, "pack")[0], *of_kind(plan, "train")[:2], *of_kind(plan, "probe")[:8])
    waiting = [f"{array}_{task}" for array in (102, 103, 104, 105) for task in (2, 3)] + ["106"]
    queue = [line for line in (slurm / "queue").read_text().splitlines() if line.partition("|")[0] in waiting]
    (slurm / "queue").write_text("\n".join(queue) + "\n")
    (slurm / "accounts").write_text("101_2|FAILED|75:0|n1\n101_3|FAILED|1:0|n1\n")
    submit(plan)
    texts = scripts(slurm)[7:]
    names = [text.split("--job-name=small.")[1].split()[0] for text in texts]
    assert names == ["train", *["probe"] * 4, "report"]
    assert "--array=0-1" in texts[0]
    assert "--dependency" not in texts[0]
    cancelled = (slurm / "cancelled").read_text().split()
    assert set(cancelled) - {"--quiet"} == set(waiting)


def test_prune_cancels_what_is_no_longer_asked_for(slurm: Path, tmp_path: Path) -> None:
    submit(small_plan(tmp_path))
    smaller = small_plan(tmp_path, seeds=[0])
    assert "cancelled" not in submit(smaller)
    text = submit(smaller, prune=True)
    assert "cancelled 10 jobs that small no longer asks for" in text
    names = {line.split("|")[0] for line in (slurm / "queue").read_text().splitlines()}
    assert {record.id for name, record in Records(smaller.folder).latest().items() if name in smaller.jobs} <= names


def test_a_submission_that_was_killed_leaves_no_job_behind(slurm: Path, tmp_path: Path) -> None:
    plan = small_plan(tmp_path)
    Records(plan.folder).announce("lost", ["train/x"])
    (slurm / "queue").write_text("55|PENDING|None||lost\n56|PENDING|None||other\n")
    submit(plan)
    assert (slurm / "cancelled").read_text().split() == ["--quiet", "55"]
    assert Records(plan.folder).lost_groups() == set()


def test_what_sbatch_says_is_said(slurm: Path, tmp_path: Path) -> None:
    (tmp_path / "bin" / "sbatch").write_text(
        "#!/bin/sh\necho 'sbatch: error: invalid partition specified: x' >&2\nexit 1\n"
    )
    with pytest.raises(InputError, match=r"sbatch rejected stage pack: .*invalid partition specified: x"):
        submit(small_plan(tmp_path))


def test_failed_jobs_are_explained_with_the_end_of_their_log(slurm: Path, tmp_path: Path) -> None:
    plan = small_plan(tmp_path, grid={}, seeds=[0, 1])
    submit(plan)
    train = of_kind(plan, "train")[0]
    finish(plan, of_kind(plan, "pack")[0])
    record = Records(plan.folder).latest()[train]
    record.log.parent.mkdir(parents=True, exist_ok=True)
    record.log.write_text("line\n\nRuntimeError: CUDA out of memory\n")
    states = launch.submit.find_states(plan, done_jobs(plan), {train: record}, SlurmScheduler(run=_failed(record.id)))
    console = Console(width=200)
    with console.capture() as said:
        launch.submit.explain(plan, states, {train: record}, console)
    text = said.get()
    assert f"{train} failed: exit code 1" in text
    assert "RuntimeError: CUDA out of memory" in text
    assert text.count(f"will never run: {train} failed") == 4


def _failed(number: str) -> Any:
    return lambda words: f"{number}|FAILED|1:0|n1\n" if words[0] == "sacct" else ""


def test_waiting_submits_successors_until_all_is_done(
    slurm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A clock that nobody waits for: at each look another part of the sweep has happened."""
    plan = small_plan(tmp_path, grid={}, seeds=[0], stages={})
    (train,) = plan.jobs
    looks: list[float] = []

    def sleep(seconds: float) -> None:
        looks.append(seconds)
        number = Records(plan.folder).latest()[train].id
        if len(looks) < 3:
            (plan.jobs[train].folder / "checkpoints" / f"step_{len(looks)}").mkdir(parents=True)
            (slurm / "queue").write_text("")
            (slurm / "accounts").write_text(f"{number}|FAILED|75:0|n1\n")
        else:
            finish(plan, train)

    monkeypatch.setattr(launch.submit, "pause", sleep)
    submit(plan, wait=True)
    assert len(looks) == 3
    assert len(scripts(slurm)) == 3
    assert Records(plan.folder).latest()[train].starts == 3


def test_what_ends_twice_in_the_same_way_is_left_alone(
    slurm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = small_plan(tmp_path, grid={}, seeds=[0], stages={})
    (train,) = plan.jobs

    def sleep(seconds: float) -> None:
        (slurm / "queue").write_text("")
        (slurm / "accounts").write_text(f"{Records(plan.folder).latest()[train].id}|FAILED|75:0|n1\n")

    monkeypatch.setattr(launch.submit, "pause", sleep)
    said = submit(plan, wait=True)
    assert len(scripts(slurm)) == 2
    assert f"{train} failed: preempted, and not requeued, 2 times" in said


def test_waiting_outlives_a_queue_that_does_not_answer(
    slurm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = small_plan(tmp_path, grid={}, seeds=[0], stages={})
    (train,) = plan.jobs
    squeue, pauses = (tmp_path / "bin" / "squeue").read_text(), []

    def sleep(seconds: float) -> None:
        pauses.append(seconds)
        broken = "#!/bin/sh\necho 'slurm_load_jobs error: Socket timed out' >&2\nexit 1\n"
        (tmp_path / "bin" / "squeue").write_text(broken if len(pauses) < 4 else squeue)
        if len(pauses) == 5:
            finish(plan, train)

    monkeypatch.setattr(launch.submit, "pause", sleep)
    said = submit(plan, wait=True)
    assert pauses == [30, 60, 120, 240, 30]
    assert "Socket timed out" in said
    assert "trying again in 60 s" in said


def limit_to(slurm: Path, limit: int) -> None:
    """A limit that sbatch enforces."""
    programs = slurm.parent / "bin"
    refuse = f"""
wanted=1
[[ $script =~ --array=([0-9,-]+) ]] && wanted=$(eval echo "{{${{BASH_REMATCH[1]//-/..}}}}" | wc -w)
queued=$(cat {slurm}/queue 2>/dev/null | wc -l)
if ((queued + wanted > {limit})); then
    echo "sbatch: error: QOSMaxSubmitJobPerUserLimit" >&2
    echo "sbatch: error: Batch job submission failed: Job violates accounting/QOS policy (job submit limit, ...)" >&2
    exit 1
fi
"""
    lines = (programs / "sbatch").read_text().splitlines(keepends=True)
    (programs / "sbatch").write_text("".join([*lines[:2], refuse, *lines[2:]]))


@pytest.mark.parametrize("told", [True, False])
def test_what_the_queue_has_no_room_for_is_held_back_and_fed_later(
    slurm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, told: bool
) -> None:
    plan = small_plan(tmp_path, grid={}, seeds=[0, 1, 2, 3])
    write_plan(plan, {})
    limit_to(slurm, 3)
    choice = Choice(Profile(), "a test's", limits=Limits(1000, 3 if told else None))
    monkeypatch.setattr(launch.submit, "chosen_profile", lambda name: choice)
    assert "jobs wait for room in the queue" in submit(plan)
    submitted = [job for job in Records(plan.folder).latest() if job in plan.jobs]
    assert submitted == ["pack/" + plan.jobs[submitted[0]].name.partition("/")[2], *of_kind(plan, "train")[:2]]
    assert (plan.folder / "held").exists()
    finish(plan, *submitted)
    for _ in range(20):
        (slurm / "queue").write_text("")
        finish(plan, *[job for job in Records(plan.folder).latest() if job in plan.jobs])
        feed(plan.folder, 1.0)
        if not (plan.folder / "held").exists():
            break
        queued = (slurm / "queue").read_text().splitlines()
        assert 0 < len(queued) <= 3
    assert set(Records(plan.folder).latest()) == set(plan.jobs)


def test_jobs_that_failed_before_are_not_forgotten_when_they_had_no_room(
    slurm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The person repeats the command, two of four fit; a feed, which retries nothing by itself, submits the others."""
    plan = small_plan(tmp_path, grid={}, seeds=[0, 1, 2, 3], stages={})
    write_plan(plan, {})
    submit(plan)
    (slurm / "queue").write_text("")
    (slurm / "accounts").write_text("".join(f"100_{task}|FAILED|1:0|n1\n" for task in range(4)))
    choice = Choice(Profile(), "a test's", limits=Limits(1000, 2))
    monkeypatch.setattr(launch.submit, "chosen_profile", lambda name: choice)
    assert "2 jobs wait for room in the queue" in submit(plan)
    (slurm / "queue").write_text("")
    finish(plan, *of_kind(plan, "train")[:2])
    feed(plan.folder, 1.0)
    assert [record.starts for record in Records(plan.folder).latest().values()] == [2, 2, 2, 2]
    assert not (plan.folder / "held").exists()


def test_a_job_that_was_cancelled_before_it_had_room_stays_away(
    slurm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = small_plan(tmp_path, grid={}, seeds=[0, 1, 2], stages={})
    write_plan(plan, {})
    choice = Choice(Profile(), "a test's", limits=Limits(1000, 1))
    monkeypatch.setattr(launch.submit, "chosen_profile", lambda name: choice)
    submit(plan)
    first, second, third = of_kind(plan, "train")
    run = plan.jobs[second].run
    assert run is not None
    launch.cancel.main(["small", run, "--sweeps", str(tmp_path / "sweeps")])
    (slurm / "queue").write_text("")
    finish(plan, first)
    feed(plan.folder, 1.0)
    assert set(Records(plan.folder).latest()) == {first, third}
    assert not (plan.folder / "held").exists()


def test_a_repair_of_uneven_parts_goes_through(slurm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = small_plan(tmp_path, grid={}, seeds=[0, 1, 2, 3, 4])
    choice = Choice(Profile(array_throttle=3), "a test's", limits=Limits(2, None))
    monkeypatch.setattr(launch.submit, "chosen_profile", lambda name: choice)
    finish(plan, *of_kind(plan, "pack"), *of_kind(plan, "train"))
    finish(plan, *[name for name in of_kind(plan, "probe") if not name.endswith("speaker-module0")][:-1])
    submit(plan)
    probes = [text for text in scripts(slurm) if "--job-name=small.probe" in text]
    assert [text.split("--array=")[1].split()[0] for text in probes if "--array=" in text] == ["0-1%1", "0-1%1"]
    assert len(probes) == 4


def test_a_refusal_that_is_no_limit_of_the_queue_is_an_error(slurm: Path, tmp_path: Path) -> None:
    """SLURM's text for every policy names the submit limit among others."""
    policy = "Job violates accounting/QOS policy (job submit limit, user's size and/or time limits)"
    (tmp_path / "bin" / "sbatch").write_text(
        f'#!/bin/sh\necho "sbatch: error: QOSMaxWallDurationPerJobLimit" >&2\necho "{policy}" >&2\nexit 1\n'
    )
    with pytest.raises(InputError, match="QOSMaxWallDurationPerJobLimit"):
        submit(small_plan(tmp_path))


@pytest.mark.parametrize("later", [False, True])
def test_waiting_ends_when_sbatch_refuses(
    slurm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, later: bool
) -> None:
    """At once what the person typed, and twice in a row what changed meanwhile."""
    plan = small_plan(tmp_path, grid={}, seeds=[0], stages={})
    (train,) = plan.jobs
    pauses: list[float] = []

    def refuse() -> None:
        (tmp_path / "bin" / "sbatch").write_text("#!/bin/sh\necho 'Invalid account' >&2\nexit 1\n")

    def sleep(seconds: float) -> None:
        pauses.append(seconds)
        refuse()
        (slurm / "queue").write_text("")
        (slurm / "accounts").write_text(f"{Records(plan.folder).latest()[train].id}|FAILED|75:0|n1\n")

    monkeypatch.setattr(launch.submit, "pause", sleep)
    if not later:
        refuse()
    with pytest.raises(InputError, match="Invalid account"):
        submit(plan, wait=True)
    assert pauses == ([30.0, 60.0] if later else [])


def test_settings_of_the_user_do_not_hide_jobs(slurm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "bin" / "squeue").write_text('#!/bin/sh\n[ -n "$SQUEUE_PARTITION" ] || echo "17|RUNNING|None|n1|"\n')
    monkeypatch.setenv("SQUEUE_PARTITION", "other")
    assert SlurmScheduler().look([JobId("17")])[JobId("17")].phase == "running"


def test_a_hundred_runs_are_submitted_in_less_than_ten_seconds(slurm: Path, tmp_path: Path) -> None:
    """Time of this process alone: sbatch takes its own, and others may use the machine."""
    plan = small_plan(tmp_path, grid={}, seeds=list(range(100)))
    begin = time.process_time()
    submit(plan)
    seconds = time.process_time() - begin
    assert len(scripts(slurm)) == 7
    assert len(Records(plan.folder).latest()) == len(plan.jobs) == 502
    assert seconds < 10, f"{seconds:.1f} s"


def test_without_slurm_the_way_out_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(InputError, match=r"no SLURM on this machine .*--cluster local"):
        submit_sweep(small_plan(tmp_path), "slurm", Console())
