"""What one compute node sees, as JSON. The doctor starts `python -m simdist.doctor.node FOLDER TOKEN GPUS` there.

FOLDER holds a file `.doctor-TOKEN` with TOKEN in it, if the node and the doctor share it.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

from simdist.core.errors import InputError
from simdist.core.slurm import address_of
from simdist.doctor.machine import num_gpus, reaches_wandb, versions


@dataclass(frozen=True)
class NodeReport:
    """What a node sees."""

    node: str
    """Its name in SLURM."""
    code: str
    """The folder of the simdist that runs there."""
    versions: dict[str, str | None]
    """Python's and the packages'."""
    sees_folder: bool
    """Whether the doctor's file is there, and can be answered."""
    commands: dict[str, bool]
    """Which of SLURM's commands there are."""
    gpus: int | None
    """GPUs that torch can use; None if nobody asked."""
    address: str | None
    """Where other nodes reach it; None if nothing was found."""
    reaches_wandb: bool
    """Whether wandb's server answers from there."""


def look(folder: Path, token: str, ask_gpus: bool) -> NodeReport:
    """Look around on this node, and answer the doctor's file."""
    name = os.environ.get("SLURMD_NODENAME", os.uname().nodename)
    return NodeReport(
        node=name,
        code=str(Path(__file__).parent.parent),
        versions=versions(),
        sees_folder=_answer(folder / f".doctor-{token}", token),
        commands={command: shutil.which(command) is not None for command in ("scontrol", "srun", "sbatch")},
        gpus=num_gpus() if ask_gpus else None,
        address=_address(name),
        reaches_wandb=reaches_wandb(),
    )


def _answer(file: Path, token: str) -> bool:
    try:
        seen = file.read_text() == token
        file.with_name(f"{file.name}-answer").write_text(token)
    except OSError:
        return False
    return seen


def _address(name: str) -> str | None:
    try:
        return address_of(name)
    except InputError:
        return None


if __name__ == "__main__":
    _, folder, token, gpus = sys.argv
    print(json.dumps(asdict(look(Path(folder), token, gpus != "0"))))
