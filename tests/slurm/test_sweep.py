"""Sweeps on a real SLURM: to the report through a preemption, without scontrol, cancelled, and submitted twice."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from launch.plan import Plan, read_plan
from launch.records import Records
from launch.states import done_jobs
from simdist.core.files import read_json_lines, sha256_of
from tests.support import ROOT
from tests.support.slurm_jobs import PACE, SWEEP_CONFIG, Slurm, await_

PROFILE = {
    "partition": "low",
    "tasks_per_node": 2,
    "cpus_per_task": 1,
    "mem": "1500M",
    "time_minutes": 30,
    "signal_lead_s": 30,
    "setup": ["export ACCELERATE_USE_CPU=true OMP_NUM_THREADS=1"],
}

WEIGHTS: dict[str, str] = {}  # of undisturbed runs, by their configuration


@dataclass(frozen=True)
class Sweep:
    """A sweep of one run on the testbed: train, rest from step 12 on until `let_go`, probe, report."""

    testbed: Slurm
    root: Path
    data: Path

    @property
    def gate(self) -> Path:
        return self.root / "go"

    @property
    def plan(self) -> Plan:
        return read_plan(self.root / "sweeps" / "one")

    @property
    def run(self) -> Path:
        (run,) = self.plan.runs.values()
        return run.folder

    def submit(self, variables: dict[str, str] | None = None, **profile: object) -> str:
        """The command, with some variables of the environment otherwise; what it said."""
        (self.root / "profile.yaml").write_text(yaml.safe_dump(PROFILE | profile))
        config = {**SWEEP_CONFIG, "data.root": str(self.data)}
        stages = {"probe": {"labels": ["speaker"], "modules": [0, 3], "options": {"epochs": 1}}, "report": None}
        base = ["sim_librispeech", "debug"]
        (self.root / "one.yaml").write_text(
            yaml.safe_dump({"name": "one", "base": base, "config": config, "stages": stages})
        )
        words = ["--cluster", str(self.root / "profile.yaml"), str(self.root / "one.yaml")]
        return self.command("sweep", *words, "--runs", str(self.root / "runs"), variables=variables)

    def command(self, name: str, *words: str, variables: dict[str, str] | None = None) -> str:
        """Output of a command of launch/."""
        rest = {
            "SIMDIST_REST_FROM": "12",
            "SIMDIST_REST_UNTIL": str(self.gate),
            "SIMDIST_REST_SECONDS": "1",
            "PYTHONPATH": f"{ROOT}:{PACE}",
        }
        sweeps = ["--sweeps", str(self.root / "sweeps")]
        return self.testbed.ask(
            "python", str(ROOT / "launch" / f"{name}.py"), *words, *sweeps, **rest | (variables or {})
        )

    def events(self, *names: str) -> list[dict]:
        return [line for line in read_json_lines(self.run / "events.jsonl") if line["event"] in names]

    def id_of(self, kind: str) -> str:
        """SLURM's number of the first job of a kind."""
        name = next(job.name for job in self.plan.jobs.values() if job.kind == kind)
        return Records(self.plan.folder).latest()[name].id

    def await_step(self, step: int) -> None:
        def reached() -> bool:
            lines = read_json_lines(self.run / "metrics.jsonl")
            return max((line["step"] for line in lines), default=0) >= step

        await_(reached, f"step {step}", self.describe)

    def await_end(self) -> None:
        self.gate.touch()
        await_(lambda: done_jobs(self.plan) == set(self.plan.jobs), "the sweep's end", self.describe)

    def describe(self) -> str:
        logs = [path.read_text()[-1500:] for path in sorted(self.plan.folder.glob("slurm/*/*.out"))]
        return "\n".join([self.testbed.ask("squeue", "--format=%i %j %T %r"), *logs])

    def weights(self, run: Path) -> str:
        assert json.loads((run / "DONE").read_text())["step"] == 40
        return sha256_of(run / "checkpoints" / "step_00000040" / "model.safetensors")

    def undisturbed(self) -> str:
        """The weights of the same run on as many ranks, never stopped."""
        config = next((self.plan.folder / "configs").glob("*.yaml"))
        if config.read_text() not in WEIGHTS:
            other = self.root / "undisturbed"
            words = ["python", "-m", "simdist.train", "--config", str(config), "--run-dir", str(other)]
            self.testbed.ask("srun", "--ntasks=2", "--nodes=1", *words)
            WEIGHTS[config.read_text()] = self.weights(other)
        return WEIGHTS[config.read_text()]


