"""Probes of layers inside a module: their features are those of `encode(layer=…)`, and everything says which layer."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from simdist.config.load import CONFIGS, read_config
from simdist.config.schema import ModelConfig
from simdist.core.console import run
from simdist.core.signals import SignalHandler
from simdist.data.crops import CropReader
from simdist.data.splits import open_split
from simdist.loading import load_encoder
from simdist.models.encoder import GreedyEncoder
from simdist.probe import __main__ as probe_command
from simdist.probe.alignment import align, frame_grid
from simdist.probe.cache import CacheEntry, FeatureCache, entry_bytes
from simdist.probe.examples import LiveExamples
from simdist.probe.feature_extractors import FeatureExtractor, encoder_extractor, layer_outputs, trained_extractor
from simdist.probe.feature_spec import FeatureSpec, as_audio, crop_of, num_vectors
from simdist.probe.labels import Targets, read_targets
from simdist.probe.probe_task import ProbeData, ProbeTask
from simdist.probe.results import read_result
from simdist.probe.settings import ProbeSettings, for_label, places_in
from tests.probe.conftest import reset_accelerate
from tests.support.cpc import LAYERS, STRIDES, small_cpc

CPU = torch.device("cpu")
Probed = Callable[..., list[dict]]


@pytest.fixture(scope="module")
def cpc(speech: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trained CPC of width 16; not to be written to."""
    from simdist.train.__main__ import train

    folder = tmp_path_factory.mktemp("cpc") / "run"
    assert train(small_cpc(speech), folder) == 0
    reset_accelerate()
    return folder


@pytest.fixture
def probed(cpc: Path, tmp_path: Path) -> Probed:
    """Calls the command on a copy of the run; returns the results of new probes, by layer."""
    folder = Path(shutil.copytree(cpc, tmp_path / "run"))

    def call(*options: str) -> list[dict]:
        before = set(folder.glob("probes/*/result.json"))
        try:
            assert probe_command.main([f"--run-dir={folder}", *options]) == 0
        finally:
            reset_accelerate()
        new = set(folder.glob("probes/*/result.json")) - before
        found: list[dict] = [{**read_result(path.parent), "folder": path.parent} for path in new]
        return sorted(found, key=lambda result: (result["source"]["kind"], result["source"].get("layer", -1)))

    return call


