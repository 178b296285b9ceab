"""Train a decoder of one greedy module: `accelerate launch -m simdist.decode --run-dir RUN --module M --loss LOSS`.

Whatever needs torch is imported after the command line is parsed, so that `--help` and typing errors answer at once.
"""

from __future__ import annotations

import argparse
import itertools
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from simdist.config.decoder import ENCODERS_ONLY, FROM_RUN, DecodingConfig, defaults_for
from simdist.config.load import experiment_parser, read_config, tree_from
from simdist.config.parser import Parser
from simdist.config.schema import RUN_DIR, to_dict
from simdist.core.console import run
from simdist.core.signals import SignalHandler
from simdist.training.start import telling_other_nodes

if TYPE_CHECKING:
    from simdist.runs.folder import Run

CONFIG = "config.yaml"

DESCRIPTION = """\
Train a decoder from the latent of one greedy module of a frozen encoder to the waveform, or from the output of one
layer inside it. It goes to RUN/decoders/MODULE-LOSS/ or RUN/decoders/MODULE-layerLAYER-LOSS/, a folder with the same
files as a run. Run the same command again to resume.

Examples:
  accelerate launch -m simdist.decode --run-dir runs/sim --module 2 --loss mse
  accelerate launch -m simdist.decode --run-dir runs/sim --module 2 --loss mse --untrained
  accelerate launch -m simdist.decode --run-dir runs/cpc --module 0 --layer 2 --loss mse
  accelerate launch -m simdist.decode --run-dir runs/vgim --module 0 --loss mse+mel --train.epochs 100 --optim.lr 1e-3

The results of --untrained go to a folder that ends in -untrained. When both decoders are finished, their result.json
and tables compare them.

Exit codes: 0 finished; 1 failed (full disk, diverging losses, …); 2 wrong input; 75 preempted, hung or
lost a rank (run the same command again to resume); 130 stopped with Ctrl-C and saved. `accelerate launch` turns every
code but 0 into 1.
"""


@telling_other_nodes()
def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    argv = _with_values(sys.argv[1:] if argv is None else argv)
    parser = experiment_parser("python -m simdist.decode", DESCRIPTION, DecodingConfig)
    parser.add_argument(*RUN_DIR, dest="run", type=Path, required=True, help="Run folder of the encoder.")
    parser.add_argument(
        "--force", action="store_true", help="Resume a decoder with changed settings, such as more epochs."
    )
    parser.unlist(*ENCODERS_ONLY)
    _hide(parser, "encoder_weights")
    folder = _named_run(argv)
    if folder is not None and (folder / CONFIG).is_file():
        parser.set_defaults(dict(_leaves(to_dict(defaults_for(read_config(folder / CONFIG))))))
    else:
        parser.say_defaults("the run's", *FROM_RUN)
    parsed = parser.parse_args(argv)
    config = tree_from(parser, parsed, DecodingConfig)
    from simdist.runs.folder import existing_run
    from simdist.training.world import enter

    encoder_run = existing_run(parsed.run)
    stop = SignalHandler(config.train.preempt_signals)
    with stop.installed(interrupt=False):  # a preemption may come while torch is imported
        enter(os.environ)
        return decode(encoder_run, config, stop, parsed.force)


def decode(encoder_run: Run, config: DecodingConfig, stop: SignalHandler, force: bool = False) -> int:
    """Train a decoder, measure it, and print it with the others; returns the exit code."""
    from simdist.decode.command import DecodeCommand

    return DecodeCommand(encoder_run, config, stop, force).work()


def _with_values(argv: Sequence[str]) -> list[str]:
    """A bare `--untrained` means true."""
    words = list(argv)
    return [
        "--untrained=true" if word == "--untrained" and (not after or after.startswith("-")) else word
        for word, after in itertools.zip_longest(words, words[1:], fillvalue="")
    ]


def _named_run(argv: Sequence[str]) -> Path | None:
    """The folder that `--run-dir` names; the other options take their defaults from it."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument(*RUN_DIR, dest="run", type=Path, nargs="?")
    return parser.parse_known_args(argv)[0].run


def _hide(parser: Parser, option: str) -> None:
    for action in parser._actions:
        if action.dest == option:
            action.help = argparse.SUPPRESS


def _leaves(tree: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """`section.key` and value of every leaf."""
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


if __name__ == "__main__":
    run(main)
