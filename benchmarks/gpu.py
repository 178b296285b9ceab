"""Training on one GPU: throughput, share of what the GPU can do, a roofline per module, and the stand-in beside it.

    python -m benchmarks.gpu [--clips 256 512 1024] [--data.root data/librispeech] [--rounds 10]

bf16, batches out of the device cache where `--data.root` names packed shards, else made-up audio on the device. The
GPU's peaks are measured first, by a large bf16 product and by a large copy. A module's bound is the longer of its
FLOPs at that peak and its bytes at that bandwidth; bytes are those that are kept for the backward pass, four times
(written, read, and their gradients), and 28 a parameter. The stand-in runs at the largest batch that fits for it.
Without a GPU it measures the CPU, which serves to test it.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from benchmarks.memory import trainers_of
from benchmarks.outcomes import Outcome, show
from benchmarks.scaling import ADAM_BYTES, TRAFFIC
from benchmarks.standin import StandIn
from simdist.config.load import CONFIGS, experiment_parser, parse_experiment
from simdist.config.schema import Config
from simdist.core.console import run
from simdist.core.errors import EXIT_OK
from simdist.data.loader import Batch, BatchLoader, open_clips
from simdist.models.costs import module_costs
from simdist.training.profiler import PARTS, TIMED, WARM_UP, StepProfile
from simdist.training.random_streams import RandomStreams
from simdist.training.step import Step, train_step

UTTERANCES = 28_539  # of LibriSpeech train-clean-100
FLOP_SHARE, MEMORY_SHARE, TIMES_STAND_IN = 0.4, 0.7, 10.0
BETA = 0.001


@dataclass(frozen=True)
class Peaks:
    """What the device reaches."""

    flops: float
    """bf16 FLOP/s of a large product."""
    bandwidth: float
    """Bytes/s of a large copy, read and written."""


def wait(device: torch.device) -> None:
    """Until the device has done all."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds_of(function: Callable[[], object], device: torch.device, rounds: int) -> float:
    """Median seconds of a call, after two to warm up."""
    for _ in range(2):
        function()
    seconds = []
    for _ in range(rounds):
        wait(device)
        start = time.perf_counter()
        function()
        wait(device)
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


def measure_peaks(device: torch.device, rounds: int) -> Peaks:
    """By a square product and a copy, larger on a GPU than on a CPU."""
    side, count = (8192, 2**30) if device.type == "cuda" else (512, 2**24)
    matrix = torch.randn(side, side, device=device, dtype=torch.bfloat16)
    source = torch.zeros(count, device=device, dtype=torch.uint8)
    target = torch.empty_like(source)
    product = seconds_of(lambda: matrix @ matrix, device, rounds)
    copy = seconds_of(lambda: target.copy_(source), device, rounds)
    return Peaks(2 * side**3 / product, 2 * count / copy)


def batches_of(config: Config, device: torch.device) -> Iterator[Batch]:
    """Endless batches on the device: from its cache, or made up."""
    if Path(config.data.root).is_dir():
        data = replace(config.data, cache="device")
        clips = open_clips(data, data.train_split)
        yield from BatchLoader(clips, data, config.seed, 0, 1, device).batches(0, 10**9 * data.batch_size)
    audio = torch.randn(config.data.batch_size, config.data.crop, 1, device=device) * 0.1
    while True:
        yield Batch(audio, torch.arange(config.data.batch_size), 0)


@dataclass(frozen=True)
class Measured:
    """One batch size."""

    clips: int
    step: float
    """Seconds of a step, data included."""
    modules: list[dict[str, float]]
    """Seconds of each part of each module, measured one by one."""
    peak_bytes: int
    """Largest memory that the GPU's allocator held; 0 on a CPU."""


def measure(config: Config, clips: int, device: torch.device, rounds: int) -> Measured:
    """Time whole steps, then their parts."""
    config = replace(config, data=replace(config.data, batch_size=clips))
    trainers, draws = trainers_of(config, device), RandomStreams(0, 0, device)
    frames, batches = config.model.num_frames(config.data.crop), batches_of(config, device)

    def step(inputs: Tensor) -> None:
        with torch.autocast(device.type, torch.bfloat16):
            train_step(trainers, inputs, frames, Step(0, 0.0, BETA), draws)

    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    whole = seconds_of(lambda: step(next(batches).inputs), device, rounds)
    held = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else 0
    timers = StepProfile(Path(), trainers, device, lambda line: None, trace=False)
    watched = timers.watched(batches)
    for _ in range(WARM_UP + TIMED):
        step(next(watched).inputs)
        timers.step_taken()
    parts = timers.times.parts
    modules = [{part: parts.get((part, m), 0.0) / TIMED for part in PARTS} for m in range(len(trainers))]
    return Measured(clips, whole, modules, held)


