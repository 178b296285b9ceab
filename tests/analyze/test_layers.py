"""Analyses of layers inside a module: they read the layer's probes and decoders, and everything says which layer."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
from safetensors.torch import load_file

from simdist.loading import load_decoder, load_encoder
from tests.analyze.conftest import reset_accelerate
from tests.support.cpc import small_cpc
from tests.support.decoders import make_decoder
from tests.support.latents import all_clips

Analyze = Callable[..., list[dict]]
Fails = Callable[..., str]
QUANTUM = 1 / 32768


@pytest.fixture(scope="module")
def cpc(speech: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny CPC with probes of layers 1 and 3 and of the GRU, and decoders of layers 1 and 3."""
    from simdist.probe.__main__ import main as probe
    from simdist.train.__main__ import train

    folder = tmp_path_factory.mktemp("layers") / "cpc"
    assert train(small_cpc(speech, width=8, steps=10), folder) == 0
    reset_accelerate()
    for options in (["--bias=false", "--layer=1,3"], ["--bias=false"]):
        assert probe([f"--run-dir={folder}", "--label=speaker", "--epochs=1", "--crops=1", *options]) == 0
        reset_accelerate()
    for layer in (1, 3):
        make_decoder(folder, 0, layer=layer)
    return folder


def test_weights_are_those_of_the_layers_probe(
    analyze: Analyze, cpc: Path, fails: Fails, capsys: pytest.CaptureFixture[str]
) -> None:
    results = sorted(analyze("weights", cpc, "--layer=all"), key=lambda result: result["layer"])
    printed = capsys.readouterr().out
    assert [result["layer"] for result in results] == [1, 3]
    assert printed.count("skipped: module 0, layer") == 3  # without a probe
    assert "module 0, layer 3 (" in printed
    for result in results:
        layer = result["layer"]
        assert result["name"].startswith(f"weights-module0-layer{layer}-step10-")
        found = result["values"]["labels"]["speaker"]
        assert found["probe"].startswith(f"speaker-module0-layer{layer}-step10-")
        weights = load_file(cpc / "probes" / found["probe"] / "probe.safetensors")["output.weight"].double().numpy()
        shares = np.abs(weights) / np.abs(weights).max(axis=1, keepdims=True)
        assert found["most_important"][0] == int(shares.mean(axis=0).argmax())
    (whole,) = analyze("weights", cpc)  # of the GRU
    assert whole["values"]["labels"]["speaker"]["probe"].startswith("speaker-module0-step10-")
    assert whole["name"].startswith("weights-module0-step10-")
    assert "layer" not in whole
    assert "layer" not in whole["settings"]
    printed = fails("weights", f"--run-dir={cpc}", "--layer=2")
    assert f"simdist.probe --run-dir {cpc} --label LABEL --module 0 --layer 2 --bias false" in printed
    assert "module 0 has no layer 5; its layers are 0 to 4" in fails("weights", f"--run-dir={cpc}", "--layer=5")


def test_a_run_with_probes_of_layers_only_has_none_of_its_module(cpc: Path, tmp_path: Path, fails: Fails) -> None:
    """Probes of a layer are never taken for those of the module."""
    folder = Path(shutil.copytree(cpc, tmp_path / "cpc"))
    for whole in folder.glob("probes/speaker-module0-step*"):
        shutil.rmtree(whole)
    assert "module 0 of" in fails("weights", f"--run-dir={folder}")
    assert "has no linear probe of LABEL with bias" in fails("robustness", f"--run-dir={folder}")
    named = next(folder.glob("probes/speaker-module0-layer1-*")).name
    assert f"has no probe '{named}'" in fails("weights", f"--run-dir={folder}", f"--folder={named}", "--layer=3")


