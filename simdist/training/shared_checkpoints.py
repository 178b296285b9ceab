"""The checkpoints of a run as all ranks use them: rank 0 chooses, and the others load the same or all stop."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from simdist.core.errors import InputError
from simdist.runs.checkpoints import (
    CheckpointId,
    finish_saving,
    good_checkpoints,
    latest_checkpoint,
    wait_for_checkpoint,
)
from simdist.runs.folder import Run
from simdist.training.agreement import together
from simdist.training.checkpoint import Checkpoint, load_checkpoint
from simdist.training.distributed import Process

Log = Callable[[str], None]


def newest(run: Run[Any], process: Process, log: Log) -> Checkpoint | None:
    """The newest complete checkpoint, or None for a run that has none yet. Called on all ranks.

    Raises:
        InputError: on all ranks, if any rank cannot read it, or the run once had one.
    """
    return load_chosen(process, run.checkpoints, lambda: _newest_id(run, log))


def load_chosen(process: Process, folder: Path, choose: Callable[[], CheckpointId | None]) -> Checkpoint | None:
    """The checkpoint in `folder` that `choose` names on rank 0. Called on all ranks.

    Raises:
        InputError: on all ranks, if `choose` raises it, or any rank cannot read the checkpoint.
    """
    checkpoint = None
    with together(process.cpu_group):
        chosen = choose() if process.accelerator.is_main_process else None
    wanted = process.cpu_group.gather(chosen)[0]
    with together(process.cpu_group):
        if wanted is not None:
            checkpoint = load_checkpoint(wait_for_checkpoint(folder, wanted))
    return checkpoint


def newest_first(run: Run[Any], process: Process, log: Log) -> Iterator[Checkpoint]:
    """All complete checkpoints, once none is being written. Called on all ranks."""
    is_main = process.accelerator.is_main_process
    found = [CheckpointId.of(path) for path in good_checkpoints(run.checkpoints, log)] if is_main else []
    found = process.cpu_group.gather(found)[0]
    return (load_checkpoint(wait_for_checkpoint(run.checkpoints, wanted)) for wanted in found)


def _newest_id(run: Run[Any], log: Log) -> CheckpointId | None:
    finish_saving(run.checkpoints)
    found = latest_checkpoint(run.checkpoints, log)
    if found is None and run.has_begun:
        raise InputError(
            f"{run.folder} has no complete checkpoint to resume from. Restore one below "
            f"{run.checkpoints}, or start in another folder with --run-dir"
        )
    return None if found is None else CheckpointId.of(found)
