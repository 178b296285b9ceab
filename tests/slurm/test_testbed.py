"""The testbed itself: it can be started and stopped again and again, beside another one, and leaves nothing behind."""

from __future__ import annotations

import itertools
import os
import re
import subprocess
from pathlib import Path

import pytest

from slurm.testbed import cluster, daemons
from slurm.testbed.settings import Layout
from tests.support import ROOT
from tests.support.slurm_jobs import Slurm, await_, user_environment

UP, DOWN = ROOT / "slurm/testbed/up", ROOT / "slurm/testbed/down"


def processes_of(folder: Path) -> list[str]:
    """Command lines of every process that mentions a folder in its arguments or its environment, zombies aside."""
    found = []
    for process in Path("/proc").iterdir():
        if process.name.isdigit() and int(process.name) != os.getpid():
            try:
                texts = [(process / name).read_bytes() for name in ("cmdline", "environ")]
            except OSError:
                continue
            if any(str(folder).encode() in text for text in texts):
                found.append(texts[0].decode())
    return found


def test_two_clusters_side_by_side_leave_nothing_behind(testbed: Slurm, tmp_path: Path) -> None:
    folder = tmp_path / "other"
    started = subprocess.run([UP, folder, "--nodes=1"], capture_output=True, text=True, check=True)
    other = {**testbed.environment, "SLURM_CONF": started.stdout.strip().removeprefix("export SLURM_CONF=")}
    assert testbed.ask("sinfo", "--noheader", "--Node", "--partition=low", "--format=%N").split() == [
        "n1",
        "n2",
        "n3",
        "n4",
    ]
    subprocess.run(["sbatch", "--output=/dev/null", "--wrap=sleep 1000"], env=other, check=True, capture_output=True)
    running = ["squeue", "--noheader", "--states=RUNNING", "--format=%N"]
    await_(lambda: subprocess.check_output(running, env=other) == b"n1\n", "the job to run", lambda: started.stderr)
    assert len(processes_of(folder)) > 5
    subprocess.run([DOWN, folder], check=True)
    assert processes_of(folder) == []
    assert not folder.exists()
    assert "is UP" in testbed.ask("scontrol", "ping")
    subprocess.run([DOWN, folder], check=True)  # again, when nothing is left


def test_up_finds_the_cluster_that_runs(testbed: Slurm) -> None:
    root = testbed.layout.root
    again = subprocess.run([UP, root], capture_output=True, text=True, check=True)
    assert again.stdout.strip() == f"export SLURM_CONF={testbed.layout.conf}"
    other = subprocess.run([UP, root, "--nodes=2"], capture_output=True, text=True)
    assert (other.returncode, other.stderr) == (
        2,
        f"error: the cluster in {root} was started with other options; take it down first\n",
    )


def test_a_job_is_accounted_for(testbed: Slurm) -> None:
    job = testbed.submit("--output=/dev/null", "--wrap=exit 3")
    await_(
        lambda: "FAILED|3:0" in testbed.ask("sacct", "--noheader", "--parsable2", "--jobs", job, "--format=state,exit"),
        "sacct to know",
        lambda: testbed.ask("sacct", "--jobs", job),
    )


def test_gpu_types_limits_and_a_second_cluster_of_the_same_accounting(slurm_installed: None, tmp_path: Path) -> None:
    first, second = tmp_path / "a", tmp_path / "b"
    try:
        options = ["--gpu-type=a100", "--max-array-size=4", "--job-requeue=0", "--max-submit=3", "--cpu-nodes=1"]
        subprocess.run([UP, first, "--nodes=3", *options], check=True, capture_output=True)
        subprocess.run(
            [UP, second, "--nodes=1", "--cluster-name=other", f"--accounting-of={first}"],
            check=True,
            capture_output=True,
        )
        layout = cluster.running_layout(first)
        assert layout is not None
        slurm = Slurm(layout, user_environment(str(layout.conf)))
        config = slurm.ask("scontrol", "show", "config")
        settings = {"MaxArraySize": "4", "JobRequeue": "0", "ClusterName": "testbed"}
        for key, value in {**settings, "AccountingStorageEnforce": "associations,limits,qos"}.items():
            assert re.search(rf"^{key} += {value}$", config, re.MULTILINE), key
        kinds = set(slurm.ask("sinfo", "--noheader", "--format=%P|%G|%D").splitlines())
        assert kinds == {"cpu*|(null)|1", *(f"{name}|gpu:a100:2|2" for name in ("low", "abrupt", "cancel", "high"))}
        assert slurm.ask("sacctmgr", "-nP", "show", "qos", "format=name,maxsubmitjobsperuser") == "normal|3"
        slurm.submit(
            "--array=0-2", "--partition=low", "--gpus-per-node=a100:2", "--output=/dev/null", "--wrap=sleep 99"
        )
        refused = subprocess.run(["sbatch", "--wrap=true"], env=slurm.environment, capture_output=True, text=True)
        assert "QOSMaxSubmitJobPerUserLimit" in refused.stderr
        number = slurm.submit("-M", "other", "--output=/dev/null", "--wrap=sleep 99").partition(";")[0]
        assert number in slurm.ask("squeue", "-M", "other", "--noheader", "--format=%i")
    finally:
        for folder in (second, first):
            subprocess.run([DOWN, folder], check=True)


def test_a_job_in_partition_cancel_does_not_come_back(testbed: Slurm) -> None:
    job = testbed.submit("--partition=cancel", "--nodelist=n1", "--output=/dev/null", "--requeue", "--wrap=sleep 99")
    testbed.await_state(job, "RUNNING")
    testbed.preempt("n1")
    assert testbed.job(job)["JobState"] == "PREEMPTED"


def test_another_folder_is_left_alone(slurm_installed: None, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").touch()
    for command in (UP, DOWN):
        done = subprocess.run([command, tmp_path], capture_output=True, text=True)
        assert done.returncode == 2
        assert "is no testbed" in done.stderr
    assert (tmp_path / "thesis.tex").exists()


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--nodes=17", "from 1 to 16"),
        ("--grace=-1", "from 0 to 3600"),
        ("--cpu-nodes=4", "of 4 nodes at least one must have GPUs"),
        ("--gpu-type=A 100", "use lower-case letters"),
        ("--accounting-of=/tmp", "needs --cluster-name"),
    ],
)
def test_impossible_options_are_named(slurm_installed: None, tmp_path: Path, option: str, message: str) -> None:
    done = subprocess.run([UP, tmp_path / "testbed", option], capture_output=True, text=True)
    assert done.returncode == 2
    assert message in done.stderr
    assert not (tmp_path / "testbed").exists()


def test_a_start_that_fails_is_taken_back(
    slurm_installed: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "testbed"
    monkeypatch.setattr(daemons, "PATIENCE", 15.0)
    monkeypatch.setattr(cluster, "slurmdbd_conf", lambda at: "DbdPort=nonsense\n")
    with pytest.raises(cluster.TestbedError, match="slurmdbd did not answer within 15 s"):
        cluster.up(folder, {})
    assert "DbdPort" in capsys.readouterr().err
    assert processes_of(folder) == []
    assert not folder.exists()


def test_job_ids_of_two_clusters_lead_to_different_ports() -> None:
    layouts = [Layout(Path("/tmp/t"), port, "host") for port in cluster.PORTS]
    first = [layout.first_job_id for layout in layouts]
    assert min(b - a for a, b in itertools.pairwise(first)) >= 100
    assert 10_000 + first[-1] + 140 < cluster.PORTS.start
