"""Sweeps and plans for the tests of the launcher, without torch and without a corpus."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from launch.plan import Plan, build
from launch.slurm import SlurmScheduler
from launch.sweep_file import SweepFile, parse_sweep

SMALL: dict[str, Any] = {
    "name": "small",
    "base": ["sim_librispeech", "debug"],
    "config": {"name": "small", "data.root": "data/small", "data.crop": 8000},
    "grid": {"loss.beta": [0.001, 0.01]},
    "seeds": [0, 1],
    "stages": {
        "pack": {"corpus": "synthetic", "source": "data/source"},
        "probe": {"labels": ["speaker", "phone"], "modules": [0, -1]},
        "report": None,
    },
}


def sweep_file(**changes: Any) -> SweepFile:
    """The small sweep with some keys otherwise."""
    return parse_sweep({**SMALL, **changes}, "small.yaml")


def small_plan(root: Path = Path(), **changes: Any) -> Plan:
    """Its plan: 1 packing, 4 trainings with 4 probes each, 1 report."""
    config = {**SMALL["config"], "data.root": str(root / "data/small"), **changes.pop("config", {})}
    return build(sweep_file(config=config, **changes), root / "runs", root / "sweeps")[0]


def finish(plan: Plan, *names: str, when: float | None = None) -> None:
    """Leave the files that say that these jobs are done."""
    for name in names:
        for path in plan.jobs[name].done:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text('{"num_samples": 12, "seconds": 1.0}')
            if when is not None:
                os.utime(path, (when, when))


def pack_manifests(root: Path, *labels: str) -> None:
    """Manifests as a packed corpus has them."""
    for split in ("train", "test"):
        (root / split).mkdir(parents=True)
        (root / split / "manifest.json").write_text(json.dumps({"labels": {label: ["a", "b"] for label in labels}}))


def of_kind(plan: Plan, kind: str) -> list[str]:
    """Names of the jobs of a kind."""
    return [job.name for job in plan.jobs.values() if job.kind == kind]


class FakeSlurm:
    """Answers squeue, sacct and scancel out of two tables."""

    def __init__(
        self, queue: Mapping[str, tuple[str, str]] | None = None, accounts: Mapping[str, tuple[str, str]] | None = None
    ) -> None:
        self.queue = dict(queue or {})
        """State and reason by id."""
        self.accounts = dict(accounts or {})
        """State and exit code by id."""
        self.calls: list[list[str]] = []
        self.cancelled: list[str] = []

    @property
    def scheduler(self) -> SlurmScheduler:
        """SLURM as the launcher sees it."""
        return SlurmScheduler(run=self)

    def __call__(self, words: Any) -> str:
        self.calls.append(list(words))
        if words[0] == "squeue":
            return "".join(f"{id}|{state}|{reason}|n1|group\n" for id, (state, reason) in self.queue.items())
        if words[0] == "sacct":
            asked = next(word for word in words if word.startswith("--jobs=")).partition("=")[2].split(",")
            known = {id: row for id, row in self.accounts.items() if id.partition("_")[0] in asked}
            return "".join(f"{id}|{state}|{code}|n1\n" for id, (state, code) in known.items())
        if words[0] == "scontrol":
            return "ClusterName = here\nMaxArraySize = 1001\n"
        if words[0] == "scancel":
            self.cancelled += [word for word in words[1:] if not word.startswith("--")]
            return ""
        raise FileNotFoundError(words[0])
