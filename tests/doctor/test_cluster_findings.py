"""What the doctor says of a cluster, from what SLURM's commands print."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from simdist.cluster.profile import Profile
from simdist.doctor import cluster
from simdist.doctor.findings import Finding
from simdist.doctor.node_check import check_node

CONFIG = {
    "ClusterName": "speech",
    "SLURM_VERSION": "23.02.7",
    "JobRequeue": "1",
    "PreemptType": "preempt/partition_prio",
    "PreemptMode": "REQUEUE",
    "SlurmctldParameters": "preempt_send_user_signal",
}
PARTITION = {
    "PartitionName": "gpu",
    "Default": "NO",
    "State": "UP",
    "MaxTime": "1-00:00:00",
    "TotalNodes": "4",
    "GraceTime": "60",
    "PreemptMode": "REQUEUE",
}
TEST_ONLY = "echo 'sbatch: Job 7 to start at 2026-11-21T22:00:00 using 8 processors on nodes n1 in partition gpu' >&2"
PROFILE = Profile(partition="gpu", time_minutes=60, signal_lead_s=120)


@pytest.fixture
def cluster_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Commands of SLURM that print what a test gives them."""

    def make(
        config: dict[str, str] | None = None,
        sbatch: str = TEST_ONLY,
        sinfo: str = "",
        reservation: str = "",
        **partition: str,
    ) -> None:
        lines = "\n".join(f"{key:22} = {value}" for key, value in (CONFIG | (config or {})).items())
        described = " ".join(f"{key}={value}" for key, value in (PARTITION | partition).items())
        scripts = {
            "scontrol": f'case "$*" in *config*) cat <<E\n{lines}\nE\n;; *reservation*) echo "{reservation}";; '
            f'*) echo "{described}";; esac',
            "sinfo": f"echo '{sinfo}'",
            "sacctmgr": "exit 1",
            "sbatch": sbatch,
            "srun": "exit 0",
            "squeue": "exit 0",
            "sacct": "exit 0",
        }
        for name, text in scripts.items():
            (tmp_path / name).write_text(f"#!/bin/bash\n{text}\n")
            (tmp_path / name).chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")

    return make


def find(profile: Profile = PROFILE, save_seconds: float = 1.0) -> dict[str, Finding]:
    return {finding.subject: finding for finding in cluster.check_cluster(profile, save_seconds)}


def test_a_cluster_that_is_ready(cluster_of) -> None:
    cluster_of()
    found = find()
    assert [finding.level for finding in found.values()] == ["ok"] * len(found)
    subjects = {"slurm", "partition", "GPU nodes", "limits", "job", "requeue", "signal", "preemption", "accounting"}
    assert set(found) == subjects
    assert found["partition"].message == "gpu is up, 4 nodes, jobs of up to 1440 minutes"


def test_a_partition_that_is_not_there_or_down(cluster_of) -> None:
    cluster_of()
    missing = find(Profile(partition="gpus"))
    assert missing["partition"].level == "error"
    assert missing["partition"].remedy == "set partition to one of gpu"
    assert "job" not in missing  # nothing more can be said
    assert find(Profile())["partition"].message == "the profile names none, and the cluster has no default"
    cluster_of(State="DRAIN")
    assert find()["partition"].level == "error"


def test_several_partitions_with_commas_as_sbatch_takes_them(cluster_of, tmp_path: Path) -> None:
    cluster_of()
    (tmp_path / "scontrol").write_text(
        (tmp_path / "scontrol")
        .read_text()
        .replace('*) echo "', '*) echo "PartitionName=abrupt State=UP GraceTime=0"; echo "')
    )
    found = list(cluster.check_cluster(Profile(partition="gpu,abrupt", time_minutes=60, signal_lead_s=120), 1.0))
    partitions = [finding.message for finding in found if finding.subject == "partition"]
    assert [message.split()[0] for message in partitions] == ["abrupt", "gpu"]
    assert len([finding for finding in found if finding.subject == "preemption"]) == 2
    missing = find(Profile(partition="gpu,gone"))["partition"]
    assert (missing.level, missing.message) == ("error", "there is no partition gone")


def test_gpus_limits_and_reservations(cluster_of) -> None:
    span = "StartTime=2026-11-26T08:00:00 EndTime=2026-11-26T12:00:00"
    due = f"ReservationName=maint {span} Nodes=n2 Flags=MAINT Users=root"
    cluster_of({"MaxArraySize": "1001"}, sinfo="gpu|gpu:a100:4|64|500000|4|idle", reservation=due, Nodes="n[1-4]")
    idle = find()
    assert idle["GPU nodes"].message == "nodes of partition gpu have 4 GPUs; training requests none and uses CPU cores"
    assert idle["limits"].message == "jobs in the queue: no limit known; largest index of an array: at most 1000"
    assert idle["reservation"].level == "warning"
    assert "maint, n2 from 2026-11-26 08:00:00 to 2026-11-26 12:00:00" in idle["reservation"].message
    used = find(replace(PROFILE, gpus_per_node=4))["GPU nodes"]
    assert (used.level, used.message) == ("ok", "gpu: 4 nodes, 4 a100 GPUs each")
    assert find(replace(PROFILE, gpus_per_node=8))["GPU nodes"].level == "warning"


