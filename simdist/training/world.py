"""Which of how many processes this is, read once from what the launcher left in the environment. Imports no torch.

Sources, the first that is there: torchrun's variables (also accelerate's, whose workers are torchrun's, and our own
`export`), submitit's local executor, an MPI launcher's (`mpi.py`), a task of `srun` (also submitit's jobs). Otherwise
this is a single process: so is the shell of `sbatch`, `salloc` or `srun --pty`, although SLURM tells it of tasks that
it has not started.

The one surprising decision: variables that contradict each other, or are there in part, are an error. Guessing means
several trainings that each believe to be alone and write to one run folder, or a rendezvous that waits for ever.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, MutableMapping
from dataclasses import dataclass
from typing import Literal, cast, get_args

from simdist.core.errors import InputError
from simdist.core.slurm import address_of, expand_nodes
from simdist.training import mpi
from simdist.training.hardware import HIDING, uses_cpu
from simdist.training.variables import SRUN, SUBMITIT_LOCAL, TORCH, contradict, miss, number, read_numbers

Launcher = Literal["single", "torchrun", "accelerate", "srun", "submitit", "environment", mpi.MpiName]
MARKER = "SIMDIST_LAUNCHER"  # `export` leaves it, so that a world that is read again is the same
FIRST_SPECIAL_STEP = 0xFFFFFFF0  # SLURM_STEP_ID of batch, interactive and extern steps lies above


@dataclass(frozen=True)
class World:
    """The processes of one training, and this one among them."""

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    local_world_size: int = 1
    """Processes on this node; other nodes may have more or fewer."""
    node_rank: int = 0
    num_nodes: int = 1
    master_addr: str = "127.0.0.1"
    """Where rank 0 listens."""
    master_port: int = 29500
    launcher: Launcher = "single"
    """Where these numbers come from; `environment` if something unknown exported torchrun's variables."""
    job_id: str | None = None
    """The scheduler's, as a person would type it (`17_3` for a task of an array)."""


def enter(environ: MutableMapping[str, str]) -> World:
    """Read the world and export it: what a program that trains does first.

    Raises:
        InputError: as `read`; RANK is taken out of `environ`, for it means nothing then: every process shall say why.
    """
    try:
        world = read(environ, terminal=sys.stdin is not None and sys.stdin.isatty())
    except InputError:
        environ.pop("RANK", None)
        raise
    export(world, environ)
    return world


def read(
    environ: Mapping[str, str], *, terminal: bool = False, find_address: Callable[[str], str] = address_of
) -> World:
    """The world that the launcher describes in `environ`.

    Args:
        environ: `os.environ`.
        terminal: whether a person types into this process: tells the shell of `srun --pty` from a task that was
            started out of it, for both have the same variables.
        find_address: address of a node, from its name.

    Raises:
        InputError: variables are missing, are no numbers, or contradict each other; the message has them.
    """
    if any(name in environ for name in TORCH.all):
        return _from_torch(environ, terminal)
    if environ.get("SUBMITIT_EXECUTOR") == "local":
        return _from_submitit_local(environ)
    in_step = _is_step(environ, terminal)
    launcher = mpi.started_by(environ, in_step)
    if launcher is not None:
        return _from_mpi(environ, launcher)
    if in_step:
        return _from_srun(environ, find_address)
    launcher = "accelerate" if "ACCELERATE_MIXED_PRECISION" in environ else "single"
    return World(launcher=launcher, job_id=_job_id(environ))


def export(world: World, environ: MutableMapping[str, str]) -> None:
    """Set what torch and accelerate read, as torchrun would; a world of one process needs nothing.

    CUDA_VISIBLE_DEVICES stays as it is: with LOCAL_RANK counting on, a narrowed one would name GPUs that are not there.
    """
    if world.world_size == 1:
        return
    environ.update(
        {
            "RANK": str(world.rank),
            "WORLD_SIZE": str(world.world_size),
            "LOCAL_RANK": str(world.local_rank),
            "LOCAL_WORLD_SIZE": str(world.local_world_size),
            "GROUP_RANK": str(world.node_rank),
            "GROUP_WORLD_SIZE": str(world.num_nodes),
            "MASTER_ADDR": world.master_addr,
            "MASTER_PORT": str(world.master_port),
            MARKER: world.launcher,
        }
    )


