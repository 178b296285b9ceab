"""The worked examples of docs/adding_*.md, taken from the pages and run as they say."""

from __future__ import annotations

import importlib
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from simdist.analyze import __main__ as analyze
from simdist.analyze import command, registry
from simdist.config.load import CONFIGS, read_config
from simdist.config.schema import Config
from simdist.data.splits import open_split
from simdist.loading import load_encoder
from simdist.train.__main__ import train
from tests.support import ROOT
from tests.support.pages import commands_of, file_of


def run(folder: Path, *words: str, code: Path = ROOT) -> str:
    """Run `python WORDS` in a folder with simdist of `code`; returns what it printed."""
    environ = os.environ | {"PYTHONPATH": str(code)}
    command = [sys.executable, *words]
    ended = subprocess.run(command, cwd=folder, env=environ, capture_output=True, text=True, timeout=600)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


def test_a_corpus(tmp_path: Path) -> None:
    """WAV files of three speakers at 22.05 kHz become shards at 16 kHz, a tenth held out of each."""
    (tmp_path / "speakers.py").write_text(file_of("adding_a_corpus.md", "speakers.py"))
    for s, name in enumerate(("anna", "bert", "bo")):
        (tmp_path / "recordings" / name).mkdir(parents=True)
        for u in range(10):
            tone = 0.5 * np.sin(2 * np.pi * (200 + 100 * s) * np.arange(44_100) / 22_050)
            soundfile.write(tmp_path / "recordings" / name / f"{u:03}.wav", tone, 22_050, subtype="PCM_16")
    shown = next(c for c in commands_of(ROOT / "docs" / "tasks" / "adding_a_corpus.md") if "speakers.py" in c.words)
    assert shown.words == ("python", "speakers.py", "recordings", "data/speakers")
    said = run(tmp_path, *shown.words[1:])
    assert said.split("\n")[-3:] == ["data/speakers/train: 27 utterances", "data/speakers/test: 3 utterances", ""]
    root = tmp_path / "data" / "speakers"
    train_split, test_split = open_split(root, "train"), open_split(root, "test")
    assert (len(train_split.index), len(test_split.index)) == (27, 3)
    assert train_split.manifest.labels == {"first_letter": ["a", "b"], "speaker": ["anna", "bert", "bo"]}
    assert sorted(test_split.index.labels["first_letter"].tolist()) == [0, 1, 1]
    assert set(train_split.index.num_samples.tolist()) == {32_000}
    with tarfile.open(train_split.shard_path(0)) as tar:
        member = tar.extractfile(f"{train_split.index.key[0]}.flac")
        assert member is not None
        audio, rate = soundfile.read(io.BytesIO(member.read()))
    assert rate == 16_000
    pitch = 200 + 100 * int(train_split.index.labels["speaker"][0])
    assert abs(np.argmax(np.abs(np.fft.rfft(audio))) * rate / len(audio) - pitch) < 1


def small(config: Config, root: Path) -> Config:
    """Of a config, what trains in a second: the stack stays as it is, but narrow."""
    data = replace(config.data, root=str(root), batch_size=4, num_workers=0)
    model = replace(config.model, width=8, context_width=8)
    return replace(
        config,
        data=data,
        model=model,
        train=replace(config.train, max_steps=3, validate_every=0, log_every=1, precision="no"),
    )


@pytest.mark.usefixtures("fresh_process")
def test_another_stack(speech: Path, tmp_path: Path) -> None:
    (tmp_path / "five_modules.yaml").write_text(file_of("adding_a_module.md", "five_modules.yaml"))
    config = read_config(CONFIGS / "sim_librispeech.yaml", tmp_path / "five_modules.yaml")
    assert config.model.width == 256
    assert config.model.num_frames(20_480) == [4095, 1023, 257, 128, 128]
    assert train(small(config, speech), tmp_path / "run") == 0
    encoder = load_encoder(tmp_path / "run")
    assert len(encoder.stack) == 5
    assert [module.steps for module in encoder.stack] == [10, 10, 12, 10, 10]
    assert modules_in_metrics(tmp_path / "run") == [0, 1, 2, 3, 4]


@pytest.mark.usefixtures("fresh_process")
def test_other_modules_on_a_trunk(speech: Path, tmp_path: Path) -> None:
    (tmp_path / "wide_top.yaml").write_text(file_of("adding_a_module.md", "wide_top.yaml"))
    base = read_config(CONFIGS / "sim_librispeech.yaml")
    assert train(small(base, speech), tmp_path / "sim") == 0
    config = small(read_config(CONFIGS / "sim_librispeech.yaml", tmp_path / "wide_top.yaml"), speech)
    taken = {"trunk": str(tmp_path / "sim"), "trunk_modules": 2, "cache_latents": True}
    assert train(replace(config, train=replace(config.train, **taken)), tmp_path / "top") == 0
    assert modules_in_metrics(tmp_path / "top") == [2, 3]
    assert len(load_encoder(tmp_path / "top").stack) == 4
    assert list((tmp_path / "sim" / "latents").glob("module_1-*/train/*.tar"))


