"""Clusters whose commands' output is recorded in `recorded/`; `university` is written in the same form."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from simdist.cluster.discovery import Cluster, discover

RECORDED = Path(__file__).parent / "recorded"
Replay = Callable[..., Callable[[Sequence[str]], str]]
Find = Callable[..., Cluster]


def _part(words: Sequence[str]) -> str:
    if words[0] == "sinfo":
        return "nodes"
    name = words[3] if words[0] == "sacctmgr" and words[3] != "show" else words[-1]
    if words[0] == "sacctmgr":
        return {"assoc": "associations", "user": "user", "qos": "qos"}[words[4]]
    return {"config": "config", "partition": "partitions", "reservation": "reservations"}[name]


@pytest.fixture
def replay() -> Replay:
    """Runs SLURM's commands out of a recording; `silent` names commands that print nothing, `edit` replaces texts."""

    def make(
        name: str, silent: Sequence[str] = (), edit: dict[str, str] | None = None
    ) -> Callable[[Sequence[str]], str]:
        text = (RECORDED / f"{name}.txt").read_text()
        for old, new in (edit or {}).items():
            assert old in text
            text = text.replace(old, new)
        parts = dict(re.findall(r"^### (\w+)\n(.*?)(?=^### |\Z)", text, re.MULTILINE | re.DOTALL))
        return lambda words: "" if words[0] in silent else parts[_part(words)]

    return make


@pytest.fixture
def find(replay: Replay) -> Find:
    """The cluster in a recording."""

    def make(name: str, **options: object) -> Cluster:
        cluster = discover(replay(name, **options), user="root" if name == "testbed" else "ada")
        assert cluster is not None
        return cluster

    return make
