"""What is found out about real clusters: one as it comes, and one with typed GPUs, CPU nodes and limits."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from simdist.cluster import choice as choices
from simdist.cluster.discovery import Limits
from simdist.cluster.profile import SECTION_OF, load_profile, profile_for
from simdist.doctor.cluster import slurm_options
from slurm.testbed import cluster
from tests.support import ROOT
from tests.support.slurm_jobs import Slurm, user_environment


@pytest.fixture(scope="module")
def lab(slurm_installed: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Slurm]:
    """Two nodes with typed GPUs and one without, few array indices, few jobs, no requeue, a reservation."""
    folder = tmp_path_factory.mktemp("lab") / "lab"
    options = ["--gpu-type=a100", "--cpu-nodes=1", "--max-array-size=4", "--max-submit=10", "--job-requeue=0"]
    try:
        subprocess.run([ROOT / "slurm/testbed/up", folder, "--nodes=3", "--cluster-name=lab", *options], check=True)
        layout = cluster.running_layout(folder)
        assert layout is not None
        slurm = Slurm(layout, user_environment(str(layout.conf)))
        due = ["reservationname=maint", "starttime=now+3days", "duration=60", "nodes=n1", "users=root", "flags=maint"]
        slurm.ask("scontrol", "create", "reservation", *due)
        yield slurm
    finally:
        subprocess.run([ROOT / "slurm/testbed/down", folder], check=True)


def choose(slurm: Slurm, monkeypatch: pytest.MonkeyPatch, home: Path) -> choices.Choice:
    monkeypatch.setenv("SLURM_CONF", slurm.environment["SLURM_CONF"])
    return choices.chosen_profile("slurm", {}, {"HOME": str(home)})


def accepts(slurm: Slurm, choice: choices.Choice) -> None:
    """Let sbatch judge what each kind of job requests."""
    for kind in SECTION_OF:
        slurm.ask("sbatch", "--test-only", *slurm_options(profile_for(kind, choice.profile)), "--wrap=true")


def test_a_cluster_as_it_comes(testbed: Slurm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    began = time.monotonic()
    choice = choose(testbed, monkeypatch, tmp_path)
    assert time.monotonic() - began < 10
    profile = choice.profile
    assert (profile.partition, profile.gpu_request, profile.cpus_per_task) == ("low", "2", 2)
    assert choice.reasons["partition"] == "the default partition, and it has GPUs"
    assert choice.limits == Limits(1001, None)
    assert "partition" not in profile.cpu
    accepts(testbed, choice)


def test_typed_gpus_limits_and_reservations(lab: Slurm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    choice = choose(lab, monkeypatch, tmp_path)
    profile, lines = choice.profile, "\n".join(choice.lines())
    assert (profile.partition, profile.gpu_request, profile.num_tasks_per_node) == ("low", "a100:2", 2)
    assert profile.cpu["partition"] == "cpu"
    assert choice.limits == Limits(4, 10)
    assert "cluster lab: partitions cpu* (1 node), low (2 nodes, 2 a100 GPUs each)" in lines
    assert "account root, QOS normal, at most 10 jobs in the queue, array indices below 4" in lines
    assert "reservation maint, n1 from " in lines
    assert choice.warnings == ()
    accepts(lab, choice)


def test_without_accounting_it_works_too(lab: Slurm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("scontrol", "sinfo"):
        (tmp_path / name).symlink_to(f"/usr/bin/{name}")
    monkeypatch.setenv("PATH", str(tmp_path))
    choice = choose(lab, monkeypatch, tmp_path)
    assert choice.profile.gpu_request == "a100:2"
    assert choice.limits == Limits(4, None)
    assert "account unknown" in "\n".join(choice.found)


def test_jobs_of_a_sweep_get_the_gpus(lab: Slurm, tmp_path: Path) -> None:
    environment = {**lab.environment, "HOME": str(tmp_path), "COLUMNS": "200"}
    environment = {
        name: value for name, value in environment.items() if name not in ("XDG_CONFIG_HOME", "SIMDIST_CLUSTER")
    }
    words = [f"--sweeps={tmp_path}/sweeps", f"--runs={tmp_path}/runs", "--partition=high", "--time=30", "seeds=[0]"]
    sweep = [sys.executable, "launch/sweep.py", "--cluster=slurm", "configs/sweeps/smoke.yaml", *words]
    data = [f"data.root={tmp_path}/data", f"stages.pack.source={tmp_path}/source"]
    blocker = lab.submit("--partition=cpu", "--exclusive", "--output=/dev/null", "--wrap=sleep 600")
    try:
        done = subprocess.run([*sweep, *data], cwd=ROOT, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert "  training: partition high, 1 node, 2 a100 GPUs, 2 processes of 2 cores" in done.stdout
        rows = lab.ask("squeue", "--noheader", "--array", "--format=%j|%P|%b|%l").splitlines()
        assert set(rows) >= {
            "smoke.pack|cpu|N/A|30:00",
            "smoke.train|high|gres:gpu:a100:2|30:00",
            "smoke.probe|high|gres:gpu:a100:1|30:00",
            "smoke.report|cpu|N/A|30:00",
        }
    finally:
        lab.ask("scancel", blocker, "--user=root")
        lab.ask("scancel", "--user=root")
    written = load_profile(tmp_path / "sweeps" / "smoke" / "cluster.yaml")
    assert (written.partition, written.gpu_request, written.time_minutes) == ("high", "a100:2", 30)
