"""Noise of a known energy, gradients against finite differences, and the accuracy that the probe itself reported."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from simdist.analyze.robustness import at_snr, gradient_sign

Analyze = Callable[..., list[dict]]


@pytest.mark.parametrize("snr", [-5.0, 0.0, 17.0])
def test_noise_has_the_snr_it_is_to_have(snr: float) -> None:
    generator = torch.Generator().manual_seed(0)
    audio, direction = torch.randn(2, 1, 1, 4000, generator=generator, dtype=torch.float64)
    added = at_snr(audio, direction, snr) - audio
    assert 10 * torch.log10(audio.square().sum() / added.square().sum()).item() == pytest.approx(snr)
    assert torch.nn.functional.cosine_similarity(added.flatten(), direction.flatten(), 0).item() == pytest.approx(1)
    assert torch.equal(at_snr(audio, torch.zeros_like(audio), snr), audio)


def test_the_gradients_sign_is_that_of_finite_differences() -> None:
    weight = torch.randn(6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)

    def loss(x: torch.Tensor) -> torch.Tensor:
        return ((x.flatten() * weight).sum() - 1).square()

    audio = torch.randn(1, 1, 6, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    sign = gradient_sign(audio, loss)
    for place in range(6):
        step = torch.zeros_like(audio)
        step[0, 0, place] = 1e-6
        assert sign[0, 0, place] == torch.sign(loss(audio + step) - loss(audio - step))


@pytest.mark.parametrize("label", ["speaker", "phone"])
def test_clean_accuracy_is_the_probes_own(analyze: Analyze, sim: Path, label: str) -> None:
    (result,) = analyze("robustness", sim, "--module=0", f"--label={label}", "--snr=30,0")
    found = result["values"]["labels"][label]
    own = json.loads((sim / "probes" / found["probe"] / "result.json").read_text())["test"]["accuracy"]["value"]
    for kind in ("noise", "fgsm"):
        points = found["curves"][kind]
        assert [point["snr_db"] for point in points] == ["clean", 30, 0]
        assert points[0]["accuracy"] == pytest.approx(own, abs=0.01)  # its features were kept in float16
        assert points[0]["low"] <= points[0]["accuracy"] <= points[0]["high"]
    if label == "phone":  # enough vectors for the direction to show
        assert found["curves"]["fgsm"][1]["accuracy"] <= found["curves"]["noise"][1]["accuracy"]


def test_an_attack_may_be_left_out(analyze: Analyze, fails: Callable[..., str], sim: Path) -> None:
    (result,) = analyze("robustness", sim, "--module=0", "--label=speaker", "--snr=10", "--attack=none")
    assert set(result["values"]["labels"]["speaker"]["curves"]) == {"noise"}
    printed = fails("robustness", f"--run-dir={sim}", "--module=2", "--label=phone")
    assert f"simdist.probe --run-dir {sim} --label phone --module 2" in printed
    assert "it must be numbers such as 20,10,0" in fails("robustness", f"--run-dir={sim}", "--snr=loud")
