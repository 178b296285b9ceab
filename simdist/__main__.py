"""`simdist COMMAND ...` runs `python -m simdist.COMMAND ...` or a command of the launcher."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import ModuleType

from simdist import __version__
from simdist.core.console import fail, run

COMMANDS = {
    "download": "download LibriSpeech, with CPC's splits and phone labels",
    "pack": "pack a corpus into WebDataset shards",
    "train": "train the greedy modules of an encoder",
    "probe": "train classifiers on the features of each greedy module",
    "decode": "train a decoder from a greedy module to the waveform",
    "analyze": "analyze the latents of each greedy module with figures and audio",
    "doctor": "check a machine, a corpus, and a cluster, and suggest fixes",
    "report": "summarize runs in one page with curves and audio, and in tables for a paper",
    "import_reference": "start a run from a checkpoint of the reference implementation",
}
LAUNCHER = {
    "sweep": "expand a sweep into jobs and run the ones that are not done, on SLURM or on this machine",
    "status": "show the progress of sweeps and runs",
    "logs": "show the output of a job",
    "cancel": "cancel a sweep or some of its runs",
}
VIEWERS = ("status", "logs")
HERE = Path(__file__).resolve().parent


def main() -> None:
    """Run the command with the rest of the command line."""
    listing = "\n".join(f"  {name:16} {what}" for name, what in (COMMANDS | LAUNCHER).items())
    if len(sys.argv) < 2 or sys.argv[1] in ("-h", "--help"):
        print(f"usage: simdist COMMAND [--help] ...\n\n{listing}")
        return
    if sys.argv[1] == "--version":
        print(f"simdist {__version__}")
        return
    command = sys.argv[1].replace("-", "_")
    if command in COMMANDS:
        module = importlib.import_module(f"simdist.{command}.__main__")
    elif command in LAUNCHER:
        module = _launcher(command)
    else:
        fail(f"unknown command {sys.argv[1]!r}. Valid: {', '.join(COMMANDS | LAUNCHER)}")
    run(module.main, sys.argv[2:], is_viewer=command in VIEWERS)


def _launcher(command: str) -> ModuleType:
    """A command of the launcher, which is `simdist.launch` in a wheel and `launch` in a clone."""
    if (HERE / "launch").is_dir():
        return importlib.import_module(f"simdist.launch.{command}")
    if not (HERE.parent / "launch" / f"{command}.py").is_file():
        fail(f"this installation has no launcher: {HERE / 'launch'} does not exist. Reinstall simdist")
    sys.path.insert(0, str(HERE.parent))  # before any other package of that name
    return importlib.import_module(f"launch.{command}")


if __name__ == "__main__":
    main()
