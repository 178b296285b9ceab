"""Which profile a command uses, and what to tell the user about it.

`--cluster NAME` or `--cluster FILE` is that profile. `--cluster slurm` is the user's default where there is one, first
`SIMDIST_CLUSTER`, then `~/.config/simdist/cluster.yaml`, and else what the cluster itself suggests.
`SIMDIST_CLUSTER=slurm` asks for the suggestion although the file exists. Options win over all of these.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from simdist.cluster.description import describe_cluster, describe_profile, misfits
from simdist.cluster.discovery import Cluster, Limits, discover
from simdist.cluster.profile import SECTIONS, Profile, load_profile, profile_for, replaced, split_gpus
from simdist.cluster.profile_text import profile_text
from simdist.cluster.suggestion import Suggestion, suggest
from simdist.core.errors import InputError

DISCOVERED = "slurm"
VARIABLE = "SIMDIST_CLUSTER"
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
    must_answer: bool = False,
) -> Choice:
    """The profile to use.

    Args:
        cluster: `slurm`, or a profile's name or file.
        options: fields of a profile that the command line sets; lines of `setup` are appended.
        environ: the environment.
        find: asks the cluster; for tests.
        must_answer: whether a profile without GPUs, which a silent cluster leads to, is an error.

    Raises:
        InputError: there is no such profile or partition, an option has a value that is not allowed, or SLURM does not
            answer although it must.
    """
    options = options or {}
    name = (default_profile(environ) or DISCOVERED) if cluster == DISCOVERED else cluster
    found = find()
    if found is not None:
        _check_access(found, options)
    if name != DISCOVERED:
        origin = f" (default of --cluster {DISCOVERED})" if cluster == DISCOVERED else ""
        suggestion, source = Suggestion(_load(name, environ if origin else {})), f"profile {name}{origin}"
    elif found is None and must_answer:
        raise InputError(
            "SLURM does not answer. Try again, name a profile (--cluster gpu, or your own file), or run on this "
            "machine with --cluster local"
        )
    elif found is None:
        source = "SLURM's defaults, because it does not answer"
        suggestion = Suggestion(Profile(), warnings=("SLURM does not answer here: GPUs and limits are unknown",))
    else:
        wanted = options.get("time_minutes", Profile.time_minutes)
        suggestion = suggest(_with_access(found, options), options.get("partition"), wanted)
        source = "chosen for this cluster"
    profile = with_options(suggestion.profile, options)
    reasons = {**suggestion.reasons, **dict.fromkeys(options, "given on the command line")}
    if found is None:
        return Choice(profile, source, (), suggestion.warnings, reasons)
    warnings = (*suggestion.warnings, *misfits(found, profile))
    limits = found.limits(profile)
    return Choice(profile, source, tuple(describe_cluster(found, profile, limits)), warnings, reasons, limits, found)


def _load(name: str, environ: Mapping[str, str]) -> Profile:
    """The profile; an error names the variable that asks for it, if one does."""
    try:
        return load_profile(name)
    except InputError as error:
        if environ.get(VARIABLE) == name:
            raise InputError(f"{VARIABLE} is {name!r}: {error}") from error
        raise


def _check_access(cluster: Cluster, options: Mapping[str, Any]) -> None:
    """Raise `InputError` for an account or a QOS that is not among the user's; where none is known, SLURM judges."""
    if not cluster.enforces_associations or not cluster.associations:
        return
    account, own = options.get("account"), _with_access(cluster, {"account": options.get("account")}).associations
    accounts = dict.fromkeys(found.account for found in cluster.associations)
    if account is not None and account.lower() not in {name.lower() for name in accounts}:
        raise InputError(f"--account is {account!r}, which is not one of your accounts: {', '.join(accounts)}")
    known = dict.fromkeys(name for found in own for name in (*found.qos, found.default_qos) if name)
    unknown = [name for name in (options.get("qos") or "").split(",") if name and name not in known]
    if known and unknown:
        of = f"your account {account}" if account else "your accounts"
        raise InputError(f"--qos is {options['qos']!r}, which is not one of the QOS of {of}: {', '.join(known)}")


def _with_access(cluster: Cluster, options: Mapping[str, Any]) -> Cluster:
    """The cluster as it is for the account and the QOS of the command line: which partitions are open follows."""
    account, wanted = options.get("account"), (options.get("qos") or "").split(",")
    own = tuple(found for found in cluster.associations if account and found.account.lower() == account.lower())
    own = own or cluster.associations
    with_qos = [(found, tuple(name for name in wanted if name in (*found.qos, found.default_qos))) for found in own]
    narrowed = tuple(replace(found, qos=qos, default_qos=qos[0]) for found, qos in with_qos if qos and qos[0])
    return replace(cluster, associations=narrowed or own)


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
    try:
        given = split_gpus({name: value for name, value in options.items() if name != "setup"})
        covered = {*given, *(("mem", "mem_per_gpu") if "mem" in given else ())}
        dropped = {"train": covered, "gpu": covered - {"nodes", "gpus_per_node", "gpu_type"}, "cpu": set()}
        tasks, gpus = (profile.train.get(key, getattr(profile, key)) for key in ("tasks_per_node", "gpus_per_node"))
        if "gpus_per_node" in given and tasks == gpus:  # one per GPU, and so with another number of GPUs
            dropped["train"] = covered | {"tasks_per_node"}
        sections = {}
        for section in SECTIONS:
            fields = {key: value for key, value in getattr(profile, section).items() if key not in dropped[section]}
            sections[section] = fields | ({"setup": (*fields["setup"], *lines)} if "setup" in fields else {})
        made = replaced(replace(profile, **sections), given)
        made = replace(made, setup=(*made.setup, *lines))
        for kind in ("train", "probe", "pack"):
            profile_for(kind, made)
    except (ValueError, TypeError) as error:
        raise InputError(f"options of the cluster: {error}") from error
    return made
