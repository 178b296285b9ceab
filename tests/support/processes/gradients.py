"""Gradients of one training step, over as many processes as it is launched with; or in this one, imported.

Weights, audio and draws are made from seeds, in float64, and each rank takes its share of them. The optimizer is
gradient descent with rate 1, so the step of the real `train_step` leaves -gradient in the weights.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from simdist.config.schema import DataConfig, LayerConfig, LossConfig, ModelConfig, ModuleConfig
from simdist.models.encoder import GreedyEncoder
from simdist.models.groups import share_group
from simdist.training.distributed import OverlappedReduction, build_accelerator, mean_metrics, under_ddp
from simdist.training.groups import Groups
from simdist.training.random_streams import RandomStreams
from simdist.training.step import ModuleTrainer, Step, train_step

CLIPS, SAMPLES = 8, 96
MODEL = ModelConfig(
    width=6,
    context_width=5,
    modules=(
        ModuleConfig(layers=(LayerConfig(4, 2, 1), LayerConfig(4, 2, 1))),
        ModuleConfig(layers=(LayerConfig(3, 1, 1),)),
        ModuleConfig(gru=True),
    ),
)
LOSS = LossConfig(prediction_steps=3, num_negatives=4, window=16)
FRAMES = MODEL.num_frames(SAMPLES)


@dataclass(frozen=True)
class Case:
    """What one comparison is made with."""

    group: int | None = None
    negatives: str = "batch"
    batch_norm: bool = True
    at_once: int | None = None
    compress: bool = False


CASES = {
    "no group": Case(),
    "group 2": Case(2),
    "group 4": Case(4),
    "group 8": Case(8),
    "group 8, no norm": Case(8, batch_norm=False),
    "group 8, sequence": Case(8, "sequence"),
    "group 4, other positives": Case(4, "other_positives"),
    "group 2, one at a time": Case(2, at_once=1),
    "bf16": Case(2, compress=True),
}


def gradients(case: Case, rank: int = 0, world: int = 1) -> dict[str, Tensor]:
    """Gradients of a step, averaged over the processes there are; also what it did to buffers, and its metrics."""
    model = replace(MODEL, batch_norm=case.batch_norm)
    loss = replace(LOSS, negatives=case.negatives)  # pyright: ignore[reportArgumentType]
    encoder = GreedyEncoder(model, loss, seed=5).double()
    before = {name: p.detach().clone() for name, p in encoder.named_parameters()}
    accelerator = build_accelerator("no")
    groups = Groups.of(DataConfig(batch_size=CLIPS, group=case.group), rank, world)
    share_group(encoder, groups.peers(world))
    trainers = []
    for number, module in enumerate(encoder.stack):
        wrapped = under_ddp(accelerator, module)
        is_shared = isinstance(wrapped, DistributedDataParallel)
        reduction = OverlappedReduction(wrapped, case.compress) if is_shared else None
        scaler = torch.amp.GradScaler("cpu", enabled=False)  # pyright: ignore[reportPrivateImportUsage]
        optimizer = torch.optim.SGD(module.parameters(), lr=1.0, fused=True)
        trainers.append(ModuleTrainer(number, module, wrapped, optimizer, scaler, None, reduction))
    audio = torch.randn(CLIPS, SAMPLES, 1, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    own = audio[rank * groups.share : (rank + 1) * groups.share]
    draws = RandomStreams(0, rank, torch.device("cpu"), groups)
    step = Step(0, lr=1.0, beta=0.1, measure=True)
    outcome = train_step(trainers, own, FRAMES, step, draws, groups.passes(case.at_once))
    found = {name: before[name] - p.detach() for name, p in encoder.named_parameters()}
    found |= {name: buffer.clone() for name, buffer in encoder.named_buffers()}
    for number, metrics in enumerate(mean_metrics([outcome.metrics], accelerator)):
        found |= {f"metrics of {number}: {name}": torch.tensor(value) for name, value in metrics.items()}
    return found


def main(argv: Sequence[str] | None) -> int:
    """Each rank trains on its share; rank 0 writes what came out."""
    folder, *names = sys.argv[1:] if argv is None else argv
    accelerator = build_accelerator("no")
    rank, world = accelerator.process_index, accelerator.num_processes
    for name in names:
        result = gradients(CASES[name], rank, world)
        if accelerator.is_main_process:
            torch.save(result, Path(folder) / f"{name}.pt")
    accelerator.end_training()
    return 0
