"""Which profile a command uses, and what to tell the user about it.

`--cluster NAME` or `--cluster FILE` is that profile. `--cluster slurm` is the user's default where there is one, first
`SIMDIST_CLUSTER`, then `~/.config/simdist/cluster.yaml`, and else what the cluster itself suggests.
`SIMDIST_CLUSTER=slurm` asks for the suggestion although the file exists. Options win over all of these.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from simdist.cluster.discovery import Cluster, Limits, default_qos, discover
from simdist.cluster.parsing import Reservation
from simdist.cluster.profile_text import profile_text
from simdist.cluster.suggestion import Suggestion, suggest
from simdist.engine.hosts import parse_nodes
from simdist.errors import InputError
from simdist.profiles import SECTIONS, Profile, load_profile, profile_for, replaced

DISCOVERED = "slurm"
VARIABLE = "SIMDIST_CLUSTER"
SHOWN_PARTITIONS = 6
HOW_ELSE = (
    "to change this: --partition, --account, --qos, --nodes, --gpus-per-node, --time, --mem, --constraint, --setup; or "
    "write it to a file with `python -m simdist.doctor --cluster slurm --write mine.yaml`, and use --cluster mine.yaml"
)


@dataclass(frozen=True)
class Choice:
    """A profile, where it comes from, and what was found on the cluster."""

    profile: Profile
    source: str
    """What the profile is made from, in words."""
    found: tuple[str, ...] = ()
    """What the cluster says, a line each."""
    warnings: tuple[str, ...] = ()
    reasons: Mapping[str, str] = field(default_factory=dict)
    """Why a field has its value, by field."""
    limits: Limits = field(default_factory=Limits)
    cluster: Cluster | None = None
    """What was found; None where SLURM does not answer."""

    def lines(self, how_else: bool = True) -> list[str]:
        """What to print: what was found, what was chosen, and how to choose otherwise."""
        warnings = [f"warning: {text}" for text in self.warnings]
        return [
            *self.found,
            f"{self.source}:",
            *describe_profile(self.profile),
            *warnings,
            *([HOW_ELSE] if how_else else []),
        ]

    def text(self) -> str:
        """The profile as YAML, a comment on each line; `load_profile` reads it back."""
        head = [*self.found, f"This profile: {self.source}.", *(f"Warning: {text}" for text in self.warnings)]
        return profile_text(self.profile, self.reasons, head)


def chosen_profile(
    cluster: str,
    options: Mapping[str, Any] | None = None,
    environ: Mapping[str, str] = os.environ,
    find: Callable[[], Cluster | None] = discover,
) -> Choice:
    """The profile to use.

    Args:
        cluster: `slurm`, or a profile's name or file.
        options: fields of a profile that the command line sets; lines of `setup` are appended.
        environ: the environment.
        find: asks the cluster; for tests.

    Raises:
        InputError: there is no such profile or partition, or an option has a value that is not allowed.
    """
    options = options or {}
    name = (default_profile(environ) or DISCOVERED) if cluster == DISCOVERED else cluster
    found = find()
    if name != DISCOVERED:
        origin = f" (default of --cluster {DISCOVERED})" if cluster == DISCOVERED else ""
        suggestion, source = Suggestion(load_profile(name)), f"profile {name}{origin}"
    elif found is None:
        source = "SLURM's defaults, for it does not answer here"
        suggestion = Suggestion(Profile(), warnings=("SLURM does not answer here: GPUs and limits are unknown",))
    else:
        suggestion, source = suggest(_with_account(found, options), options.get("partition")), "chosen for this cluster"
    profile = with_options(suggestion.profile, options)
    reasons = {**suggestion.reasons, **dict.fromkeys(options, "given on the command line")}
    if found is None:
        return Choice(profile, source, (), suggestion.warnings, reasons)
    warnings = (*suggestion.warnings, *misfits(found, profile))
    limits = found.limits(profile)
    return Choice(profile, source, tuple(describe_cluster(found, profile, limits)), warnings, reasons, limits, found)


def _with_account(cluster: Cluster, options: Mapping[str, Any]) -> Cluster:
    """The cluster as it is for the account that the command line names: partitions and QOS depend on it."""
    own = tuple(found for found in cluster.associations if found.account == options.get("account"))
    return replace(cluster, associations=own) if own else cluster


def default_profile(environ: Mapping[str, str] = os.environ) -> str | None:
    """The user's default for `--cluster slurm`: a profile's name or file; None if there is none.

    Raises:
        InputError: SIMDIST_CLUSTER is no profile.
    """
    named = environ.get(VARIABLE)
    if named in ("local", "debug"):
        raise InputError(f"{VARIABLE} is {named!r}; it must be a profile's name, a profile's file, or {DISCOVERED}")
    if named:
        return named
    home = environ.get("XDG_CONFIG_HOME") or Path(environ.get("HOME") or Path.home(), ".config")
    file = Path(home, "simdist", "cluster.yaml")
    return str(file) if file.is_file() else None


def with_options(profile: Profile, options: Mapping[str, Any]) -> Profile:
    """The profile with a command line's options on top.

    Options win over the top-level fields and over the sections `train` and `gpu`; `--nodes` and `--gpus-per-node` are
    for trainings alone. What the section `cpu` says of packing and reports stays.

    Raises:
        InputError: an option has a value that is not allowed.
    """
    lines = tuple(options.get("setup", ()))
    given = {name: value for name, value in options.items() if name != "setup"}
    covered = {"mem", "mem_per_gpu"} if "mem" in given else set()
    covered |= set(given) | ({"gpu_type"} if "gpus_per_node" in given else set())
    dropped = {"train": covered, "gpu": covered - {"nodes", "gpus_per_node", "gpu_type"}, "cpu": set()}
    sections = {}
    for section in SECTIONS:
        fields = {key: value for key, value in getattr(profile, section).items() if key not in dropped[section]}
        sections[section] = fields | ({"setup": (*fields["setup"], *lines)} if "setup" in fields else {})
    try:
        made = replaced(replace(profile, **sections), given)
        made = replace(made, setup=(*made.setup, *lines))
        for kind in ("train", "probe", "pack"):
            profile_for(kind, made)
    except (ValueError, TypeError) as error:
        raise InputError(f"options of the cluster: {error}") from error
    return made


# --- in words ---------------------------------------------------------------------------------------------------------


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
    cores = f"{tasks} processes of {profile.cpus_per_task} cores" if tasks > 1 else f"{profile.cpus_per_task} cores"
    memory = [profile.mem] if profile.mem else [f"{profile.mem_per_gpu} per GPU"] if profile.mem_per_gpu else []
    where = f"partition {profile.partition}" if profile.partition else "the default partition"
    nodes, each = ("1 node", "") if profile.nodes == 1 else (f"{profile.nodes} nodes", " per node")
    return ", ".join([where, nodes, gpus + each, cores, *memory, f"{profile.time_minutes} minutes"])


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
    """Where the profile asks for what its partition does not give, or leaves GPUs unused."""
    train = profile_for("train", profile)
    known = {part.name: part for part in cluster.partitions}
    for name in partitions_of(cluster, train):
        if name not in known:
            yield f"cluster {cluster.name} has no partition {name}; it has {', '.join(known)}"
            continue
        limit, gpus = known[name].max_minutes, max((kind.gpus for kind in cluster.kinds(name)), default=0)
        if limit is not None and train.time_minutes > limit:
            yield f"jobs of {train.time_minutes} minutes never start in partition {name}, which allows {limit}"
        if train.gpus_per_node > gpus:
            yield f"nodes of partition {name} have {gpus} GPUs; the profile asks for {train.gpus_per_node}"
        if gpus and not train.gpus_per_node:
            yield f"nodes of partition {name} have {gpus} GPUs; trainings ask for none and use CPU cores"


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
