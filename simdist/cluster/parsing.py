"""The output of scontrol, sinfo and sacctmgr as values. Pure functions; unknown or missing parts become None."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

UNUSABLE = ("down", "drain", "fail", "error", "unknown", "future", "inval", "no_respond")  # as states begin
EVERYTHING = ("ALL", "(null)", "N/A", "")


@dataclass(frozen=True)
class Partition:
    """A partition (queue) of the cluster."""

    name: str
    is_default: bool
    state: str
    """UP, DOWN, DRAIN or INACTIVE."""
    max_minutes: int | None
    """Longest time limit of a job; None for no limit."""
    nodes: str
    """Its nodes in SLURM's short form, such as `n[1-4]`."""
    fields: dict[str, str]
    """Everything else that scontrol prints of it."""

    @property
    def is_up(self) -> bool:
        return self.state == "UP"

    def names(self, key: str) -> tuple[str, ...] | None:
        """The names in a field such as AllowAccounts; None where it does not restrict anybody."""
        text = self.fields.get(key, "")
        return None if text in EVERYTHING else tuple(text.split(","))


@dataclass(frozen=True)
class NodeKind:
    """Nodes of one partition that are alike."""

    partition: str
    count: int
    cpus: int
    memory_mb: int
    gpus: int
    """GPUs of each node that one job can use, of the type that it has most of; whole ones before slices (MIG)."""
    gpu_type: str | None
    is_usable: bool
    """Whether they can run jobs, now or once others have ended."""
    types: tuple[tuple[str | None, int], ...] = ()
    """All types of its GPUs, with their numbers."""


@dataclass(frozen=True)
class Association:
    """An account through which the user may submit."""

    account: str
    partition: str
    """The only partition it is for; empty for all."""
    qos: tuple[str, ...]
    default_qos: str
    max_submit: int | None
    """Jobs that the user may have in the queue through it."""


@dataclass(frozen=True)
class Reservation:
    """Nodes that are set aside for a while."""

    name: str
    start: str
    """As SLURM prints it, `2026-11-26T03:25:18`."""
    end: str
    nodes: str
    users: tuple[str, ...]
    accounts: tuple[str, ...]
    flags: tuple[str, ...]


def parse_pairs(text: str) -> dict[str, str]:
    """`Key = value` and `Key=value`, as scontrol prints them; of a value with spaces, the first word."""
    return dict(re.findall(r"(\w+) *= *(\S+)", text))


def parse_minutes(text: str) -> int | None:
    """SLURM's [DAYS-]HOURS:MINUTES:SECONDS in minutes; None for no limit."""
    found = re.fullmatch(r"(?:(\d+)-)?(\d+):(\d+):(\d+)", text)
    if found is None:
        return None
    days, hours, minutes, _ = (int(part or 0) for part in found.groups())
    return (days * 24 + hours) * 60 + minutes


def parse_gpus(gres: str) -> list[tuple[str | None, int]]:
    """Types and numbers of GPUs in a GRES text: `gpu:a100:4(S:0-1),nvme:1` is [("a100", 4)]."""
    found = []
    for part in re.sub(r"\([^)]*\)", "", gres).split(","):
        words = [word for word in part.split(":") if word != "no_consume"]
        if words[0] == "gpu" and words[-1].isdigit():
            found.append((words[1] if len(words) > 2 else None, int(words[-1])))
    return found


def is_slice(gpu_type: str | None) -> bool:
    """Whether it is a slice of a GPU (MIG), such as `a100_3g.20gb`."""
    return re.search(r"\d+g\.\d+gb", gpu_type or "") is not None


def usable_gpus(gpu_type: str | None, number: int) -> int:
    """How many of a node's GPUs a process can use: CUDA shows it a single slice (MIG)."""
    return min(1, number) if is_slice(gpu_type) else number


def parse_partitions(text: str) -> list[Partition]:
    """`scontrol --oneliner show partition`, in the order of slurm.conf."""
    return [_partition(parse_pairs(line)) for line in text.splitlines() if line.startswith("PartitionName=")]


def _partition(fields: dict[str, str]) -> Partition:
    return Partition(
        name=fields["PartitionName"],
        is_default=fields.get("Default") == "YES",
        state=fields.get("State", "UP"),
        max_minutes=parse_minutes(fields.get("MaxTime", "UNLIMITED")),
        nodes=fields.get("Nodes", ""),
        fields=fields,
    )


def parse_nodes(text: str) -> list[NodeKind]:
    """`sinfo --noheader --exact --format=%P|%G|%c|%m|%D|%T`."""
    found = []
    for line in text.splitlines():
        cells = line.strip().split("|")
        numbers = [cell.rstrip("+") for cell in cells[2:5]]
        if len(cells) != 6 or not all(number.isdigit() for number in numbers):
            continue
        cpus, memory, count = map(int, numbers)
        types = tuple((kind, usable_gpus(kind, number)) for kind, number in parse_gpus(cells[1]))
        kind, gpus = max(types, key=lambda entry: (not is_slice(entry[0]), entry[1]), default=(None, 0))
        usable = not cells[5].lower().startswith(UNUSABLE)
        found.append(NodeKind(cells[0].rstrip("*"), count, cpus, memory, gpus, kind, usable, types))
    return found


def parse_associations(text: str) -> list[Association]:
    """`sacctmgr -nP show assoc format=account,partition,qos,defaultqos,maxsubmitjobs`."""
    return [
        Association(account, partition, tuple(qos.split(",")) if qos else (), default, parse_number(limit))
        for account, partition, qos, default, limit in _rows(text, 5)
        if account
    ]


def parse_qos_limits(text: str) -> dict[str, int | None]:
    """`sacctmgr -nP show qos format=name,maxsubmitjobsperuser`: jobs that a user may have in the queue, by QOS."""
    return {name: parse_number(limit) for name, limit in _rows(text, 2)}


def parse_reservations(text: str) -> list[Reservation]:
    """`scontrol --oneliner show reservation`."""
    found = []
    for line in text.splitlines():
        fields = parse_pairs(line)
        if "ReservationName" in fields:
            lists = (_names(fields.get(key, "")) for key in ("Users", "Accounts", "Flags"))
            start, end = fields.get("StartTime", "?"), fields.get("EndTime", "?")
            found.append(Reservation(fields["ReservationName"], start, end, fields.get("Nodes", ""), *lists))
    return found


def parse_number(text: str) -> int | None:
    """A whole number; None for anything else, which SLURM prints for no limit."""
    return int(text) if text.isdigit() else None


def _names(text: str) -> tuple[str, ...]:
    return () if text in EVERYTHING else tuple(text.split(","))


def _rows(text: str, columns: int) -> Iterator[list[str]]:
    for line in text.splitlines():
        cells = line.split("|")
        if len(cells) == columns:
            yield cells
