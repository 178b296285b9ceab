"""What shared modules save: eight variants of SIM's last convolution and GRU, on modules 0 and 1 trained once.

    OMP_NUM_THREADS=1 python -m benchmarks.trunk [--steps 30] [--width 128] [--batch 8] [--data data/librispeech]

Trains eight stagewise runs that differ in module 2's learning rate, each by itself, and then the modules that they
share and eight runs that take these stages over, as a sweep does (`launch/shared_stages.py`). Compares seconds of the
processor, all threads, and the weights, which must be equal. Synthetic speech stands in for `--data`.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.outcomes import Outcome, show
from simdist.config.load import CONFIGS, read_config
from simdist.config.schema import Config
from simdist.loading import load_encoder
from simdist.models.costs import module_costs
from simdist.models.encoder import hash_weights
from simdist.pack.synthetic import ensure
from simdist.train.__main__ import train

TARGET = 3.5  # times less processor time
VARIANTS, SHARED = 8, 2


def experiment(data: Path, steps: int, width: int, batch: int) -> Config:
    """SIM on LibriSpeech's settings, stage by stage, on cached latents."""
    config = read_config(CONFIGS / "sim_librispeech.yaml")
    loop = replace(
        config.train,
        schedule="stagewise",
        cache_latents=True,
        max_steps=steps,
        validate_every=0.0,
        precision="no",
        log_every=steps,
    )
    data_config = replace(config.data, root=str(data), batch_size=batch, num_workers=0, cache="memory")
    model = replace(config.model, width=width, context_width=width // 2)
    return replace(config, data=data_config, model=model, train=loop)


def variants(config: Config) -> list[Config]:
    """Runs that agree on the lowest `SHARED` modules."""
    *lower, conv, gru = config.model.modules
    rates = [config.optim.lr * 2 ** (number / 2) for number in range(VARIANTS)]
    return [
        replace(config, model=replace(config.model, modules=(*lower, replace(conv, lr=rate), gru))) for rate in rates
    ]


def predicted(config: Config) -> float:
    """The ratio of FLOPs, of training steps alone."""
    flops = [cost.total.flops for cost in module_costs(config, config.data.batch_size, mixed=False)]
    lower, upper = sum(flops[:SHARED]), sum(flops[SHARED:])
    return VARIANTS * (lower + upper) / (lower + VARIANTS * upper)


def trained(config: Config, folder: Path, stages_from: Path | None = None) -> float:
    """Train a run; returns seconds of the processor."""
    begin = time.process_time()
    with contextlib.redirect_stdout(io.StringIO()):
        code = train(config, folder, stages_from=stages_from)
    if code:
        raise SystemExit(f"training {folder} ended with {code}")
    return time.process_time() - begin


def measure(config: Config, folder: Path) -> list[Outcome]:
    """Train all runs in both ways."""
    runs = variants(config)
    trained(replace(config, train=replace(config.train, max_steps=2)), folder / "warm-up")
    alone = [trained(run, folder / f"alone-{number}") for number, run in enumerate(runs)]
    lower = replace(config, model=replace(config.model, modules=config.model.modules[:SHARED]))
    trunk = trained(lower, folder / "trunk")
    branches = [trained(run, folder / f"branch-{number}", folder / "trunk") for number, run in enumerate(runs)]
    equal = sum(
        hash_weights(load_encoder(folder / f"alone-{number}"))
        == hash_weights(load_encoder(folder / f"branch-{number}"))
        for number in range(VARIANTS)
    )
    detail = f"{sum(alone):.1f} s; shared {trunk:.1f} s + {sum(branches):.1f} s; FLOPs: {predicted(config):.2f} x"
    return [
        Outcome(
            "processor time, eight runs / the same on a shared trunk",
            sum(alone) / (trunk + sum(branches)),
            TARGET,
            detail=detail,
        ),
        Outcome("runs with equal weights (sha256)", equal, VARIANTS, unit="of 8"),
    ]


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table; 0 if both targets are met."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default, text in (
        ("steps", 30, "optimizer steps per module"),
        ("width", 128, "model.width"),
        ("batch", 8, "clips per step"),
    ):
        parser.add_argument(f"--{name}", type=int, default=default, help=text)
    parser.add_argument("--data", type=Path, help="packed speech; synthetic speech without it")
    options = parser.parse_args(argv)
    with TemporaryDirectory() as place:
        folder, data = Path(place), options.data
        if data is None:
            data = folder / "shards"
            with contextlib.redirect_stdout(io.StringIO()):
                ensure(folder / "made", data, speakers=4, minutes=2, seed=0, progress=False)
        outcomes = measure(experiment(data, options.steps, options.width, options.batch), folder)
    show(
        f"{VARIANTS} variants, {options.steps} steps per module, width {options.width}, batch {options.batch}", outcomes
    )
    return 0 if all(outcome.is_met for outcome in outcomes) else 1


if __name__ == "__main__":
    sys.exit(main())
