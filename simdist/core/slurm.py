"""Names of a SLURM job's nodes, and an address at which one can be reached. Imports no torch."""

from __future__ import annotations

import re
import socket
import subprocess

from simdist.core.errors import InputError


def expand_nodes(names: str) -> list[str]:
    """The nodes in SLURM's short form, in its order: `n[1-3,7]` is n1, n2, n3, n7; zeros in front are kept.

    `scontrol show hostnames` does it where there is one; it is missing in many containers.

    Raises:
        InputError: `names` is not such a list.
    """
    listed = _scontrol("show", "hostnames", names)
    return listed.split() if listed else parse_nodes(names)


def parse_nodes(names: str) -> list[str]:
    """`expand_nodes` without SLURM's help."""
    hosts = []
    for group in re.findall(r"(?:[^,\[\]]|\[[^\]]*\])+", names):  # commas outside of brackets separate
        hosts += _expand(group, names)
    if not hosts or names.count("[") != names.count("]"):
        raise InputError(f"{names!r} is not a SLURM node list such as n[1-3,7]; export MASTER_ADDR, rank 0's node")
    return hosts


def address_of(host: str) -> str:
    """The name itself where it resolves, else the node's NodeAddr in SLURM's configuration.

    Raises:
        InputError: neither is known.
    """
    try:
        socket.getaddrinfo(host, None)
    except OSError:
        found = re.search(r"\bNodeAddr=(\S+)", _scontrol("show", "node", host))
        if not found:
            raise InputError(
                f"rank 0's node {host} does not resolve, and `scontrol show node {host}` gives no NodeAddr; "
                "export MASTER_ADDR with an address of that node that all nodes reach"
            ) from None
        return found[1]
    return host


def _expand(group: str, names: str) -> list[str]:
    head, bracket, rest = group.partition("[")
    if not bracket:
        return [group]
    inside, _, tail = rest.partition("]")
    hosts = []
    for part in inside.split(","):
        span = re.fullmatch(r"(\d+)(?:-(\d+))?", part)
        if not span:
            raise InputError(
                f"{part!r} in the SLURM node list {names!r} is no range; export MASTER_ADDR, rank 0's node"
            )
        first, last = span[1], span[2] or span[1]
        numbers = [f"{number:0{len(first)}d}" for number in range(int(first), int(last) + 1)]
        hosts += [head + number + end for number in numbers for end in _expand(tail, names)]
    return hosts


def _scontrol(*words: str) -> str:
    """What `scontrol` prints, or nothing where it is missing or fails."""
    try:
        done = subprocess.run(["scontrol", *words], capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout
