"""The profile that follows from what a cluster says."""

from __future__ import annotations

import pytest

from simdist.cluster.profile import profile_for
from simdist.cluster.suggestion import suggest
from simdist.core.errors import InputError


def test_gpus_are_taken_where_the_default_partition_has_none(find) -> None:
    made = suggest(find("testbed"))
    profile = made.profile
    assert (profile.partition, profile.gpu_request, profile.num_tasks_per_node) == ("low", "a100:2", 2)
    assert (profile.cpus_per_task, profile.mem_per_gpu, profile.time_minutes) == (2, "1800M", 240)
    assert profile.cpu == {
        "partition": "cpu",
        "constraint": None,
        "time_minutes": 240,
        "cpus_per_task": 4,
        "mem": "3600M",
    }
    assert made.warnings == ()
    assert set(made.reasons) >= {"partition", "gpus_per_node", "cpus_per_task", "mem_per_gpu", "cpu.partition"}


def test_each_kind_of_job(find) -> None:
    profile = suggest(find("testbed")).profile
    train, probe, pack = (profile_for(kind, profile) for kind in ("train", "probe", "pack"))
    assert (train.partition, train.gpu_request, train.num_tasks_per_node) == ("low", "a100:2", 2)
    assert (probe.partition, probe.gpu_request, probe.num_tasks_per_node) == ("low", "a100:1", 1)
    assert (pack.partition, pack.gpu_request, pack.num_tasks_per_node, pack.mem) == ("cpu", None, 1, "3600M")
    assert pack.mem_per_gpu is None


def test_the_default_partition_wins_if_it_has_gpus(find) -> None:
    cluster = find("testbed", edit={"cpu*|(null)": "cpu*|gpu:1"})
    profile = suggest(cluster).profile
    assert (profile.partition, profile.gpu_request) == ("cpu", "1")
    assert "partition" not in profile.cpu  # there is none without GPUs
    assert profile_for("pack", profile).gpu_request is None


def test_accounts_time_limits_and_kinds_of_nodes_decide(find) -> None:
    made = suggest(find("university"))
    profile = made.profile
    # physics is for others, dgx is down, short is too short although it has as many GPUs
    assert (profile.partition, profile.account, profile.qos) == ("gpu", "speech", "gpu")
    assert profile.gpu_request == "a100:4"  # most GPUs of the partition are of this kind
    assert (profile.cpus_per_task, profile.mem_per_gpu) == (8, "64G")
    assert profile.time_minutes == 240
    assert profile.cpu["partition"] == "standard"
    assert (profile.cpu["account"], profile.cpu["qos"], profile.cpu["mem"]) == (None, None, "16G")


def test_a_partition_of_the_users_choice(find) -> None:
    made = suggest(find("university"), "short")
    assert (made.profile.partition, made.profile.gpu_request, made.profile.account) == ("short", "a100:4", None)
    assert (made.profile.time_minutes, made.profile.signal_lead_s) == (30, 90)
    several = suggest(find("university"), "gpu,short").profile
    assert (several.partition, several.time_minutes) == ("gpu,short", 30)
    down = suggest(find("university"), "dgx")
    assert down.warnings == ("partition dgx is DOWN: jobs wait until it is up",)
    foreign = suggest(find("university"), "physics")
    assert foreign.warnings == ("none of your accounts may use partition physics: SLURM will reject the jobs",)
    with pytest.raises(InputError, match=r"has no partition 'gpus'; name one of standard, short, physics, gpu, dgx"):
        suggest(find("university"), "gpus")


def test_a_very_short_partition_is_warned_in_time(find) -> None:
    profile = suggest(find("university", edit={"MaxTime=00:30:00": "MaxTime=00:02:00"}), "short").profile
    assert (profile.time_minutes, profile.signal_lead_s) == (2, 60)


def test_training_on_cores_is_never_silent(find) -> None:
    made = suggest(find("testbed"), "cpu")
    assert (made.profile.gpus_per_node, made.profile.mem) == (0, "3600M")
    assert made.profile.setup == ("export ACCELERATE_USE_CPU=true",)
    assert made.warnings == ("partition cpu has no GPU; partitions with GPUs: high, low. Training uses CPU cores",)
    nowhere = suggest(find("testbed", edit={"gpu:a100:2": "(null)"}))
    assert nowhere.profile.partition == "cpu"
    assert "and neither has any other visible partition" in nowhere.warnings[0]


def test_gpus_without_a_type(find) -> None:
    assert suggest(find("testbed", edit={"gpu:a100:2": "gpu:2"})).profile.gpu_request == "2"


