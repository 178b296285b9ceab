"""Train an encoder: `accelerate launch -m simdist.train --config FILE`.

Everything that needs torch is imported after the command line was understood, so that `--help` and typing errors
answer at once.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from simdist.config.load import CONFIGS, experiment_parser, parse_experiment, read_yaml
from simdist.config.schema import RUN_DIR, Config
from simdist.core.console import run
from simdist.core.errors import EXIT_OK
from simdist.core.signals import SignalHandler
from simdist.runs.records import MetricsRecord
from simdist.training.start import telling_other_nodes

DEMO = CONFIGS / "demo.yaml"
DESCRIPTION = """\
Train the greedy modules of an encoder. Run the same command again to resume.

Without --config this trains the demo, a small Smooth InfoMax on synthetic speech, in about two minutes: it reads
configs/demo.yaml, whose values replace the defaults listed below. Those are Smooth InfoMax on LibriSpeech; every file
of --config is a list of differences from them. --print_config shows the values of a command line.

Examples:
  accelerate launch -m simdist.train
  accelerate launch -m simdist.train --config configs/sim_librispeech.yaml --data.root data/librispeech
  python -m simdist.train --config configs/gim_librispeech.yaml --config configs/debug.yaml --optim.lr 1e-4
  python -m simdist.train --model.modules '[{layers: [{kernel: 10, stride: 5, padding: 2}]}, {gru: true}]'
  python -m simdist.train --profile   # where does a step's time go? A table, and a trace for ui.perfetto.dev

Exit codes: 0 finished; 1 failed (full disk, diverging losses, …); 2 wrong input; 75 preempted, hung or
lost a rank (run the same command again to resume); 130 stopped with Ctrl-C and saved. `accelerate launch` turns every
code but 0 into 1.
"""


@telling_other_nodes()
def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    parser = experiment_parser("python -m simdist.train", DESCRIPTION)
    parser.add_argument(
        *RUN_DIR, dest="run", type=Path | None, default=None, help="Run folder. Default: runs/NAME-HASH."
    )
    parser.add_argument("--force", action="store_true", help="Resume a run with a changed configuration.")
    parser.add_argument(
        "--profile", action="store_true", help="Print where a step's time goes and write RUN/profile/trace.json."
    )
    parser.add_argument(
        "--stages-from",
        type=Path | None,
        default=None,
        help="Finished stagewise run that has the lower modules of this one, with the same settings and seed: take its "
        "stages over instead of training them again. The result is the same. Sweeps do this by themselves.",
    )
    from simdist.training.world import enter

    # torch asks Linux for huge pages then: on a CPU, a fifth of a small model's step goes to page faults without them
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    config, parsed = parse_experiment(parser, argv, default=DEMO)
    stop = SignalHandler(config.train.preempt_signals)
    with stop.installed(interrupt=False):  # a preemption may come while torch is imported
        enter(os.environ)  # srun alone becomes a world of processes; contradictory variables end here
        if config.data.root == read_yaml(DEMO)["data"]["root"]:  # a corpus of somebody's own is never made up
            _make_demo_data(Path(config.data.root))
        return train(config, parsed.run, parsed.force, stop, parsed.profile, parsed.stages_from)


def train(
    config: Config,
    folder: Path | None = None,
    force: bool = False,
    stop: SignalHandler | None = None,
    profile: bool = False,
    stages_from: Path | None = None,
) -> int:
    """Train `config` in `folder`, from its newest checkpoint if it has one; returns the exit code."""
    from simdist.runs.folder import default_folder, open_run, saved_precision, with_precision
    from simdist.train.encoder_task import EncoderTask
    from simdist.train.trunk import with_trunk_name
    from simdist.training.distributed import resolve_precision
    from simdist.training.lifecycle import build_process, lifecycle
    from simdist.training.trainer import Trainer

    wanted = config.train.precision
    precision = resolve_precision(wanted, saved_precision(config, folder))
    config = with_trunk_name(with_precision(config, precision), folder)
    run = open_run(folder or default_folder(config), config, force)
    process = build_process(run, stop or SignalHandler(), wanted)
    trainer = Trainer(run, EncoderTask(run, process, stages_from), process)
    log = trainer.metrics.log
    if run.is_finished and not force:
        limit = "--train.max_steps" if trainer.schedule.is_cut_short else "--train.epochs"
        log(f"{run.folder} is finished after {trainer.schedule.total_steps} steps; nothing to do")
        log(f"to train it longer: the same command with a larger {limit}, --run-dir {run.folder} --force")
        return EXIT_OK
    if profile and process.accelerator.is_main_process:
        from simdist.training.profiler import StepProfile

        trainer.profile = StepProfile(run.folder / "profile", trainer.task.modules, process.accelerator.device, log)
    with lifecycle(trainer, process) as ending:
        trainer.fit()
    if trainer.profile is not None:
        trainer.profile.close()
    if ending.exit_code == EXIT_OK and process.accelerator.is_main_process:
        for line in summary(trainer.metrics.records("train")):
            log(line)
        log(f"run folder: {run.folder}")
        log(f"next: accelerate launch -m simdist.probe --run-dir {run.folder} --all")
        log(f'in Python: simdist.load_encoder("{run.folder}").encode(audio)  # audio: (B, 1, T) at 16 kHz')
    return ending.exit_code


def summary(records: Sequence[MetricsRecord]) -> list[str]:
    """How far each module's loss fell, from the first to the last recorded step."""
    measured: dict[int, list[tuple[float, float]]] = {}
    for record in records:
        for m, module in record.by_module().items():
            if module.loss is not None and module.accuracy is not None:
                measured.setdefault(m, []).append((module.loss, module.accuracy))
    rows = [
        f"module {m}: loss {found[0][0]:.3f} -> {found[-1][0]:.3f}, accuracy {found[0][1]:.2f} -> {found[-1][1]:.2f}"
        for m, found in sorted(measured.items())
    ]
    return [*(f"finished: {record.step} steps, {record.epoch:.4g} epochs" for record in records[-1:]), *rows]


def _make_demo_data(root: Path) -> None:
    from simdist.pack.synthetic import ensure

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
