"""How long a report of hundreds of runs takes, and how large its page is:

    OMP_NUM_THREADS=1 python -m benchmarks.report [--groups 60] [--seeds 5] [--lines 1000] [--like RUN …]

Runs are made up, with 1,000 lines of metrics each; `--like` copies real run folders round and round instead, each with
a beta and a seed of its own.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import yaml

from benchmarks.outcomes import Outcome, show
from benchmarks.run_folders import write_sweep

MOST_SECONDS = 20.0
LEFT_OUT = ("checkpoints", "features", "wandb")


def copies(originals: Sequence[Path], root: Path, num_groups: int, num_seeds: int) -> None:
    """Copies of run folders without weights and features, told apart by beta and seed."""
    for group in range(num_groups):
        for seed in range(num_seeds):
            original = originals[group % len(originals)]
            folder = root / f"{original.name}-{group:03d}-{seed}"
            shutil.copytree(original, folder, ignore=shutil.ignore_patterns(*LEFT_OUT))
            config = yaml.safe_load((folder / "config.yaml").read_text())
            config["seed"] = seed
            config["loss"]["beta"] = 0.001 * (group + 1)
            (folder / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))


def measure(root: Path, out: Path) -> list[Outcome]:
    """Time and size of one report, made by the command."""
    begin = time.perf_counter()
    command = [sys.executable, "-m", "simdist.report", str(root), "--out", str(out)]
    before = os.times()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    seconds, after = time.perf_counter() - begin, os.times()
    own = after.children_user + after.children_system - before.children_user - before.children_system
    size = (out / "report.html").stat().st_size / 1e6
    runs = sum(1 for _ in root.glob("*/config.yaml"))
    return [
        Outcome(
            f"report of {runs} runs", seconds, MOST_SECONDS, at_least=False, unit="s", detail=f"{own:.1f} s of CPU"
        ),
        Outcome("size of report.html", size, unit="MB"),
    ]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--groups", type=int, default=60, help="encoders")
    parser.add_argument("--seeds", type=int, default=5, help="runs of each")
    parser.add_argument("--lines", type=int, default=1000, help="of metrics of a run")
    parser.add_argument("--like", type=Path, nargs="*", default=[], help="run folders to copy")
    parser.add_argument("--keep", type=Path, help="folder for the report; none keeps nothing")
    arguments = parser.parse_args()
    with TemporaryDirectory() as folder:
        root, out = Path(folder, "runs"), arguments.keep or Path(folder, "out")
        if arguments.like:
            copies(arguments.like, root, arguments.groups, arguments.seeds)
        else:
            write_sweep(root, arguments.groups, arguments.seeds, arguments.lines, with_analyses=arguments.groups)
        load = os.getloadavg()[0]
        show(f"{os.cpu_count()} cores, load average {load:.1f} at the start", measure(root, out))


if __name__ == "__main__":
    main()