def test_without_accounting_partitions_for_some_come_last(find) -> None:
    profile = suggest(find("university", silent=["sacctmgr"])).profile
    assert (profile.partition, profile.account, profile.qos) == ("short", None, None)
    made = suggest(
        find("university", silent=["sacctmgr"], edit={"Nodes=c[001-200],g[01-16] RootOnly=NO": "RootOnly=YES"})
    )
    assert made.profile.partition == "physics"
    assert made.warnings == (
        "sacctmgr names no account of yours, and partition physics is for accounts physics: SLURM may reject jobs",
    )


def test_nodes_out_of_service_do_not_count(find) -> None:
    edit = {"gpu|gpu:a100:4(S:0-1),nvme:1|64|515000|9|mixed": "gpu|gpu:a100:4|64|515000|9|down"}
    assert suggest(find("university", edit=edit)).profile.gpu_request == "v100:2"
    nothing = suggest(find("testbed", edit={"a100:2|4|4000|3|idle": "a100:2|4|4000|3|down*"}))
    assert nothing.profile.gpu_request == "a100:2"  # GPUs will be back
    assert nothing.warnings == ("no node of partition low is in service: jobs wait until one is",)


def test_a_partition_that_works_beats_one_out_of_service(find) -> None:
    edit = {"low|gpu:a100:2|4|4000|3|idle": "low|gpu:a100:8|4|4000|3|drained"}
    assert suggest(find("testbed", edit=edit)).profile.gpu_request == "a100:2"
    default = {
        "Default=YES": "Default=NO",
        "Default=NO QoS=N/A DefaultTime=NONE DisableRootJobs=NO ExclusiveUser=NO "
        "GraceTime=20": "Default=YES GraceTime=20",
    } | edit
    assert suggest(find("testbed", edit=default)).profile.partition == "high"
    profile = suggest(find("testbed", edit={"cpu*|(null)|4|4000|1|idle": "cpu*|(null)|4|4000|1|down*"})).profile
    assert profile_for("pack", profile).partition == "low"
    cores = {"gpu:a100:2": "(null)", "cpu*|(null)|4|4000|1|idle": "cpu*|(null)|4|4000|1|down*"}
    assert suggest(find("testbed", edit=cores)).profile.partition == "low"


def test_a_default_partition_for_short_tests_does_not_win(find) -> None:
    edit = {"cpu*|(null)": "cpu*|gpu:1"}
    limit = {
        "QoS=N/A DefaultTime=NONE DisableRootJobs=NO ExclusiveUser=NO GraceTime=0 Hidden=NO MaxNodes=UNLIMITED "
        "MaxTime=UNLIMITED MinNodes=0 LLN=NO MaxCPUsPerNode=UNLIMITED Nodes=n4": "Nodes=n4 MaxTime=00:15:00"
    }
    assert suggest(find("testbed", edit=edit | limit)).profile.partition == "low"
    assert suggest(find("testbed", edit=edit)).profile.partition == "cpu"


def test_several_partitions_with_different_nodes(find) -> None:
    edit = {"high|gpu:a100:2|4|4000|3": "high|gpu:h100:1|2|2000|3"}
    profile = suggest(find("testbed", edit=edit), "low,high").profile
    assert (profile.gpu_request, profile.cpus_per_task, profile.mem_per_gpu) == ("1", 2, "1800M")
    made = suggest(find("testbed"), "low,cpu")
    assert made.profile.gpus_per_node == 0
    assert "partition cpu has no GPU" in made.warnings[0]


def test_memory_limits_of_the_whole_cluster_hold(find) -> None:
    def memory(limit: str) -> tuple[str | None, str | None]:
        profile = suggest(find("testbed", edit={"MaxArraySize ": f"{limit}\nMaxArraySize "})).profile
        return profile.mem_per_gpu, profile.cpu["mem"]

    assert memory("MaxMemPerNode = 2000") == ("900M", "1800M")
    assert memory("MaxMemPerCPU = 500") == ("1000M", "2000M")  # 2 cores per GPU, 4 for packing
    assert memory("MaxMemPerNode = UNLIMITED") == ("1800M", "3600M")


def test_memory_that_nobody_configured_is_not_asked_for(find) -> None:
    profile = suggest(find("testbed", edit={"|4000|": "|1|"})).profile
    assert (profile.mem, profile.mem_per_gpu, "mem" in profile.cpu) == (None, None, False)


def test_limits_of_a_partition_hold(find) -> None:
    edit = {
        "MaxCPUsPerNode=UNLIMITED Nodes=g": "MaxCPUsPerNode=12 Nodes=g",
        "MaxMemPerNode=400000": "MaxMemPerNode=80000",
    }
    profile = suggest(find("university", edit=edit)).profile
    assert (profile.cpus_per_task, profile.mem_per_gpu) == (3, "17G")


def test_no_partition_at_all(find) -> None:
    with pytest.raises(InputError, match=r"no partition that root may use; it has cpu \(DOWN\), low \(DOWN\)"):
        suggest(find("testbed", edit={"State=UP": "State=DOWN"}))
