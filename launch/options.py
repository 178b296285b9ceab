"""Options of `launch/sweep.py`: checks beyond the parser's, defaults, and what jobs request from SLURM."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jsonargparse import Namespace

from simdist.cluster.choice import Choice, chosen_profile
from simdist.config.parser import Parser
from simdist.core.errors import InputError

from .plan import MANIFEST
from .slurm import Command, said
from .sweep_file import CONFIG_KEYS, SHIPPED, SweepFile

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
OVERRIDE = re.compile(r"[A-Za-z_][\w.]*=")
LIBRISPEECH = Path("data/librispeech")
SPLITS = ("train", "test")
QUESTION = ("sinfo", "--noheader", "--format=%P")
QUESTION_SECONDS = 30.0
NO_CONFIGURATION = ("configuration source", "No such file or directory")
"""Parts of what SLURM's commands say, depending on the version, where there is no slurm.conf."""


def split_overrides(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Split the overrides, which may be anywhere among the options, from the other words."""
    values = {place + 1 for place, word in enumerate(words) if word in OPTIONS}  # `--setup CUDA_HOME=/opt/cuda`
    places = [place for place, word in enumerate(words) if OVERRIDE.match(word) and place not in values]
    return [words[place] for place in places], [word for place, word in enumerate(words) if place not in places]


def refuse_dashes(words: Sequence[str]) -> None:
    """Raise `InputError` for a key of the sweep or of the configuration that is given as an option."""
    keys = CONFIG_KEYS | {item.name for item in dataclasses.fields(SweepFile)}
    for word in words:
        name = word.removeprefix("--").partition("=")[0]
        if word.startswith("--") and name.partition(".")[0] in keys:
            raise InputError(f"{word.partition('=')[0]} is a key, not an option. Write {name}=VALUE, without dashes.")


def refuse(parsed: Namespace) -> None:
    """Raise `InputError` for words that would have no effect."""
    if parsed.overrides:
        raise InputError(
            f"{parsed.overrides[0]!r} is a second SWEEP after {parsed.SWEEP!r}. "
            "Give one sweep, and overrides as key=value, such as train.max_steps=20."
        )
    if parsed.jobs is not None and parsed.jobs < 1:
        raise InputError(f"--jobs is {parsed.jobs}; it must be at least 1")
    if parsed.every < 1:
        raise InputError(f"--every is {parsed.every:g}; it must be at least 1 second")


def refuse_options_of_others(parsed: Namespace, cluster: str) -> None:
    """Raise `InputError` for options that have no effect on this cluster."""
    if parsed.jobs is not None and cluster not in ON_THIS_MACHINE:
        raise InputError(
            f"--jobs is for --cluster local, but --cluster is {cluster}. Use array_throttle in a profile instead"
        )
    given = [option for option in ("wait", "prune") if parsed[option]]
    if given and cluster in ON_THIS_MACHINE:
        options = ", ".join(f"--{option}" for option in given)
        raise InputError(f"{options}: for jobs on SLURM, but --cluster is {cluster}. Leave it out")


# --- defaults ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class DefaultSweep:
    """The default sweep."""

    file: Path
    overrides: tuple[str, ...]
    """Come before those of the user."""
    reason: str
    """What it is, and why it was chosen."""


def default_sweep(overrides: Sequence[str] = ()) -> DefaultSweep:
    """The shipped sweep that fits what is packed in the current folder.

    Args:
        overrides: the user's `key=value` words. With a `data.root` among them nothing is packed: a corpus of the
            user's own is never replaced by synthetic speech.
    """
    given = [word.partition("=")[2] for word in overrides if word.startswith(("data.root=", "config.data.root="))]
    root = Path(given[-1]) if given else LIBRISPEECH
    if not given and not all((root / split / MANIFEST).is_file() for split in SPLITS):
        reason = f"a small one on synthetic speech, because {root} is not packed"
        return DefaultSweep(SHIPPED / "default.yaml", (), reason)
    without = () if _has_phones(root) else ("stages.phones=false",)
    reason = f"on {root}{', which has no phone labels' if without else ''}"
    return DefaultSweep(SHIPPED / "default_librispeech.yaml", without, reason)


def _has_phones(root: Path) -> bool:
    """Whether a packed corpus has phone labels; a manifest that cannot be read is left to the training to report."""
    try:
        return "phone" in json.loads((root / SPLITS[0] / MANIFEST).read_text())["labels"]
    except (OSError, ValueError, KeyError):
        return True


def _ask(words: Sequence[str]) -> str:
    return subprocess.run(words, capture_output=True, text=True, timeout=QUESTION_SECONDS, check=True).stdout


def default_cluster(ask: Command = _ask) -> tuple[str, str]:
    """The default cluster, `slurm` or `local`, and the reason.

    Args:
        ask: runs a command of SLURM's and returns what it prints.

    Raises:
        InputError: SLURM is configured on this machine, but does not answer.
    """
    if shutil.which("sbatch") is None:
        return "local", "there is no SLURM on this machine"
    try:
        ask(QUESTION)
    except (OSError, subprocess.SubprocessError) as error:
        text = said(error)
        if "SLURM_CONF" not in os.environ and any(part in text for part in NO_CONFIGURATION):
            return "local", "SLURM is installed on this machine, but not configured"
        raise InputError(
            f"no --cluster is given, and SLURM does not answer ({text}). "
            "Try again, or run the sweep on this machine with --cluster local."
        ) from error
    return "slurm", "SLURM answers on this machine"


# --- resources of jobs on SLURM ---------------------------------------------------------------------------------------


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
