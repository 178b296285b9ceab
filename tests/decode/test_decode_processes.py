"""The command in processes of its own: two of them, a killed one, one that is interrupted, one beside another."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from torch import Tensor

from simdist.core.files import read_json_lines
from simdist.runs.checkpoints import finish_saving, latest_checkpoint
from simdist.training.checkpoint import load_checkpoint
from tests.support.forked import Forked, Ranks, Zygote

OPTIONS = (
    "--latents=deterministic",
    "--train.validate_every=0",
    "--train.precision=no",
    "--optim.lr=1e-3",
    "--examples=0",
)


def process(zygote: Zygote, run: Path, *options: str) -> Forked:
    return zygote.command("simdist.decode", f"--run-dir={run}", *OPTIONS, *options)


def finished(running: Forked, code: int = 0) -> str:
    printed, _ = running.communicate()
    assert running.returncode == code, printed
    return printed


def weights(folder: Path) -> dict[str, Tensor]:
    found = latest_checkpoint(folder / "checkpoints", pytest.fail)
    assert found is not None
    return load_checkpoint(found).model


def test_two_processes_learn_what_one_does(run_folder: Path, zygote: Zygote) -> None:
    """Half the batch each, averaged gradients: the same decoder, and the same quality on the same clips."""
    options = ("--module=1", "--train.max_steps=6")
    finished(process(zygote, run_folder, *options))
    alone = run_folder / "decoders" / "1-mse"
    alone.rename(run_folder / "alone")
    codes, printed = Ranks(zygote, "simdist.decode", 2, f"--run-dir={run_folder}", *OPTIONS, *options).end()
    assert codes == [0, 0], printed
    assert "world size 2 on cpu" in printed
    ours, theirs = weights(run_folder / "decoders" / "1-mse"), weights(run_folder / "alone")
    for name in theirs:
        assert torch.allclose(ours[name], theirs[name], atol=1e-5), name
    results = [(folder / "result.json").read_text() for folder in (alone, run_folder / "alone")]
    quality = [json.loads(result)["quality"] for result in results]
    assert quality[0]["mean_signal"] == quality[1]["mean_signal"]
    assert quality[0]["decoder"]["mel"]["value"] == pytest.approx(quality[1]["decoder"]["mel"]["value"], rel=1e-3)


def test_interrupted_killed_and_two_at_once(run_folder: Path, zygote: Zygote) -> None:
    """Ctrl-C saves; a second copy is refused; after `kill -9` the same command goes on from the last checkpoint."""
    options = ("--train.max_steps=50000", "--train.epochs=20000", "--train.checkpoint_every=5", "--train.log_every=1")
    folder = run_folder / "decoders" / "0-mse"
    running = process(zygote, run_folder, *options)
    wait_for(folder, 7, running)
    second = finished(process(zygote, run_folder, *options), code=2)
    assert f"is being trained by process {running.pid} on" in second
    assert "Traceback" not in second
    running.send_signal(signal.SIGINT)
    assert "everything is saved; the same command resumes" in finished(running, code=130)
    stopped = len(read_json_lines(folder / "metrics.jsonl"))
    running = process(zygote, run_folder, *options)
    wait_for(folder, stopped + 7, running)
    running.kill()
    running.communicate()
    finish_saving(folder / "checkpoints")  # as the next start does: the kill may have come before the last rename
    found = latest_checkpoint(folder / "checkpoints", pytest.fail)
    assert found is not None
    kept = int(found.name.removeprefix("step_"))
    assert kept >= stopped
    printed = finished(process(zygote, run_folder, *options, f"--train.max_steps={kept + 2}", "--force"))
    assert f"resuming at step {kept} in" in printed
    steps = [line["step"] for line in read_json_lines(folder / "metrics.jsonl") if line["kind"] == "train"]
    assert steps == list(range(1, kept + 3))


def wait_for(folder: Path, lines: int, running: Forked) -> None:
    while len(read_json_lines(folder / "metrics.jsonl")) < lines:
        assert running.poll() is None, running.communicate()[0]
        time.sleep(0.1)


def test_help_is_quick_and_imports_no_torch() -> None:
    code = "import sys, simdist.decode.__main__ as d\ntry: d.main(['--help'])\nexcept SystemExit: pass\n"
    code += "assert 'torch' not in sys.modules"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "accelerate launch -m simdist.decode --run-dir" in shown
    for field in ("--loss", "--untrained", "--data.crop", "--train.epochs"):
        assert field in shown
    assert "encoder_weights" not in shown