def modules_in_metrics(folder: Path) -> list[int]:
    """Those of the last line of a run's metrics; each with a finite loss."""
    last = json.loads((folder / "metrics.jsonl").read_text().splitlines()[-1])
    assert all(np.isfinite(module["loss"]) for module in last["modules"])
    return [module["module"] for module in last["modules"]]


CHECK = """
import torch
from simdist.config.schema import LayerConfig
from simdist.models.module import AvgPool
x = torch.randn(2, 12, 3)  # (B, L, C)
means = torch.stack([x[:, i : i + 4].mean(dim=1) for i in (0, 4, 8)], dim=1)
assert torch.allclose(AvgPool(LayerConfig(4, 4, kind="avgpool"))(x), means, atol=1e-6)
from pathlib import Path
from simdist.config.load import read_config
from simdist.train.__main__ import train
import sys
sys.path.insert(0, sys.argv[1])
from tests.docs.test_adding_pages import small
config = read_config(sys.argv[2] + "/configs/sim_librispeech.yaml", "averaged.yaml")
print(config.model.num_frames(20_480))
assert train(small(config, Path(sys.argv[3])), Path("run")) == 0
"""


def test_another_kind_of_layer(speech: Path, tmp_path: Path) -> None:
    """The diff on the page fits the code as it is, averages, trains, and its costs can be counted."""
    shutil.copytree(ROOT / "simdist", tmp_path / "clone" / "simdist", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("avgpool.diff", "averaged.yaml"):
        (tmp_path / "clone" / name).write_text(file_of("adding_a_module.md", name))
    apply = next(c.words for c in commands_of(ROOT / "docs" / "tasks" / "adding_a_module.md") if c.words[0] == "git")
    applied = subprocess.run([*apply, "--verbose"], cwd=tmp_path / "clone", capture_output=True, text=True)
    assert applied.returncode == 0, applied.stderr
    paths = (str(ROOT), str(ROOT), str(speech))
    said = run(tmp_path / "clone", "-c", CHECK, *paths, code=tmp_path / "clone")
    assert "[255, 127, 127]" in said
    assert modules_in_metrics(tmp_path / "clone" / "run") == [0, 1, 2]


@pytest.mark.usefixtures("fresh_process")
def test_an_analysis(
    speech: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its numbers are those of the definition, and the command around it does what it does for every analysis."""
    config = small(read_config(CONFIGS / "sim_librispeech.yaml"), speech)
    assert train(config, tmp_path / "runs" / "sim") == 0
    (tmp_path / "slowness.py").write_text(file_of("adding_an_analysis.md", "slowness.py"))
    first, second = (c.words for c in commands_of(ROOT / "docs" / "tasks" / "adding_an_analysis.md"))
    assert "of 8 dimensions are slow" in run(tmp_path, *first[1:])
    folders = sorted((tmp_path / "runs" / "sim" / "analysis").glob("slowness-module*"))
    assert [folder.name[:16] for folder in folders] == [f"slowness-module{m}" for m in range(4)]
    result = json.loads((folders[0] / "result.json").read_text())
    assert result["settings"]["slow_below"] == 0.1
    assert sorted(result["files"]) == ["slowness.csv", "slowness.png", "slowness.svg"]

    from simdist.analyze.encoder_under_test import choose_clips, open_encoder
    from simdist.analyze.settings import ClipSettings

    settings = ClipSettings(run=tmp_path / "runs" / "sim")
    clips = choose_clips(open_encoder(settings), settings)
    audio = clips.audio(slice(None), torch.device("cpu"))
    mu = load_encoder(tmp_path / "runs" / "sim").eval().encode(audio, module=0).double().numpy()  # (N, L, C)
    expected = np.square(np.diff(mu, axis=1)).mean(axis=(0, 1)) / (2 * mu.var(axis=(0, 1), ddof=1))
    np.testing.assert_allclose(result["values"]["change"], expected, rtol=1e-3)
    assert result["values"]["slow"] == int((expected < 0.1).sum())

    monkeypatch.setattr(registry, "ANALYSES", dict(registry.ANALYSES))
    monkeypatch.setattr(analyze, "ANALYSES", registry.ANALYSES)
    monkeypatch.setattr(command, "ANALYSES", registry.ANALYSES)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.chdir(tmp_path)
    importlib.import_module("slowness")
    assert analyze.main(second[2:]) == 0
    assert "already done" not in capsys.readouterr().out, "another option is another result"
    assert analyze.main(second[2:]) == 0
    assert "already done" in capsys.readouterr().out
    assert len(list((tmp_path / "runs" / "sim" / "analysis").glob("slowness-module0*"))) == 2
