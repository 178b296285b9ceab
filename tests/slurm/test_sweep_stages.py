"""A sweep of two runs, and what can happen to the jobs of each of its stages: preempted, killed, held back, cancelled.

Its jobs are arrays of two tasks, so that every stage has a last task, whose own number SLURM gives to the whole array.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from launch.plan import Plan, read_plan
from launch.records import Record, Records
from launch.states import done_jobs
from simdist.core.files import read_json_lines, sha256_of
from slurm.testbed import cluster
from tests.support import ROOT
from tests.support.slurm_jobs import PACE, SWEEP_CONFIG, Slurm, await_, user_environment

PROFILE = {
    "partition": "low",
    "cpus_per_task": 1,
    "time_minutes": 30,
    "signal_lead_s": 30,
    "setup": ["set -euo pipefail", "export ACCELERATE_USE_CPU=true OMP_NUM_THREADS=1"],
}
CONFIG = {**SWEEP_CONFIG, "train.precision": "no"}
STAGES: dict[str, Any] = {
    "probe": {"labels": ["speaker"], "modules": [0], "options": {"epochs": 2}},
    "decode": {"modules": [0], "losses": ["mse"], "options": {"train.max_steps": 10}},
    "analyze": {"after": ["decode"], "which": ["traversal"], "options": {"module": 0}},
    "report": None,
}


@dataclass(frozen=True)
class Sweep:
    """A sweep of two seeds whose trainings rest from some step on until `let_go`."""

    slurm: Slurm
    root: Path
    data: Path
    stages: dict[str, Any]
    rest_from: int = 12

    @property
    def plan(self) -> Plan:
        return read_plan(self.root / "sweeps" / "two")

    def submit(self, *options: str, seconds: float = 1.0, **profile: object) -> str:
        """The command; what it said."""
        (self.root / "profile.yaml").write_text(yaml.safe_dump(PROFILE | profile))
        content = {"name": "two", "base": ["sim_librispeech", "debug"], "seeds": [0, 1], "stages": self.stages}
        config = {"config": {**CONFIG, "data.root": str(self.data)}}
        (self.root / "two.yaml").write_text(yaml.safe_dump(content | config))
        words = ["--cluster", str(self.root / "profile.yaml"), str(self.root / "two.yaml"), *options]
        return self.command("sweep", *words, "--runs", str(self.root / "runs"), seconds=seconds)

    def command(self, name: str, *words: str, seconds: float = 1.0) -> str:
        """Output of a command of launch/."""
        return self.slurm.ask(*self._words(name, *words), **self._rest(seconds))

    def start_waiting(self) -> subprocess.Popen[str]:
        """The command with --wait, in the background."""
        words = ["--cluster", str(self.root / "profile.yaml"), str(self.root / "two.yaml"), "--wait", "--every", "2"]
        command = self._words("sweep", *words, "--runs", str(self.root / "runs"))
        environment = self.slurm.environment | self._rest(1.0)
        return subprocess.Popen(command, env=environment, cwd=ROOT, stdout=subprocess.PIPE, text=True)

    def _words(self, name: str, *words: str) -> list[str]:
        return [sys.executable, str(ROOT / "launch" / f"{name}.py"), *words, "--sweeps", str(self.root / "sweeps")]

    def _rest(self, seconds: float) -> dict[str, str]:
        return {
            "SIMDIST_REST_FROM": str(self.rest_from),
            "SIMDIST_REST_UNTIL": str(self.root / "go"),
            "SIMDIST_REST_SECONDS": str(seconds),
            "PYTHONPATH": f"{ROOT}:{PACE}",
        }

    def let_go(self) -> None:
        (self.root / "go").touch()

    def records(self, stage: str) -> list[Record]:
        """The latest submission of each job of a stage."""
        latest = Records(self.plan.folder).latest()
        return [latest[job.name] for job in self.plan.jobs.values() if job.stage == stage]

    def await_running(self, stage: str) -> None:
        """Wait until every job of a stage runs its own Python."""

        def begun() -> bool:
            return all(record.ending.read() for record in self.records(stage))

        await_(begun, f"stage {stage} to begin", self.describe)

    def await_steps(self, step: int) -> None:
        def reached() -> bool:
            files = [run.folder / "metrics.jsonl" for run in self.plan.runs.values()]
            return all(max((line["step"] for line in read_json_lines(file)), default=0) >= step for file in files)

        await_(reached, f"step {step} of both runs", self.describe)

    def await_end(self) -> None:
        await_(lambda: done_jobs(self.plan) == set(self.plan.jobs), "the sweep's end", self.describe)

    def restarts(self, record: Record) -> int:
        return int(self.slurm.job(record.id)["Restarts"])

    def results(self) -> dict[str, str]:
        """What a run is worth comparing by: weights of encoders and decoders, results of probes."""
        found = {}
        patterns = ("checkpoints/step_00000040", "decoders/*/checkpoints/step_00000010", "probes/*")
        for run in self.plan.runs.values():
            assert json.loads((run.folder / "DONE").read_text())["step"] == 40
            for pattern in patterns:
                for file in sorted(run.folder.glob(f"{pattern}/*.safetensors")):
                    found[str(file.relative_to(run.folder.parent))] = sha256_of(file)
            for file in sorted(run.folder.glob("probes/*/result.json")):
                found[str(file.relative_to(run.folder.parent))] = json.dumps(json.loads(file.read_text())["test"])
        assert len(found) >= len(self.plan.runs)
        return found

    def describe(self) -> str:
        logs = [f"{path}\n{path.read_text()[-1500:]}" for path in sorted(self.plan.folder.glob("slurm/*/*.out"))]
        return "\n".join([self.slurm.ask("squeue", "--format=%i %j %T %r"), *logs])


@pytest.fixture
def sweep(testbed: Slurm, speech: Path, tmp_path: Path) -> Sweep:
    return Sweep(testbed, tmp_path, speech, STAGES)


@pytest.fixture(scope="module")
def undisturbed(speech: Path, tmp_path_factory: pytest.TempPathFactory, slurm_installed: None) -> dict[str, str]:
    """Results of the same sweep, run on this machine from start to end."""
    root = tmp_path_factory.mktemp("undisturbed")
    stages = {name: STAGES[name] for name in ("probe", "decode")}
    sweep = Sweep(Slurm(None, user_environment("")), root, speech, stages)  # pyright: ignore[reportArgumentType]
    content = {"name": "two", "base": ["sim_librispeech", "debug"], "seeds": [0, 1], "stages": stages}
    (root / "two.yaml").write_text(yaml.safe_dump(content | {"config": {**CONFIG, "data.root": str(speech)}}))
    words = ["--cluster", "local", "--jobs", "2", str(root / "two.yaml"), "--runs", str(root / "runs")]
    sweep.let_go()
    sweep.command("sweep", *words)
    return sweep.results()


def preempt_all(slurm: Slurm) -> None:
    """Take all nodes away for two seconds."""
    words = ["--partition=high", f"--nodes={slurm.layout.nodes}", "--exclusive", "--output=/dev/null", "--wrap=sleep 2"]
    number = slurm.submit(*words)
    slurm.await_state(number, "COMPLETED")


def test_every_stage_is_preempted_in_each_of_its_tasks(sweep: Sweep, undisturbed: dict[str, str]) -> None:
    sweep.submit()
    sweep.await_steps(14)
    for stage in ("train", "probe", "decode", "analyze", "report"):
        sweep.await_running(stage)
        preempt_all(sweep.slurm)
        sweep.let_go()
    sweep.await_end()
    for stage in ("train", "probe", "decode", "analyze", "report"):
        assert all(sweep.restarts(record) >= 1 for record in sweep.records(stage)), stage  # a slow one meets the next
    assert {len(events) for events in _events(sweep, "resumed")} == {1}
    assert sweep.results() == undisturbed
    assert "| speaker | trained | linear | 2 |" in (sweep.plan.folder / "report" / "report.md").read_text()
    assert "submitting 0" in sweep.submit()


def _events(sweep: Sweep, name: str) -> list[list[dict[str, Any]]]:
    files = [run.folder / "events.jsonl" for run in sweep.plan.runs.values()]
    return [[line for line in read_json_lines(file) if line["event"] == name] for file in files]


def test_a_partition_that_cancels_without_grace_gives_jobs_back_to_the_queue(
    sweep: Sweep, undisturbed: dict[str, str]
) -> None:
    """A step is longer than KillWait: SIGKILL comes before anything can be saved, and the requeue was asked for."""
    sweep = replace(sweep, rest_from=15, stages={})
    sweep.submit(seconds=3600, partition="cancel")
    sweep.await_steps(15)
    preempt_all(sweep.slurm)
    sweep.let_go()
    sweep.await_end()
    assert [sweep.restarts(record) for record in sweep.records("train")] == [1, 1]
    assert [[event["step"] for event in events] for events in _events(sweep, "resumed")] == [[10], [10]]
    assert undisturbed.items() >= sweep.results().items()


def test_a_killed_rank_is_run_again_if_it_had_progressed(sweep: Sweep, undisturbed: dict[str, str]) -> None:
    sweep = replace(sweep, stages={})
    sweep.submit()
    sweep.await_steps(12)
    first, second = sweep.records("train")
    for record in (first, second):
        _kill_command(record)
    sweep.let_go()
    sweep.await_end()
    assert sweep.restarts(first) == sweep.restarts(second) == 1
    assert undisturbed.items() >= sweep.results().items()


def _kill_command(record: Record) -> None:
    """kill -9 of the process that runs a job's command."""
    array, _, task = record.id.partition("_")
    marks = [f"SLURM_ARRAY_JOB_ID={array}".encode(), f"SLURM_ARRAY_TASK_ID={task}".encode(), b"SLURM_PROCID=0"]
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            is_ours = all(mark in (folder / "environ").read_bytes().split(b"\0") for mark in marks)
            if is_ours and b"submitit.core._submit" in (folder / "cmdline").read_bytes().split(b"\0"):
                os.kill(int(folder.name), 9)
        except OSError:
            continue


