"""Analyze a latent: `python -m simdist.analyze WHICH --run-dir RUN …`.

Whatever needs torch is imported after the command line is parsed, so that `--help` and typing errors answer at once.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from simdist.analyze.registry import ANALYSES
from simdist.analyze.settings import AnalysisSettings, CompareSettings
from simdist.config.parser import Parser, add_fields, fields_from
from simdist.core.console import run
from simdist.core.errors import EXIT_OK, InputError

LOG_COLUMNS = 160  # width of a line in a log file

DESCRIPTION = """\
Analyze the latent of each greedy module of a trained encoder. Results go to RUN/analysis/NAME/: values as JSON and CSV,
figures as PNG and SVG, audio as WAV. Finished results are not computed again. docs/tasks/analyses.md explains each
analysis.

  python -m simdist.analyze distributions --run-dir runs/sim
  python -m simdist.analyze contribution --run-dir runs/sim --module 0
  python -m simdist.analyze compare runs/sim runs/gim

Exit codes: 0 finished; 1 failed (such as a full disk); 2 wrong input; 75 preempted (run the same command again to
resume); 130 stopped with Ctrl-C.
"""


COMPARE = """\
Compare two runs: density of their probe weights, contribution curves and total correlation in common plots. Missing
analyses are run first. Those that lack a probe or a decoder are skipped, and listed.

  python -m simdist.analyze compare runs/sim runs/gim
  python -m simdist.analyze compare runs/sim runs/gim --module 0 --label vowel --clips 100"""


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    parser, subs = _parser()
    parsed = parser.parse_args(argv)
    if os.environ.get("WORLD_SIZE", "1") != "1":  # each rank would do, and write, everything
        raise InputError("simdist.analyze runs in one process. Start it with `python -m simdist.analyze`")
    which, options = parsed.which, parsed[parsed.which]
    kind = CompareSettings if which == "compare" else ANALYSES[which].settings
    settings = fields_from(kind, subs[which], options)
    runs = (Path(options.RUN_A), Path(options.RUN_B)) if which == "compare" else None
    return analyze(which, settings, runs)


def analyze(which: str, settings: AnalysisSettings | CompareSettings, runs: tuple[Path, Path] | None = None) -> int:
    """Run an analysis, or for `compare` those of two `runs`; returns the exit code."""
    from simdist.analyze.extras import optional

    optional("scipy")  # before anything imports it
    from simdist.analyze.command import AnalyzeCommand
    from simdist.analyze.compare import compare
    from simdist.core.signals import SignalHandler, StoppedError, exit_code

    console, stop = Console(soft_wrap=True, highlight=False), SignalHandler()
    if not console.is_terminal:
        console.width = LOG_COLUMNS
    with stop.installed():
        try:
            command = AnalyzeCommand(console, stop)
            if isinstance(settings, CompareSettings):
                assert runs is not None
                compare(command, *runs, settings)
            else:
                command.work(which, settings)
        except StoppedError as stopped:
            console.print("stopped. Finished results are kept; run the same command to resume")
            return exit_code(stopped.signal_number)
    return EXIT_OK


def _parser() -> tuple[Parser, dict[str, Parser]]:
    parser = Parser(prog="python -m simdist.analyze", description=DESCRIPTION)
    commands, subs = parser.add_subcommands(dest="which", metavar="WHICH"), {}
    for name, entry in ANALYSES.items():
        subs[name] = Parser(description=entry.about)
        add_fields(subs[name], entry.settings)
        subs[name].unlist(*entry.unlisted)
        commands.add_subcommand(name, subs[name], help=entry.short)
    subs["compare"] = Parser(description=COMPARE)
    subs["compare"].add_argument("RUN_A", type=str, help="Run folder; the comparison goes to its folder `analysis`.")
    subs["compare"].add_argument("RUN_B", type=str, help="Run folder to compare with.")
    add_fields(subs["compare"], CompareSettings)
    commands.add_subcommand("compare", subs["compare"], help="Compare two runs.")
    for name, sub in subs.items():
        sub.prog = f"{parser.prog} {name}"  # add_subcommand sets one with "[options]" in it
    return parser, subs


if __name__ == "__main__":
    run(main)