def test_what_is_heard_is_the_layers_decoder(analyze: Analyze, cpc: Path, speech: Path) -> None:
    clips = all_clips(speech)
    first, second = list(clips)[1::-1]
    decoder, encoder = load_decoder(cpc, 0, layer=3), load_encoder(cpc)
    a, b = (encoder.encode(clips[key], 0, layer=3) for key in (first, second))
    (line,) = analyze("interpolation", cpc, "--layer=3", f"--keys={first},{second}", "--steps=3")
    assert line["name"].startswith("interpolation-module0-layer3-step10-")
    for place, latent in ((1, a), (2, (a + b) / 2), (3, b)):
        expected = decoder.decode(latent, 5120)[0, 0].numpy().clip(-1, 1)
        audio = soundfile.read(line["folder"] / f"interpolation-{place:02d}.wav")[0]
        assert np.allclose(audio, expected, atol=1.1 * QUANTUM)
    options = (f"--start-at={first}", "--dimensions=2", "--steps=2", "--reach=2")
    (moved,) = analyze("traversal", cpc, "--module=0", "--layer=3", *options)
    latent = a.clone()
    latent[..., 2] = -2.0
    audio = soundfile.read(moved["folder"] / "dimension-002-00.wav")[0]
    assert np.allclose(audio, decoder.decode(latent, 5120)[0, 0].numpy().clip(-1, 1), atol=1.1 * QUANTUM)


def test_contribution_of_a_layer(analyze: Analyze, cpc: Path, speech: Path, fails: Fails) -> None:
    """With all dimensions replaced nothing is left; with two, what decoding by hand says."""
    (result,) = analyze("contribution", cpc, "--layer=1", "--clips=2", "--sizes=2,8")
    assert result["name"].startswith("contribution-module0-layer1-step10-")
    clips, decoder, encoder = all_clips(speech), load_decoder(cpc, 0, layer=1), load_encoder(cpc)
    keys = np.load(result["folder"] / "scores.npz")["keys"].tolist()
    scores = np.load(result["folder"] / "scores.npz")["scores"]
    a, b = (encoder.encode(clips[key], 0, layer=1) for key in keys)
    chosen = (a.mean(1) - b.mean(1)).square()[0].topk(2).indices
    mixed = a.clone()
    mixed[..., chosen] = b[..., chosen]
    target = decoder.decode(b, 5120)
    errors = [float((decoder.decode(latent, 5120) - target).square().mean()) for latent in (mixed, a)]
    assert scores[0, 1, 0] == pytest.approx(errors[0] / errors[1], rel=1e-3)
    assert scores[0, 1, 1] == 0
    printed = fails("contribution", f"--run-dir={cpc}", "--layer=0")
    assert f"simdist.decode --run-dir {cpc} --module 0 --layer 0 --loss mse" in printed


def test_a_layer_has_no_prior(cpc: Path, sim: Path, fails: Fails) -> None:
    for folder in (cpc, sim):
        printed = fails("samples", f"--run-dir={folder}", "--module=0", "--layer=1")
        assert "--layer is not for samples: only a module's latent has a prior to draw from. Remove it" in printed


def test_layers_of_two_runs(
    analyze: Analyze, cpc: Path, tmp_path: Path, fails: Fails, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("simdist.analyze.style.save", lambda figure, path: [])
    other = Path(shutil.copytree(cpc, tmp_path / "other", ignore=shutil.ignore_patterns("analysis")))
    results = analyze("compare", cpc, str(other), "--layer=1,3", "--clips=2")
    (result,) = [result for result in results if result["analysis"] == "compare"]
    assert list(result["values"]["modules"]) == ["0, layer 1", "0, layer 3"]
    for found in result["values"]["modules"].values():
        assert set(found) == {"weights", "contribution"}
        ours, theirs = found["weights"]["speaker"].values()
        assert ours == theirs
    one, three = (found["weights"]["speaker"]["cpc"] for found in result["values"]["modules"].values())
    assert one != three
    assert any(line.startswith("module 0, layer 3, ") for line in result["summary"])
    names = json.loads((result["folder"] / "result.json").read_text())["inputs"]
    assert sum("-module0-layer3-" in name for name in names) == 4
    assert "module 0 has no layer 7; its layers are 0 to 4" in fails("compare", str(cpc), str(other), "--layer=7")