def test_a_killed_rank_without_progress_fails_and_the_report_is_made_without_it(sweep: Sweep) -> None:
    sweep = replace(sweep, stages={"report": None})
    sweep.submit()
    first, second = sweep.records("train")
    await_(lambda: bool(first.ending.read() and second.ending.read()), "both to begin", sweep.describe)
    _kill_command(first)
    sweep.let_go()
    await_(lambda: first.ending.code == 137, "the end of the first", sweep.describe)
    await_(lambda: "report" in done_jobs(sweep.plan) or _report_is_done(sweep), "the report", sweep.describe)
    (shown,) = json.loads(sweep.command("status", "two", "--json"))
    assert shown["jobs"][first.job]["status"] == "failed"
    assert shown["jobs"][first.job]["reason"] == "exit code 137"
    assert shown["jobs"]["report"]["status"] == "done"
    assert "without" in shown["jobs"]["report"]["reason"]


def _report_is_done(sweep: Sweep) -> bool:
    (shown,) = json.loads(sweep.command("status", "two", "--json"))
    return shown["jobs"]["report"]["status"] == "done"


def test_a_task_that_a_person_cancels_in_the_queue_is_not_submitted_again_by_wait(sweep: Sweep) -> None:
    sweep = replace(sweep, stages={name: STAGES[name] for name in ("probe", "report")})
    sweep.submit()
    waiting = sweep.start_waiting()
    sweep.await_steps(12)
    first, second = sweep.records("probe")
    sweep.slurm.ask("scancel", first.id)
    time.sleep(5.0)  # two looks of --wait
    sweep.let_go()
    said, _ = waiting.communicate(timeout=300)
    assert waiting.returncode == 1, said
    assert sweep.records("probe")[0].starts == 1
    (shown,) = json.loads(sweep.command("status", "two", "--json"))
    assert shown["jobs"][first.job]["status"] == "cancelled"
    assert shown["jobs"][second.job]["status"] == shown["jobs"]["report"]["status"] == "done"


