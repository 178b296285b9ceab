"""All benchmarks in one table: `make bench`, or

    OMP_NUM_THREADS=2 python -m benchmarks [--artificial data/artificial] [--source LIBRISPEECH] [--rounds 5]

`--artificial` are packed shards of the artificial speech, `--source` a folder in LibriSpeech's layout; synthetic speech
stands in for either. It takes about five minutes on two idle cores. On a machine with a GPU, `python -m benchmarks.gpu`
has a table of its own.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks import loader, result, start, step
from benchmarks.outcomes import Outcome, show
from simdist.config.load import CONFIGS, read_config
from simdist.config.schema import Config
from simdist.pack.synthetic import ensure


@contextmanager
def thesis(root: Path) -> Iterator[Config]:
    """`vgim_thesis` on the artificial speech in `root`, or on synthetic speech if it is not there."""
    config = read_config(CONFIGS / "vgim_thesis.yaml")
    with TemporaryDirectory() as folder:
        if not root.is_dir():
            made, root = Path(folder, "made"), Path(folder, "shards")
            with contextlib.redirect_stdout(io.StringIO()):
                ensure(made, root, speakers=8, minutes=16, seed=0, progress=False)
            config = replace(config, name="vgim_thesis on synthetic speech")
        yield replace(config, data=replace(config.data, root=str(root), cache="memory"))


def everything(artificial: Path, source: Path | None, rounds: int) -> list[Outcome]:
    """Every number that has a target on a CPU."""
    outcomes = step.outcomes(read_config(CONFIGS / "sim_librispeech.yaml"), rounds)
    outcomes += loader.measure(source, crops=200 * rounds)
    with thesis(artificial) as config:
        outcomes += result.outcomes(config, steps=12 * rounds)
        outcomes += start.outcomes(replace(config, name="vgim_thesis"))
    return outcomes


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--artificial", type=Path, default=Path("data/artificial"), help="packed artificial speech")
    parser.add_argument("--source", type=Path, help="a folder in LibriSpeech's layout")
    parser.add_argument("--rounds", type=int, default=5, help="how often each step is timed")
    arguments = parser.parse_args()
    threads, (load, _, _) = os.environ.get("OMP_NUM_THREADS", "all"), os.getloadavg()
    title = f"{os.cpu_count()} cores, OMP_NUM_THREADS={threads}, load average {load:.1f} at the start"
    show(title, everything(arguments.artificial, arguments.source, arguments.rounds))


if __name__ == "__main__":
    main()
