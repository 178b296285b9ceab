"""The output of SLURM's commands as values."""

from __future__ import annotations

import pytest

from simdist.cluster import parsing


@pytest.mark.parametrize(
    ("gres", "gpus"),
    [
        ("(null)", []),
        ("gpu:2", [(None, 2)]),
        ("gpu:a100:4", [("a100", 4)]),
        ("gpu:a100:4(S:0-1),nvme:1", [("a100", 4)]),
        ("gpu:a100_3g.20gb:2,gpu:a100:3", [("a100_3g.20gb", 2), ("a100", 3)]),
        ("gpu:tesla:no_consume:2(IDX:0-1)", [("tesla", 2)]),
        ("shard:16,mps:400", []),
    ],
)
def test_gpus_of_a_node(gres: str, gpus: list[tuple[str | None, int]]) -> None:
    assert parsing.parse_gpus(gres) == gpus


@pytest.mark.parametrize(
    ("text", "minutes"),
    [("04:00:00", 240), ("2-00:30:00", 2910), ("00:00:30", 0), ("UNLIMITED", None), ("NONE", None), ("infinite", None)],
)
def test_time_limits(text: str, minutes: int | None) -> None:
    assert parsing.parse_minutes(text) == minutes


def test_kinds_of_nodes() -> None:
    text = "low*|gpu:a100:2|4|4000|3|idle\nlow*|(null)|8+|2000+|2|drained*\nmalformed\nx|gpu:1|n/a|1|1|idle\n"
    assert parsing.parse_nodes(text) == [
        parsing.NodeKind("low", 3, 4, 4000, 2, "a100", True, (("a100", 2),)),
        parsing.NodeKind("low", 2, 8, 2000, 0, None, False),
    ]


@pytest.mark.parametrize(
    ("gres", "gpus", "kind"),
    [
        ("gpu:1g.10gb:7", 1, "1g.10gb"),  # CUDA shows a process one of them
        ("gpu:a100_1g.5gb:14,gpu:a100:6", 6, "a100"),
        ("gpu:1g.10gb:4,gpu:3g.40gb:1", 1, "1g.10gb"),
    ],
)
def test_slices_of_gpus(gres: str, gpus: int, kind: str) -> None:
    (found,) = parsing.parse_nodes(f"gpu|{gres}|64|500000|1|idle")
    assert (found.gpus, found.gpu_type) == (gpus, kind)


@pytest.mark.parametrize(
    ("state", "usable"),
    [("idle~", True), ("mixed", True), ("maint", True), ("down*", False), ("draining", False), ("unknown*", False)],
)
def test_nodes_out_of_service(state: str, usable: bool) -> None:
    (kind,) = parsing.parse_nodes(f"gpu|gpu:4|64|500000|1|{state}")
    assert kind.is_usable is usable


def test_partitions_keep_the_order_of_slurm_conf() -> None:
    text = (
        "PartitionName=b Default=NO State=UP MaxTime=1-00:00:00 Nodes=n[1-2] AllowAccounts=x,y AllowQos=ALL\n"
        "PartitionName=a Default=YES State=DOWN MaxTime=UNLIMITED Nodes=n3 DenyQos=(null)\n"
    )
    first, second = parsing.parse_partitions(text)
    assert (first.name, first.is_default, first.is_up, first.max_minutes, first.nodes) == (
        "b",
        False,
        True,
        1440,
        "n[1-2]",
    )
    assert (second.name, second.is_default, second.is_up, second.max_minutes) == ("a", True, False, None)
    assert first.names("AllowAccounts") == ("x", "y")
    assert first.names("AllowQos") is first.names("DenyAccounts") is second.names("DenyQos") is None


def test_what_sacctmgr_says() -> None:
    assert parsing.parse_associations("speech|gpu|gpu,normal|normal|200\nspeech||||\n|||x|\n") == [
        parsing.Association("speech", "gpu", ("gpu", "normal"), "normal", 200),
        parsing.Association("speech", "", (), "", None),
    ]
    assert parsing.parse_qos_limits("normal|\ngpu|100\n") == {"normal": None, "gpu": 100}


def test_an_empty_list_of_reservations() -> None:
    assert parsing.parse_reservations("No reservations in the system\n") == []