def test_every_kind_of_job_is_tried(cluster_of, tmp_path: Path) -> None:
    cluster_of(sbatch=f'echo "$*" >> {tmp_path}/asked; {TEST_ONLY}')
    profile = replace(PROFILE, gpus_per_node=4, gpu_type="a100", cpu={"partition": "cpu"})
    found = [finding for finding in cluster.check_cluster(profile, 1.0) if finding.subject == "job"]
    assert [finding.message.split(";")[0] for finding in found] == [
        "SLURM accepts train jobs",
        "SLURM accepts probe, decode, analyze jobs",
        "SLURM accepts pack, report jobs",
    ]
    train, probe, pack = (tmp_path / "asked").read_text().splitlines()
    assert "--gpus-per-node=a100:4" in train
    assert "--gpus-per-node=a100:1" in probe
    assert "--partition=cpu" in pack
    assert "gpus" not in pack


def test_jobs_of_the_doctor_take_nothing_from_the_job_that_it_runs_in(
    cluster_of, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = f"env | grep -c -e SLURM_JOB_ID -e SLURM_MEM >> {tmp_path}/seen; {TEST_ONLY}"
    cluster_of(sbatch=record)
    (tmp_path / "srun").write_text(f"#!/bin/bash\n{record}\n")
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setenv("SLURM_MEM_PER_CPU", "100")
    find()
    list(check_node(PROFILE, tmp_path / "runs", 1))
    assert set((tmp_path / "seen").read_text().split()) == {"0"}
    assert len((tmp_path / "seen").read_text().split()) > 1


def test_the_default_partition_stands_for_none(cluster_of) -> None:
    cluster_of(Default="YES")
    assert find(Profile(time_minutes=60, signal_lead_s=120))["partition"].level == "ok"


@pytest.mark.parametrize(
    ("limit", "minutes", "level"),
    [("01:00:00", 60, "ok"), ("01:00:00", 61, "error"), ("2-00:30:00", 2910, "ok"), ("UNLIMITED", 10**6, "ok")],
)
def test_jobs_longer_than_the_partition_allows(cluster_of, limit: str, minutes: int, level: str) -> None:
    cluster_of(MaxTime=limit)
    assert find(Profile(partition="gpu", time_minutes=minutes))["partition"].level == level


def test_jobs_that_slurm_refuses(cluster_of) -> None:
    cluster_of(sbatch="echo 'sbatch: error: Batch job submission failed: Invalid account' >&2; exit 1")
    found = find(Profile(partition="gpu", account="nobody", time_minutes=60))["job"]
    assert found.level == "error"
    assert "Invalid account" in found.message
    assert "--account=nobody" in found.remedy


@pytest.mark.parametrize(
    ("lead", "save", "level"),
    [(10, 1, "error"), (12, 1, "warning"), (42, 1, "ok"), (110, 40, "warning"), (120, 60, "error")],
)
def test_the_signal_leaves_time_to_save(cluster_of, lead: int, save: float, level: str) -> None:
    cluster_of()
    found = find(Profile(partition="gpu", time_minutes=60, signal_lead_s=lead), save)["signal"]
    assert found.level == level
    assert level == "ok" or "set signal_lead_s to" in found.remedy


def test_grace_time_against_the_time_to_save(cluster_of) -> None:
    cluster_of(GraceTime="0")
    assert "without a warning" in find()["preemption"].message
    cluster_of(GraceTime="11")
    assert (find()["preemption"].level, find(save_seconds=0.4)["preemption"].level) == ("warning", "ok")
    cluster_of(PreemptMode="OFF")
    assert find()["preemption"].message == "jobs in gpu are not preempted"
    cluster_of(PreemptMode="SUSPEND")
    assert "keep their memory" in find()["preemption"].remedy
    cluster_of(config={"SlurmctldParameters": "(null)"})
    assert "told by SIGTERM" in find()["preemption"].message


def test_requeueing(cluster_of) -> None:
    cluster_of(config={"JobRequeue": "0"})
    assert find()["requeue"].message.startswith("JobRequeue is 0")
    assert find(Profile(partition="gpu", time_minutes=60, requeue=False))["requeue"].level == "warning"


def test_a_silent_sacct_is_a_warning(cluster_of, tmp_path: Path) -> None:
    cluster_of()
    (tmp_path / "sacct").write_text("#!/bin/bash\nexit 1\n")
    assert find()["accounting"].level == "warning"


def test_a_machine_without_slurm(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    (found,) = cluster.check_cluster(PROFILE, 1.0)
    assert (found.subject, found.level) == ("slurm", "error")
    assert found.message == "sbatch, srun, scontrol, squeue, sacct not found"


def test_options_are_those_of_the_profile() -> None:
    profile = Profile(nodes=2, gpus_per_node=4, mem_per_gpu="60G", qos="long", extra={"exclusive": True, "hold": False})
    options = cluster.slurm_options(profile)
    assert set(options) >= {"--nodes=2", "--ntasks-per-node=4", "--gpus-per-node=4", "--mem-per-gpu=60G", "--qos=long"}
    assert "--exclusive" in options
    assert not any("hold" in option or "mem=" in option for option in options)
    assert {"--nodes=1", "--time=5"} <= set(cluster.slurm_options(profile, nodes=1, minutes=5))
