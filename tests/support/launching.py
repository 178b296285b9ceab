"""Small real runs under each launcher, and what they came to."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from simdist.config.load import CONFIGS
from simdist.core.files import read_json_lines, sha256_of
from tests.support.forked import free_port

STEPS = 3
PATIENCE = 300  # seconds
_ACCELERATE = ("-m", "accelerate.commands.launch")
_SEVERAL = ("--multi_gpu", "--num_machines=1", "--mixed_precision=no", "--dynamo_backend=no", "--main_process_port=0")


def launched(launcher: str, processes: int) -> list[str]:
    """The words before `MODULE ARGUMENT…`."""
    if launcher == "python":
        return [sys.executable, "-m"]
    if launcher == "torchrun":
        return [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}", "-m"]
    assert launcher == "accelerate"
    several = [*_SEVERAL, f"--num_processes={processes}"] if processes > 1 else []
    return [sys.executable, *_ACCELERATE, *several, "-m"]


def environment(**more: str) -> dict[str, str]:
    """This process's, on the CPU with a thread each, and without what a launcher left."""
    foreign = ("SLURM_", "PMI", "OMPI_", "FLUX_", "PALS_", "JSM_")
    clean = {key: value for key, value in os.environ.items() if not key.startswith(foreign)}
    return clean | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"} | more


def run(launcher: str, processes: int, *words: str) -> str:
    """Run `MODULE ARGUMENT…` under a launcher; returns what it printed."""
    if launcher == "mpiexec":
        return _run_ranks(processes, words)
    command = [*launched(launcher, processes), *words]
    done = subprocess.run(command, capture_output=True, text=True, env=environment(), timeout=PATIENCE)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def _run_ranks(processes: int, words: Sequence[str]) -> str:
    """Processes with the variables that MPICH's mpiexec sets, so that no MPI needs to be installed."""
    port, started = str(free_port()), []
    for rank in range(processes):
        ranks = {"PMI_RANK": str(rank), "MPI_LOCALRANKID": str(rank)}
        sizes = {"PMI_SIZE": str(processes), "MPI_LOCALNRANKS": str(processes), "MASTER_PORT": port}
        command, variables = [sys.executable, "-m", *words], environment(**ranks, **sizes)
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        started.append(subprocess.Popen(command, env=variables, **pipes))
    printed = [process.communicate(timeout=PATIENCE)[0] for process in started]
    assert [process.returncode for process in started] == [0] * processes, "\n".join(printed)
    return printed[0]


def training(speech: Path, folder: Path) -> list[str]:
    """`simdist.train` and its arguments: three steps of eight clips."""
    configs = ["--config", str(CONFIGS / "sim_librispeech.yaml"), "--config", str(CONFIGS / "debug.yaml")]
    data = ["--data.root", str(speech), "--data.crop", "5120", "--data.num_workers", "0"]
    loop = ["--loss.prediction_steps", "4", "--train.max_steps", str(STEPS), "--train.validate_every", "0"]
    return ["simdist.train", *configs, *data, *loop, "--train.log_every", "1", "--run-dir", str(folder)]


def probing(folder: Path) -> list[str]:
    """`simdist.probe` and its arguments: two modules, so that two ranks have work."""
    cheap = ["--epochs", "2", "--crops", "1", "--bootstrap", "10"]
    return ["simdist.probe", "--run-dir", str(folder), "--label", "speaker", "--module", "0,2", *cheap]


def decoding(folder: Path) -> list[str]:
    """`simdist.decode` and its arguments: three steps of the first module's decoder, measured on the test split."""
    loop = ["--train.max_steps", str(STEPS), "--train.validate_every", "0", "--examples", "0"]
    return ["simdist.decode", "--run-dir", str(folder), "--module", "0", "--loss", "mse", *loop]


def analyzing(folder: Path) -> list[str]:
    """`simdist.analyze` and its arguments: two clips, and one histogram: drawing takes longest."""
    cheap = ["--module", "0", "--clips", "2", "--shown", "1"]
    return ["simdist.analyze", "distributions", "--run-dir", str(folder), *cheap]


@dataclass(frozen=True)
class Trained:
    """What a training came to."""

    world_size: int
    weights: str
    """sha256 of the last checkpoint's."""
    losses: list[list[float]]
    """Of each step and module."""


def trained(folder: Path) -> Trained:
    """Read a finished run."""
    (start,) = (line for line in read_json_lines(folder / "events.jsonl") if line["event"] == "start")
    lines = [line for line in read_json_lines(folder / "metrics.jsonl") if line["kind"] == "train"]
    weights = sha256_of(folder / "checkpoints" / f"step_{STEPS:08d}" / "model.safetensors")
    return Trained(start["world_size"], weights, [[module["loss"] for module in line["modules"]] for line in lines])


def probed(folder: Path) -> dict[str, Any]:
    """The measured part of every probe's result, by name."""
    return {path.parent.name: json.loads(path.read_text())["test"] for path in folder.glob("probes/*/result.json")}


def decoded(folder: Path) -> dict[str, Any]:
    """The measured quality of the decoder."""
    return json.loads((folder / "decoders" / "0-mse" / "result.json").read_text())["quality"]


def analyzed(folder: Path) -> dict[str, Any]:
    """The values of the analysis."""
    (path,) = folder.glob("analysis/distributions-module0-*/result.json")
    return json.loads(path.read_text())["values"]