def test_jobs_are_submitted_from_inside_a_job(sweep: Sweep) -> None:
    """SLURM's variables of the outer job say how much memory and which tasks; sbatch would take them for options."""
    sweep.let_go()
    (sweep.root / "profile.yaml").write_text(yaml.safe_dump(PROFILE | {"mem": "1000M"}))
    sweep.submit("--dry-run")
    words = sweep._words("sweep", "--cluster", str(sweep.root / "profile.yaml"), str(sweep.root / "two.yaml"))
    words += ["--runs", str(sweep.root / "runs"), "stages.decode=false", "stages.analyze=false", "stages.probe=false"]
    outer = ["srun", "--partition=high", "--ntasks=1", "--mem-per-cpu=200", "env", "RANK=0", *words]
    assert "submitting 3" in sweep.slurm.ask(*outer, **sweep._rest(1.0))
    sweep.await_end()


@pytest.fixture(scope="module")
def limited(slurm_installed: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Slurm]:
    """Takes four jobs of a user, arrays of two tasks, and requeues nothing that does not ask for it."""
    folder = tmp_path_factory.mktemp("limited") / "tb"
    options = ["--max-submit=4", "--max-array-size=2", "--job-requeue=0", "--gpu-type=a100", "--nodes=2"]
    try:
        subprocess.run([ROOT / "slurm/testbed/up", folder, *options], check=True)
        layout = cluster.running_layout(folder)
        assert layout is not None
        yield Slurm(layout, user_environment(str(layout.conf)))
    finally:
        subprocess.run([ROOT / "slurm/testbed/down", folder], check=True)


