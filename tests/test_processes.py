"""Several real processes: resumed bit for bit, on another number of them, ended together by what one of them met."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from simdist.config.load import CONFIGS
from simdist.core.files import read_json_lines
from simdist.training.checkpoint import load_checkpoint

CODE = (
    "import sys; from simdist.core.console import run; from simdist.train.__main__ import main; run(main, sys.argv[1:])"
)


class Ranks:
    """A world of processes of `simdist.train`, started as a launcher would, so that each can be signalled by itself."""

    def __init__(self, size: int, *argv: str, before: str = "") -> None:
        world = {
            "WORLD_SIZE": str(size),
            "LOCAL_WORLD_SIZE": str(size),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(free_port()),
        }
        common = os.environ | {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true", **(world if size > 1 else {})}
        self.processes = [
            subprocess.Popen(
                [sys.executable, "-c", before + CODE, *argv],
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                env=common | ({"RANK": str(rank), "LOCAL_RANK": str(rank)} if size > 1 else {}),
            )
            for rank in range(size)
        ]

    def end(self) -> tuple[list[int], str]:
        """Exit codes, and what rank 0 printed."""
        printed = [process.communicate(timeout=300)[0] for process in self.processes]
        return [process.returncode for process in self.processes], printed[0]


def free_port() -> int:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def command(speech: Path, folder: Path, *more: str) -> list[str]:
    return [
        *("--config", str(CONFIGS / "sim_librispeech.yaml"), "--config", str(CONFIGS / "debug.yaml")),
        *("--data.crop=5120", "--loss.prediction_steps=4", "--data.num_workers=1", f"--data.root={speech}"),
        *("--train.log_every=1", "--train.validate_every=0.5", "--train.precision=no", f"--run-dir={folder}", *more),
    ]


def weights(folder: Path, step: int) -> dict[str, torch.Tensor]:
    return load_file(folder / "checkpoints" / f"step_{step:08d}" / "model.safetensors")


def losses(folder: Path) -> dict[int, list[float]]:
    recorded = read_json_lines(folder / "metrics.jsonl")
    return {line["step"]: [m["loss"] for m in line["modules"]] for line in recorded if line["kind"] == "train"}


def wait_for_lines(ranks: Ranks, folder: Path, count: int) -> None:
    while len(read_json_lines(folder / "metrics.jsonl")) < count:
        assert all(process.poll() is None for process in ranks.processes), ranks.end()
        time.sleep(0.05)


def test_stopped_by_a_signal_to_one_rank_and_resumed(speech: Path, tmp_path: Path) -> None:
    """SIGUSR2 to rank 1 alone; then on two processes bit for bit as if never stopped, and on one with the same data."""
    argv = command(speech, tmp_path / "run", "--train.max_steps=60")
    ranks = Ranks(2, *argv)
    wait_for_lines(ranks, tmp_path / "run", 4)
    ranks.processes[1].send_signal(signal.SIGUSR2)
    codes, printed = ranks.end()
    assert codes == [75, 75], printed
    found = re.search(r"stopped at step (\d+), everything is saved", printed)
    assert found, printed
    step = int(found[1])
    assert 0 < step < 60
    shutil.copytree(tmp_path / "run", tmp_path / "alone")
    assert Ranks(2, *argv).end()[0] == [0, 0]
    rest = ("--train.max_steps=60", "--data.num_workers=0")  # which changes no number
    whole, alone = (Ranks(2 - n, *command(speech, tmp_path / ("whole", "alone")[n], *rest)) for n in range(2))
    assert whole.end()[0] == [0, 0]
    assert alone.end()[0] == [0]
    expected, resumed = weights(tmp_path / "whole", 60), weights(tmp_path / "run", 60)
    assert all(torch.equal(expected[name], resumed[name]) for name in expected)
    assert losses(tmp_path / "run") == losses(tmp_path / "whole")
    elastic = losses(tmp_path / "alone")
    assert sorted(elastic) == list(range(1, 61))
    for number in range(step + 1, 61):  # other negatives and batch statistics, the same clips and the same curve
        assert elastic[number] == pytest.approx(losses(tmp_path / "whole")[number], rel=0.3)
    last = tmp_path / "alone" / "checkpoints" / "step_00000060"
    assert load_checkpoint(last).consumed == load_checkpoint(tmp_path / "whole" / "checkpoints" / last.name).consumed


def test_what_one_rank_cannot_read_ends_all_with_its_message(speech: Path, tmp_path: Path) -> None:
    """Rank 1 finds the data folder's shards gone; rank 0 has them open, and would wait for it in a collective."""
    root = Path(shutil.copytree(speech, tmp_path / "shards"))
    script = (
        "import os, sys; from simdist.data.crops import CropReader; from simdist.core.errors import InputError\n"
        "def gone(self, row, start, count): raise InputError('shard x cannot be opened')\n"
        "read, n = CropReader.read, [0]\n"
        "def failing(self, *where):\n"
        "    n[0] += 1\n"
        "    return gone(self, *where) if os.environ['RANK'] == '1' and n[0] > 20 else read(self, *where)\n"
        "CropReader.read = failing\n"
    )
    argv = command(root, tmp_path / "run", "--train.max_steps=60", "--train.validate_every=0", "--data.num_workers=0")
    codes, printed = Ranks(2, *argv, before=script).end()
    assert codes == [2, 2], printed
    assert "error: shard x cannot be opened" in printed
    assert "Traceback" not in printed
    kept = [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()]
    assert kept == ["step_00000010"]  # 20 clips were read: what was trained on them is not lost
