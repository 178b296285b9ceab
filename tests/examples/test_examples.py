"""The scripts in examples/, run as a newcomer runs them, on a corpus and models that take seconds."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

from simdist.data.splits import open_split
from tests.support import ROOT

NARROW = {"model.width": 8, "model.context_width": 8, "data.num_workers": 0, "train.max_steps": 4}
EXAMPLES = sorted(path.name for path in (ROOT / "examples").glob("*.py"))


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("examples")


def run(place: Path, name: str, *words: str) -> str:
    """Run examples/NAME in a folder; returns what it printed."""
    command = [sys.executable, str(ROOT / "examples" / name), *words]
    environ = os.environ | {"PYTHONPATH": str(ROOT)}
    ended = subprocess.run(command, cwd=place, env=environ, capture_output=True, text=True, timeout=600)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout


def test_train_on_your_audio(place: Path) -> None:
    """Tones of three speakers at 22.05 kHz: a tenth of each is held out, and the same command does nothing again."""
    rng = np.random.default_rng(0)
    for speaker, pitch in (("anna", 150), ("bert", 250), ("bo", 400)):
        (place / "recordings" / speaker).mkdir(parents=True)
        for number in range(10):
            tone = 0.5 * np.sin(2 * np.pi * pitch * np.arange(44_100) / 22_050) + 0.01 * rng.standard_normal(44_100)
            soundfile.write(place / "recordings" / speaker / f"{number:03}.wav", tone, 22_050, subtype="PCM_16")
    words = ["recordings", *(word for key, value in NARROW.items() for word in (f"--{key}", str(value)))]
    assert "a context of shape (1, 100, 8)" in run(place, "train_on_your_audio.py", *words)
    splits = [open_split(place / "data" / "recordings", name) for name in ("train", "test")]
    assert [len(split.index) for split in splits] == [27, 3]
    assert splits[0].manifest.labels["speaker"] == ["anna", "bert", "bo"]
    metrics = (place / "runs" / "recordings" / "metrics.jsonl").read_text()
    run(place, "train_on_your_audio.py", *words)
    assert (place / "runs" / "recordings" / "metrics.jsonl").read_text() == metrics


def test_probe_and_plot(place: Path) -> None:
    """It prints what the results hold, for every module; the run is that of the test above."""
    folder = place / "runs" / "recordings"
    if not folder.is_dir():
        pytest.skip("needs the run of test_train_on_your_audio: run the whole file")
    said = run(place, "probe_and_plot.py", str(folder), "speaker", "--crops", "2", "--bootstrap", "20")
    results = [json.loads(path.read_text()) for path in folder.glob("probes/*/result.json")]
    assert sorted((r["source"]["kind"], r["source"]["module"]) for r in results) == [
        (kind, module) for kind in ("trained", "untrained") for module in range(4)
    ]
    for result in results:
        line = next(line for line in said.splitlines() if line.startswith(result["source"]["kind"] + ":"))
        assert f"module {result['source']['module']} {100 * result['test']['accuracy']['value']:.1f} %" in line
    assert (place / "speaker.png").read_bytes().startswith(b"\x89PNG")


def test_sweep_on_a_cluster(place: Path) -> None:
    """With the local scheduler: a value, two seeds, and a table with both; the second command runs no job."""
    words = ["local", "--jobs", "2", "grid.loss.beta=[0.01]", *(f"{key}={value}" for key, value in NARROW.items())]
    said = run(place, "sweep_on_a_cluster.py", *words)
    runs = sorted(path.parent.name for path in (place / "runs").glob("beta*/DONE"))
    assert len(runs) == 2
    assert [line for line in said.splitlines() if line.startswith("| speaker | trained | lbfgs | 2 |")]
    assert (place / "sweeps" / "beta" / "report" / "report.html").is_file()
    times = {path: path.stat().st_mtime_ns for path in (place / "runs").glob("beta*/metrics.jsonl")}
    run(place, "sweep_on_a_cluster.py", *words)
    assert {path: path.stat().st_mtime_ns for path in times} == times


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_is_short_and_tested(name: str) -> None:
    assert len((ROOT / "examples" / name).read_text().splitlines()) < 60
    assert f'"{name}"' in Path(__file__).read_text()