def test_jobs_that_end_submit_those_that_had_no_room(
    limited: Slurm, speech: Path, tmp_path: Path, undisturbed: dict[str, str]
) -> None:
    """Seven jobs where four may be in the queue, in arrays of two: one command, and nobody stays to watch."""
    sweep = Sweep(limited, tmp_path, speech, {name: STAGES[name] for name in ("probe", "decode", "report")})
    sweep.let_go()
    said = sweep.submit(gpus_per_node=1)
    assert "submitting 7" in said
    assert "3 jobs wait for room in the queue (limit: 4)" in said
    sweep.await_end()
    assert not (sweep.plan.folder / "held").exists()
    assert sweep.results() == undisturbed


def test_another_cluster_is_asked_by_its_name(
    testbed: Slurm, speech: Path, tmp_path: Path, slurm_installed: None
) -> None:
    """From the login node of one cluster: a sweep that was submitted to the other is neither repeated nor lost."""
    folder = tmp_path / "other"
    words = ["--nodes=1", "--cluster-name=other", f"--accounting-of={testbed.layout.root}"]
    try:
        subprocess.run([ROOT / "slurm/testbed/up", folder, *words], check=True)
        layout = cluster.running_layout(folder)
        assert layout is not None
        there = Sweep(Slurm(layout, user_environment(str(layout.conf))), tmp_path, speech, {"report": None})
        there.submit()
        there.await_steps(12)
        here = Sweep(testbed, tmp_path, speech, {"report": None})
        assert "2 running, 1 queued; submitting 0" in here.submit()
        names = here.command("cancel", "two").splitlines()
        assert names[0] == "cancelled 3 jobs of two"
        await_(lambda: not there.slurm.ask("squeue", "--noheader"), "an empty queue", there.describe)
    finally:
        subprocess.run([ROOT / "slurm/testbed/down", folder], check=True)
