"""Worlds that neither torch nor SLURM describes: what mpirun, flux run, jsrun and PALS leave in the environment.

Names are those that the launchers' own sources and manuals have: Open MPI `OMPI_COMM_WORLD_*`, MPICH and Intel MPI
`PMI_*` with `MPI_LOCAL*`, Cray PALS `PALS_*` with `PMI_SIZE`, Flux `FLUX_TASK_*` with `FLUX_JOB_SIZE`, IBM JSM
`JSM_NAMESPACE_*`, and PMIx `PMIX_RANK`, which comes without a size. Imports no torch.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from simdist.core.errors import InputError
from simdist.training.variables import Names, contradict, number, read_numbers

MpiName = Literal["flux", "jsm", "pals", "openmpi", "pmi", "pmix"]
_REMEDY = "start it with torchrun, accelerate launch or srun; or unset these variables for a single process"
JOBS = ("PMIX_NAMESPACE", "FLUX_JOB_ID", "PALS_APID", "LSB_JOBID", "PBS_JOBID", "SLURM_JOB_ID")


@dataclass(frozen=True)
class MpiLauncher:
    """One launcher, known by the variables with its prefix."""

    name: MpiName
    prefix: str
    names: Names


MPI = (  # Flux and PALS set PMI's variables too, and mpirun those of PMIx: the first that is there counts
    MpiLauncher(
        "flux",
        "FLUX_TASK_",
        Names(("FLUX_TASK_RANK",), ("FLUX_JOB_SIZE",), ("FLUX_TASK_LOCAL_ID",), ("FLUX_JOB_NNODES",), _REMEDY),
    ),
    MpiLauncher(
        "jsm",
        "JSM_NAMESPACE_",
        Names(
            ("JSM_NAMESPACE_RANK",),
            ("JSM_NAMESPACE_SIZE",),
            ("JSM_NAMESPACE_LOCAL_RANK",),
            ("JSM_NAMESPACE_LOCAL_SIZE",),
            _REMEDY,
        ),
    ),
    MpiLauncher(
        "pals",
        "PALS_",
        Names(("PALS_RANKID",), ("PMI_SIZE",), ("PALS_LOCAL_RANKID",), ("PALS_LOCAL_SIZE", "PMI_LOCAL_SIZE"), _REMEDY),
    ),
    MpiLauncher(
        "openmpi",
        "OMPI_",
        Names(
            ("OMPI_COMM_WORLD_RANK",),
            ("OMPI_COMM_WORLD_SIZE",),
            ("OMPI_COMM_WORLD_LOCAL_RANK",),
            ("OMPI_COMM_WORLD_LOCAL_SIZE",),
            _REMEDY,
        ),
    ),
    MpiLauncher(
        "pmi",
        "PMI_",
        Names(
            ("PMI_RANK",),
            ("PMI_SIZE",),
            ("MPI_LOCALRANKID", "PMI_LOCAL_RANK"),
            ("MPI_LOCALNRANKS", "PMI_LOCAL_SIZE"),
            _REMEDY,
        ),
    ),
    MpiLauncher("pmix", "PMIX_", Names(("PMIX_RANK",), ("PMIX_SIZE",), (), (), _REMEDY)),
)


def started_by(environ: Mapping[str, str], in_step: bool) -> MpiLauncher | None:
    """The launcher that made this process one of several ranks; None for a single process, or if SLURM's count.

    Args:
        environ: `os.environ`.
        in_step: whether this is a task of srun, whose MPI plugins set some of these variables as well; mpirun, in turn,
            starts its daemons on other nodes with srun.

    Raises:
        InputError: the size cannot be known.
    """
    found = (one for one in MPI if any(key in environ for key in one.names.all if key.startswith(one.prefix)))
    launcher = next(found, None)
    if launcher is None:
        return None
    rank, size = environ.get(launcher.names.rank[0]), environ.get(launcher.names.world_size[0])
    if size == "1":
        return None
    step_size = environ.get("SLURM_STEP_NUM_TASKS", environ.get("SLURM_NTASKS"))
    if in_step and (size is None or (rank, size) == (environ.get("SLURM_PROCID"), step_size)):
        return None
    if "SLURM_JOB_ID" in environ and size is None and rank == "0":  # left to the shell of `srun --pty` by a plugin
        return None
    if launcher.name == "pmix":
        raise InputError(
            f"a PMIx launcher started this process as rank {rank} (PMIX_RANK) and does not say of how many; {_REMEDY}"
        )
    return launcher


def numbers(environ: Mapping[str, str], launcher: MpiLauncher) -> tuple[int, int, int, int]:
    """Rank, world size, local rank, local world size."""
    if launcher.name != "flux":
        return read_numbers(environ, launcher.names)
    size, nodes = (number(environ, (name,), _REMEDY) for name in ("FLUX_JOB_SIZE", "FLUX_JOB_NNODES"))
    if nodes < 1 or size % nodes:
        names = ("FLUX_JOB_SIZE", "FLUX_JOB_NNODES")
        contradict(environ, names, "tasks per node are not known", "ask flux run for --tasks-per-node")
    return read_numbers({**environ, "FLUX_JOB_NNODES": str(size // nodes)}, launcher.names)


def node_of(environ: Mapping[str, str], rank: int, local_size: int) -> int:
    """This node's index: PALS says it, others fill one node after the other unless told otherwise."""
    return number(environ, ("PALS_NODEID",), _REMEDY) if "PALS_NODEID" in environ else rank // local_size


def address(environ: Mapping[str, str], launcher: MpiLauncher, num_nodes: int) -> str:
    """Where rank 0 listens, which no such launcher says.

    Raises:
        InputError: there are several nodes, and MASTER_ADDR is not given.
    """
    if environ.get("MASTER_ADDR"):
        return environ["MASTER_ADDR"]
    if num_nodes == 1:
        return "127.0.0.1"
    size = environ[launcher.names.world_size[0]]
    raise InputError(
        f"{launcher.name} started {size} processes on {num_nodes} nodes and does not say where rank 0 is; "
        "export MASTER_ADDR (the name or address of rank 0's node) and MASTER_PORT (a free port there), or start with "
        "torchrun or srun"
    )


def port(environ: Mapping[str, str]) -> int:
    """A port that all ranks of a job know, below those that Linux hands out; jobs that share a node differ in it."""
    job = next((environ[name] for name in JOBS if environ.get(name)), "")
    return 10_000 + zlib.crc32(job.encode()) % 20_000
