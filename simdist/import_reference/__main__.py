"""Create a run from a checkpoint of the reference implementation."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from simdist.config.load import experiment_parser, parse_experiment
from simdist.config.schema import RUN_DIR
from simdist.core.console import run
from simdist.core.errors import EXIT_OK, InputError
from simdist.core.files import remove_leftovers, temporary_path

DESCRIPTION = """\
Create a run folder from a checkpoint of a reference implementation (model_N.ckpt of Smooth InfoMax or of Löwe's Greedy
InfoMax), to train, probe or decode it.

The weights become the checkpoint of step 0. The file contains no optimizer state, so optimizers start from scratch.
Widths and prediction steps are read from the tensors. --config gives the rest of the architecture, and what the run is
trained with later: all options of `python -m simdist.train` are accepted and saved in the run's config.yaml, although
only those of the architecture are listed here.

Example:
  python -m simdist.import_reference model_99.ckpt --config configs/sim_librispeech.yaml --run-dir runs/imported
  accelerate launch -m simdist.train --config runs/imported/config.yaml --run-dir runs/imported
  python -m simdist.import_reference model_299.ckpt --config configs/gim_lowe_librispeech.yaml --run-dir runs/gim_lowe

Exit codes: 0 finished; 1 failed (such as a full disk); 2 wrong input.
"""


def main(argv: Sequence[str] | None = None) -> int:
    parser = experiment_parser("python -m simdist.import_reference", DESCRIPTION)
    parser.unlist("seed", "data.[!r]*", "data.retry_*", "model.*width", "model.sync_*", "loss.*", "optim.*", "train.*")
    parser.unlist("wandb.*")
    parser.add_argument("CHECKPOINT", type=Path, help="Checkpoint of the reference implementation.")
    parser.add_argument(*RUN_DIR, dest="run", type=Path, required=True, help="Run folder to create.")
    config, parsed = parse_experiment(parser, argv)
    if parsed.run.exists():
        raise InputError(f"{parsed.run} already exists. Choose a new folder with --run-dir.")
    from simdist.models.reference_checkpoints import load_reference_checkpoint
    from simdist.runs.folder import Run
    from simdist.training.checkpoint import Checkpoint, Retention, save_checkpoint

    encoder, config = load_reference_checkpoint(parsed.CHECKPOINT, config)
    imported = Run(temporary_path(parsed.run), config)
    remove_leftovers(parsed.run.parent)
    try:
        imported.write()
        save_checkpoint(imported.checkpoints, Checkpoint(0, 0, "", encoder.state_dict(), []), Retention(last=1))
        imported.event("imported", source=str(parsed.CHECKPOINT))
        imported.folder.rename(parsed.run)  # a run without its checkpoint would start from random weights
    finally:
        shutil.rmtree(imported.folder, ignore_errors=True)
    print(f"{parsed.CHECKPOINT} is now step 0 of {parsed.run}. To train it, run")
    print(f"  accelerate launch -m simdist.train --config {parsed.run}/config.yaml --run-dir {parsed.run}")
    return EXIT_OK


if __name__ == "__main__":
    run(main)