def describe(world: World) -> str:
    """One line for the terminal and the log."""
    job = f", job {world.job_id}" if world.job_id else ""
    if world.world_size == 1:
        return f"a single process ({world.launcher}{job})"
    return (
        f"rank {world.rank} of {world.world_size}: number {world.local_rank} of {world.local_world_size} on node "
        f"{world.node_rank} of {world.num_nodes} ({world.launcher}{job}), "
        f"rank 0 listens on {world.master_addr}:{world.master_port}"
    )


def _from_torch(environ: Mapping[str, str], terminal: bool) -> World:
    rank, size, local_rank, local_size = read_numbers(environ, TORCH)
    nodes = number(environ, ("GROUP_WORLD_SIZE",), TORCH.remedy) if "GROUP_WORLD_SIZE" in environ else None
    nodes = -(-size // local_size) if nodes is None else nodes
    node = number(environ, ("GROUP_RANK",), TORCH.remedy) if "GROUP_RANK" in environ else rank // local_size
    if node >= nodes:
        contradict(environ, ("GROUP_RANK", "GROUP_WORLD_SIZE"), "GROUP_RANK must be the smaller", TORCH.remedy)
    if nodes == 1 and (local_size != size or local_rank != rank):
        names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
        contradict(environ, names, "on one node, local and global numbers are the same", TORCH.remedy)
    elastic = "TORCHELASTIC_RUN_ID" in environ
    if _is_step(environ, terminal) and environ.get("SUBMITIT_EXECUTOR") != "local":
        _compare_with_step(environ, size, nodes, elastic)
    master_addr, master_port = World.master_addr, World.master_port
    if size > 1:
        for name in ("MASTER_ADDR", "MASTER_PORT"):
            if not environ.get(name):
                miss(environ, name, TORCH.remedy)
        master_addr, master_port = environ["MASTER_ADDR"], _port(environ)
    world = World(rank, size, local_rank, local_size, node, nodes, master_addr, master_port)
    return World(**vars(world) | {"launcher": _torch_launcher(environ, elastic), "job_id": _job_id(environ)})


def _torch_launcher(environ: Mapping[str, str], elastic: bool) -> Launcher:
    if elastic:
        return "accelerate" if "ACCELERATE_MIXED_PRECISION" in environ else "torchrun"
    if environ.get(MARKER) in get_args(Launcher):
        return cast("Launcher", environ[MARKER])
    return "submitit" if "SUBMITIT_EXECUTOR" in environ else "environment"


def _compare_with_step(environ: Mapping[str, str], size: int, nodes: int, elastic: bool) -> None:
    """A task of srun that has torchrun's variables too: is it one launcher above the other, or a leftover?"""
    tasks = number(environ, SRUN.world_size, SRUN.remedy)
    if elastic and nodes < tasks:  # each task of srun runs a torchrun of its own
        contradict(
            environ,
            ("GROUP_WORLD_SIZE", "WORLD_SIZE", "SLURM_STEP_NUM_TASKS", "SLURM_NTASKS", "SLURM_PROCID"),
            f"srun started {tasks} launchers that do not know of each other",
            "start one a node and give each --nnodes and rank 0's address (accelerate: --num_machines, "
            "--main_process_ip); or start `python -m simdist.train` with srun, one task per GPU",
        )
    same = size == tasks and environ["RANK"] == environ.get("SLURM_PROCID")
    if not elastic and tasks > 1 and not same:
        contradict(
            environ,
            ("RANK", "WORLD_SIZE", "SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_NTASKS"),
            "srun and what else was exported number the processes differently",
            "`unset RANK WORLD_SIZE LOCAL_RANK LOCAL_WORLD_SIZE` in the batch script: srun's variables are enough",
        )


def _from_srun(environ: Mapping[str, str], find_address: Callable[[str], str]) -> World:
    rank, size, local_rank, local_size = read_numbers(environ, SRUN)
    nodes = number(environ, ("SLURM_STEP_NUM_NODES", "SLURM_NNODES", "SLURM_JOB_NUM_NODES"), SRUN.remedy)
    node = number(environ, ("SLURM_NODEID",), SRUN.remedy)
    if node >= nodes:
        names = ("SLURM_NODEID", "SLURM_STEP_NUM_NODES", "SLURM_NNODES", "SLURM_JOB_NUM_NODES")
        contradict(environ, names, "SLURM_NODEID must be the smaller", SRUN.remedy)
    launcher = "submitit" if environ.get("SUBMITIT_EXECUTOR") == "slurm" else "srun"
    if size == 1:
        return World(launcher=launcher, job_id=_job_id(environ))
    remedy = (
        "give srun --gpu-bind=none and the job --gpus-per-node instead of --gpus-per-task, so that every task sees all "
        "GPUs of its node"
    )
    _check_gpus(environ, local_size, remedy)
    address = environ.get("MASTER_ADDR") or _first_node(environ, nodes, find_address)
    port = _port(environ) if environ.get("MASTER_PORT") else _port_of_job(environ)
    return World(rank, size, local_rank, local_size, node, nodes, address, port, launcher, _job_id(environ))


def _from_mpi(environ: Mapping[str, str], launcher: mpi.MpiLauncher) -> World:
    rank, size, local_rank, local_size = mpi.numbers(environ, launcher)
    nodes, node = -(-size // local_size), mpi.node_of(environ, rank, local_size)
    _check_gpus(environ, local_size, "let every rank see all GPUs of its node")
    address = mpi.address(environ, launcher, nodes)
    port = _port(environ) if environ.get("MASTER_PORT") else mpi.port(environ)
    return World(rank, size, local_rank, local_size, node, nodes, address, port, launcher.name, _job_id(environ))


def _from_submitit_local(environ: Mapping[str, str]) -> World:
    rank, size, local_rank, local_size = read_numbers(environ, SUBMITIT_LOCAL)
    job_id = _job_id(environ)
    if size == 1:
        return World(launcher="submitit", job_id=job_id)
    port = _port(environ) if environ.get("MASTER_PORT") else 10_000 + int(job_id or 0) % 20_000
    return World(rank, size, local_rank, local_size, master_port=port, launcher="submitit", job_id=job_id)


def _is_step(environ: Mapping[str, str], terminal: bool) -> bool:
    """Whether srun started this process as one of its tasks, rather than a shell that it was typed into."""
    if "SLURM_PROCID" not in environ:
        return False
    step = environ.get("SLURM_STEP_ID", "")
    if not step.isdigit() and environ["SLURM_PROCID"] != "0":
        miss(environ, "SLURM_STEP_ID", SRUN.remedy)
    typed = terminal and "SLURM_PTY_PORT" in environ
    return step.isdigit() and int(step) < FIRST_SPECIAL_STEP and not typed


def _check_gpus(environ: Mapping[str, str], local_size: int, remedy: str) -> None:
    """`srun --gpus-per-task` shows each task one GPU, as number 0; the second task would then look for number 1."""
    visible = [number for number in environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if number.strip()]
    if visible and visible[0] not in HIDING and len(visible) < local_size and not uses_cpu(environ):
        contradict(
            environ,
            ("CUDA_VISIBLE_DEVICES", "SLURM_LOCALID", *SRUN.local_world_size),
            f"{local_size} tasks on this node, but each sees {len(visible)} GPU(s)",
            f"{remedy}; ACCELERATE_USE_CPU=true trains on the CPU",
        )


def _first_node(environ: Mapping[str, str], nodes: int, find_address: Callable[[str], str]) -> str:
    if nodes == 1:
        return World.master_addr
    lists = (environ.get(name) for name in ("SLURM_STEP_NODELIST", "SLURM_JOB_NODELIST", "SLURM_NODELIST"))
    names = next(filter(None, lists), None)
    if names is None:
        miss(environ, "SLURM_STEP_NODELIST", "export MASTER_ADDR, an address of rank 0's node")
    return find_address(expand_nodes(names)[0])


def _port_of_job(environ: Mapping[str, str]) -> int:
    """A port that all ranks know, below those that Linux hands out: jobs and steps that share a node differ in it."""
    job = number(environ, ("SLURM_JOB_ID", "SLURM_JOBID"), "export MASTER_PORT, any free port of rank 0's node")
    return 10_000 + (job + 97 * int(environ.get("SLURM_STEP_ID", "0"))) % 20_000


def _port(environ: Mapping[str, str]) -> int:
    remedy = "export a free port of rank 0's node, 1024 to 65535"
    port = number(environ, ("MASTER_PORT",), remedy)
    if not 0 < port < 65_536:
        raise InputError(f"MASTER_PORT is {port}; {remedy}")
    return port


def _job_id(environ: Mapping[str, str]) -> str | None:
    if environ.get("SUBMITIT_EXECUTOR") == "local":
        return environ.get("SUBMITIT_LOCAL_JOB_ID")
    if "SLURM_ARRAY_JOB_ID" in environ and "SLURM_ARRAY_TASK_ID" in environ:
        return f"{environ['SLURM_ARRAY_JOB_ID']}_{environ['SLURM_ARRAY_TASK_ID']}"
    return environ.get("SLURM_JOB_ID")
