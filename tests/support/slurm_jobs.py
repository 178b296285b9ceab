"""A test's view of the testbed: commands, jobs, and training runs that rest until they are let go."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from simdist.core.files import read_json_lines, sha256_of
from slurm.testbed.cluster import Layout
from tests.support import ROOT

PACE = Path(__file__).parent / "pace"
PATIENCE = 600.0  # seconds until a test gives up waiting; it waits for seconds where nothing else runs
STEPS = 80
SWEEP_CONFIG = {  # of each run of a sweep: forty small steps, a checkpoint each five
    "data.crop": 5120,
    "loss.prediction_steps": 4,
    "loss.num_negatives": 5,
    "train.max_steps": 40,
    "train.checkpoint_every": 5,
    "train.validate_every": 0,
}


@dataclass(frozen=True)
class Slurm:
    """The running cluster, and the environment that its users have."""

    layout: Layout
    environment: dict[str, str]

    def ask(self, *words: str, **variables: str) -> str:
        """Output of a command; one that fails shows what it said."""
        done = subprocess.run(
            words, capture_output=True, text=True, cwd=ROOT, env=self.environment | variables, timeout=PATIENCE
        )
        assert done.returncode == 0, f"{' '.join(words)}\n{done.stdout}{done.stderr}"
        return done.stdout.strip()

    def submit(self, *words: str, **variables: str) -> str:
        """A job's number."""
        return self.ask("sbatch", "--parsable", *words, **variables)

    def job(self, number: str) -> dict[str, str]:
        """What SLURM says of a job: JobState, Restarts, NodeList, …"""
        return dict(re.findall(r"(\w+)=(\S*)", self.ask("scontrol", "--oneliner", "show", "job", number)))

    def await_state(self, number: str, state: str) -> dict[str, str]:
        """Wait until a job is in a state, and return what SLURM says of it; another end is a failure."""

        def reached() -> bool:
            now = self.job(number)["JobState"]
            assert now == state or now not in ("FAILED", "CANCELLED", "TIMEOUT"), f"job {number} is {now}"
            return now == state

        await_(reached, f"job {number} to be {state}", lambda: str(self.job(number)))
        return self.job(number)

    def preempt(self, node: str) -> None:
        """Take a node away for two seconds, by a job of the partition `high`."""
        number = self.submit(
            "--partition=high", "--exclusive", f"--nodelist={node}", "--output=/dev/null", "--wrap=sleep 2"
        )
        self.await_state(number, "COMPLETED")


@dataclass(frozen=True)
class Training:
    """A training run that rests after each step until `let_go`."""

    folder: Path
    data: Path
    rest_from: int = 12
    rest_seconds: float = 1.0

    @property
    def log(self) -> Path:
        return self.folder.with_suffix(".log")

    @property
    def arguments(self) -> list[str]:
        """What `simdist.train` is given: 80 small steps, a checkpoint each five."""
        options = {
            "data.root": self.data,
            "data.crop": 5120,
            "loss.prediction_steps": 4,
            "loss.num_negatives": 5,
            "train.max_steps": STEPS,
            "train.checkpoint_every": 5,
            "train.validate_every": 0,
            "train.precision": "no",
        }
        configs = [f"--config=configs/{name}.yaml" for name in ("sim_librispeech", "debug")]
        return [*configs, *(f"--{key}={value}" for key, value in options.items()), f"--run-dir={self.folder}"]

    @property
    def variables(self) -> dict[str, str]:
        """Environment that makes it rest."""
        return {
            "SIMDIST_REST_FROM": str(self.rest_from),
            "SIMDIST_REST_SECONDS": str(self.rest_seconds),
            "SIMDIST_REST_UNTIL": str(self.folder.with_suffix(".go")),
        }

    def let_go(self) -> None:
        self.folder.with_suffix(".go").touch()

    def await_step(self, step: int) -> None:
        await_(lambda: self.step >= step, f"step {step} of {self.folder.name}", self.tail)

    def await_events(self, *names: str) -> None:
        await_(lambda: self.events(*names) != [], f"{names} of {self.folder.name}", self.tail)

    @property
    def step(self) -> int:
        """The last step in the metrics; 0 before there is one."""
        return max((line["step"] for line in read_json_lines(self.folder / "metrics.jsonl")), default=0)

    def events(self, *names: str) -> list[dict[str, Any]]:
        """Events of these names, in order."""
        return [line for line in read_json_lines(self.folder / "events.jsonl") if line["event"] in names]

    def weights(self) -> str:
        """sha256 of the last step's weights."""
        assert json.loads((self.folder / "DONE").read_text())["step"] == STEPS
        return sha256_of(self.folder / "checkpoints" / f"step_{STEPS:08d}" / "model.safetensors")

    def tail(self) -> str:
        return self.log.read_text()[-3000:] if self.log.exists() else "no log yet"


def await_(reached: Callable[[], bool], what: str, describe: Callable[[], str]) -> None:
    """Wait for something that must come; say how far it got if it does not."""
    deadline = time.monotonic() + PATIENCE
    while not reached():
        assert time.monotonic() < deadline, f"waited {PATIENCE:.0f} s for {what}\n{describe()}"
        time.sleep(0.3)


def user_environment(conf: str) -> dict[str, str]:
    """A user's environment on the cluster: this Python first on PATH, this clone, one thread, no GPU."""
    clean = {key: value for key, value in os.environ.items() if not key.startswith(("SLURM", "SBATCH", "SRUN"))}
    own = {
        "SLURM_CONF": conf,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONPATH": f"{ROOT}:{PACE}",
        "ACCELERATE_USE_CPU": "true",
        "OMP_NUM_THREADS": "1",
    }
    return clean | own
