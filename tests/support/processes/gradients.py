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

from simdist.config.schema import LayerConfig, LossConfig, ModelConfig, ModuleConfig
from simdist.models.encoder import GreedyEncoder
from simdist.models.module import RandomInputs
from simdist.training.distributed import OverlappedReduction, build_accelerator, under_ddp
from simdist.training.random_streams import RandomStreams
from simdist.training.step import ModuleTrainer, NumberedModule, Step, train_step

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

    negatives: str = "batch"
    batch_norm: bool = False
    sync_batch_norm: bool = False
    accumulate: int = 1
    compress: bool = False


CASES = {
    "batch": Case(),
    "batch accumulated": Case(accumulate=2),
    "batch in bf16": Case(compress=True),
    "batch, plain norm": Case(batch_norm=True),
    "global": Case("global"),
    "global, plain norm": Case("global", batch_norm=True),
    "global, synchronised norm": Case("global", batch_norm=True, sync_batch_norm=True),
    "sequence, synchronised norm": Case("sequence", batch_norm=True, sync_batch_norm=True),
}


class FixedDraws(RandomStreams):
    """Draws of the whole batch, of which clips [first, last) are this rank's; parts follow each other."""

    def __init__(self, case: Case, first: int, last: int) -> None:
        super().__init__(0, 0, torch.device("cpu"))
        self._case, self._first, self._last = case, first, last

    def draw(self, purpose: str, step: int, trainer: NumberedModule, batch: int, frames: list[int]) -> RandomInputs:
        length, window = FRAMES[trainer.number], trainer.module.window(FRAMES[trainer.number])
        generator = torch.Generator().manual_seed(trainer.number)
        first = self._first + step * batch
        own = slice(first, first + batch)
        population = {"batch": batch, "sequence": 1, "global": CLIPS}[self._case.negatives] * length
        negatives = torch.randint(population, (CLIPS, window - 1, LOSS.num_negatives), generator=generator)
        if self._case.negatives == "sequence":
            negatives = negatives + (torch.arange(CLIPS) % batch)[:, None, None] * length
        noise = torch.randn(2, CLIPS, length, MODEL.width, generator=generator, dtype=torch.float64)
        noises = () if trainer.module.log_var is None else (noise[0, own, :window], noise[1, own])
        return RandomInputs(0, negatives[own], *noises)


def gradients(case: Case, first: int = 0, last: int = CLIPS) -> dict[str, Tensor]:
    """Gradients of the step on clips [first, last) of the batch, averaged over the processes there are."""
    model = replace(MODEL, batch_norm=case.batch_norm, sync_batch_norm=case.sync_batch_norm)
    loss = replace(LOSS, negatives=case.negatives)  # pyright: ignore[reportArgumentType]
    encoder = GreedyEncoder(model, loss, seed=5).double()
    before = {name: p.detach().clone() for name, p in encoder.named_parameters()}
    accelerator = build_accelerator("no")
    trainers = []
    for number, module in enumerate(encoder.stack):
        wrapped = under_ddp(accelerator, module)
        is_shared = isinstance(wrapped, DistributedDataParallel)
        reduction = OverlappedReduction(wrapped, case.compress) if is_shared else None
        scaler = torch.amp.GradScaler("cpu", enabled=False)  # pyright: ignore[reportPrivateImportUsage]
        optimizer = torch.optim.SGD(module.parameters(), lr=1.0, fused=True)
        trainers.append(ModuleTrainer(number, module, wrapped, optimizer, scaler, None, reduction))
    audio = torch.randn(CLIPS, SAMPLES, 1, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    draws = FixedDraws(case, first, last)
    train_step(trainers, audio[first:last], FRAMES, Step(0, lr=1.0, beta=0.1), draws, case.accumulate)
    return {name: before[name] - p.detach() for name, p in encoder.named_parameters()}


def main(argv: Sequence[str] | None) -> int:
    """Each rank trains on its share; rank 0 writes what came out."""
    folder, *names = sys.argv[1:] if argv is None else argv
    accelerator = build_accelerator("no")
    rank, share = accelerator.process_index, CLIPS // accelerator.num_processes
    for name in names:
        result = gradients(CASES[name], rank * share, (rank + 1) * share)
        if accelerator.is_main_process:
            torch.save(result, Path(folder) / f"{name}.pt")
    accelerator.end_training()
    return 0
