"""Train one run after the other in the processes that this is launched in, with DeepSpeed or without.

    torchrun --nproc_per_node 2 deepspeed_runs.py JOBS.json

JOBS.json lists [configs/deepspeed/FILE.json or null for DDP, config.yaml, run folder, options of `train`]. DDP
comes first: what DeepSpeed set up stays. Several processes on a CPU need accelerate patched: it would see one.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import torch.distributed as dist
from accelerate.state import AcceleratorState, GradientState, PartialState
from accelerate.utils import DistributedType

from simdist.config.load import CONFIGS, read_config
from simdist.core.errors import InputError
from simdist.training.distributed import build_accelerator
from tests.support.training import train


def launch(settings: str | None) -> None:
    """As a new process that was launched with these settings."""
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    os.environ["ACCELERATE_USE_DEEPSPEED"] = str(settings is not None).lower()
    os.environ["ACCELERATE_DEEPSPEED_CONFIG_FILE"] = str(CONFIGS / "deepspeed" / str(settings))


def show_that_accelerate_sees_one_process() -> None:
    launch("zero2.json")
    try:
        build_accelerator("no")
    except InputError as error:
        print(f"refused: {error}")


def main() -> None:
    jobs = json.loads(Path(sys.argv[1]).read_text())
    if int(os.environ["WORLD_SIZE"]) > 1:
        show_that_accelerate_sees_one_process()
        PartialState._prepare_backend = lambda *_: ("gloo", DistributedType.MULTI_CPU)  # pyright: ignore
    for settings, config, folder, further in jobs:
        launch(settings)
        trainer, _ = train(read_config(config), Path(folder), **further)
        print(f"{trainer.task.describe()[0]}: {folder} at step {trainer.step}")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