def stand_in_seconds(config: Config, clips: int, device: torch.device, rounds: int) -> tuple[int, float]:
    """Clips and seconds a step of the stand-in, at half as many clips until they fit."""
    while True:
        try:
            standin = StandIn(config).to(device)
            audio = torch.randn(clips, 1, config.data.crop, device=device) * 0.1
            return clips, seconds_of(partial(standin.step, audio, BETA), device, rounds)
        except torch.cuda.OutOfMemoryError:
            clips //= 2
            torch.cuda.empty_cache()


def roofline(config: Config, measured: Measured, peaks: Peaks) -> tuple[Table, list[float]]:
    """A row for each module, and the seconds that each is bound to take."""
    table = Table("module", "ms", "GFLOP", "GB at least", "FLOP/byte", "TFLOP/s", "bound by", "share of the bound")
    bounds = []
    for m, cost in enumerate(module_costs(config, measured.clips)):
        seconds, total = sum(measured.modules[m].values()), cost.total
        traffic = TRAFFIC * total.kept_bytes + ADAM_BYTES * total.parameters
        computing, moving = total.flops / peaks.flops, traffic / peaks.bandwidth
        bounds.append(max(computing, moving))
        table.add_row(
            str(m),
            f"{1e3 * seconds:.2f}",
            f"{total.flops / 1e9:.1f}",
            f"{traffic / 1e9:.3f}",
            f"{total.flops / traffic:.0f}",
            f"{total.flops / seconds / 1e12:.1f}",
            "products" if computing > moving else "memory",
            f"{bounds[-1] / seconds:.0%}",
        )
    return table, bounds


def outcomes(config: Config, sizes: list[int], device: torch.device, rounds: int) -> list[Outcome]:
    """Measure everything; prints a roofline for each batch size."""
    peaks, console, rows = measure_peaks(device, rounds), Console(width=140), []
    console.print(f"{peaks.flops / 1e12:.1f} TFLOP/s of bf16 products, {peaks.bandwidth / 1e12:.3f} TB/s of copies")
    best = 0.0
    for clips in sizes:
        measured = measure(config, clips, device, rounds)
        table, bounds = roofline(config, measured, peaks)
        console.print(f"{clips} clips", table)
        flops = sum(cost.total.flops for cost in module_costs(config, clips))
        rate, share = clips / measured.step, flops / measured.step / peaks.flops
        best = max(best, rate)
        memory = f", {measured.peak_bytes / 2**30:.1f} GiB" if measured.peak_bytes else ""
        detail = f"{1e3 * measured.step:.1f} ms a step, {UTTERANCES / rate:.1f} s an epoch of 100 h{memory}"
        rows.append(Outcome(f"{clips} clips: samples/s", rate, unit="clips/s", detail=detail))
        rows.append(Outcome(f"{clips} clips: share of peak FLOP/s", share, FLOP_SHARE, unit=""))
        rows.append(Outcome(f"{clips} clips: share of the bound", sum(bounds) / measured.step, MEMORY_SHARE, unit=""))
    clips, seconds = stand_in_seconds(config, sizes[-1], device, rounds)
    detail = f"float32, {clips} clips, {clips / seconds:.0f} clips/s"
    rows.append(Outcome("times the stand-in's samples/s", best * seconds / clips, TIMES_STAND_IN, detail=detail))
    return rows


def main() -> int:
    """Measure and print."""
    parser = experiment_parser("python -m benchmarks.gpu", __doc__ or "")
    parser.add_argument("--clips", type=list[int], default=[256, 512, 1024], help="Batch sizes, as [256,512].")
    parser.add_argument("--rounds", type=int, default=10, help="Steps of each kind that are timed.")
    config, parsed = parse_experiment(parser, None, default=CONFIGS / "sim_librispeech.yaml")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    show(f"{config.name}, bf16, {name}", outcomes(config, parsed.clips, device, parsed.rounds))
    return EXIT_OK


if __name__ == "__main__":
    run(lambda argv: main())
