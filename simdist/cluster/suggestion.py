"""The profile that follows from what a cluster says: which partition, how many GPUs, cores, memory and time.

GPUs first: the default partition if it has some, else the partition that the user may use with the most of them.
Packing and reports go to a partition without GPUs where there is one.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from simdist.cluster.discovery import Cluster, default_qos
from simdist.cluster.parsing import Association, NodeKind, Partition
from simdist.errors import InputError
from simdist.profiles import Profile

MINUTES = Profile.time_minutes  # a job asks for no more: short jobs find gaps in the queue
SHORT_MINUTES = 60  # packing and reports need no more than a partition that allows this
MAX_CORES = 8  # of a process: itself and its loader workers
MAX_MEMORY_MB = 64 * 1024  # of a process
CPU_MEMORY_MB = 16 * 1024  # of packing and reports
USABLE_MEMORY = 0.9  # the rest of a node's memory may be the system's
MIN_MEMORY_MB = 256  # less is SLURM's way to say that nobody configured it


@dataclass(frozen=True)
class Suggestion:
    """A profile and where it comes from."""

    profile: Profile
    reasons: dict[str, str] = field(default_factory=dict)
    """Why a field has its value, by field; `cpu.mem` for those of a section."""
    warnings: tuple[str, ...] = ()
    """What the user should know before jobs are submitted."""


@dataclass(frozen=True)
class _Offer:
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

    def minutes(self, wanted: int) -> int:
        return min(wanted, self.partition.max_minutes or wanted)


def suggest(cluster: Cluster, partition: str | None = None) -> Suggestion:
    """A profile for this cluster.

    Args:
        cluster: what it says.
        partition: the user's choice, or several with commas between them; None lets GPUs decide.

    Raises:
        InputError: there is no such partition, or none that the user may use.
    """
    offers = [offer for offer in (_offer(cluster, part) for part in cluster.partitions) if offer.is_open]
    chosen, reason = (_named(cluster, partition), "your choice") if partition else _best(cluster, offers)
    fields, reasons = _of_training(chosen)
    fields["partition"], reasons["partition"] = partition or chosen.partition.name, reason
    section = dict(_of_cpu_jobs(chosen, _without_gpus(offers) if chosen.total_gpus else None))
    fields["cpu"] = {key: value for key, (value, _) in section.items()}
    reasons |= {f"cpu.{key}": why for key, (_, why) in section.items()}
    return Suggestion(Profile(**fields), reasons, tuple(_warnings(cluster, chosen)))


def _named(cluster: Cluster, names: str) -> _Offer:
    """The first of the partitions, with the shortest of their time limits."""
    known = {part.name: part for part in cluster.partitions}
    asked = names.split(",")
    for name in asked:
        if name not in known:
            raise InputError(f"cluster {cluster.name} has no partition {name!r}; name one of {', '.join(known)}")
    limits = [limit for name in asked if (limit := known[name].max_minutes) is not None]
    return _offer(cluster, replace(known[asked[0]], max_minutes=min(limits, default=None)))


def _best(cluster: Cluster, offers: list[_Offer]) -> tuple[_Offer, str]:
    """The partition for training."""
    default = next((offer for offer in offers if offer.partition.is_default), None)
    with_gpus = [offer for offer in offers if offer.total_gpus]
    if default is not None and (default.total_gpus or not with_gpus):
        return default, "the default partition" + (", and it has GPUs" if default.total_gpus else "")
    if with_gpus:
        best = max(with_gpus, key=lambda offer: (offer.minutes(MINUTES), offer.total_gpus))
        return best, f"the most GPUs of the partitions that you may use: {best.total_gpus}"
    if offers:
        return max(offers, key=lambda offer: offer.nodes.count), "the most nodes of the partitions that you may use"
    closed = ", ".join(f"{part.name} ({part.state})" for part in cluster.partitions) or "none"
    raise InputError(
        f"cluster {cluster.name} has no partition that {cluster.user} may use; it has {closed}. "
        "Give --partition and --account, or ask the cluster's administrators"
    )


def _without_gpus(offers: list[_Offer]) -> _Offer | None:
    """The partition for packing and reports: the default one, else the one with the most nodes."""
    found = [offer for offer in offers if not offer.total_gpus and offer.minutes(SHORT_MINUTES) == SHORT_MINUTES]
    return max(found, key=lambda offer: (offer.partition.is_default, offer.nodes.count), default=None)


# --- what a partition offers ------------------------------------------------------------------------------------------


def _offer(cluster: Cluster, partition: Partition) -> _Offer:
    kinds = cluster.kinds(partition.name)
    access = find_access(cluster, partition)
    none = NodeKind(partition.name, 0, 1, 0, 0, None, is_usable=False)
    most = max(kinds, key=lambda kind: (kind.gpus * kind.count, kind.count), default=none)
    total = sum(kind.gpus * kind.count for kind in kinds)
    return _Offer(
        partition, most, total, partition.is_up and bool(kinds) and access is not None, *access or (None, None)
    )


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
    first, default = allowed[0], cluster.association()
    account = None if default and first.account == default.account else first.account
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


# --- fields of the profile --------------------------------------------------------------------------------------------


def _of_training(offer: _Offer) -> tuple[dict[str, Any], dict[str, str]]:
    nodes, values = offer.nodes, dict[str, Any]()
    reasons: dict[str, str] = {}

    def take(name: str, value: Any, reason: str) -> None:
        if value is not None:
            values[name], reasons[name] = value, reason

    take("account", offer.account, "your default account may not use this partition")
    take("qos", offer.qos, "your default QOS may not use this partition")
    share = f"a node's share of {_memory(nodes.memory_mb)}"
    if nodes.gpus:
        named = f"{nodes.gpu_type} " if nodes.gpu_type else ""
        take("gpus_per_node", nodes.gpus, f"all {named}GPUs of a node, one process each")
        take("gpu_type", nodes.gpu_type, "the type that most nodes of the partition have")
        take("cpus_per_task", _cores(offer, nodes.gpus), f"{nodes.cpus} cores per node, {nodes.gpus} GPUs")
        take("mem_per_gpu", _share_of_memory(offer, nodes.gpus, MAX_MEMORY_MB), f"{share} per GPU, with some to spare")
    else:
        take("cpus_per_task", _cores(offer, 1), f"{nodes.cpus} cores per node, no GPU")
        take("mem", _share_of_memory(offer, 1, MAX_MEMORY_MB), f"{share}, with some to spare")
        take("setup", ("export ACCELERATE_USE_CPU=true",), "the partition has no GPU")
    limit = offer.partition.max_minutes
    spelled = "has no time limit" if limit is None else f"allows {limit}"
    minutes = offer.minutes(MINUTES)
    take("time_minutes", minutes, f"the partition {spelled}; short jobs start sooner, runs take as many as they need")
    if Profile.signal_lead_s > 30 * minutes:
        take("signal_lead_s", 30 * minutes, "half of time_minutes")
    return values, reasons


def _of_cpu_jobs(training: _Offer, cpu: _Offer | None) -> Iterator[tuple[str, tuple[Any, str]]]:
    """Fields of the section for packing and reports, with their reasons."""
    offer = cpu or training
    if cpu is not None:
        yield "partition", (cpu.partition.name, "packing and reports need no GPU")
        yield "constraint", (None, "features of GPU nodes do not hold here")
        if cpu.minutes(MINUTES) < training.minutes(MINUTES):
            yield "time_minutes", (cpu.minutes(MINUTES), f"the partition allows {cpu.partition.max_minutes}")
        for key in ("account", "qos"):
            if getattr(cpu, key) != getattr(training, key):
                yield key, (getattr(cpu, key), f"the other {key} may not use this partition")
    yield "cpus_per_task", (_cores(offer, 1), f"{offer.nodes.cpus} cores per node")
    memory = _share_of_memory(offer, 1, CPU_MEMORY_MB)
    if memory is not None:
        yield "mem", (memory, f"a node has {_memory(offer.nodes.memory_mb)}")


def _cores(offer: _Offer, processes: int) -> int:
    limit = offer.partition.fields.get("MaxCPUsPerNode", "")
    cores = min(offer.nodes.cpus, int(limit) if limit.isdigit() else offer.nodes.cpus)
    return max(1, min(MAX_CORES, cores // processes))


def _share_of_memory(offer: _Offer, processes: int, at_most: int) -> str | None:
    """Memory of one process; None where the cluster's nodes have no memory configured."""
    limit = offer.partition.fields.get("MaxMemPerNode", "")
    node = min(offer.nodes.memory_mb, int(limit) if limit.isdigit() else offer.nodes.memory_mb)
    share = min(at_most, int(USABLE_MEMORY * node / processes))
    return _memory(share) if share >= MIN_MEMORY_MB else None


def _memory(megabytes: int) -> str:
    return f"{megabytes // 1024}G" if megabytes >= 8 * 1024 else f"{megabytes}M"


def _warnings(cluster: Cluster, chosen: _Offer) -> Iterator[str]:
    name = chosen.partition.name
    if not chosen.partition.is_up:
        yield f"partition {name} is {chosen.partition.state}: jobs wait until it is up"
    elif not chosen.nodes.is_usable:
        yield f"no node of partition {name} is in service: jobs wait until one is"
    elif not chosen.is_open:
        yield f"none of your accounts may use partition {name}: SLURM will refuse the jobs"
    if chosen.total_gpus:
        return
    closed = sorted({k.partition for k in cluster.nodes if k.gpus} - {name})
    others = f"; partitions with GPUs: {', '.join(closed)}" if closed else ", nor has any other that SLURM shows you"
    yield f"partition {name} has no GPU{others}. Training uses CPU cores"
