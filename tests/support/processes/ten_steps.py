"""Ten steps of a preset's encoder in float64, over as many processes as it is launched with; or in this one, imported.

The real engine, optimizer, schedule, groups and draws; the batches are made from the step's number. A part of the ten
steps begins from what another part has left, whatever number of processes it had.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from simdist.config.load import CONFIGS, read_config
from simdist.config.schema import Config
from simdist.models.encoder import GreedyEncoder
from simdist.runs.schedule import Schedule
from simdist.training.distributed import build_accelerator, mean_metrics
from simdist.training.engines import build_engine
from simdist.training.groups import Groups
from simdist.training.random_streams import RandomStreams
from simdist.training.step import Step

CLIPS, GROUP, STEPS = 8, 4, 10
CROPS = {  # samples that leave a few frames after the last module
    "sim_librispeech": 3200,
    "gim_librispeech": 3200,
    "gim_lowe_librispeech": 3200,
    "cpc_librispeech": 3200,
    "vgim_thesis": 6400,
}


@dataclass(frozen=True)
class Trained:
    """What some steps came to."""

    model: dict[str, Tensor]
    optimizer: list[dict[str, Any]]
    losses: Tensor
    """(steps, modules) of the steps taken, means over ranks."""


def experiment(preset: str) -> Config:
    """A narrow preset with a batch of two groups."""
    config = read_config(CONFIGS / f"{preset}.yaml")
    data = replace(config.data, crop=CROPS[preset], batch_size=CLIPS, group=GROUP, epoch="all")
    loss = replace(config.loss, prediction_steps=3, num_negatives=4, window=16)
    loop = replace(config.train, epochs=5.0, log_every=1, precision="no")
    model = replace(config.model, width=6, context_width=5)
    return replace(config, data=data, loss=loss, model=model, train=loop)


def take_steps(preset: str, first: int, last: int, before: Trained | None = None) -> Trained:
    """Take steps `first` to `last` - 1 on all ranks."""
    config, accelerator = experiment(preset), build_accelerator("no")
    rank, world = accelerator.process_index, accelerator.num_processes
    groups = Groups.of(config.data, rank, world)
    encoder = GreedyEncoder.from_config(config).double()
    streams = RandomStreams(config.seed, rank, torch.device("cpu"), groups)
    engine = build_engine(accelerator, encoder, config, streams)
    if before is not None:
        encoder.load_state_dict(before.model)
        engine.load_state(before.optimizer)
    schedule, losses = Schedule(config, 2 * CLIPS), []
    for number in range(first, last):
        chance = torch.Generator().manual_seed(number)
        audio = torch.randn(CLIPS, config.data.crop, 1, generator=chance, dtype=torch.float64) * 0.1
        own = audio[rank * groups.share : (rank + 1) * groups.share]
        outcome = engine.step(engine.modules, own, Step.at(number, schedule))
        losses.append([metrics["loss"] for metrics in mean_metrics([outcome.metrics], accelerator)])
    return Trained(encoder.state_dict(), engine.state(), torch.tensor(losses))


def main(argv: Sequence[str] | None) -> int:
    """Arguments: folder, first step, last step, presets. Rank 0 writes what came out for the next part."""
    folder, first, last, *presets = sys.argv[1:] if argv is None else argv
    accelerator = build_accelerator("no")
    for preset in presets:
        path = Path(folder) / f"{preset}.pt"
        before = torch.load(path, weights_only=False) if path.exists() else None
        accelerator.wait_for_everyone()
        result = take_steps(preset, int(first), int(last), before)
        if accelerator.is_main_process:
            torch.save(result, path)
    accelerator.end_training()
    return 0
