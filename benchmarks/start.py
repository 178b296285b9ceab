"""How long a command takes to answer: `--help`, and from the command to the first step with packed data.

python -m benchmarks.start --data.root data/artificial [--config configs/vgim_thesis.yaml]
"""

from __future__ import annotations

import json
import re
import statistics
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.outcomes import Outcome, show
from simdist.config.load import CONFIGS, experiment_parser, parse_experiment
from simdist.config.schema import Config, to_dict
from simdist.core.files import write_text

HELP_SECONDS, FIRST_STEP_SECONDS = 1, 10


def help_seconds(rounds: int = 3) -> float:
    """Median of `python -m simdist.train --help`."""
    seconds = []
    for _ in range(rounds):
        start = time.perf_counter()
        subprocess.run([sys.executable, "-m", "simdist.train", "--help"], check=True, capture_output=True)
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


def imports_of_help() -> list[str]:
    """Modules that `--help` loads, of those that take long."""
    code = "import sys; sys.argv = ['train', '--help']\ntry:\n import simdist.train.__main__ as t; t.main()\n"
    code += "except SystemExit: print([name for name in ('torch', 'numpy', 'soundfile') if name in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    return re.findall(r"'(\w+)'", out.splitlines()[-1])


def first_step_seconds(config: Config) -> tuple[float, float]:
    """From the start of the command to the end of its first step, and what of it is importing torch and accelerate."""
    train = replace(config.train, max_steps=1, validate_every=0.0, log_every=1)
    with TemporaryDirectory() as folder:
        file = Path(folder, "config.yaml")
        write_text(file, json.dumps(to_dict(replace(config, train=train))))  # JSON is YAML
        command = [sys.executable, "-m", "simdist.train", "--config", str(file), "--run-dir", f"{folder}/run"]
        start = time.perf_counter()
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        seconds = next(time.perf_counter() - start for line in process.stdout if "train step 1" in line)
        process.communicate()
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", "import torch, accelerate"], check=True)
    return seconds, time.perf_counter() - start


def outcomes(config: Config) -> list[Outcome]:
    """Both, with their targets."""
    step, imports = first_step_seconds(config)
    loaded = imports_of_help()
    return [
        Outcome("train --help", help_seconds(), HELP_SECONDS, False, "s", f"imports {' '.join(loaded) or 'no torch'}"),
        Outcome("command to first step", step, FIRST_STEP_SECONDS, False, "s", f"torch and accelerate {imports:.1f} s"),
    ]


def main() -> None:
    """Measure and print."""
    parser = experiment_parser("python -m benchmarks.start", __doc__ or "")
    config, _ = parse_experiment(parser, None, default=CONFIGS / "vgim_thesis.yaml")
    show(f"start, {config.name}", outcomes(config))


if __name__ == "__main__":
    main()
