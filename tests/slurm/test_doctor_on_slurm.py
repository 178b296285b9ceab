"""The doctor on a real SLURM: a cluster that is ready, and what is wrong with one that is not."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from simdist.cluster.profile import load_profile
from tests.support import ROOT
from tests.support.slurm_jobs import Slurm


def examine(testbed: Slurm, *options: str, **variables: str) -> tuple[int, dict[str, dict[str, str]]]:
    """The exit code, and the worst finding of each subject."""
    command = [sys.executable, "-m", "simdist.doctor", "--json", *options]
    environment = testbed.environment | {"WANDB_MODE": "offline"} | variables
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment)
    findings = sorted(json.loads(done.stdout), key=lambda finding: ("ok", "warning", "error").index(finding["level"]))
    return done.returncode, {finding["subject"]: finding for finding in findings}


def test_a_cluster_and_a_node_that_are_ready(testbed: Slurm, tmp_path: Path) -> None:
    code, found = examine(testbed, "--cluster=testbed", f"--runs={tmp_path}/runs")
    assert code == 0, found
    measured = {
        "disk",
        "signal",
        "preemption",
        "bf16",
    }  # warnings where the disk is slow, or the processor emulates bf16
    others = [finding for name, finding in found.items() if name not in {*measured, "GPU nodes"}]
    assert [finding for finding in others if finding["level"] != "ok"] == []
    assert "have 2 GPUs; training requests none" in found["GPU nodes"]["message"]
    assert set(found) >= {"partition", "job", "preemption", "shared folder", "versions", "commands", "address"}
    assert found["address"]["message"] == "other nodes reach n1 at 127.0.0.1, because its name does not resolve"
    assert list(tmp_path.iterdir()) == []


def test_a_profile_that_does_not_fit_the_cluster(testbed: Slurm, tmp_path: Path) -> None:
    profile = tmp_path / "mine.yaml"
    profile.write_text("partition: abrupt\nnodes: 9\ntime_minutes: 10\nsignal_lead_s: 1\n")
    code, found = examine(testbed, f"--cluster={profile}", f"--runs={tmp_path}")
    assert code == 1
    assert found["job"]["level"] == found["signal"]["level"] == "error"
    assert "without a warning (GraceTime 0)" in found["preemption"]["message"]
    assert "versions" not in found  # no node is asked where jobs cannot start


def test_the_profile_that_fits_the_cluster_is_written(testbed: Slurm, tmp_path: Path) -> None:
    mine = tmp_path / "mine.yaml"
    words = ["--cluster=slurm", f"--write={mine}", f"--runs={tmp_path}/runs", "--wait=0"]
    code, found = examine(testbed, *words, HOME=str(tmp_path), XDG_CONFIG_HOME="", SIMDIST_CLUSTER="")
    assert code == 0, found
    assert found["GPU nodes"]["level"] == found["job"]["level"] == "ok"
    assert "SLURM accepts pack, report jobs" in found["job"]["message"]
    profile = load_profile(mine)
    assert (profile.partition, profile.gpus_per_node, profile.cpus_per_task) == ("low", 2, 2)
    assert "the default partition, and it has GPUs" in mine.read_text()


def test_partitions_with_commas(testbed: Slurm, tmp_path: Path) -> None:
    profile = tmp_path / "mine.yaml"
    profile.write_text("{partition: 'low,abrupt', cpus_per_task: 1}")
    code, found = examine(testbed, f"--cluster={profile}", f"--runs={tmp_path}/runs", "--wait=0")
    assert code == 0, found
    assert found["partition"]["message"].startswith("abrupt is up")  # the last of the two


def test_no_node_is_free(testbed: Slurm, tmp_path: Path) -> None:
    blocker = testbed.submit("--partition=high", "--nodes=4", "--exclusive", "--output=/dev/null", "--wrap=sleep 600")
    testbed.await_state(blocker, "RUNNING")
    try:
        code, found = examine(testbed, "--cluster=testbed", f"--runs={tmp_path}/runs", "--wait=3")
    finally:
        testbed.ask("scancel", blocker)
    assert code == 0, found
    assert found["node"]["message"] == "no node was free within 3 s, so the nodes were not checked"


def test_setup_lines_that_fail_on_the_node(testbed: Slurm, tmp_path: Path) -> None:
    profile = tmp_path / "mine.yaml"
    (tmp_path / "key").write_text("hunter2hunter2")
    lines = [f"export WANDB_API_KEY=$(cat {tmp_path}/key)", "module load cuda || exit 9"]
    profile.write_text(f"partition: low\ncpus_per_task: 1\nsetup: {json.dumps(lines)}\n")
    code, found = examine(testbed, f"--cluster={profile}", f"--runs={tmp_path}/runs")
    assert code == 1
    assert found["node"]["level"] == "error"
    assert "module" in found["node"]["message"]
    assert "module load cuda || exit 9" in found["node"]["remedy"]
    assert "hunter2" not in json.dumps(found)
