"""Probe weights: what is drawn and counted is what the probe holds."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import scipy.stats
import torch
from safetensors.torch import load_file

from simdist.analyze.encoder_under_test import open_encoder
from simdist.analyze.probes import named_probe
from simdist.analyze.registry import WeightsSettings
from simdist.analyze.weights import GRID, concentration, decisions, importance, rescaled

Analyze = Callable[..., list[dict]]


def test_each_class_is_rescaled_by_its_largest_magnitude() -> None:
    weights = np.array([[2.0, -4.0, 1.0], [0.0, 0.5, 0.25], [0.0, 0.0, 0.0]])
    assert rescaled(weights).tolist() == [[0.5, -1.0, 0.25], [0.0, 1.0, 0.5], [0.0, 0.0, 0.0]]
    assert importance(weights) == pytest.approx([0.5 / 3, 2 / 3, 0.75 / 3])


def test_by_the_papers_definition_each_class_is_stretched_from_its_minimum_to_its_maximum() -> None:
    weights = np.array([[1.0, 2.0, 5.0], [-4.0, 0.0, 4.0], [3.0, 3.0, 3.0]])
    assert rescaled(weights, "paper").tolist() == [[-1.0, -0.5, 1.0], [-1.0, 0.0, 1.0], [0.0, 0.0, 0.0]]
    assert importance(weights, "paper").tolist() == pytest.approx([2 / 3, 0.5 / 3, 2 / 3])


def test_concentration_counts() -> None:
    weights = np.array([[1.0, 0.05, -0.05, 0.0]])
    found = concentration(weights)
    assert found["small_share"] == 0.75
    assert found["dimensions_for_90_percent"] == 1  # 1 of 1.1 is 91 %
    assert concentration(np.ones((2, 10)) * [[1], [3]])["dimensions_for_90_percent"] == 9
    assert found["kurtosis"] == pytest.approx(scipy.stats.kurtosis(weights.ravel()))
    assert concentration(np.ones((2, 3)))["kurtosis"] == 0


def test_tables_hold_the_probes_weights(analyze: Analyze, sim: Path, gim: Path) -> None:
    first, last = analyze("weights", sim, f"--others={gim}", "--label=speaker")
    assert (first["module"], last["module"]) == (0, 3)  # the others have no probe, and `all` passes over them
    for result in (first, last):
        found = result["values"]["labels"]["speaker"]
        assert set(found["others"]) == {"gim"}
        weights = load_file(sim / "probes" / found["probe"] / "probe.safetensors")["output.weight"].double().numpy()
        with (result["folder"] / "weights-speaker.csv").open() as file:
            rows = list(csv.DictReader(file))
        columns = [name for name in rows[0] if name.startswith("weight_")]
        table = np.array([[float(row[name]) for name in columns] for row in rows]).T
        assert np.allclose(table, weights, rtol=1e-5, atol=1e-9)
        shares = np.abs(weights) / np.abs(weights).max(axis=1, keepdims=True)
        assert found["most_important"][0] == int(shares.mean(axis=0).argmax())
        names = {path.name for path in result["folder"].iterdir()}
        assert set(result["files"]) <= names
        for figure in ("heat-map-speaker", "density-speaker", "most-important-speaker", "decisions-speaker"):
            assert {f"{figure}.png", f"{figure}.svg"} <= names


def test_decision_map_asks_the_probe(sim: Path, analyze: Analyze) -> None:
    encoder = open_encoder(WeightsSettings(run=sim))
    biased = next(
        path.parent
        for path in sim.glob("probes/speaker-module0-*/result.json")
        if "bias" in str(load_file(path.parent / "probe.safetensors").keys())
    )
    probe = named_probe(encoder, 0, biased.name)
    answers = decisions(probe, (1, 4), "zero")
    tensors = probe.tensors()
    axis = np.linspace(-3, 3, GRID)
    for row, column in ((0, 0), (17, 180), (200, 3), (100, 100)):
        latent = torch.zeros(8)
        latent[1], latent[4] = axis[column], axis[row]
        assert answers[row, column] == int((tensors["output.weight"] @ latent + tensors["output.bias"]).argmax())
    (result,) = analyze("weights", sim, "--module=0", f"--folder={biased.name}")
    assert result["values"]["labels"]["speaker"]["probe"] == biased.name


def test_without_the_probe_the_command_that_makes_it_is_named(fails: Callable[..., str], sim: Path) -> None:
    printed = fails("weights", f"--run-dir={sim}", "--module=1")
    assert f"accelerate launch -m simdist.probe --run-dir {sim} --label LABEL --module 1 --bias false" in printed
    printed = fails("weights", f"--run-dir={sim}", "--module=0", "--label=speaker", "--probe=lbfgs", "--pooling=max")
    assert "--label speaker --module 0 --probe lbfgs --pooling max --bias false" in printed
    assert "has no probe 'nothing'; it has" in fails("weights", f"--run-dir={sim}", "--module=0", "--folder=nothing")