@pytest.fixture
def sweep(testbed: Slurm, speech: Path, tmp_path: Path) -> Sweep:
    return Sweep(testbed, tmp_path, speech)


def test_a_sweep_reaches_its_report_through_a_preemption(sweep: Sweep) -> None:
    assert "submitting 4" in sweep.submit()
    sweep.await_step(12)
    assert "4 jobs; 0 done, 1 running, 3 queued; submitting 0" in sweep.submit()
    (shown,) = json.loads(sweep.command("status", "one", "--json"))
    assert (shown["runs"][0]["stage"], shown["runs"][0]["status"]) == ("train", "running")
    assert shown["runs"][0]["node"] == sweep.testbed.job(sweep.id_of("train"))["NodeList"]
    sweep.testbed.preempt(shown["runs"][0]["node"])
    sweep.await_end()
    assert len(sweep.events("resumed")) == 1
    assert sweep.weights(sweep.run) == sweep.undisturbed()
    report = (sweep.plan.folder / "report" / "report.md").read_text()
    assert "| speaker | trained | linear | 1 |" in report
    assert "submitting 0" in sweep.submit()
    (shown,) = json.loads(sweep.command("status", "one", "--json"))
    assert {job["status"] for job in shown["jobs"].values()} == {"done"}
    assert "finished: 40 steps" in sweep.command("logs", f"train/{sweep.run.name}", "--lines", "20")


def test_without_scontrol_a_successor_takes_over_with_all_that_waits(sweep: Sweep) -> None:
    programs = sweep.root / "bin"
    programs.mkdir()
    for program in Path("/usr/bin").iterdir():
        if program.name != "scontrol":
            (programs / program.name).symlink_to(program)
    sweep.submit(variables={"PATH": f"{Path(sys.executable).parent}:{programs}"})
    sweep.await_step(12)
    first = sweep.id_of("train")
    sweep.testbed.ask("scancel", "--signal=USR2", first)
    await_(lambda: sweep.testbed.job(first)["JobState"] == "FAILED", "the job to end", sweep.describe)
    assert sweep.testbed.job(first)["ExitCode"] == "75:0"
    said = sweep.submit()
    assert "submitting 4" in said
    assert sweep.id_of("train") != first
    sweep.await_end()
    assert [event["step"] for event in sweep.events("resumed")] == [sweep.events("stopped")[0]["step"]]
    assert sweep.weights(sweep.run) == sweep.undisturbed()


def test_what_is_cancelled_saves_and_stays_away_until_it_is_asked_for_again(sweep: Sweep) -> None:
    sweep.submit()
    sweep.await_step(12)
    names = sweep.command("cancel", "one").splitlines()
    assert names[0] == "cancelled 4 jobs of one"
    assert [name.split("/")[0].strip() for name in names[1:]] == ["report", "probe", "probe", "train"]
    await_(lambda: not sweep.testbed.ask("squeue", "--noheader"), "an empty queue", sweep.describe)
    (shown,) = json.loads(sweep.command("status", "one", "--json"))
    assert shown["runs"][0]["status"] == "cancelled"
    assert "submitting 4" in sweep.submit()
    sweep.await_end()
    assert sweep.weights(sweep.run) == sweep.undisturbed()
    assert os.path.exists(sweep.plan.folder / "report" / "summary.csv")
