"""Probe the greedy modules of an encoder: `accelerate launch -m simdist.probe --run-dir RUN --label speaker`.

Whatever needs torch is imported after the command line is parsed, so that `--help` and typing errors answer at once.
"""

from __future__ import annotations

from collections.abc import Sequence

from simdist.config.parser import Parser, add_fields, fields_from
from simdist.core.console import run
from simdist.core.errors import EXIT_OK
from simdist.probe.settings import ProbeSettings

DESCRIPTION = """\
Train simple classifiers (probes) on the frozen features of each greedy module of an encoder, or of layers inside them.

The corpus is encoded once for all modules and the features are cached, so that further probes take seconds. Each result
goes to RUN/probes/NAME/. Finished probes are skipped. Several processes and jobs can work on one run.

Speakers, syllables and vowels are labels of utterances: the frames of an utterance, or of a crop of it, become one
vector (--pooling), which is one example. Phones are labels of frames: every 10 ms are one example.

Examples:
  accelerate launch -m simdist.probe --run-dir runs/sim --label speaker --module 3
  accelerate launch -m simdist.probe --run-dir runs/sim --all --features trained,untrained,mfcc
  accelerate launch -m simdist.probe --run-dir runs/cpc --label phone --module 0 --layer all
  accelerate launch -m simdist.probe --run-dir runs/sim --label phone --probe lbfgs
  accelerate launch -m simdist.probe --run-dir runs/sim --label phone --checkpoints all
  accelerate launch -m simdist.probe --run-dir runs/vgim --label syllable --examples-per-class 1,2,4,8,16,32,64,128
  accelerate launch -m simdist.probe --run-dir runs/vgim --label vowel --pooling max --bias false --module 0
  accelerate launch -m simdist.probe --run-dir runs/vgim --label syllable,vowel --protocol thesis

Exit codes: 0 finished; 1 failed (such as a full disk); 2 wrong input; 75 preempted (run the same command again to
resume); 130 stopped with Ctrl-C. `accelerate launch` turns every code but 0 into 1.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    parser = _parser()
    return probe(fields_from(ProbeSettings, parser, parser.parse_args(argv)))


def probe(settings: ProbeSettings) -> int:
    """Train every requested probe that is not finished; returns the exit code."""
    from simdist.core.signals import SignalHandler, StoppedError, exit_code
    from simdist.probe.command import ProbeCommand
    from simdist.runs.folder import existing_run
    from simdist.training.distributed import build_accelerator
    from simdist.training.hardware import warn_of_cpu

    existing_run(settings.run)  # before joining the other processes, which takes a second
    accelerator, stop = build_accelerator("no"), SignalHandler()
    with stop.installed():
        command = ProbeCommand(settings, accelerator, stop)
        log = command.console.print
        log(f"world size {accelerator.num_processes} on {accelerator.device.type}")
        if accelerator.is_main_process:
            warn_of_cpu(accelerator.device.type, log, command.run.event)
        try:
            tasks = command.work()
        except StoppedError as stopped:
            log("stopped. Finished results are kept; run the same command to resume")
            return exit_code(stopped.signal_number)
    if accelerator.is_main_process:
        command.show(tasks)
    accelerator.end_training()
    return EXIT_OK


def _parser() -> Parser:
    """One option per field of `ProbeSettings`; the sentence below a field is its help."""
    parser = Parser(prog="python -m simdist.probe", description=DESCRIPTION)
    add_fields(parser, ProbeSettings)
    return parser


if __name__ == "__main__":
    run(main)
