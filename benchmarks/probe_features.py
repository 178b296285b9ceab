"""How much faster probes are on features that were encoded once than trained from audio, as upstream does.

    python benchmarks/probe_features.py runs/sim [--data-root data/librispeech] [--sample 12]

All modules times all labels of one run, with upstream's epochs and batch sizes. The cached way is run to its end:
encode both splits, train and test every probe. The other way is timed for a sample of its steps, drawn as an epoch
orders them, and multiplied by their number; testing is left out of it. Seconds are of the processor, all threads of
this process together, so that other work on the machine does not tilt the ratio.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table

from simdist.core.signals import SignalHandler
from simdist.models.probes import Probe
from simdist.probe.command import ProbeCommand
from simdist.probe.examples import LiveExamples
from simdist.probe.probe_task import ProbeTask
from simdist.probe.settings import ProbeSettings
from simdist.probe.training import num_steps
from simdist.runs.checkpoints import latest_checkpoint
from simdist.training.distributed import build_accelerator

TARGET = 10.0  # what the project asks for


def main() -> int:
    """Print the table; 0 if the cached way is `TARGET` times faster."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="Run folder with a checkpoint.")
    parser.add_argument("--data-root", type=Path, default=None, help="Packed splits; default as the run says.")
    parser.add_argument("--sample", type=int, default=12, help="Steps of each probe that are timed from audio.")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        tasks, seconds, wall = cached(copy_of(options.run, Path(folder) / "run"), options.data_root)
        rows = [(task, *from_audio(task, options.sample)) for task in tasks]
    return report(rows, seconds, wall)


def copy_of(run: Path, folder: Path) -> Path:
    """The run with its newest checkpoint and no probes."""
    newest = latest_checkpoint(run / "checkpoints", print)
    if newest is None:
        sys.exit(f"{run} has no complete checkpoint")
    shutil.copytree(newest, folder / "checkpoints" / newest.name)
    shutil.copy(run / "config.yaml", folder)
    return folder


def cached(run: Path, data_root: Path | None) -> tuple[list[ProbeTask], float, float]:
    """Do every probe; returns them, the processor's seconds and the clock's."""
    settings = ProbeSettings(run=run, all=True, unseen="drop", data_root=data_root)
    command = ProbeCommand(settings, build_accelerator("no"), SignalHandler())
    begin, clock = time.process_time(), time.perf_counter()
    tasks = command.work()
    return tasks, time.process_time() - begin, time.perf_counter() - clock


def from_audio(task: ProbeTask, sample: int) -> tuple[float, int]:
    """Seconds a step takes when its batch is encoded from audio, and how many steps upstream takes."""
    data, settings, device = task.data, task.settings, torch.device("cpu")
    examples = LiveExamples(task.extractor, task.module, data.spec, data.pair.train, data.train, device)
    probe = Probe(examples.dimensions, len(data.train.names))
    optimizer = torch.optim.Adam(probe.parameters(), lr=settings.lr or 1e-3)
    order, size = examples.order(0, 0), settings.batch_size or 1
    steps = range(0, min(sample * size, len(order)), size)
    begin = time.process_time()
    for place in steps:
        batch = examples.batch(order[place : place + size].tolist(), 0)
        F.cross_entropy(probe(batch.features), batch.classes).backward()
        optimizer.step()
        optimizer.zero_grad()
    return (time.process_time() - begin) / len(steps), num_steps(examples, settings)


def report(rows: list[tuple[ProbeTask, float, int]], seconds: float, wall: float) -> int:
    """Print what was measured; returns the exit code."""
    table = Table(title="probes from audio, as upstream trains them (processor seconds)")
    for column in ("label", "module", "s a step", "steps", "s in all"):
        table.add_column(column, justify="right")
    for task, step, steps in rows:
        table.add_row(task.data.label, str(task.module), f"{step:.3f}", f"{steps:,}", f"{step * steps:,.0f}")
    total = sum(step * steps for _, step, steps in rows)
    console = Console(width=100)
    console.print(table)
    console.print(f"all {len(rows)} probes from audio: {total:,.0f} s (from a sample of their steps)")
    console.print(f"all {len(rows)} probes on features encoded once: {seconds:,.0f} s ({wall:,.0f} s by the clock)")
    console.print(f"{total / seconds:.1f} times faster; the aim is {TARGET:.0f}")
    return 0 if total >= TARGET * seconds else 1


if __name__ == "__main__":
    sys.exit(main())
