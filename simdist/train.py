"""Train an encoder: `accelerate launch -m simdist.train --config FILE`.

Everything that needs torch is imported after the command line was understood, so that `--help` and typing errors
answer at once.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from simdist.cli import CONFIGS, experiment_parser, parse_experiment, run
from simdist.config import Config
from simdist.errors import EXIT_OK

if TYPE_CHECKING:
    from accelerate import Accelerator

    from simdist.engine.run import Run
    from simdist.engine.trainer import Trainer
    from simdist.stopping import Stop

DEMO = CONFIGS / "demo.yaml"
DESCRIPTION = """\
Train the greedy modules of an encoder. Running the same command again continues the run.

Without --config this trains the demo: a small Smooth InfoMax on synthetic speech, in about two minutes.

Examples:
  accelerate launch -m simdist.train
  accelerate launch -m simdist.train --config configs/sim_librispeech.yaml --data.root data/librispeech
  python -m simdist.train --config configs/gim_librispeech.yaml --config configs/debug.yaml --optim.lr 1e-4

Exit codes: 0 finished, 2 wrong input, 75 preempted and saved (run it again), 130 stopped with Ctrl-C and saved.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    parser = experiment_parser("python -m simdist.train", DESCRIPTION)
    parser.add_argument("--run", type=Path | None, default=None, help="Run folder; default runs/NAME-HASH.")
    parser.add_argument(
        "--force", action="store_true", help="Go on in a run folder although the configuration differs."
    )
    from simdist.engine.world import enter

    config, parsed = parse_experiment(parser, argv, default=DEMO)
    enter(os.environ)  # srun alone becomes a world of processes; contradictory variables end here
    if not parsed.config or [str(path) for path in parsed.config] == [str(DEMO)]:
        _make_demo_data(Path(config.data.root))
    return train(config, parsed.run, parsed.force)


def train(config: Config, folder: Path | None = None, force: bool = False) -> int:
    """Train `config` in `folder`, from its newest checkpoint if it has one; returns the exit code."""
    from dataclasses import replace

    from simdist.engine.accelerator import build_accelerator, resolve_precision
    from simdist.engine.lease import Lease
    from simdist.engine.run import default_folder, open_run
    from simdist.engine.trainer import Trainer
    from simdist.stopping import Stop

    precision = resolve_precision(config.train.precision)
    config = replace(config, train=replace(config.train, precision=precision))
    run = open_run(folder or default_folder(config), config, force)
    accelerator = build_accelerator(precision)
    stop = Stop()
    trainer = Trainer(run, accelerator, stop)
    say = trainer.metrics.say
    if run.is_finished and not force:
        limit = "--train.max_steps" if trainer.timetable.is_cut_short else "--train.epochs"
        say(f"{run.folder} is finished after {trainer.timetable.total_steps} steps; nothing to do")
        say(f"to train it longer: the same command with a larger {limit}, --run {run.folder} --force")
        return EXIT_OK
    with Lease(run.folder) if accelerator.is_main_process else nullcontext() as lease:
        trainer.lease = lease
        return _train_to_the_end(trainer, run, accelerator, stop)


def _train_to_the_end(trainer: Trainer, run: Run, accelerator: Accelerator, stop: Stop) -> int:
    """Resume, train, and write down how it ended; returns the exit code."""
    from simdist.stopping import exit_code

    say = trainer.metrics.say
    for line in trainer.describe():
        say(line)
    step = trainer.resume()
    if accelerator.is_main_process:
        run.write()
        run.event("resumed" if step else "start", step=step, world_size=accelerator.num_processes)
    accelerator.wait_for_everyone()
    say(f"{f'continuing at step {step} in' if run.has_begun else 'writing to'} {run.folder}")
    with stop.installed():
        signal_number = trainer.fit()
    if accelerator.is_main_process:
        run.event("stopped" if signal_number else "finished", step=trainer.step, signal=signal_number)
    if signal_number:
        say(f"stopped at step {trainer.step}, everything is saved; the same command continues")
        return exit_code(signal_number)
    if accelerator.is_main_process:
        run.finish(trainer.step)
        for line in summary(trainer.metrics.lines("train")):
            say(line)
        say(f"run folder: {run.folder}")
        say(f'next, in Python: simdist.load_encoder("{run.folder}").encode(audio)  # audio: (B, 1, T) at 16 kHz')
    accelerator.end_training()
    return EXIT_OK


def summary(lines: list[dict]) -> list[str]:
    """How far each module's loss fell, from the first to the last recorded step."""
    rows = []
    for m in sorted({module["module"] for line in lines for module in line["modules"]}):
        of_module = [module for line in lines for module in line["modules"] if module["module"] == m]
        before, after = of_module[0], of_module[-1]
        rows.append(
            f"module {m}: loss {before['loss']:.3f} -> {after['loss']:.3f}, "
            f"accuracy {before['accuracy']:.2f} -> {after['accuracy']:.2f}"
        )
    return [f"finished: {lines[-1]['step']} steps, {lines[-1]['epoch']:.4g} epochs", *rows]


def _make_demo_data(root: Path) -> None:
    from simdist.data.synthetic import ensure

    ensure(
        root.with_name(root.name + "-source"),
        root,
        speakers=8,
        minutes=8,
        seed=0,
        progress=os.environ.get("LOCAL_RANK", "0") == "0",
    )


if __name__ == "__main__":
    run(main)
