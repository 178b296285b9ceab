"""What each partition of a cluster offers to the user: its nodes and GPUs, and the account and QOS to use."""

from __future__ import annotations

from dataclasses import dataclass, replace

from simdist.cluster.discovery import Cluster, default_qos
from simdist.cluster.parsing import Association, NodeKind, Partition, parse_number


@dataclass(frozen=True)
class Offer:
    """A partition as the user may use it, and the most of its nodes."""

    partition: Partition
    nodes: NodeKind
    total_gpus: int
    is_open: bool
    """Whether it is up, has nodes, and takes the user's jobs."""
    account: str | None
    """The account to submit with, if the default one is refused."""
    qos: str | None
    """The QOS to submit with, if the default one is refused."""
    is_certain: bool = True
    """False if it admits some accounts or QOS only, and nothing is known of the user's."""
    core_memory_mb: int | None = None
    """The most memory of a core, MaxMemPerCPU."""

    def rank(self, wanted: int) -> tuple[bool, bool, int]:
        """What counts before its size: whether jobs can run now, whether the user may, and for how long."""
        return self.nodes.is_usable, self.is_certain, self.minutes(wanted)

    def minutes(self, wanted: int) -> int:
        """Of the minutes that a job asks for, those that it can have."""
        return min(wanted, self.partition.max_minutes or wanted)


def offer_of(cluster: Cluster, partition: Partition) -> Offer:
    """What a partition offers."""
    kinds = cluster.kinds(partition.name)
    access = find_access(cluster, partition)
    none = NodeKind(partition.name, 0, 1, 0, 0, None, is_usable=False)
    most = max(kinds, key=lambda kind: (kind.gpus * kind.count, kind.count), default=none)
    cores = parse_number(partition.fields.get("MaxCPUsPerNode", ""))
    memory, core_memory = _memory_limits(cluster, partition)
    account, qos = access or (None, None)
    return Offer(
        partition,
        replace(most, cpus=min(most.cpus, cores or most.cpus), memory_mb=min(most.memory_mb, memory or most.memory_mb)),
        total_gpus=sum(kind.gpus * kind.count for kind in kinds),
        is_open=partition.is_up and bool(kinds) and access is not None,
        account=account,
        qos=qos,
        is_certain=bool(cluster.associations) or restrictions(partition) is None,
        core_memory_mb=core_memory,
    )


def _memory_limits(cluster: Cluster, partition: Partition) -> tuple[int | None, int | None]:
    """The most memory of a node and of a core, the partition's or else the cluster's; None for no limit."""
    for fields in (partition.fields, cluster.settings):
        node, core = (parse_number(fields.get(key, "")) for key in ("MaxMemPerNode", "MaxMemPerCPU"))
        if node or core:
            return node or None, core or None
    return None, None


def restrictions(partition: Partition) -> str | None:
    """The only accounts and QOS that a partition admits, in words; None if it admits all."""
    kinds = {"accounts": partition.names("AllowAccounts"), "QOS": partition.names("AllowQos")}
    return " and ".join(f"{kind} {', '.join(names)}" for kind, names in kinds.items() if names is not None) or None


def find_access(cluster: Cluster, partition: Partition) -> tuple[str | None, str | None] | None:
    """Account and QOS to submit to a partition with, None for the user's default; None if the user may not.

    Where nothing is known of the user's accounts, only what concerns no account is judged.
    """
    if partition.fields.get("RootOnly") == "YES" and cluster.user != "root":
        return None
    allowed = [a for a in cluster.associations if a.partition in ("", partition.name) and _admits(partition, a)]
    if not cluster.associations:
        return None, None
    if not allowed:
        return None
    first = allowed[0]
    account = None if first.account == cluster.default_account else first.account
    qos = _admitted_qos(partition, first)
    return account, None if qos == default_qos(first) else qos


def _admits(partition: Partition, association: Association) -> bool:
    accounts, denied = partition.names("AllowAccounts"), partition.names("DenyAccounts") or ()
    if (accounts is not None and association.account not in accounts) or association.account in denied:
        return False
    return _admitted_qos(partition, association) is not None


def _admitted_qos(partition: Partition, association: Association) -> str | None:
    """The QOS to use, the default one first; None if none is admitted."""
    default = default_qos(association) or "normal"
    own = dict.fromkeys([default, *association.qos])
    allowed, denied = partition.names("AllowQos"), partition.names("DenyQos") or ()
    return next((qos for qos in own if (allowed is None or qos in allowed) and qos not in denied), None)


def smallest(offers: list[Offer]) -> Offer:
    """What a job can have in each of the partitions: the fewest GPUs and cores, the least memory, the shortest time."""
    first, nodes = offers[0], [offer.nodes for offer in offers]
    limits = [limit for offer in offers if (limit := offer.partition.max_minutes) is not None]
    core_memory = [limit for offer in offers if (limit := offer.core_memory_mb) is not None]
    gpus = min(kind.gpus for kind in nodes)
    common = replace(
        first.nodes,
        cpus=min(kind.cpus for kind in nodes),
        memory_mb=min(kind.memory_mb for kind in nodes),
        gpus=gpus,
        gpu_type=first.nodes.gpu_type if len({kind.gpu_type for kind in nodes}) == 1 else None,
    )
    return replace(
        first,
        partition=replace(first.partition, max_minutes=min(limits, default=None)),
        nodes=common,
        total_gpus=sum(offer.total_gpus for offer in offers) if gpus else 0,
        core_memory_mb=min(core_memory, default=None),
    )
