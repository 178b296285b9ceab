"""Runs the commands of README and the quickstart in order: from a download to a report, on a corpus of seconds.

Commands are read from the pages. The tests add options that make them cheap (a narrow model, a few steps, one epoch of
a probe) and leave out `accelerate launch`, which starts the same module in another process.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from simdist.config.load import CONFIGS, read_config
from simdist.data.splits import open_split
from simdist.runs.folder import default_folder
from tests.support import ROOT
from tests.support.packing_cases import small_corpus
from tests.support.pages import blocks, commands_of, main_module
from tests.support.published import published

START = [c for page in ("README.md", "docs/get_started/quickstart.md") for c in commands_of(ROOT / page)]
RUN = "runs/sim"
NARROW = ["--config", str(CONFIGS / "debug.yaml"), "--train.max_steps", "6", "--data.crop", "5120"]
SHORT = [
    "--loss.prediction_steps",
    "4",
    "--train.validate_batches",
    "1",
]


def words_of(*begin: str) -> list[str]:
    """The words after MODULE of the only command on the pages that has these words, in this order."""
    found = list(dict.fromkeys(c.words for c in START if " ".join(begin) in " ".join(c.words)))
    assert len(found) == 1, f"README and quickstart have {len(found)} commands with {begin}"
    words = list(found[0])
    return words[words.index("-m") + 2 :] if "-m" in words else words[2:]


def module_main(name: str) -> Callable[[Sequence[str]], int]:
    return importlib.import_module(main_module(name)).main


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("newcomer")


@pytest.fixture(autouse=True)
def in_that_place(place: Path, monkeypatch: pytest.MonkeyPatch, fresh_process: None) -> None:
    del fresh_process
    if not (place / "configs").is_symlink():
        (place / "configs").symlink_to(CONFIGS)
    monkeypatch.chdir(place)


@pytest.fixture
def trained() -> None:
    if not Path(RUN).is_dir():
        pytest.skip("each test of this file needs those before it: run the whole file")


def test_the_demos_run_has_the_name_on_the_page() -> None:
    demo = read_config(CONFIGS / "demo.yaml")
    folder = default_folder(replace(demo, train=replace(demo.train, precision="no")))
    assert words_of(f"simdist.probe --run-dir {folder}")[1] == str(folder)


def test_1_download_and_pack(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    corpus = small_corpus(tmp_path, speakers=4, utterances=6)
    with published(corpus, monkeypatch):
        assert module_main("simdist.download")(words_of("simdist.download librispeech")) == 0
    plain = ("python", "-m", "simdist.pack", "librispeech")
    assert [c.words for c in START].count(plain) == 2, "README and quickstart name it"
    assert module_main("simdist.pack")([*plain[3:], "--workers", "1"]) == 0
    assert len(open_split(Path("data/librispeech"), "train").index) == 20


def test_2_train_and_use(capsys: pytest.CaptureFixture[str]) -> None:
    words = words_of("accelerate launch --mixed_precision bf16 -m simdist.train")
    named = ["--data.root", "data/librispeech", "--run-dir", RUN]
    assert words == ["--config", "configs/sim_librispeech.yaml", *named]
    assert module_main("simdist.train")([*words, *NARROW, *SHORT]) == 0
    assert f"run folder: {RUN}" in capsys.readouterr().out
    assert module_main("simdist.train")([*words, *NARROW, *SHORT]) == 0, "the same command: finished already"
    (example,) = blocks(ROOT / "README.md", "python")
    names = {"audio": torch.zeros(2, 1, 20_480)}
    exec(example.text, names)
    assert names["context"].shape == (2, 128, 16)  # README's encoder has 256 and 512 channels, this one 16
    assert names["latent"].shape == (2, 1023, 16)


@pytest.mark.usefixtures("trained")
def test_3_probe() -> None:
    words = words_of(f"-m simdist.probe --run-dir {RUN}")
    assert words[:2] == ["--run-dir", RUN]
    cheap = ["--epochs", "1", "--crops", "1", "--bootstrap", "10", "--module", "0,3"]
    assert module_main("simdist.probe")([w for w in words if w != "--all"] + ["--label", "speaker", *cheap]) == 0
    results = [json.loads(p.read_text()) for p in Path(RUN, "probes").glob("*/result.json")]
    assert sorted({r["source"]["kind"] for r in results}) == ["mfcc", "trained", "untrained"]
    assert {r["test"]["accuracy"]["value"] * 4 % 1 for r in results} == {0.0}, "four utterances are tested"


@pytest.mark.usefixtures("trained")
def test_4_decode() -> None:
    words = words_of(f"-m simdist.decode --run-dir {RUN}")
    assert module_main("simdist.decode")([*words, "--train.max_steps", "2", "--train.epochs", "1"]) == 0
    folder = Path(RUN, "decoders", "0-mse+mel")
    assert json.loads((folder / "result.json").read_text())["module"] == 0
    assert list((folder / "audio").rglob("*.wav"))
    (example,) = blocks(ROOT / "docs" / "tasks" / "decoders.md", "python")
    Path("runs/vgim").symlink_to(Path(RUN).name)
    names = {"audio": torch.zeros(2, 1, 5120)}
    exec(example.text, names)
    assert names["waveform"].shape == (2, 1, 5120)
    Path("runs/vgim").unlink()


@pytest.mark.usefixtures("trained")
def test_5_analyze() -> None:
    words = words_of("-m simdist.analyze distributions --run-dir")
    assert module_main("simdist.analyze")([*words, "--module", "0", "--clips", "4"]) == 0
    (folder,) = Path(RUN, "analysis").glob("distributions-module0-*")
    values = json.loads((folder / "result.json").read_text())["values"]
    assert values["dimensions"] == 16
    assert np.isfinite(values["kl_nats_per_frame"])


@pytest.mark.usefixtures("trained")
def test_6_report(capsys: pytest.CaptureFixture[str]) -> None:
    assert module_main("simdist.report")(words_of("-m simdist.report runs")) == 0
    table = capsys.readouterr().out.partition("Probes: test accuracy in %")[2]
    results = [json.loads(p.read_text()) for p in Path(RUN, "probes").glob("*/result.json")]
    for value in (result["test"]["accuracy"]["value"] for result in results):
        assert f"{100 * value:.1f}" in table
    assert {"report.md", "summary.csv", "results.csv"} <= {path.name for path in Path("report").iterdir()}


def test_7_sweeps(capsys: pytest.CaptureFixture[str]) -> None:
    words = words_of("launch/sweep.py --cluster local")
    assert module_main("launch.sweep")([*words, "--dry-run"]) == 0
    assert "14 jobs" in capsys.readouterr().out