def fails(capsys: pytest.CaptureFixture[str], *options: object) -> str:
    """The one line that a wrong command line prints."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as code:
        run(probe_command.main, [str(option) for option in options])
    assert code.value.code == 2
    reset_accelerate()
    printed = capsys.readouterr().err.strip()
    assert "\n" not in printed
    return printed


def extractor_of(folder: Path) -> FeatureExtractor:
    (checkpoint,) = (folder / "checkpoints").iterdir()
    return trained_extractor(checkpoint, read_config(folder / "config.yaml"))


@pytest.mark.parametrize("layer", range(LAYERS))
def test_a_layers_frames_lie_where_their_samples_do(layer: int) -> None:
    """As far apart as the strides say, each centered on the samples that it depends on."""
    config = read_config(CONFIGS / "cpc_librispeech.yaml")
    model = replace(config.model, width=16, context_width=16)
    encoder, grid = GreedyEncoder(model, config.loss).eval(), frame_grid(model, 0, layer)
    assert grid.stride == STRIDES[layer]
    audio = torch.randn(6, 1, 4000, generator=torch.manual_seed(0), requires_grad=True)
    frames = layer_outputs(encoder, audio, None, [(0, layer)])[0, layer]
    for frame in (frames.shape[1] // 3, frames.shape[1] // 2):
        (gradient,) = torch.autograd.grad(frames[:, frame].square().sum(), audio, retain_graph=True)
        touched = (gradient != 0).any(dim=0)[0].nonzero().flatten()
        middle = (int(touched[0]) + int(touched[-1])) / 2
        assert middle == pytest.approx(grid.offset + grid.stride * frame, abs=25)


def test_stored_features_are_those_of_encode(cpc: Path, tmp_path: Path) -> None:
    """Of every layer, for all three kinds of features, in one pass, without touching the features of modules."""
    extractor, encoder = extractor_of(cpc), load_encoder(cpc)
    split = open_split(read_config(cpc / "config.yaml").data.root, "test")
    kinds = [FeatureSpec("frames"), FeatureSpec("pooled"), FeatureSpec("pooled", "flatten", crop=3000, crops=2)]
    wanted = [CacheEntry(extractor, split, kind.of_layer(0, layer)) for kind in kinds for layer in range(LAYERS)]
    wanted_keys = {entry.key for entry in wanted}
    assert len(wanted_keys) == len(wanted)
    assert wanted_keys.isdisjoint(CacheEntry(extractor, split, kind).key for kind in kinds)
    counted: list[int] = []
    with FeatureCache(tmp_path, 1.0, SignalHandler()).opened(wanted, CPU, counted.append) as found:
        stored = {entry.spec: features for entry, features in zip(wanted, found, strict=True)}
    assert sum(counted) == len(split.index)
    reader = CropReader(split)
    for row in (0, len(split.index) - 1):
        whole = as_audio([reader.read_all(row)], CPU)
        for layer in range(LAYERS):
            frames, pooled, crops = (stored[kind.of_layer(0, layer)].of_module(0, layer)[row].float() for kind in kinds)
            expected = encoder.encode(whole, module=0, layer=layer)[0]
            torch.testing.assert_close(pooled, expected.mean(0, keepdim=True), rtol=1e-4, atol=1e-5)
            count = num_vectors(split, row, kinds[0])
            how = "front" if STRIDES[layer] == 160 else "center"
            aligned = align(expected, count, frame_grid(encoder.config, 0, layer), how)
            torch.testing.assert_close(frames, aligned, rtol=2e-3, atol=2e-3)
            for number in range(2):
                clip = as_audio([reader.read(row, *crop_of(split, row, kinds[2], number))], CPU)
                alone = encoder.encode(clip, module=0, layer=layer)
                torch.testing.assert_close(crops[number], alone.flatten(), rtol=1e-4, atol=1e-5)
    for entry in wanted:
        size = sum(path.stat().st_size for path in (tmp_path / entry.key).glob("shard-*"))
        assert entry_bytes(entry) <= 1.1 * size  # frames of flattened crops are rounded up
        assert size < 1.5 * entry_bytes(entry) + 4096 * len(list((tmp_path / entry.key).glob("shard-*")))


def test_every_layer_in_one_command(probed: Probed, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    options = ("--label=phone", "--module=0", "--epochs=2", "--lr=1e-2", "--standardize=true", "--unseen=drop")
    results = probed(*options, "--layer=all")
    printed = capsys.readouterr().out
    assert [result["source"]["layer"] for result in results] == list(range(LAYERS))
    for layer, result in enumerate(results):
        assert result["source"]["module"] == 0
        assert result["view"]["layer"] == [0, layer]
        assert result["name"].startswith(f"phone-module0-layer{layer}-step30-linear-")
        assert f"module 0, layer {layer}, step 30" in printed
        assert result["test"]["accuracy"]["value"] > result["majority"]["accuracy"]
    accuracies = [result["test"]["accuracy"]["value"] for result in results]
    assert len(set(accuracies)) > 2
    assert probed(*options, "--layer", "3,1") == []
    (alone,) = probed(*options)  # the module's output is another probe
    assert "layer" not in alone["source"]
    assert "layer" not in alone["view"]
    assert alone["name"].startswith("phone-module0-step30-linear-")
    entries = [json.loads(path.read_text()) for path in tmp_path.glob("run/probes/features/*/entry.json")]
    assert sorted(str(entry["view"].get("layer")) for entry in entries) == sorted(
        [*(str([0, layer]) for layer in range(LAYERS)), "None"] * 2
    )


def test_other_kinds_of_probes_of_a_layer(probed: Probed, capsys: pytest.CaptureFixture[str]) -> None:
    """Untrained, MFCC, from audio, by L-BFGS, and with few labels."""
    options = ("--label=speaker", "--layer=2", "--epochs=1", "--crops=2")
    mfcc, trained, untrained = probed(*options, "--features=trained,untrained,mfcc")
    assert (trained["source"]["layer"], untrained["source"]["layer"]) == (2, 2)
    assert "layer" not in mfcc["source"]
    assert untrained["name"].startswith("speaker-untrained0-layer2-linear-")
    (live,) = probed(*options, "--cached=false")
    weights = [load_file(result["folder"] / "probe.safetensors")["output.weight"] for result in (trained, live)]
    assert weights[0].shape == (4, 16)
    torch.testing.assert_close(*weights, rtol=1e-3, atol=1e-4)
    (optimum,) = probed("--label=speaker", "--layer=1", "--probe=lbfgs", "--crops=1", "--l2=0.01", "--tolerance=1e-2")
    assert "speaker, module 0, layer 1, step 30: 16 features" in capsys.readouterr().out
    assert optimum["train"]["converged"]
    (few,) = probed("--label=speaker", "--layer=1", "--examples-per-class=1,2", "--epochs=1", "--repetitions=1")
    assert few["name"].startswith("few-labels-speaker-module0-layer1-step30-")
    assert (few["source"]["layer"], len(few["curve"])) == (1, 2)


def test_the_supervised_encoder_is_trained_up_to_the_layer(cpc: Path, probed: Probed) -> None:
    extractor = extractor_of(cpc)
    split = open_split(read_config(cpc / "config.yaml").data.root, "test")
    targets, spec = read_targets(split, "speaker"), FeatureSpec("pooled", crop=3000)
    live = LiveExamples(extractor, 0, spec.of_layer(0, 2), split, targets, CPU, trained=True)
    live.batch([0, 1], 0).features.square().sum().backward()
    layers = extractor.encoder.stack[0].layers
    has_gradient = [next(layer.parameters()).grad is not None for layer in layers]
    assert has_gradient == [True, True, True, False, False]
    options = ("--label=speaker", "--features=supervised", "--layer=2", "--epochs=2", "--crops=2", "--batch-size=8")
    (result,) = probed(*options)
    assert result["name"].startswith("speaker-supervised0-layer2-linear-")
    assert result["source"]["dimensions"] == 16


def test_latents_below_a_layer_are_sampled_as_encode_samples_them() -> None:
    """V-GIM's second module: of its layers, and of the first's, below which nothing is random."""
    config = read_config(CONFIGS / "vgim_thesis.yaml")
    encoder = GreedyEncoder(config.model, config.loss).eval()
    extractor = encoder_extractor("untrained", encoder, config.model)
    audio = 0.3 * torch.randn(2, 1, 2560, generator=torch.Generator().manual_seed(1))

    def noise() -> torch.Generator:
        return torch.Generator().manual_seed(5)

    with torch.no_grad():
        outputs = layer_outputs(encoder, audio, noise(), [(1, 1), (0, 3), (1, 0)])
        assert extractor.resampling is not None
        gaussians = extractor.resampling.gaussians(audio)
    for (module, layer), found in outputs.items():
        expected = encoder.encode(audio, module, deterministic=False, generator=noise(), layer=layer)
        torch.testing.assert_close(found, expected)
        if module:
            drawn = extractor.resampling.draw(gaussians, module, noise(), layer)
            torch.testing.assert_close(drawn, expected, atol=1e-5, rtol=1e-4)
            assert not torch.allclose(expected, encoder.encode(audio, module, layer=layer))
    spec = FeatureSpec("pooled", "flatten", crop=2560, crops=2, sampled=True, seed=3, resampled=True)
    assert spec.of_layer(0, 1) == FeatureSpec("pooled", "flatten", crop=2560, crops=2, seed=3, layer=(0, 1))
    assert spec.of_layer(1, 1) == replace(spec, layer=(1, 1))
    assert spec.of_layer(1, 1).stored() == spec.stored()  # the same Gaussians


def test_resampled_layers_of_both_modules(probe: Callable[..., list[dict]], run_folder: Path) -> None:
    options = ("--label=speaker", "--module=0,1", "--layer=1", "--latents=resampled", "--clip=crop", "--epochs=1")
    first, second = sorted(probe(*options, "--crops=2"), key=lambda result: result["source"]["module"])
    assert (first["view"]["layer"], second["view"]["layer"]) == ([0, 1], [1, 1])
    assert not first["view"]["sampled"]
    assert second["view"]["resampled"]
    names = [path.read_text() for path in run_folder.glob("probes/features/*/entry.json")]
    assert sum('"gaussian"' in text for text in names) == 2


def test_what_layers_there_are() -> None:
    sim = ModelConfig(width=8)
    assert places_in("all", None, sim) == [(0, None), (1, None), (2, None), (3, None)]
    assert places_in("-2,0", "0", sim) == [(2, 0), (0, 0)]
    assert places_in("all", "all", sim) == [(0, 0), (0, 1), (1, 0), (1, 1), (2, 0)]
    assert places_in("all", "1", sim) == [(0, 1), (1, 1)]  # those that have it
    assert places_in("1", "[1, 0]", sim) == [(1, 1), (1, 0)]


def test_layers_that_do_not_exist(cpc: Path, run_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for folder, options, words in (
        (cpc, ("--layer=5",), "module 0 has no layer 5; its layers are 0 to 4"),
        (cpc, ("--layer=-1",), "module 0 has no layer -1; its layers are 0 to 4"),
        (cpc, ("--layer=last",), "--layer is 'last'; it must be layer numbers from 0 such as 0,2, or all"),
        (run_folder, ("--layer=2",), "module 0 has no layer 2; its layers are 0 to 1"),
        (run_folder, ("--module=0,2", "--layer=1"), "module 2 has no layer 1; its layers are 0 to 0"),
        (run_folder, ("--module=3", "--layer=0"), "module 3 is a GRU alone and has no layer 0; leave the layer out"),
        (run_folder, ("--module=3", "--layer=all"), "module 3 is a GRU alone and has no layers. Leave out --layer"),
        (cpc, ("--layer=1", "--align=front"), "needs frames 160 samples apart, these are 20; use --align center"),
    ):
        assert words in fails(capsys, f"--run-dir={folder}", "--label=phone", *options)


def test_probes_and_features_of_modules_keep_their_names() -> None:
    """Of a view and of a probe, as they were before there were layers."""
    spec = FeatureSpec("pooled", crop=5120, crops=2)
    described = {"kind": "pooled", "pooling": "mean", "crop": 5120, "crops": 2, "align": "auto", "sampled": False}
    text = json.dumps([1, {**described, "seed": 0}])
    assert spec.identity() == hashlib.sha256(text.encode()).hexdigest()
    assert FeatureSpec("pooled", crop=5120, crops=2, layer=(0, 0)).identity() != spec.identity()
    split = SimpleNamespace(manifest=SimpleNamespace(fingerprint="f" * 8))
    pair = SimpleNamespace(train=split, test=split)
    targets = Targets(np.arange(1), [np.array([0])], ["a"])
    data = ProbeData("speaker", cast("object", pair), spec, targets, targets, [])  # pyright: ignore[reportArgumentType]
    nothing = torch.nn.Identity()
    extractor = FeatureExtractor("trained", "0" * 8, [], [], nothing, lambda audio, generator: [], 7)
    task = ProbeTask(extractor, 1, data, for_label(ProbeSettings(), "speaker"))
    assert task.name == "speaker-module1-step7-linear-580bb0c9"
    inside = replace(task, data=replace(data, spec=spec.of_layer(1, 0)))
    assert inside.name.startswith("speaker-module1-layer0-step7-linear-")
    assert inside.name[-8:] != task.name[-8:]
