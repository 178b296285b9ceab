"""See and hear what a latent holds: `python -m simdist.analyze WHICH --run-dir RUN …`.

Everything that needs torch is imported after the command line was understood, so that `--help` and typing errors
answer at once.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from simdist.analyze import settings as asked
from simdist.config.parser import Parser, add_fields, fields_from
from simdist.core.console import run
from simdist.core.errors import EXIT_OK

LOG_COLUMNS = 160  # of a line in a log file, which has no width of its own

DESCRIPTION = """\
See and hear what each greedy module of a trained encoder holds. Results go to RUN/analysis/NAME/ as JSON and CSV,
figures as PNG and SVG, audio as WAV; the same command does only what is missing. docs/tasks/analyses.md explains each.

  python -m simdist.analyze distributions --run-dir runs/sim
  python -m simdist.analyze contribution --run-dir runs/sim --module 0
  python -m simdist.analyze compare runs/sim runs/gim

Exit codes: 0 finished, 2 wrong input, 75 preempted (run it again), 130 stopped with Ctrl-C.
"""


@dataclasses.dataclass(frozen=True)
class Entry:
    """One analysis as the command line knows it."""

    settings: type[asked.AnalysisSettings]
    short: str
    about: str
    """What it does, with examples."""


ENTRIES = {
    "weights": Entry(
        asked.WeightsSettings,
        "The weights of linear probes: which dimensions say what.",
        """\
The weights of a module's probes without bias: heat map, density (over several runs), the most important dimensions,
and a map of the decisions over the two most important ones.

  python -m simdist.probe --run-dir runs/sim --label vowel --bias false
  python -m simdist.analyze weights --run-dir runs/sim --label vowel
  python -m simdist.analyze weights --run-dir runs/sim --others runs/sim_seed1,runs/sim_seed2""",
    ),
    "contribution": Entry(
        asked.ContributionSettings,
        "How much of the audio the most different dimensions carry (interpolation).",
        """\
The interpolation contribution score: how near a decoded clip comes to another one when only the dimensions in which the
two differ most are taken from it. Needs a decoder.

  python -m simdist.decode --run-dir runs/sim --module 0 --loss mse
  python -m simdist.analyze contribution --run-dir runs/sim --module 0 --clips 200""",
    ),
    "total-correlation": Entry(
        asked.TotalCorrelationSettings,
        "How much the dimensions say about each other.",
        """\
Total correlation of 10, 50, 100 … dimensions, in nats: with Gaussian kernels, and in closed form as if the latent were
Gaussian; each compared with the same estimate of independent dimensions.

  python -m simdist.analyze total-correlation --run-dir runs/sim
  python -m simdist.analyze total-correlation --run-dir runs/sim --latents sampled --frames 4000""",
    ),
    "distributions": Entry(
        asked.DistributionsSettings,
        "Each dimension against N(0, 1): histogram, KS distance, KL, collapse.",
        """\
Each dimension of a variational latent: histogram, Kolmogorov-Smirnov distance to N(0, 1), KL, and whether it is active;
warns of posterior collapse.

  python -m simdist.analyze distributions --run-dir runs/sim --module 0""",
    ),
    "embedding": Entry(
        asked.EmbeddingSettings,
        "t-SNE or UMAP in two dimensions, coloured by label.",
        """\
Time-averaged latents of labelled clips (frames for phones) in two dimensions by t-SNE or UMAP, coloured by label.

  python -m simdist.analyze embedding --run-dir runs/sim --label syllable,vowel
  python -m simdist.analyze embedding --run-dir runs/sim --label phone --examples 3000 --method umap""",
    ),
    "scatter": Entry(
        asked.ScatterSettings,
        "Three latent dimensions, coloured by label.",
        """\
Three latent dimensions of labelled clips in space and in each of its planes, coloured by label.

  python -m simdist.analyze scatter --run-dir runs/sim --label vowel
  python -m simdist.analyze scatter --run-dir runs/sim --label vowel --dimensions 0,5,7""",
    ),
    "traversal": Entry(
        asked.TraversalSettings,
        "Move one dimension and hear what it does.",
        """\
Moves one latent dimension while all others stand, decodes, and writes audio, waveform and spectrum. Needs a decoder.

  python -m simdist.analyze traversal --run-dir runs/sim --module 0
  python -m simdist.analyze traversal --run-dir runs/sim --module 0 --start-at KEY --dimensions 3,17""",
    ),
    "interpolation": Entry(
        asked.InterpolationSettings,
        "Hear the line between two clips' latents.",
        """\
