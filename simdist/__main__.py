"""`simdist COMMAND …` is `python -m simdist.COMMAND …`."""

from __future__ import annotations

import importlib
import sys

from simdist import __version__
from simdist.cli import fail, run

COMMANDS = {
    "download": "LibriSpeech, with CPC's splits and phone labels",
    "pack": "a corpus becomes WebDataset shards",
    "train": "train the greedy modules of an encoder",
    "probe": "train simple classifiers on what each greedy module says",
    "decode": "train a decoder of one greedy module, back to the waveform",
    "analyze": "see and hear what a latent holds",
    "doctor": "is this machine, corpus and cluster ready? with remedies",
    "report": "runs become one page with curves and sound, and tables for a paper",
    "import_upstream": "begin a run from a checkpoint of the authors' code",
}


def main() -> None:
    """Hand the rest of the command line to the command's own module."""
    listing = "\n".join(f"  {name:16} {what}" for name, what in COMMANDS.items())
    if len(sys.argv) < 2 or sys.argv[1] in ("-h", "--help"):
        print(f"usage: simdist COMMAND [--help] …\n\n{listing}")
        return
    if sys.argv[1] == "--version":
        print(f"simdist {__version__}")
        return
    command = sys.argv[1].replace("-", "_")
    if command not in COMMANDS:
        fail(f"unknown command {sys.argv[1]!r}; the commands are {', '.join(COMMANDS)}")
    run(importlib.import_module(f"simdist.{command}").main, sys.argv[2:])


if __name__ == "__main__":
    main()
