"""Which profile is used: the one that is named, the user's default, or the cluster's suggestion; options win."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from simdist.cluster.choice import chosen_profile, default_profile
from simdist.cluster.discovery import Limits
from simdist.cluster.profile import load_profile, profile_for
from simdist.core.errors import InputError


@pytest.fixture
def choose(find, tmp_path: Path):
    """The choice on the recorded testbed, in a home folder without profiles."""

    def make(
        cluster: str = "slurm",
        environ: Mapping[str, str] | None = None,
        name: str = "testbed",
        edit: dict[str, str] | None = None,
        **options: Any,
    ):
        home = {"HOME": str(tmp_path), **(environ or {})}
        return chosen_profile(cluster, options, home, lambda: find(name, edit=edit))

    return make


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def test_what_is_printed(choose) -> None:
    lines = choose().lines()
    assert lines[:-1] == [
        "cluster testbed: partitions cpu* (1 node), low (3 nodes, 2 a100 GPUs each), high (3 nodes, 2 a100 GPUs each)",
        "account root, QOS normal, at most 10 jobs in the queue, array indices below 4",
        "reservation maint, n1 from 2026-11-26 03:25:18 to 2026-11-26 04:25:18: jobs that would run into it wait until "
        "it ends",
        "chosen for this cluster:",
        "  training: partition low, 1 node, 2 a100 GPUs, 2 processes of 2 cores, 1800M per GPU, 240 minutes",
        "  probes, decoders, analyses: partition low, 1 node, 1 a100 GPU, 2 cores, 1800M per GPU, 240 minutes",
        "  packing, report: partition cpu, 1 node, no GPU, 4 cores, 3600M, 240 minutes",
    ]
    assert "--partition" in lines[-1]
    assert "--write mine.yaml" in lines[-1]
    assert choose().limits == Limits(4, 10)


def test_reservations_of_ones_own_and_of_other_partitions(choose) -> None:
    lines = "\n".join(choose(name="university").lines())
    assert "reservation workshop, g[01-02] from 2026-11-30 08:00:00" in lines
    assert "you may use it with `reservation: workshop`" in lines
    assert "cooling" not in lines  # on nodes that these jobs never get


@pytest.mark.parametrize("name", ["testbed", "university"])
def test_the_file_holds_the_profile_and_a_comment_on_each_line(choose, name: str, tmp_path: Path) -> None:
    choice = choose(name=name, gpus_per_node="2", setup=("module load cuda", "source 'a b'"), time_minutes=30)
    text = choice.text()
    assert load_profile(write(tmp_path / "cluster.yaml", text)) == choice.profile
    assert all("#" in line for line in text.splitlines() if line)
    assert any(line.startswith("time_minutes: 30 ") and "command line" in line for line in text.splitlines())
    assert any(line.startswith("# mem: null") for line in text.splitlines())


def test_the_order_of_defaults(choose, tmp_path: Path) -> None:
    own = write(tmp_path / "own.yaml", "{partition: own}")
    assert choose().profile.partition == "low"
    write(tmp_path / ".config/simdist/cluster.yaml", "{partition: home}")
    assert choose().profile.partition == "home"
    assert "(default of --cluster slurm)" in choose().source
    write(tmp_path / "xdg/simdist/cluster.yaml", "{partition: xdg}")
    assert choose(environ={"XDG_CONFIG_HOME": f"{tmp_path}/xdg"}).profile.partition == "xdg"
    assert choose(environ={"SIMDIST_CLUSTER": str(own)}).profile.partition == "own"
    assert choose(environ={"SIMDIST_CLUSTER": "gpu"}).profile.partition == "gpu"
    assert choose(environ={"SIMDIST_CLUSTER": "slurm"}).profile.partition == "low"  # back to what the cluster says
    assert choose(str(own), environ={"SIMDIST_CLUSTER": "gpu"}).profile.partition == "own"  # named: no default


def test_a_default_that_is_none() -> None:
    with pytest.raises(InputError, match="SIMDIST_CLUSTER is 'local'; it must be a profile's name"):
        default_profile({"SIMDIST_CLUSTER": "local"})


def test_options_win_over_what_was_found(choose) -> None:
    options = {
        "account": "root",
        "qos": "normal",
        "nodes": 2,
        "gpus_per_node": "h100:1",
        "mem": "3G",
        "constraint": "x",
    }
    profile = choose(partition="high", time_minutes=30, setup=("module load cuda",), **options).profile
    train, probe, pack = (profile_for(kind, profile) for kind in ("train", "probe", "pack"))
    assert (train.partition, train.nodes, train.gpu_request, train.mem) == ("high", 2, "h100:1", "3G")
    assert (train.account, train.qos, train.constraint, train.time_minutes) == ("root", "normal", "x", 30)
    assert train.mem_per_gpu is None
    assert (probe.partition, probe.nodes, probe.gpu_request) == ("high", 1, "h100:1")
    assert (pack.partition, pack.account, pack.constraint, pack.mem) == ("cpu", "root", None, "3600M")
    assert train.setup == pack.setup == ("module load cuda",)


def test_the_partition_depends_on_the_account(choose) -> None:
    profile = choose(name="university", account="default").profile
    assert (profile.partition, profile.account, profile.qos) == ("short", "default", None)  # gpu is not for it
    profile = choose(name="university", account="speech").profile
    assert (profile.partition, profile.account, profile.qos) == ("gpu", "speech", "gpu")
    assert profile_for("pack", profile).account == "speech"


def test_the_partition_depends_on_the_qos(choose) -> None:
    profile = choose(name="university", qos="normal").profile
    assert (profile.partition, profile.account, profile.qos) == ("short", None, "normal")  # gpu admits gpu, gpu-long
    profile = choose(name="university", qos="gpu-long").profile
    assert (profile.partition, profile.account, profile.qos) == ("gpu", "speech", "gpu-long")
    assert profile_for("pack", profile).account == "speech"  # the default account has no such QOS


def test_an_account_or_a_qos_of_others_is_refused(choose) -> None:
    with pytest.raises(InputError, match="--account is 'mine', which is not one of your accounts: default, speech"):
        choose(name="university", account="mine")
    with pytest.raises(InputError, match=r"--qos is 'long', .* the QOS of your accounts: normal, gpu, gpu-long"):
        choose(name="university", qos="long")
    with pytest.raises(InputError, match=r"--qos is 'gpu', .* the QOS of your account default: normal"):
        choose(name="university", account="default", qos="gpu")
    assert choose(name="university", account="Speech").profile.partition == "gpu"
    free = {"associations,limits,qos,safe": "none"}
    assert choose(name="university", account="mine", edit=free).profile.account == "mine"


def test_packing_never_asks_for_more_time_than_its_partition_allows(choose) -> None:
    edit = {"MaxTime=UNLIMITED MinNodes=0 LLN=NO MaxCPUsPerNode=UNLIMITED Nodes=n4": "MaxTime=08:00:00 Nodes=n4"}
    choice = choose(edit=edit, time_minutes=2880)
    assert profile_for("train", choice.profile).time_minutes == 2880
    assert profile_for("pack", choice.profile).time_minutes == 480
    assert choice.warnings == ()
    assert profile_for("pack", choose(edit=edit, time_minutes=30).profile).time_minutes == 30


def test_misfits_of_every_kind_of_job(choose, tmp_path: Path) -> None:
    text = "{partition: low, gpus_per_node: 'a100:2', gpu: {gpus_per_node: 'h100:1'}, cpu: {partition: cpu}}"
    edit = {"MaxTime=UNLIMITED MinNodes=0 LLN=NO MaxCPUsPerNode=UNLIMITED Nodes=n4": "MaxTime=02:00:00 Nodes=n4"}
    assert choose(str(write(tmp_path / "mine.yaml", text)), edit=edit).warnings == (
        "nodes of partition low have GPUs of type a100; the profile requests h100",
        "jobs of 240 minutes never start in partition cpu, which allows 120",
    )


@pytest.mark.parametrize("gres", ["gpu:3090:2", "gpu:1g.10gb+me:7", "gpu:v100-sxm2.32gb:2"])
def test_any_type_of_gpu_is_read_back(choose, gres: str, tmp_path: Path) -> None:
    choice = choose(edit={"gpu:a100:2": gres})
    assert load_profile(write(tmp_path / "cluster.yaml", choice.text())) == choice.profile
    assert choice.profile.gpu_type == gres.split(":")[1]


def test_fewer_gpus_than_a_section_says(choose, tmp_path: Path) -> None:
    path = str(write(tmp_path / "mine.yaml", "{train: {gpus_per_node: 'h100:8', tasks_per_node: 8}}"))
    train = profile_for("train", choose(path, gpus_per_node="4").profile)
    assert (train.gpu_request, train.num_tasks_per_node) == ("h100:4", 4)
    assert profile_for("train", choose(path, gpus_per_node="3090:2").profile).gpu_request == "3090:2"


def test_a_default_that_is_not_there_is_named(choose) -> None:
    with pytest.raises(InputError, match=r"^SIMDIST_CLUSTER is 'gone.yaml': there is no cluster profile 'gone.yaml'"):
        choose(environ={"SIMDIST_CLUSTER": "gone.yaml"})


def test_options_on_top_of_a_named_profile_and_its_sections(choose, tmp_path: Path) -> None:
    text = (
        "{partition: a, gpus_per_node: 'a100:4', mem_per_gpu: 60G, setup: [one], train: {partition: b, nodes: 4}, "
        "gpu: {partition: c, gpus_per_node: 2}, cpu: {partition: d, setup: [two]}}"
    )
    path = str(write(tmp_path / "mine.yaml", text))
    profile = choose(path, partition="x", gpus_per_node="2", setup=("three",)).profile
    train, probe, pack = (profile_for(kind, profile) for kind in ("train", "probe", "pack"))
    assert (train.partition, train.nodes, train.gpu_request, train.mem_per_gpu) == ("x", 4, "a100:2", "60G")
    assert (probe.partition, probe.gpu_request) == ("x", "a100:2")
    assert pack.partition == "d"
    assert (train.setup, pack.setup) == (("one", "three"), ("two", "three"))


def test_what_does_not_fit_is_said(choose, tmp_path: Path) -> None:
    path = str(write(tmp_path / "mine.yaml", "{partition: low, time_minutes: 600}"))
    warnings = choose(
        path, edit={"GraceTime=20 Hidden=NO MaxNodes=UNLIMITED MaxTime=UNLIMITED": "MaxTime=05:00:00"}
    ).warnings
    assert warnings == (
        "jobs of 600 minutes never start in partition low, which allows 300",
        "nodes of partition low have 2 GPUs; training requests none and uses CPU cores",
    )
    assert choose(gpus_per_node="4").warnings == ("nodes of partition low have 2 GPUs; the profile requests 4",)
    assert "has no partition gpu; it has cpu, low, high" in choose("gpu").warnings[0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"gpus_per_node": "many"}, "gpus_per_node is 'many'; it must be a number such as 4"),
        ({"nodes": 0}, "nodes is 0"),
    ],
)
def test_an_option_that_cannot_be(choose, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        choose(**options)


def test_where_slurm_does_not_answer() -> None:
    choice = chosen_profile("slurm", {"partition": "gpu"}, {"HOME": "/nonexistent"}, lambda: None)
    assert choice.profile.partition == "gpu"
    assert choice.lines()[-2] == "warning: SLURM does not answer here: GPUs and limits are unknown"
    assert choice.limits == Limits(None, None)
    with pytest.raises(InputError, match=r"SLURM does not answer\. Try again, name a profile .*--cluster local"):
        chosen_profile("slurm", {}, {"HOME": "/nonexistent"}, lambda: None, must_answer=True)
    assert chosen_profile("gpu", {}, {}, lambda: None, must_answer=True).profile == load_profile("gpu")
