"""Run `simdist.train` as it is, and write the keys that this rank trained on to FILE.RANK."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path

from simdist.core.console import run
from simdist.data.loader import Batch, BatchLoader
from simdist.train import __main__ as train_command


def main() -> None:
    """The command, with `BatchLoader.batches` watched."""
    output, *argv = sys.argv[1:]
    keys: list[str] = []
    batches = BatchLoader.batches

    def recorded_batches(self: BatchLoader, first: int, last: int) -> Iterator[Batch]:
        for batch in batches(self, first, last):
            if self._dataset._clips.split.folder.name == "train":
                keys.extend(str(key) for key in self._dataset._clips.split.index.key[batch.rows])
            yield batch

    BatchLoader.batches = recorded_batches
    try:
        run(train_command.main, argv)
    finally:
        Path(f"{output}.{os.environ['RANK']}").write_text(json.dumps(keys))


if __name__ == "__main__":  # loader workers import this file
    main()
