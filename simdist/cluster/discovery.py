"""Ask a SLURM cluster what it is: partitions, nodes and their GPUs, the user's accounts, limits and reservations.

Seven commands, run at the same time, each with a timeout. Only `scontrol` must answer; without sacctmgr, as on a
cluster without accounting, accounts and limits are unknown.
"""

from __future__ import annotations

import getpass
import os
import pwd
import shutil
import subprocess
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from simdist.cluster import parsing
from simdist.cluster.parsing import Association, NodeKind, Partition, Reservation
from simdist.cluster.profile import Profile

Command = Callable[[Sequence[str]], str]
"""Runs a command and returns what it printed, or nothing if it failed."""
SECONDS = 20.0  # until a command is given up
ENFORCED = ("limits", "safe", "qos", "all")  # any of them in AccountingStorageEnforce makes SLURM enforce limits
SACCTMGR = ("sacctmgr", "--noheader", "--parsable2", "show")


@dataclass(frozen=True)
class Limits:
    """How much may be submitted."""

    max_array_size: int | None = None
    """MaxArraySize: indices of an array are below it; None if unknown."""
    max_submit: int | None = None
    """Jobs and array tasks that the user may have in the queue; None for no limit, or if unknown."""


@dataclass(frozen=True)
class Cluster:
    """What the cluster and the accounting say."""

    name: str
    user: str
    settings: Mapping[str, str]
    """`scontrol show config`."""
    partitions: tuple[Partition, ...]
    nodes: tuple[NodeKind, ...]
    associations: tuple[Association, ...] = ()
    """The user's accounts, the default account first; empty without accounting."""
    default_account: str | None = None
    """The account of jobs that name none; None if unknown, and jobs then name theirs."""
    qos_limits: Mapping[str, int | None] | None = None
    """MaxSubmitJobsPerUser by QOS."""
    reservations: tuple[Reservation, ...] = ()

    @property
    def enforces_associations(self) -> bool:
        """Whether SLURM refuses jobs with an account or a QOS that is not the user's."""
        enforced = self.settings.get("AccountingStorageEnforce", "").lower().split(",")
        return bool({"associations", *ENFORCED} & set(enforced))

    def kinds(self, partition: str) -> list[NodeKind]:
        """Nodes of a partition, those that can run jobs if there are any."""
        found = [kind for kind in self.nodes if kind.partition == partition]
        return [kind for kind in found if kind.is_usable] or found

    def limits(self, profile: Profile | None = None) -> Limits:
        """How much may be submitted with this profile's account, QOS and partition."""
        size = parsing.parse_number(self.settings.get("MaxArraySize", ""))
        if not set(self.settings.get("AccountingStorageEnforce", "").split(",")) & set(ENFORCED):
            return Limits(size)
        profile = profile or Profile()
        association = self.association(profile.account)
        names = {profile.qos or default_qos(association)}
        names |= {p.fields.get("QoS") for p in self.partitions if p.name in (profile.partition or "").split(",")}
        values = [(self.qos_limits or {}).get(name or "") for name in names]
        values += [association.max_submit] if association else []
        return Limits(size, min((value for value in values if value is not None), default=None))

    def association(self, account: str | None = None) -> Association | None:
        """The user's association with an account, or with the default one."""
        return next((found for found in self.associations if account in (None, found.account)), None)


def default_qos(association: Association | None) -> str | None:
    """The QOS of jobs that name none; None if unknown."""
    if association is None:
        return None
    qos = association.qos
    return association.default_qos or ("normal" if "normal" in qos or not qos else qos[0])


def ask(words: Sequence[str]) -> str:
    """What a command prints; nothing if it is missing, fails, or takes longer than 20 seconds."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("SINFO_", "SQUEUE_"))}
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=SECONDS, check=True, env=clean)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout


def discover(run: Command = ask, user: str | None = None) -> Cluster | None:
    """The cluster whose login node this is; None where there is no SLURM, or its controller does not answer.

    Args:
        run: runs a command; for tests.
        user: the user's name; None takes that of this process, for SLURM judges by it and not by $USER.
    """
    if run is ask and shutil.which("scontrol") is None:
        return None
    user = user or _user()
    commands = {
        "config": ("scontrol", "show", "config"),
        "partitions": ("scontrol", "--oneliner", "show", "partition"),
        "reservations": ("scontrol", "--oneliner", "show", "reservation"),
        "nodes": ("sinfo", "--noheader", "--exact", "--format=%P|%G|%c|%m|%D|%T"),
        "associations": (
            *SACCTMGR,
            "assoc",
            f"user={user}",
            "format=cluster,account,partition,qos,defaultqos,maxsubmit",
        ),
        "user": (*SACCTMGR, "user", user, "format=defaultaccount"),
        "qos": (*SACCTMGR, "qos", "format=name,maxsubmitjobsperuser"),
    }
    with ThreadPoolExecutor(len(commands)) as pool:
        said = dict(zip(commands, pool.map(run, commands.values()), strict=True))
    settings = parsing.parse_pairs(said["config"])
    if "ClusterName" not in settings:
        return None
    name = settings["ClusterName"]
    default_account = said["user"].strip()
    return Cluster(
        name=name,
        user=user,
        settings=settings,
        partitions=tuple(parsing.parse_partitions(said["partitions"])),
        nodes=tuple(parsing.parse_nodes(said["nodes"])),
        associations=_associations(said["associations"], name, default_account),
        default_account=default_account or None,
        qos_limits=parsing.parse_qos_limits(said["qos"]),
        reservations=tuple(parsing.parse_reservations(said["reservations"])),
    )


def _user() -> str:
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:  # in a container that does not know the user
        return getpass.getuser()


def _associations(text: str, cluster: str, default_account: str) -> tuple[Association, ...]:
    """Those of this cluster, for one slurmdbd may serve several; the default account first."""
    own = "\n".join(line.partition("|")[2] for line in text.splitlines() if line.startswith(f"{cluster}|"))
    found = parsing.parse_associations(own)
    return tuple(sorted(found, key=lambda association: association.account != default_account))
