"""The profile that follows from what a cluster says: which partition, how many GPUs, cores, memory and time.

GPUs first: the default partition if it has some and allows the time that jobs ask for, else the partition that the user
may use with the most of them. Packing and reports go to a partition without GPUs where there is one. Partitions without
a working node, and those that may not admit the user, come last.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from simdist.cluster.discovery import Cluster
from simdist.cluster.offers import Offer, offer_of, restrictions, smallest
from simdist.cluster.profile import Profile
from simdist.core.errors import InputError

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


def suggest(cluster: Cluster, partition: str | None = None, wanted: int = MINUTES) -> Suggestion:
    """A profile for this cluster.

    Args:
        cluster: what it says.
        partition: the user's choice, or several with commas between them; None lets GPUs decide.
        wanted: minutes that a job asks for; a partition that allows them comes first.

    Raises:
        InputError: there is no such partition, or none that the user may use.
    """
    offers = [offer for offer in (offer_of(cluster, part) for part in cluster.partitions) if offer.is_open]
    named = _named(cluster, partition) if partition else []
    chosen, reason = (smallest(named), "your choice") if named else _best(cluster, offers, wanted)
    fields, reasons = _of_training(chosen)
    fields["partition"], reasons["partition"] = partition or chosen.partition.name, reason
    section = dict(_of_cpu_jobs(chosen, _without_gpus(offers) if chosen.total_gpus else None, wanted))
    fields["cpu"] = {key: value for key, (value, _) in section.items()}
    reasons |= {f"cpu.{key}": why for key, (_, why) in section.items()}
    warnings = tuple(text for offer in named or [chosen] for text in _warnings(cluster, offer))
    return Suggestion(Profile(**fields), reasons, warnings)


def _named(cluster: Cluster, names: str) -> list[Offer]:
    """The partitions that the user named."""
    known = {part.name: part for part in cluster.partitions}
    for name in names.split(","):
        if name not in known:
            raise InputError(f"cluster {cluster.name} has no partition {name!r}; name one of {', '.join(known)}")
    return [offer_of(cluster, known[name]) for name in names.split(",")]


def _best(cluster: Cluster, offers: list[Offer], wanted: int) -> tuple[Offer, str]:
    """The partition for training."""
    if not offers:
        closed = ", ".join(f"{part.name} ({part.state})" for part in cluster.partitions) or "none"
        raise InputError(
            f"cluster {cluster.name} has no partition that {cluster.user} may use; it has {closed}. "
            "Give --partition and --account, or ask the cluster's administrators"
        )
    with_gpus = [offer for offer in offers if offer.total_gpus]
    candidates = with_gpus or offers
    best = max(candidates, key=lambda offer: (*offer.rank(wanted), offer.total_gpus, offer.nodes.count))
    default = next((offer for offer in candidates if offer.partition.is_default), None)
    if default is not None and default.rank(wanted) == best.rank(wanted):
        return default, "the default partition" + (", and it has GPUs" if default.total_gpus else "")
    if with_gpus:
        return best, f"the most GPUs of the partitions that you may use: {best.total_gpus}"
    return best, "the most nodes of the partitions that you may use"


def _without_gpus(offers: list[Offer]) -> Offer | None:
    """The partition for packing and reports: the default one, else the one with the most nodes."""
    short = (True, True, SHORT_MINUTES)
    found = [offer for offer in offers if not offer.total_gpus and offer.rank(SHORT_MINUTES) == short]
    return max(found, key=lambda offer: (offer.partition.is_default, offer.nodes.count), default=None)


# --- fields of the profile --------------------------------------------------------------------------------------------


def _of_training(offer: Offer) -> tuple[dict[str, Any], dict[str, str]]:
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
        take("mem_per_gpu", _share_of_memory(offer, nodes.gpus, MAX_MEMORY_MB), f"{share} per GPU, with a margin")
    else:
        take("cpus_per_task", _cores(offer, 1), f"{nodes.cpus} cores per node, no GPU")
        take("mem", _share_of_memory(offer, 1, MAX_MEMORY_MB), f"{share}, with a margin")
        take("setup", ("export ACCELERATE_USE_CPU=true",), "the partition has no GPU")
    minutes = offer.minutes(MINUTES)
    why = f"{_time_limit(offer)}; short jobs start sooner, and a run takes as many as it needs"
    take("time_minutes", minutes, why)
    if Profile.signal_lead_s > 30 * minutes:
        take("signal_lead_s", 30 * minutes, "half of time_minutes")
    return values, reasons


def _of_cpu_jobs(training: Offer, cpu: Offer | None, wanted: int) -> Iterator[tuple[str, tuple[Any, str]]]:
    """Fields of the section for packing and reports, with their reasons."""
    offer = cpu or training
    if cpu is not None:
        yield "partition", (cpu.partition.name, "packing and reports need no GPU")
        yield "constraint", (None, "features of GPU nodes do not apply here")
        yield "time_minutes", (cpu.minutes(wanted), _time_limit(cpu))
        for key in ("account", "qos"):
            if getattr(cpu, key) != getattr(training, key):
                yield key, (getattr(cpu, key), f"the other {key} may not use this partition")
    yield "cpus_per_task", (_cores(offer, 1), f"{offer.nodes.cpus} cores per node")
    memory = _share_of_memory(offer, 1, CPU_MEMORY_MB)
    if memory is not None:
        yield "mem", (memory, f"a node has {_memory(offer.nodes.memory_mb)}")


def _time_limit(offer: Offer) -> str:
    limit = offer.partition.max_minutes
    return f"the partition {'has no time limit' if limit is None else f'allows {limit}'}"


def _cores(offer: Offer, processes: int) -> int:
    return max(1, min(MAX_CORES, offer.nodes.cpus // processes))


def _share_of_memory(offer: Offer, processes: int, at_most: int) -> str | None:
    """Memory of one process; None where the cluster's nodes have no memory configured."""
    share = min(at_most, int(USABLE_MEMORY * offer.nodes.memory_mb / processes))
    if offer.core_memory_mb is not None:
        share = min(share, offer.core_memory_mb * _cores(offer, processes))
    return _memory(share) if share >= MIN_MEMORY_MB else None


def _memory(megabytes: int) -> str:
    return f"{megabytes // 1024}G" if megabytes >= 8 * 1024 else f"{megabytes}M"


def _warnings(cluster: Cluster, chosen: Offer) -> Iterator[str]:
    name = chosen.partition.name
    if not chosen.partition.is_up:
        yield f"partition {name} is {chosen.partition.state}: jobs wait until it is up"
    elif not chosen.nodes.is_usable:
        yield f"no node of partition {name} is in service: jobs wait until one is"
    elif not chosen.is_open:
        yield f"none of your accounts may use partition {name}: SLURM will reject the jobs"
    if not chosen.is_certain:
        only = restrictions(chosen.partition)
        yield f"sacctmgr names no account of yours, and partition {name} is for {only}: SLURM may reject jobs"
    if chosen.total_gpus:
        return
    closed = sorted({k.partition for k in cluster.nodes if k.gpus} - {name})
    others = (
        f"; partitions with GPUs: {', '.join(closed)}" if closed else ", and neither has any other visible partition"
    )
    yield f"partition {name} has no GPU{others}. Training uses CPU cores"
