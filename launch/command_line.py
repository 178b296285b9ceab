"""Checks of the command line of `launch/sweep.py` beyond those of its parser."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence

from jsonargparse import Namespace

from simdist.core.errors import InputError

from .cluster_options import ON_THIS_MACHINE, OPTIONS
from .sweep_file import CONFIG_KEYS, SweepFile

OVERRIDE = re.compile(r"[A-Za-z_][\w.]*=")


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
