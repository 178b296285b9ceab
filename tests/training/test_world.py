"""The rank environment: what each launcher leaves, what contradicts itself, and that an export reads back equal.

The SLURM sets are those that SLURM 22.05 gave to a job of 2 nodes x 2 tasks; the torchrun set is that of torch 2.13.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from simdist.core import slurm as hosts
from simdist.core.errors import InputError
from simdist.core.slurm import address_of, expand_nodes, parse_nodes
from simdist.training.world import World, describe, enter, export, read

Env = dict[str, str]


def torchrun(rank: int, nodes: int, per_node: int, **more: str) -> Env:
    return {
        "RANK": str(rank),
        "WORLD_SIZE": str(nodes * per_node),
        "LOCAL_RANK": str(rank % per_node),
        "LOCAL_WORLD_SIZE": str(per_node),
        "GROUP_RANK": str(rank // per_node),
        "GROUP_WORLD_SIZE": str(nodes),
        "ROLE_RANK": str(rank),
        "ROLE_WORLD_SIZE": str(nodes * per_node),
        "MASTER_ADDR": "node0" if nodes > 1 else "127.0.0.1",
        "MASTER_PORT": "29400",
        "TORCHELASTIC_RUN_ID": "none",
        **more,
    }


def batch(**more: str) -> Env:
    """The shell of an sbatch script: 2 nodes x 2 tasks."""
    return {
        "SLURM_JOB_ID": "71",
        "SLURM_JOB_NODELIST": "n[3-4]",
        "SLURM_JOB_NUM_NODES": "2",
        "SLURM_NNODES": "2",
        "SLURM_NTASKS": "4",
        "SLURM_TASKS_PER_NODE": "2(x2)",
        "SLURM_PROCID": "0",
        "SLURM_LOCALID": "0",
        "SLURM_NODEID": "0",
        "CUDA_VISIBLE_DEVICES": "0,1",
        **more,
    }


def srun(rank: int, **more: str) -> Env:
    """A task of srun in that job."""
    place = {"SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank % 2), "SLURM_NODEID": str(rank // 2)}
    step = {
        "SLURM_STEP_ID": "0",
        "SLURM_STEP_NODELIST": "n[3-4]",
        "SLURM_STEP_NUM_NODES": "2",
        "SLURM_STEP_NUM_TASKS": "4",
        "SLURM_STEP_TASKS_PER_NODE": "2(x2)",
    }
    return batch(**place, **step) | more


def one_launcher_a_node(node: int, **more: str) -> Env:
    """What srun tells a task that is itself torchrun or accelerate."""
    step = {"SLURM_STEP_NUM_TASKS": "2", "SLURM_NTASKS": "2", "SLURM_STEP_TASKS_PER_NODE": "1(x2)"}
    return srun(0, SLURM_PROCID=str(node), SLURM_NODEID=str(node), **step) | more


def openmpi(rank: int, nodes: int, per_node: int, **more: str) -> Env:
    """What mpirun of Open MPI 5 tells a rank; PMIx is below it."""
    return {
        "OMPI_COMM_WORLD_RANK": str(rank),
        "OMPI_COMM_WORLD_SIZE": str(nodes * per_node),
        "OMPI_COMM_WORLD_LOCAL_RANK": str(rank % per_node),
        "OMPI_COMM_WORLD_LOCAL_SIZE": str(per_node),
        "PMIX_RANK": str(rank),
        "PMIX_NAMESPACE": "prterun-node0-4711@1",
        **more,
    }


def hydra(rank: int, nodes: int, per_node: int, **more: str) -> Env:
    """What mpiexec of MPICH and Intel MPI tells a rank."""
    return {
        "PMI_RANK": str(rank),
        "PMI_SIZE": str(nodes * per_node),
        "MPI_LOCALRANKID": str(rank % per_node),
        "MPI_LOCALNRANKS": str(per_node),
        **more,
    }


def pals(rank: int, nodes: int, per_node: int, **more: str) -> Env:
    """What mpiexec of Cray PALS tells a rank: its own variables, and PMI's for the size."""
    return {
        "PALS_RANKID": str(rank),
        "PALS_LOCAL_RANKID": str(rank % per_node),
        "PALS_LOCAL_SIZE": str(per_node),
        "PALS_NODEID": str(rank // per_node),
        "PALS_APID": "1a2b",
        "PMI_RANK": str(rank),
        "PMI_SIZE": str(nodes * per_node),
        **more,
    }


def flux(rank: int, nodes: int, per_node: int, **more: str) -> Env:
    """What flux run tells a task; its PMI plugin sets PMI_RANK and PMI_SIZE, too."""
    return {
        "FLUX_TASK_RANK": str(rank),
        "FLUX_TASK_LOCAL_ID": str(rank % per_node),
        "FLUX_JOB_SIZE": str(nodes * per_node),
        "FLUX_JOB_NNODES": str(nodes),
        "FLUX_JOB_ID": "f2kwRm",
        "PMI_RANK": str(rank),
        "PMI_SIZE": str(nodes * per_node),
        **more,
    }


def jsm(rank: int, nodes: int, per_node: int, **more: str) -> Env:
    """What jsrun tells a rank."""
    return {
        "JSM_NAMESPACE_RANK": str(rank),
        "JSM_NAMESPACE_SIZE": str(nodes * per_node),
        "JSM_NAMESPACE_LOCAL_RANK": str(rank % per_node),
        "JSM_NAMESPACE_LOCAL_SIZE": str(per_node),
        "LSB_JOBID": "99",
        **more,
    }


def submitit_local(rank: int) -> Env:
    return {
        "SUBMITIT_EXECUTOR": "local",
        "SUBMITIT_LOCAL_GLOBALID": str(rank),
        "SUBMITIT_LOCAL_JOB_ID": "16428",
        "SUBMITIT_LOCAL_JOB_NUM_NODES": "1",
        "SUBMITIT_LOCAL_LOCALID": str(rank),
        "SUBMITIT_LOCAL_NODEID": "0",
        "SUBMITIT_LOCAL_NTASKS": "2",
    }


IN_SRUN = {"master_addr": "n3", "master_port": 10_071, "job_id": "71"}
ACCELERATE = {"ACCELERATE_MIXED_PRECISION": "bf16", "ACCELERATE_DYNAMO_BACKEND": "NO"}
INTERACTIVE = {"SLURM_STEP_ID": "0", "SLURM_PTY_PORT": "38517", "SLURM_STEP_NUM_TASKS": "4"}

GOLDEN = {
    "nothing": ({}, World()),
    "accelerate, one process": (ACCELERATE, World(launcher="accelerate")),
    "torchrun, one process": (torchrun(0, 1, 1), World(launcher="torchrun")),
    "torchrun, one node": (
        torchrun(1, 1, 2),
        World(1, 2, 1, 2, 0, 1, "127.0.0.1", 29400, "torchrun"),
    ),
    "torchrun, two nodes": (torchrun(5, 2, 4), World(5, 8, 1, 4, 1, 2, "node0", 29400, "torchrun")),
    "accelerate, several GPUs": (
        torchrun(3, 1, 4, **ACCELERATE),
        World(3, 4, 3, 4, 0, 1, "127.0.0.1", 29400, "accelerate"),
    ),
    "torchrun in an sbatch script": (
        batch(SLURM_NTASKS="1", SLURM_TASKS_PER_NODE="1") | torchrun(1, 1, 2),
        World(1, 2, 1, 2, 0, 1, "127.0.0.1", 29400, "torchrun", "71"),
    ),
    "torchrun as the one task of srun": (
        srun(0, SLURM_STEP_NUM_TASKS="1", SLURM_STEP_NUM_NODES="1") | torchrun(1, 1, 2),
        World(1, 2, 1, 2, 0, 1, "127.0.0.1", 29400, "torchrun", "71"),
    ),
    "srun, an accelerate launch on each node": (
        one_launcher_a_node(1) | torchrun(3, 2, 2, **ACCELERATE),
        World(3, 4, 1, 2, 1, 2, "node0", 29400, "accelerate", "71"),
    ),
    "srun, rank 0": (srun(0), World(0, 4, 0, 2, 0, 2, launcher="srun", **IN_SRUN)),
    "srun, rank 3": (srun(3), World(3, 4, 1, 2, 1, 2, launcher="srun", **IN_SRUN)),
    "srun, second step": (srun(3, SLURM_STEP_ID="1"), World(3, 4, 1, 2, 1, 2, "n3", 10_168, "srun", "71")),
    "srun, 2 + 1 tasks": (
        srun(2, SLURM_STEP_NUM_TASKS="3", SLURM_STEP_TASKS_PER_NODE="2,1"),
        World(2, 3, 0, 1, 1, 2, launcher="srun", **IN_SRUN),
    ),
    "srun, one task": (
        srun(0, SLURM_STEP_NUM_TASKS="1", SLURM_STEP_TASKS_PER_NODE="1", SLURM_STEP_NUM_NODES="1"),
        World(launcher="srun", job_id="71"),
    ),
    "srun, one node of several": (
        srun(1, SLURM_STEP_NUM_TASKS="2", SLURM_STEP_TASKS_PER_NODE="2", SLURM_STEP_NUM_NODES="1"),
        World(1, 2, 1, 2, 0, 1, "127.0.0.1", 10_071, "srun", "71"),
    ),
    "srun, with the user's master": (
        srun(3, MASTER_ADDR="10.0.0.7", MASTER_PORT="4242"),
        World(3, 4, 1, 2, 1, 2, "10.0.0.7", 4242, "srun", "71"),
    ),
    "srun in a job array": (
        srun(3, SLURM_ARRAY_JOB_ID="70", SLURM_ARRAY_TASK_ID="5"),
        World(3, 4, 1, 2, 1, 2, "n3", 10_071, "srun", "70_5"),
    ),
    "srun, without the step's own counts": (
        {key: value for key, value in srun(3).items() if not key.startswith("SLURM_STEP_N")},
        World(3, 4, 1, 2, 1, 2, launcher="srun", **IN_SRUN),
    ),
    "submitit on SLURM": (
        srun(3, SUBMITIT_EXECUTOR="slurm"),
        World(3, 4, 1, 2, 1, 2, launcher="submitit", **IN_SRUN),
    ),
    "submitit, exported by its own helper": (
        srun(3, SUBMITIT_EXECUTOR="slurm", MASTER_ADDR="n3", MASTER_PORT="43210")
        | {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"},
        World(3, 4, 1, 2, 1, 2, "n3", 43210, "submitit", "71"),
    ),
    "submitit on this machine": (
        submitit_local(1),
        World(1, 2, 1, 2, 0, 1, "127.0.0.1", 26_428, "submitit", "16428"),
    ),
    "submitit on this machine, out of a SLURM job": (
        srun(3) | submitit_local(1),
        World(1, 2, 1, 2, 0, 1, "127.0.0.1", 26_428, "submitit", "16428"),
    ),
    "sbatch shell": (batch(), World(job_id="71")),
    "sbatch shell, by name": (batch(SLURM_STEP_ID="batch"), World(job_id="71")),
    "sbatch shell, by number": (batch(SLURM_STEP_ID="4294967291"), World(job_id="71")),
    "salloc shell": ({"SLURM_JOB_ID": "71", "SLURM_NTASKS": "4", "SLURM_NNODES": "2"}, World(job_id="71")),
    "salloc's interactive step": (batch(SLURM_STEP_ID="4294967290"), World(job_id="71")),
    "one task mpirun": (openmpi(0, 1, 1), World()),
    "one task of PMI": ({"PMI_RANK": "0", "PMI_SIZE": "1"}, World()),
    "mpirun": (openmpi(1, 1, 2), World(1, 2, 1, 2, 0, 1, "127.0.0.1", 18_536, "openmpi")),
    "mpirun, two nodes": (
        openmpi(3, 2, 2, MASTER_ADDR="n3", MASTER_PORT="4242"),
        World(3, 4, 1, 2, 1, 2, "n3", 4242, "openmpi"),
    ),
    "mpirun, whose daemon on another node is a task of srun": (
        srun(0, SLURM_STEP_NUM_TASKS="1", SLURM_STEP_TASKS_PER_NODE="1", SLURM_STEP_NUM_NODES="1")
        | openmpi(3, 2, 2, MASTER_ADDR="n3", MASTER_PORT="4242"),
        World(3, 4, 1, 2, 1, 2, "n3", 4242, "openmpi", "71"),
    ),
    "mpiexec of MPICH or Intel": (
        hydra(1, 1, 2, PBS_JOBID="8.pbs"),
        World(1, 2, 1, 2, 0, 1, "127.0.0.1", 25_140, "pmi"),
    ),
    "PALS": (
        pals(3, 2, 2, MASTER_ADDR="x1000c0", MASTER_PORT="4242"),
        World(3, 4, 1, 2, 1, 2, "x1000c0", 4242, "pals"),
    ),
    "PALS, ranks dealt out to the nodes in turn": (
        pals(2, 2, 2, MASTER_ADDR="x1000c0", MASTER_PORT="4242", PALS_NODEID="0", PALS_LOCAL_RANKID="1"),
        World(2, 4, 1, 2, 0, 2, "x1000c0", 4242, "pals"),
    ),
    "flux run": (flux(3, 1, 4), World(3, 4, 3, 4, 0, 1, "127.0.0.1", 17_014, "flux")),
    "flux run, two nodes": (
        flux(3, 2, 2, MASTER_ADDR="tioga1", MASTER_PORT="4242"),
        World(3, 4, 1, 2, 1, 2, "tioga1", 4242, "flux"),
    ),
    "jsrun": (jsm(5, 2, 4, MASTER_ADDR="a01", MASTER_PORT="4242"), World(5, 8, 1, 4, 1, 2, "a01", 4242, "jsm")),
    "srun, whose MPI plugins number the tasks too": (
        srun(3, PMI_RANK="3", PMI_SIZE="4", PMIX_RANK="3", PALS_RANKID="3"),
        World(3, 4, 1, 2, 1, 2, launcher="srun", **IN_SRUN),
    ),
    "srun --mpi=none out of a shell of srun --mpi=pmi2": (
        srun(3, PMI_RANK="0", PMI_SIZE="1"),
        World(3, 4, 1, 2, 1, 2, launcher="srun", **IN_SRUN),
    ),
    "sbatch shell, with what a plugin left": (batch(PMIX_RANK="0", PALS_RANKID="0"), World(job_id="71")),
    "torchrun in each rank of mpirun": (
        torchrun(1, 1, 2) | openmpi(0, 2, 1),
        World(1, 2, 1, 2, 0, 1, "127.0.0.1", 29400, "torchrun"),
    ),
}


@pytest.mark.parametrize("name", GOLDEN)
def test_each_launcher(name: str) -> None:
    environ, expected = GOLDEN[name]
    assert read(environ, find_address=lambda host: host) == expected


def test_a_shell_of_srun_is_told_from_its_tasks_by_the_terminal() -> None:
    shell = batch(**INTERACTIVE)
    assert read(shell, terminal=True) == World(job_id="71")
    assert read(shell | torchrun(1, 1, 2), terminal=True).world_size == 2
    assert read(srun(0, SLURM_PTY_PORT="38517"), terminal=False, find_address=str).world_size == 4


@pytest.mark.parametrize("name", GOLDEN)
def test_an_export_reads_back_equal(name: str) -> None:
    environ, expected = GOLDEN[name]
    exported = dict(environ)
    export(expected, exported)
    assert read(exported, find_address=lambda host: pytest.fail(f"{host} was looked up again")) == expected
    assert exported.get("CUDA_VISIBLE_DEVICES") == environ.get("CUDA_VISIBLE_DEVICES")


@pytest.mark.parametrize("counts", [(1,), (8,), (2, 2), (4, 4, 4), (2, 1), (1, 3, 2)])
def test_the_ranks_of_a_step_agree_and_read_back(counts: tuple[int, ...]) -> None:
    worlds = []
    for node, count in enumerate(counts):
        for local in range(count):
            environ = srun(
                sum(counts[:node]) + local,
                SLURM_LOCALID=str(local),
                SLURM_NODEID=str(node),
                SLURM_STEP_NUM_NODES=str(len(counts)),
                SLURM_STEP_NUM_TASKS=str(sum(counts)),
                SLURM_STEP_TASKS_PER_NODE=",".join(map(str, counts)),
                CUDA_VISIBLE_DEVICES="",
            )
            world = read(environ, find_address=str)
            export(world, environ)
            assert read(environ) == world
            worlds.append(world)
    assert [world.rank for world in worlds] == list(range(sum(counts)))
    assert [world.local_rank for world in worlds] == [local for count in counts for local in range(count)]
    assert {world.world_size for world in worlds} == {sum(counts)}
    assert len({(world.master_addr, world.master_port) for world in worlds}) == 1


def test_a_single_process_exports_nothing() -> None:
    environ: Env = {}
    export(World(), environ)
    assert environ == {}


def without(environ: Env, *names: str) -> Env:
    return {key: value for key, value in environ.items() if key not in names}


WRONG = {
    "RANK alone": ({"RANK": "3"}, ["WORLD_SIZE is missing", "RANK=3", "unset"]),
    "WORLD_SIZE alone": ({"WORLD_SIZE": "4"}, ["RANK is missing", "WORLD_SIZE=4"]),
    "LOCAL_WORLD_SIZE alone": ({"LOCAL_WORLD_SIZE": "4"}, ["RANK is missing", "LOCAL_WORLD_SIZE=4"]),
    "no LOCAL_RANK": (without(torchrun(1, 1, 2), "LOCAL_RANK"), ["LOCAL_RANK is missing", "torchrun"]),
    "no LOCAL_WORLD_SIZE": (without(torchrun(1, 1, 2), "LOCAL_WORLD_SIZE"), ["LOCAL_WORLD_SIZE is missing"]),
    "no MASTER_ADDR": (without(torchrun(1, 1, 2), "MASTER_ADDR"), ["MASTER_ADDR is missing", "WORLD_SIZE=2"]),
    "no MASTER_PORT": (without(torchrun(1, 1, 2), "MASTER_PORT"), ["MASTER_PORT is missing"]),
    "a port out of range": (torchrun(1, 1, 2, MASTER_PORT="70000"), ["MASTER_PORT is 70000", "65535"]),
    "RANK no number": (torchrun(1, 1, 2, RANK="one"), ["RANK is 'one'"]),
    "RANK negative": (torchrun(1, 1, 2, RANK="-1"), ["RANK is '-1'"]),
    "RANK empty": (torchrun(1, 1, 2, RANK=""), ["RANK is ''"]),
    "RANK too large": (torchrun(0, 1, 2, RANK="2"), ["RANK=2, WORLD_SIZE=2", "must be the smaller"]),
    "LOCAL_RANK too large": (torchrun(0, 1, 2, LOCAL_RANK="2"), ["LOCAL_RANK=2, LOCAL_WORLD_SIZE=2"]),
    "more here than anywhere": (torchrun(0, 1, 2, LOCAL_WORLD_SIZE="4"), ["LOCAL_WORLD_SIZE=4, WORLD_SIZE=2"]),
    "a node too many": (torchrun(0, 2, 2, GROUP_RANK="2"), ["GROUP_RANK=2, GROUP_WORLD_SIZE=2"]),
    "one node, two numberings": (torchrun(1, 1, 2, LOCAL_RANK="0"), ["RANK=1", "LOCAL_RANK=0", "one node"]),
    "a torchrun in each task": (
        srun(3) | torchrun(0, 1, 2),
        ["GROUP_WORLD_SIZE=1", "SLURM_STEP_NUM_TASKS=4", "srun started 4 launchers", "--nnodes"],
    ),
    "left over from another job": (
        srun(3, RANK="0", WORLD_SIZE="1", LOCAL_RANK="0", LOCAL_WORLD_SIZE="1"),
        ["RANK=0", "WORLD_SIZE=1", "SLURM_PROCID=3", "SLURM_STEP_NUM_TASKS=4", "unset RANK"],
    ),
    "WORLD_SIZE exported in a batch script": (srun(3, WORLD_SIZE="4"), ["RANK is missing", "unset", "srun"]),
    "no step": (without(srun(3), "SLURM_STEP_ID"), ["SLURM_STEP_ID is missing", "SLURM_PROCID=3"]),
    "no tasks": (without(srun(3), "SLURM_STEP_NUM_TASKS", "SLURM_NTASKS"), ["SLURM_STEP_NUM_TASKS is missing"]),
    "no place": (without(srun(3), "SLURM_LOCALID"), ["SLURM_LOCALID is missing", "SLURM_PROCID=3"]),
    "no node number": (without(srun(3), "SLURM_NODEID"), ["SLURM_NODEID is missing"]),
    "no nodes": (
        without(srun(3), "SLURM_STEP_NODELIST", "SLURM_JOB_NODELIST"),
        ["SLURM_STEP_NODELIST is missing", "export MASTER_ADDR"],
    ),
    "no job": (without(srun(3), "SLURM_JOB_ID"), ["SLURM_JOB_ID is missing", "export MASTER_PORT"]),
    "a task too many": (srun(3, SLURM_PROCID="4"), ["SLURM_PROCID=4", "SLURM_STEP_NUM_TASKS=4"]),
    "a place too many": (srun(3, SLURM_LOCALID="2"), ["SLURM_LOCALID=2", "SLURM_STEP_TASKS_PER_NODE=2(x2)"]),
    "a SLURM node too many": (srun(3, SLURM_NODEID="2"), ["SLURM_NODEID=2", "SLURM_STEP_TASKS_PER_NODE=2(x2)"]),
    "fewer nodes": (srun(3, SLURM_STEP_NUM_NODES="1"), ["SLURM_NODEID=1", "SLURM_STEP_NUM_NODES=1"]),
    "tasks a node unreadable": (srun(3, SLURM_STEP_TASKS_PER_NODE="two"), ["is 'two'", "2(x3),1"]),
    "one GPU a task": (srun(3, CUDA_VISIBLE_DEVICES="1"), ["CUDA_VISIBLE_DEVICES=1", "--gpu-bind=none"]),
    "submitit without its task": (
        without(submitit_local(1), "SUBMITIT_LOCAL_LOCALID"),
        ["SUBMITIT_LOCAL_LOCALID is missing", "SUBMITIT_LOCAL_GLOBALID=1"],
    ),
    "mpirun's size alone": ({"OMPI_COMM_WORLD_SIZE": "4"}, ["OMPI_COMM_WORLD_RANK is missing", "torchrun"]),
    "mpirun on nodes without an address": (
        openmpi(3, 2, 2),
        ["openmpi started 4 processes on 2 nodes", "export MASTER_ADDR", "torchrun"],
    ),
    "PMI without the rank on its node": (
        {"PMI_RANK": "1", "PMI_SIZE": "2", "PMI_SHARED_SECRET": "hunter2", "PMI_FD": "9"},
        ["MPI_LOCALRANKID is missing, but there is PMI_RANK=1, PMI_SIZE=2; start it with torchrun"],
    ),
    "PMIx alone": ({"PMIX_RANK": "1"}, ["as rank 1 (PMIX_RANK)", "does not say of how many", "torchrun"]),
    "PALS without a size": (without(pals(1, 1, 2), "PMI_SIZE"), ["PMI_SIZE is missing", "PALS_RANKID=1"]),
    "flux, unevenly": (flux(1, 2, 2, FLUX_JOB_SIZE="3"), ["FLUX_JOB_SIZE=3, FLUX_JOB_NNODES=2", "--tasks-per-node"]),
    "one GPU a rank": (
        hydra(1, 1, 2, CUDA_VISIBLE_DEVICES="1"),
        ["2 tasks on this node, but each sees 1 GPU(s)", "let every rank see all GPUs of its node"],
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_contradictory_and_partial_sets_are_one_line_with_the_variables_in_it(name: str) -> None:
    environ, words = WRONG[name]
    with pytest.raises(InputError) as error:
        read(environ, find_address=str)
    message = str(error.value)
    assert "\n" not in message
    assert [word for word in words if word not in message] == [], message


def test_every_rank_speaks_when_ranks_mean_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    environ = {"RANK": "3", "LOCAL_RANK": "3"}
    with pytest.raises(InputError, match="RANK=3"):
        enter(environ)
    assert "RANK" not in environ  # cli.fail is silent on all ranks but 0


def test_describe_is_one_line() -> None:
    assert describe(World()) == "a single process (single)"
    world = World(3, 4, 1, 2, 1, 2, "n3", 10_071, "srun", "71")
    assert describe(world) == ("rank 3 of 4: number 1 of 2 on node 1 of 2 (srun, job 71), rank 0 listens on n3:10071")


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ("n1", ["n1"]),
        ("n[1-3,7]", ["n1", "n2", "n3", "n7"]),
        ("gpu[008-011]", ["gpu008", "gpu009", "gpu010", "gpu011"]),
        ("a,b[2,4],c-d.example.org", ["a", "b2", "b4", "c-d.example.org"]),
        ("rack[1-2]n[01-02]", ["rack1n01", "rack1n02", "rack2n01", "rack2n02"]),
        ("n[1-2]-ib", ["n1-ib", "n2-ib"]),
    ],
)
def test_node_lists(names: str, expected: list[str]) -> None:
    assert parse_nodes(names) == expected


@pytest.mark.parametrize("names", ["", "n[1-2", "n[a-b]", "n[1-]"])
def test_a_wrong_node_list_says_so(names: str) -> None:
    with pytest.raises(InputError, match="MASTER_ADDR"):
        parse_nodes(names)


@pytest.fixture
def scontrol(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An `scontrol` that knows one node and lists hosts its own way."""
    program = tmp_path / "scontrol"
    program.write_text(
        '#!/bin/sh\ncase "$2 $3" in\n'
        '"node n1") echo "NodeName=n1 Arch=x86_64\n   NodeAddr=127.0.0.1 NodeHostName=vm";;\n'
        '"hostnames "*) printf "from\\nscontrol\\n";;\n'
        "*) exit 1;;\nesac\n"
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    return program


def test_scontrol_is_asked_first_and_not_needed(scontrol: Path) -> None:
    assert expand_nodes("n[1-2]") == ["from", "scontrol"]
    scontrol.unlink()
    assert expand_nodes("n[1-2]") == ["n1", "n2"]


def test_a_name_that_does_not_resolve_is_looked_up_in_slurm(scontrol: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def resolve(host: str, port: None) -> list[None]:
        if host != "known":
            raise OSError("Name or service not known")
        return [port]

    monkeypatch.setattr(hosts.socket, "getaddrinfo", resolve)
    assert address_of("known") == "known"
    assert address_of("n1") == "127.0.0.1"
    with pytest.raises(InputError, match=r"n2 does not resolve.*export MASTER_ADDR"):
        address_of("n2")


def test_reading_the_world_imports_no_torch() -> None:
    code = "import sys, simdist.training.world; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "False\n"
