"""A cluster and a profile in words, and where the two do not fit."""

from __future__ import annotations

from collections.abc import Iterator

from simdist.cluster.discovery import Cluster, Limits, default_qos
from simdist.cluster.parsing import Reservation
from simdist.cluster.profile import Profile, profile_for
from simdist.core.errors import InputError
from simdist.core.slurm import parse_nodes

SHOWN_PARTITIONS = 6


def describe_profile(profile: Profile) -> list[str]:
    """What jobs request, a line for each kind that differs."""
    kinds = {"train": "training", "probe": "probes, decoders, analyses", "pack": "packing, report"}
    names: dict[str, str] = {}
    for kind, name in kinds.items():
        text = _describe_job(profile_for(kind, profile))
        names[text] = f"{names[text]}, {name}" if text in names else name
    return [f"  {name}: {text}" for text, name in names.items()]


def _describe_job(profile: Profile) -> str:
    number, tasks = profile.gpus_per_node, profile.num_tasks_per_node
    gpus = f"{number} {profile.gpu_type or ''} GPU{'s' * (number != 1)}".replace("  ", " ") if number else "no GPU"
    cores = f"{profile.cpus_per_task} core{'s' * (profile.cpus_per_task != 1)}"
    cores = f"{tasks} processes of {cores}" if tasks > 1 else cores
    minutes = f"{profile.time_minutes} minute{'s' * (profile.time_minutes != 1)}"
    memory = [profile.mem] if profile.mem else [f"{profile.mem_per_gpu} per GPU"] if profile.mem_per_gpu else []
    where = f"partition {profile.partition}" if profile.partition else "the default partition"
    nodes, each = ("1 node", "") if profile.nodes == 1 else (f"{profile.nodes} nodes", " per node")
    return ", ".join([where, nodes, gpus + each, cores, *memory, minutes])


def describe_cluster(cluster: Cluster, profile: Profile, limits: Limits) -> Iterator[str]:
    """What was found, in a few lines."""
    parts = [
        f"{part.name}{'*' * part.is_default} ({describe_nodes(cluster, part.name)})" for part in cluster.partitions
    ]
    more = f" and {len(parts) - SHOWN_PARTITIONS} more" if len(parts) > SHOWN_PARTITIONS else ""
    yield f"cluster {cluster.name}: partitions {', '.join(parts[:SHOWN_PARTITIONS])}{more}"
    association = cluster.association(profile.account)
    account = profile.account or (association.account if association else "unknown")
    qos = profile.qos or default_qos(association) or "unknown"
    queue = (
        f"at most {limits.max_submit} jobs in the queue" if limits.max_submit is not None else "no limit of jobs known"
    )
    array = f", array indices below {limits.max_array_size}" if limits.max_array_size is not None else ""
    yield f"account {account}, QOS {qos}, {queue}{array}"
    yield from (describe_reservation(entry, cluster) for entry in reservations_due(cluster, profile))


def reservations_due(cluster: Cluster, profile: Profile) -> list[Reservation]:
    """Reservations on nodes that the profile's jobs may get; all that SLURM lists are due, ended ones it forgets."""
    names = {name for kind in ("train", "probe", "pack") for name in partitions_of(cluster, profile_for(kind, profile))}
    nodes = {node for part in cluster.partitions if part.name in names for node in _expanded(part.nodes)}
    return [entry for entry in cluster.reservations if nodes & set(_expanded(entry.nodes))]


def describe_reservation(entry: Reservation, cluster: Cluster) -> str:
    """When a reservation is due, on which nodes, and what it means for jobs."""
    accounts = {association.account for association in cluster.associations}
    span = f"{entry.nodes} from {entry.start.replace('T', ' ')} to {entry.end.replace('T', ' ')}"
    if "MAINT" not in entry.flags and (cluster.user in entry.users or accounts & set(entry.accounts)):
        return f"reservation {entry.name}, {span}: you may use it with `reservation: {entry.name}` in a profile"
    return f"reservation {entry.name}, {span}: jobs that would run into it wait until it ends"


def describe_nodes(cluster: Cluster, partition: str) -> str:
    """Number of nodes of a partition, and the GPUs of each."""
    kinds = cluster.kinds(partition)
    count = sum(kind.count for kind in kinds)
    gpus = sorted(
        {f"{kind.gpus} {kind.gpu_type + ' ' if kind.gpu_type else ''}GPUs each" for kind in kinds if kind.gpus}
    )
    return f"{count} node{'s' * (count != 1)}{', ' if gpus else ''}{' or '.join(gpus)}"


def misfits(cluster: Cluster, profile: Profile) -> Iterator[str]:
    """Where the profile asks for what its partitions do not give, or leaves GPUs unused."""
    found: dict[str, None] = {}
    for kind in ("train", "probe", "pack"):
        job = profile_for(kind, profile)
        for name in partitions_of(cluster, job):
            found |= dict.fromkeys(_misfits(cluster, job, name))
            if kind == "train" and not job.gpus_per_node and (gpus := _most_gpus(cluster, job, name)):
                found[f"nodes of partition {name} have {gpus} GPUs; training requests none and uses CPU cores"] = None
    yield from found


def _misfits(cluster: Cluster, job: Profile, name: str) -> Iterator[str]:
    """Where one kind of job asks for what a partition does not give."""
    known = {part.name: part for part in cluster.partitions}
    if name not in known:
        yield f"cluster {cluster.name} has no partition {name}; it has {', '.join(known)}"
        return
    limit = known[name].max_minutes
    if limit is not None and job.time_minutes > limit:
        yield f"jobs of {job.time_minutes} minutes never start in partition {name}, which allows {limit}"
    gpus = _most_gpus(cluster, job, name)
    types = {gpu_type for kind in cluster.kinds(name) for gpu_type, _ in kind.types if gpu_type}
    if job.gpus_per_node and job.gpu_type and types and job.gpu_type not in types:
        listed = ", ".join(sorted(types))
        yield f"nodes of partition {name} have GPUs of type {listed}; the profile requests {job.gpu_type}"
    elif job.gpus_per_node > gpus:
        yield f"nodes of partition {name} have {gpus} GPUs; the profile requests {job.gpus_per_node}"


def _most_gpus(cluster: Cluster, job: Profile, name: str) -> int:
    """GPUs of a node of the partition, of the job's type if it has one."""
    kinds = cluster.kinds(name)
    typed = [number for kind in kinds for gpu_type, number in kind.types if gpu_type == job.gpu_type]
    return max(typed if job.gpu_type and typed else [kind.gpus for kind in kinds], default=0)


def partitions_of(cluster: Cluster, profile: Profile) -> list[str]:
    """Partitions that jobs of a profile may run in: those that it names, else the default one."""
    if profile.partition:
        return profile.partition.split(",")
    return [part.name for part in cluster.partitions if part.is_default]


def _expanded(names: str) -> list[str]:
    try:
        return parse_nodes(names)
    except InputError:
        return []
