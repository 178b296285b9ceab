"""Options of `launch/sweep.py` that change what its jobs request from SLURM."""

from __future__ import annotations

import re
from typing import Any

from jsonargparse import Namespace

from simdist.cluster.choice import Choice, chosen_profile
from simdist.config.parser import Parser
from simdist.core.errors import InputError
from simdist.core.files import write_text

from .plan import Plan

FIELDS = {  # of a profile, by option
    "partition": "partition",
    "account": "account",
    "qos": "qos",
    "nodes": "nodes",
    "gpus_per_node": "gpus_per_node",
    "time": "time_minutes",
    "mem": "mem",
    "constraint": "constraint",
    "setup": "setup",
}
OPTIONS = {f"--{name.replace('_', '-')}" for name in FIELDS}
ON_THIS_MACHINE = ("local", "debug")
CLUSTER_FILE = "cluster.yaml"  # in a sweep's folder: the profile that its jobs are submitted with


def add_cluster_options(parser: Parser) -> None:
    """Add `--partition`, `--account`, … to the parser."""
    group = parser.add_argument_group("resources that jobs request from SLURM, overriding the profile")
    add = group.add_argument
    add("--partition", type=str | None, default=None, help="Partition, or several, such as a,b.")
    add("--account", type=str | None, default=None, help="Account to charge.")
    add("--qos", type=str | None, default=None, help="Quality of service.")
    add("--nodes", type=int | None, default=None, help="Nodes per training job.")
    add(
        "--gpus-per-node",
        type=str | None,
        default=None,
        help="GPUs per node of a training job, such as 4 or a100:4; 0 for none.",
    )
    add("--time", type=str | None, default=None, help="Time limit of a job: minutes, HH:MM:SS or D-HH:MM:SS.")
    add(
        "--mem",
        type=str | None,
        default=None,
        help="Memory per node, such as 60G. A number without a unit is in MB. Packing and reports keep their own.",
    )
    add("--constraint", type=str | None, default=None, help="Features that nodes must have, such as a100.")
    add(
        "--setup",
        type=str,
        action="append",
        default=None,
        help="Shell line to run before the program, such as 'module load cuda'. Can be repeated.",
    )


def cluster_options(parsed: Namespace, cluster: str) -> dict[str, Any]:
    """Fields of a profile that the command line sets.

    Raises:
        InputError: there are some although nothing is submitted, or a time cannot be read.
    """
    given = {option: parsed[option] for option in FIELDS if parsed[option] is not None}
    if given and cluster in ON_THIS_MACHINE:
        options = ", ".join(f"--{option.replace('_', '-')}" for option in given)
        raise InputError(
            f"{options}: for jobs on SLURM, but --cluster is {cluster}. Leave it out, or use --cluster slurm"
        )
    fields = {FIELDS[option]: value for option, value in given.items()}
    if "time_minutes" in fields:
        fields["time_minutes"] = read_time(fields["time_minutes"])
    if "setup" in fields:
        fields["setup"] = tuple(line for text in fields["setup"] for line in text.splitlines())
    return fields


def read_time(text: str) -> int:
    """A time limit in SLURM syntax, in whole minutes.

    Raises:
        InputError: it is none.
    """
    found = re.fullmatch(r"(?:(?P<d>\d+)-)?(?:(?P<h>\d+):)?(?P<m>\d+)(?::(?P<s>\d\d))?", text)
    if found is None:
        raise InputError(f"--time is {text!r}; give minutes, HH:MM:SS, or D-HH:MM:SS, such as 240 or 04:00:00")
    days, first, second, third = (int(part or 0) for part in found.group("d", "h", "m", "s"))
    hours, minutes, seconds = first, second, third
    if found["d"] and found["h"] is None:  # D-HH
        hours, minutes = second, 0
    elif not found["d"] and found["s"] is None and found["h"] is not None:  # MM:SS
        hours, minutes, seconds = 0, first, second
    return (days * 24 + hours) * 60 + minutes + (seconds > 0)


def choose_cluster(parsed: Namespace, cluster: str) -> Choice | None:
    """The profile of the jobs; None on this machine.

    Raises:
        InputError: an option cannot be, or there is no such profile or partition.
    """
    options = cluster_options(parsed, cluster)
    return None if cluster in ON_THIS_MACHINE else chosen_profile(cluster, options, must_answer=not parsed.dry_run)


def write_choice(plan: Plan, choice: Choice) -> None:
    """Write the profile to the sweep's folder, for jobs that submit other jobs."""
    write_text(plan.folder / CLUSTER_FILE, choice.text())
