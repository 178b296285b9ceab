"""Time and memory of a training step, against the straightforward one (`standin.py`), in turns in one process.

    OMP_NUM_THREADS=2 python -m benchmarks.step [--rounds 5] [--data.batch_size 8] [--data.crop 20480]

Peak memory is the resident set of a fresh process each, Python and torch included.
"""

from __future__ import annotations

import math
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # as simdist.train does, for both

import torch

from benchmarks.memory import trainers_of
from benchmarks.outcomes import Outcome, in_turns, show
from benchmarks.standin import StandIn, batched_info_nce
from simdist.config.load import CONFIGS, experiment_parser, parse_experiment
from simdist.config.schema import Config
from simdist.models.infonce import info_nce
from simdist.training.hardware import SLOW_BF16, emulates_bf16
from simdist.training.random_streams import RandomStreams
from simdist.training.step import Step, train_step

STEPS = ("stand-in", "float32", "bf16")
UPSTREAM_INFO_NCE = 1.9 / 0.4  # upstream's InfoNCE of a module against one batched product, as measured on its code
BETA = 0.001


def step_of(name: str, config: Config) -> Callable[[], object]:
    """One training step on made-up audio: the stand-in's, or ours in a precision."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    audio = torch.randn(config.data.batch_size, config.data.crop, 1, device=device) * 0.1
    if name == "stand-in":
        standin, waves = StandIn(config).to(device), audio.transpose(1, 2).contiguous()
        return lambda: standin.step(waves, BETA)
    trainers, draws = trainers_of(config, device), RandomStreams(0, 0, device)
    frames = config.model.num_frames(config.data.crop)

    def step() -> None:
        with torch.autocast(device.type, torch.bfloat16, enabled=name == "bf16"):
            train_step(trainers, audio, frames, Step(0, lr=0.0, beta=BETA, measure=False), draws)

    return step


def info_nce_of(config: Config) -> dict[str, Callable[[], object]]:
    """The first module's InfoNCE, forward and backward: the stand-in's, one batched product, and ours."""
    clips, frames, width = config.data.batch_size, config.model.num_frames(config.data.crop)[0], config.model.width
    latent, context = (torch.randn(clips, frames, width, requires_grad=True) for _ in range(2))
    module, loss = StandIn(config).stack[0], config.loss
    window, weight = min(frames, loss.window or frames), module.predictor.weight
    negatives = torch.randint(clips * frames, (clips, window - 1, loss.num_negatives))

    def ours() -> None:
        info_nce(context[:, :window], latent, weight, negatives, start=0, steps=module.steps)[0].backward()

    def batched() -> None:
        batched_info_nce(context[:, :window], latent, weight, negatives, module.steps).backward()

    return {"stand-in": lambda: module.info_nce(context, latent, None).backward(), "batched": batched, "ours": ours}


def peak_bytes(name: str, config: Config) -> int:
    """Largest resident set of a fresh process that takes three steps."""
    data = [f"--data.batch_size={config.data.batch_size}", f"--data.crop={config.data.crop}"]
    width = [f"--model.width={config.model.width}", f"--model.context_width={config.model.context_width}"]
    command = [sys.executable, "-m", "benchmarks.step", f"--only={name}", *data, *width]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def largest_resident_set() -> int:
    """Bytes. Not `ru_maxrss`, which begins with that of the process that started this one."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


def outcomes(config: Config, rounds: int = 5) -> list[Outcome]:
    """Ratios of times and of peak memory, with the targets of the preset; no bf16 where the CPU emulates it."""
    skipped = ["bf16"] if emulates_bf16() and not torch.cuda.is_available() else []
    names = [name for name in STEPS if name not in skipped]
    seconds = in_turns({name: step_of(name, config) for name in names}, rounds)
    nce = in_turns(info_nce_of(config), rounds)
    peaks = {name: peak_bytes(name, config) for name in names}
    first, first_peak = seconds["stand-in"], peaks["stand-in"]
    seconds_of_nce = ", ".join(f"{name} {value:.2f} s" for name, value in nce.items())
    rows = [Outcome(f"step, {name}", math.nan, detail=SLOW_BF16) for name in skipped]
    for name, target in {"float32": 2, "bf16": 6}.items():
        if name in names:
            times = f"{seconds[name]:.2f} s, the stand-in {first:.2f} s"
            mib = f"{peaks[name] / 2**20:.0f} MiB, the stand-in {first_peak / 2**20:.0f}"
            rows.append(Outcome(f"step, {name}: times faster", first / seconds[name], target, detail=times))
            rows.append(Outcome(f"step, {name}: peak memory", peaks[name] / first_peak, 0.4, False, detail=mib))
    return [
        *rows,
        Outcome(
            "check: stand-in's InfoNCE / one batched product",
            nce["stand-in"] / nce["batched"],
            UPSTREAM_INFO_NCE,
            False,
            detail=seconds_of_nce,
        ),
    ]


def main() -> None:
    """Measure and print; with --only, take three steps and print the peak of the resident set, in bytes."""
    parser = experiment_parser("python -m benchmarks.step", __doc__ or "")
    parser.add_argument("--rounds", type=int, default=5, help="Steps of each kind that are timed.")
    parser.add_argument("--only", type=str, default="", help=f"One of {', '.join(STEPS)}: print its peak memory.")
    config, parsed = parse_experiment(parser, None, default=CONFIGS / "sim_librispeech.yaml")
    if parsed.only:
        step = step_of(parsed.only, config)
        for _ in range(3):
            step()
        print(largest_resident_set())
        return
    title = f"{config.name}, {config.data.batch_size} x {config.data.crop} samples, {torch.get_num_threads()} threads"
    show(title, outcomes(config, parsed.rounds))


if __name__ == "__main__":
    main()
