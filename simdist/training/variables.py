"""What launchers write into the environment, under which names, and errors that show the variables at fault."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NoReturn

from simdist.core.errors import InputError


@dataclass(frozen=True)
class Names:
    """Where one launcher keeps each number; the first of several names that is set counts."""

    rank: tuple[str, ...]
    world_size: tuple[str, ...]
    local_rank: tuple[str, ...]
    local_world_size: tuple[str, ...]
    remedy: str

    @property
    def all(self) -> tuple[str, ...]:
        """Every name."""
        return (*self.rank, *self.world_size, *self.local_rank, *self.local_world_size)


TORCH = Names(
    ("RANK",),
    ("WORLD_SIZE",),
    ("LOCAL_RANK",),
    ("LOCAL_WORLD_SIZE",),
    "start with torchrun or accelerate launch, which set all of them; or `unset RANK WORLD_SIZE LOCAL_RANK "
    "LOCAL_WORLD_SIZE` for a single process, or to let srun's variables count",
)
SRUN = Names(
    ("SLURM_PROCID",),
    ("SLURM_STEP_NUM_TASKS", "SLURM_NTASKS"),
    ("SLURM_LOCALID",),
    ("SLURM_STEP_TASKS_PER_NODE", "SLURM_TASKS_PER_NODE"),
    "start one task per GPU with srun, which sets all of them; or `unset SLURM_PROCID` for a single process",
)
MPI_NUMBER = re.compile(r"(MPI|PMIX?|OMPI|PALS|FLUX|JSM)_\w*(RANK|RANKID|SIZE|NRANKS|NNODES)")  # and no shared secret
SUBMITIT_LOCAL = Names(
    ("SUBMITIT_LOCAL_GLOBALID",),
    ("SUBMITIT_LOCAL_NTASKS",),
    ("SUBMITIT_LOCAL_LOCALID",),
    ("SUBMITIT_LOCAL_NTASKS",),
    "submit it again with submitit's local executor; or `unset SUBMITIT_EXECUTOR` for a single process",
)


def read_numbers(environ: Mapping[str, str], names: Names) -> tuple[int, int, int, int]:
    """Rank, world size, local rank, local world size, all there and in each other's bounds."""
    rank = number(environ, names.rank, names.remedy)
    size = number(environ, names.world_size, names.remedy)
    local_rank = number(environ, names.local_rank, names.remedy)
    if names is SRUN:
        node = number(environ, ("SLURM_NODEID",), names.remedy)
        local_size = _tasks_on_node(environ, names, node)
    else:
        local_size = number(environ, names.local_world_size, names.remedy)
    pairs = (
        (names.rank, rank, names.world_size, size, "must be the smaller"),
        (names.local_rank, local_rank, names.local_world_size, local_size, "must be the smaller"),
        (names.local_world_size, local_size - 1, names.world_size, size, "must not be the larger"),
    )
    for small, value, large, bound, rule in pairs:
        if value >= bound:
            contradict(environ, (*small, *large), f"{present(environ, small)} {rule}", names.remedy)
    return rank, size, local_rank, local_size


def _tasks_on_node(environ: Mapping[str, str], names: Names, node: int) -> int:
    """Entry `node` of SLURM's `2(x3),1`: 2, 2, 2, 1."""
    name = present(environ, names.local_world_size)
    if name not in environ:
        miss(environ, name, names.remedy)
    if not re.fullmatch(r"\d+(\(x\d+\))?(,\d+(\(x\d+\))?)*", environ[name]):
        raise InputError(f"{name} is {environ[name]!r}, not tasks per node such as 2(x3),1; {names.remedy}")
    counts = []
    for count, times in re.findall(r"(\d+)(?:\(x(\d+)\))?", environ[name]):
        counts += [int(count)] * int(times or 1)
    if node >= len(counts):
        contradict(environ, ("SLURM_NODEID", name), f"{name} has {len(counts)} nodes", names.remedy)
    return counts[node]


def number(environ: Mapping[str, str], names: tuple[str, ...], remedy: str) -> int:
    """The value of the first of `names` that is set."""
    name = present(environ, names)
    if name not in environ:
        miss(environ, name, remedy)
    if not re.fullmatch(r"[0-9]+", environ[name]):
        raise InputError(f"{name} is {environ[name]!r}, not a number of 0 or more; {remedy}")
    return int(environ[name])


def present(environ: Mapping[str, str], names: tuple[str, ...]) -> str:
    """The first of `names` that is set, or the first of all."""
    return next((name for name in names if name in environ), names[0])


def miss(environ: Mapping[str, str], name: str, remedy: str) -> NoReturn:
    """Say that variable `name` is missing, and what of its launcher is there."""
    relatives = (*TORCH.all, *SRUN.all, "SLURM_NODEID", *SUBMITIT_LOCAL.all)
    family = next((prefix for prefix in ("SLURM", "SUBMITIT") if name.startswith(prefix)), "")
    keys = sorted(filter(MPI_NUMBER.fullmatch, environ)) if MPI_NUMBER.fullmatch(name) else relatives
    there = listed(environ, tuple(key for key in keys if key.startswith(family)))
    raise InputError(f"{name} is missing, but there is {there or 'nothing of its kind'}; {remedy}")


def contradict(environ: Mapping[str, str], names: tuple[str, ...], reason: str, remedy: str) -> NoReturn:
    """Say what the variables `names` hold, why it cannot be, and what to do."""
    raise InputError(f"{listed(environ, names)}: {reason}; {remedy}")


def listed(environ: Mapping[str, str], names: tuple[str, ...]) -> str:
    """`NAME=value, …` of those that are set."""
    return ", ".join(f"{name}={environ[name]}" for name in dict.fromkeys(names) if name in environ)
