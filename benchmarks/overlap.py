"""How much of the all-reduces' time a step hides: with simdist's overlap, and with DDP as it is.

    OMP_NUM_THREADS=1 torchrun --nproc_per_node 2 benchmarks/overlap.py [--out trace.json]

Reads the profiler's trace of one step: an all-reduce is hidden while a module's forward runs. Works with gloo on CPUs
and with NCCL on GPUs. `--out` keeps the trace for a viewer (https://ui.perfetto.dev).
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from accelerate import Accelerator
from torch.nn.parallel import DistributedDataParallel
from torch.profiler import ProfilerActivity, profile, record_function

from simdist.config.schema import Config
from simdist.models.encoder import GreedyEncoder
from simdist.training.distributed import OverlappedReduction, build_accelerator, under_ddp
from simdist.training.random_streams import RandomStreams
from simdist.training.step import ModuleTrainer, Step, train_step

CONFIG = replace(Config(), model=replace(Config().model, width=384))
CLIPS = 2


def trainers_of(accelerator: Accelerator, overlapped: bool) -> list[ModuleTrainer]:
    """SIM's modules under DDP, with names in the trace."""
    trainers = []
    for number, module in enumerate(GreedyEncoder(CONFIG.model, CONFIG.loss).to(accelerator.device).stack):
        wrapped = under_ddp(accelerator, module)
        assert isinstance(wrapped, DistributedDataParallel), "launch it with two processes or more"
        reduction = OverlappedReduction(wrapped, compress=False) if overlapped else None
        forward = wrapped.forward

        def named(*args: Any, _forward: Any = forward, _number: int = number) -> Any:
            with record_function(f"forward of module {_number}"):
                return _forward(*args)

        wrapped.forward = named
        optimizer = torch.optim.AdamW(module.parameters(), lr=0.0, fused=True)
        scaler = torch.amp.GradScaler(accelerator.device.type, enabled=False)  # pyright: ignore
        trainers.append(ModuleTrainer(number, module, wrapped, optimizer, scaler, None, reduction))
    return trainers


def hidden_share(accelerator: Accelerator, overlapped: bool, out: Path | None) -> tuple[float, float]:
    """Milliseconds of a step's all-reduces, and the share of them during which a module's forward runs."""
    trainers, device = trainers_of(accelerator, overlapped), accelerator.device
    draws, frames = RandomStreams(0, 0, device), CONFIG.model.num_frames(CONFIG.data.crop)
    inputs = torch.randn(CLIPS, CONFIG.data.crop, 1, device=device) * 0.1
    for _ in range(2):  # DDP arranges its buckets anew after the first step
        train_step(trainers, inputs, frames, Step(0, lr=0.0, beta=0.0), draws)
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (device.type == "cuda")
    with profile(activities=activities) as profiler:
        train_step(trainers, inputs, frames, Step(0, lr=0.0, beta=0.0), draws)
    with TemporaryDirectory() as folder:
        path = out or Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(path))
        events = json.loads(path.read_text())["traceEvents"]
    of_name = "ncclDevKernel_AllReduce" if device.type == "cuda" else "gloo:all_reduce"
    kind = "gpu_user_annotation" if device.type == "cuda" else "user_annotation"
    reductions = [e for e in events if of_name in e.get("name", "") and "dur" in e]
    forwards = [e for e in events if e.get("name", "").startswith("forward of") and e.get("cat") == kind]
    total = sum(e["dur"] for e in reductions)
    hidden = sum(_common(reduction, forward) for reduction in reductions for forward in forwards)
    return total / 1000, hidden / total


def _common(a: dict[str, Any], b: dict[str, Any]) -> float:
    return max(0.0, min(a["ts"] + a["dur"], b["ts"] + b["dur"]) - max(a["ts"], b["ts"]))


def main() -> None:
    """Measure both and print one line each from rank 0."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="keep the trace of the overlapped step here")
    out = parser.parse_args().out
    accelerator = build_accelerator("no")
    for overlapped in (False, True):
        is_kept = overlapped and accelerator.is_main_process
        milliseconds, share = hidden_share(accelerator, overlapped, out if is_kept else None)
        if accelerator.is_main_process:
            name = "simdist" if overlapped else "DDP as it is"
            print(
                f"{name}: all-reduces {milliseconds:.1f} ms, {share:.0%} of it while a module's forward runs",
                flush=True,
            )
    accelerator.end_training()


if __name__ == "__main__":
    main()