Decodes points on the line between two clips' latents: audio, waveform and spectrum. Needs a decoder.

  python -m simdist.analyze interpolation --run-dir runs/sim --module 0
  python -m simdist.analyze interpolation --run-dir runs/sim --module 0 --keys KEY_A,KEY_B --steps 9""",
    ),
    "samples": Entry(
        asked.SamplesSettings,
        "Hear what is decoded from draws of the prior.",
        """\
Decodes latents drawn from N(0, I): audio, waveform and spectrum. Needs a decoder and a variational module.

  python -m simdist.analyze samples --run-dir runs/sim --module 0 --samples 6""",
    ),
    "disentanglement": Entry(
        asked.DisentanglementSettings,
        "MIG, SAP and DCI on speaker, phone, vowel, …",
        """\
Three scores of how far each dimension belongs to one factor: MIG, SAP and DCI.

  python -m simdist.analyze disentanglement --run-dir runs/sim
  python -m simdist.analyze disentanglement --run-dir runs/sim --label speaker,phone --examples 5000""",
    ),
    "robustness": Entry(
        asked.RobustnessSettings,
        "Probes under noise, and under an adversary's step.",
        """\
Accuracy of a module's trained probes when white noise, or a step along the gradient's sign (FGSM), is added to the
audio, against the signal-to-noise ratio.

  python -m simdist.probe --run-dir runs/sim --label vowel
  python -m simdist.analyze robustness --run-dir runs/sim --label vowel --snr 40,20,10,0""",
    ),
}

COMPARE = """\
Two runs side by side: density of their probes' weights, contribution curves, and total correlation, overlaid. What a
run lacks is analysed first; what lacks a probe or decoder is left out and named.

  python -m simdist.analyze compare runs/sim runs/gim
  python -m simdist.analyze compare runs/sim runs/gim --module 0 --label vowel --clips 100"""


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    parser, subs = _parser()
    parsed = parser.parse_args(argv)
    which, options = parsed.which, parsed[parsed.which]
    kind = asked.CompareSettings if which == "compare" else ENTRIES[which].settings
    settings = fields_from(kind, subs[which], options)
    runs = (Path(options.RUN_A), Path(options.RUN_B)) if which == "compare" else None
    return analyze(which, settings, runs)


def analyze(
    which: str, settings: asked.AnalysisSettings | asked.CompareSettings, runs: tuple[Path, Path] | None = None
) -> int:
    """Do an analysis, or for `compare` those of two `runs`; returns the exit code."""
    from simdist.analyze.extras import optional

    optional("scipy")  # before anything imports it
    from simdist.analyze.command import Command
    from simdist.analyze.compare import compare
    from simdist.core.signals import SignalHandler, StoppedError, exit_code

    console, stop = Console(soft_wrap=True, highlight=False), SignalHandler()
    if not console.is_terminal:
        console.width = LOG_COLUMNS
    with stop.installed():
        try:
            command = Command(console, stop)
            if isinstance(settings, asked.CompareSettings):
                assert runs is not None
                compare(command, *runs, settings)
            else:
                command.work(which, settings)
        except StoppedError as stopped:
            console.print("stopped; what was finished is kept, and the same command continues there")
            return exit_code(stopped.signal_number)
    return EXIT_OK


def _parser() -> tuple[Parser, dict[str, Parser]]:
    parser = Parser(prog="python -m simdist.analyze", description=DESCRIPTION)
    commands, subs = parser.add_subcommands(dest="which", metavar="WHICH"), {}
    for name, entry in ENTRIES.items():
        subs[name] = Parser(description=entry.about)
        add_fields(subs[name], entry.settings)
        commands.add_subcommand(name, subs[name], help=entry.short)
    subs["compare"] = Parser(description=COMPARE)
    subs["compare"].add_argument("RUN_A", type=str, help="Run folder; the comparison is written into its `analysis`.")
    subs["compare"].add_argument("RUN_B", type=str, help="Run folder to compare with.")
    add_fields(subs["compare"], asked.CompareSettings)
    commands.add_subcommand("compare", subs["compare"], help="Two runs side by side.")
    for name, sub in subs.items():
        sub.prog = f"{parser.prog} {name}"  # add_subcommand sets one with "[options]" in it
    return parser, subs


if __name__ == "__main__":
    run(main)
