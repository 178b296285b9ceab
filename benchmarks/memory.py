"""Peak memory of a training step: local backward, module after module, against one backward of the summed loss.

    python benchmarks/memory.py [--config configs/sim_librispeech.yaml] [--data.batch_size 8]

Counted is what a step holds at its peak beyond weights and Adam's state.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from rich.console import Console
from rich.table import Table
from torch.profiler import ProfilerActivity, profile

from simdist.config.load import CONFIGS, experiment_parser, parse_experiment
from simdist.config.schema import Config
from simdist.models.encoder import GreedyEncoder
from simdist.training.random_streams import RandomStreams
from simdist.training.step import ModuleTrainer, Step, train_step


def trainers_of(config: Config, device: torch.device) -> list[ModuleTrainer]:
    """The greedy modules with Adam, whose state exists already."""
    trainers = []
    for number, module in enumerate(GreedyEncoder(config.model, config.loss).to(device).stack):
        optimizer = torch.optim.AdamW(module.parameters(), lr=0.0, fused=True)
        for parameter in module.parameters():
            parameter.grad = torch.zeros_like(parameter)
        optimizer.step()
        optimizer.zero_grad()
        scaler = torch.amp.GradScaler(device.type, enabled=False)  # pyright: ignore[reportPrivateImportUsage]
        trainers.append(ModuleTrainer(number, module, module, optimizer, scaler, None))
    return trainers


def joint_step(trainers: list[ModuleTrainer], x: torch.Tensor, frames: list[int], draws: RandomStreams) -> None:
    """All graphs kept until one backward of the sum of the losses."""
    losses = []
    for trainer in trainers:
        outcome = trainer.module(x, draws.draw("train", 0, trainer, len(x), frames), 0.001)
        losses.append(outcome.loss)
        x = outcome.latent
    torch.stack(losses).sum().backward()
    for trainer in trainers:
        trainer.update(0.0)


def peak(trainers: list[ModuleTrainer], config: Config, how: str) -> int:
    """Bytes that a step holds at its peak, beyond what was there before it."""
    device = next(trainers[0].module.parameters()).device
    draws, frames = RandomStreams(0, 0, device), config.model.num_frames(config.data.crop)
    inputs = torch.randn(config.data.batch_size, config.data.crop, 1, device=device) * 0.1

    def step() -> None:
        with torch.autocast(device.type, torch.bfloat16, enabled=config.train.precision == "bf16"):
            if how == "local":
                train_step(trainers, inputs, frames, Step(0, lr=0.0, beta=0.001), draws)
            else:
                joint_step(trainers, inputs, frames, draws)

    step()
    return allocator_peak(step) if device.type == "cuda" else profiled_peak(step)


def allocator_peak(step: Callable[[], None]) -> int:
    """On a GPU the allocator counts."""
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    step()
    return torch.cuda.max_memory_allocated() - before


def profiled_peak(step: Callable[[], None]) -> int:
    """On a CPU the profiler sees each allocation; the resident set would mix in what the C library keeps."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        step()
    with TemporaryDirectory() as folder:
        profiler.export_chrome_trace(f"{folder}/trace.json")
        events = json.loads(Path(folder, "trace.json").read_text())["traceEvents"]
    held, most = 0, 0
    for event in sorted((e for e in events if e.get("name") == "[memory]"), key=lambda e: e["ts"]):
        held += event["args"]["Bytes"]
        most = max(most, held)
    return most


def main() -> None:
    """Measure both ways and print the table."""
    parser = experiment_parser("python benchmarks/memory.py", __doc__ or "")
    config, _ = parse_experiment(parser, None, default=CONFIGS / "sim_librispeech.yaml")
    trainers = trainers_of(config, torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    measured = {how: peak(trainers, config, how) for how in ("joint", "local")}
    table = Table("backward", "MB", title=f"{config.name}, {config.data.batch_size} x {config.data.crop} samples")
    for how, count in measured.items():
        table.add_row(how, f"{count / 1e6:.0f}")
    table.add_row("local / joint", f"{measured['local'] / measured['joint']:.0%}")
    Console().print(table)


if __name__ == "__main__":
    main()
