"""Masked dimensions: what is decoded is the latent with zeros, and the error is that of the definition."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from safetensors.torch import load_file

from simdist.analyze.latent_audio import with_most_different
from simdist.analyze.masking import masked
from simdist.loading import load_decoder
from tests.support.latents import all_clips, module_outputs

Analyze = Callable[..., list[dict]]


def decoded(sim: Path, latents: torch.Tensor) -> np.ndarray:
    return load_decoder(sim, 2).decode(latents, 5120)[:, 0].double().numpy()


def first_clip(result: dict, speech: Path) -> str:
    """The key of the clip whose audio was written."""
    table = (result["folder"] / "masked-sounds.csv").read_text()
    return next(key for key in all_clips(speech) if f"original {key}" in table)


@pytest.mark.parametrize("option", ["--mask=1,4", "--keep=0,2,3,5,6,7"])
def test_some_dimensions_are_zero_and_the_error_is_that_of_the_audio(
    analyze: Analyze, sim: Path, speech: Path, option: str
) -> None:
    (result,) = analyze("masking", sim, "--module=2", option, "--clips=100")
    clips = all_clips(speech)
    latents = torch.cat([module_outputs(sim, 2, clip)[0] for clip in clips.values()])
    silent = latents.clone()
    silent[:, :, [1, 4]] = 0
    whole, without = decoded(sim, latents), decoded(sim, silent)
    values = result["values"]
    assert values["masked"] == [1, 4]
    assert values["error"] == pytest.approx(((whole - without) ** 2).mean(), rel=1e-4)
    assert values["share"] == pytest.approx(((whole - without) ** 2).mean() / (whole**2).mean(), rel=1e-4)
    place = list(clips).index(first_clip(result, speech))
    heard, rate = soundfile.read(result["folder"] / "masked-02.wav")
    assert rate == 16_000
    assert np.abs(heard - without[place]).max() < 1e-3
    assert (result["folder"] / "masked.png").is_file()


def test_each_dimension_alone(analyze: Analyze, sim: Path, speech: Path) -> None:
    (result,) = analyze("masking", sim, "--module=2", "--clips=100")
    latents = torch.cat([module_outputs(sim, 2, clip)[0] for clip in all_clips(speech).values()])
    whole = decoded(sim, latents)
    expected = [float(((decoded(sim, masked(latents, [d])) - whole) ** 2).mean()) for d in range(8)]
    assert result["values"]["errors"] == pytest.approx(expected, rel=1e-3, abs=1e-12)
    assert result["values"]["most_important"] == np.argsort(expected)[::-1][:4].tolist()
    names = sorted(path.name for path in result["folder"].glob("masked-*.wav"))
    assert len(names) == 2 + 4  # the original, the whole latent, and four masks


@pytest.mark.parametrize("option", ["keep", "mask"])
def test_the_most_important_dimensions_of_a_probe(analyze: Analyze, sim: Path, option: str) -> None:
    (result,) = analyze("masking", sim, "--module=0", f"--{option}=speaker:3")
    tensors = [load_file(path) for path in sim.glob("probes/speaker-module0-*/probe.safetensors")]
    (weights,) = (found["output.weight"].numpy() for found in tensors if "output.bias" not in found)
    most = np.argsort(-(np.abs(weights) / np.abs(weights).max(axis=1, keepdims=True)).mean(axis=0))[:3].tolist()
    others = [d for d in range(8) if d not in most]
    assert result["values"]["masked"] == (others if option == "keep" else most)
    (probe,) = (name for name in result["inputs"] if name.startswith("speaker-module0-"))
    assert "output.bias" not in load_file(sim / "probes" / probe / "probe.safetensors")
    called = f"{','.join(map(str, most))} (the most important to speaker): "
    assert result["summary"][0].startswith("without dimensions " + "all but " * (option == "keep") + called)


def test_wrong_dimensions_are_named(fails: Callable[..., str], sim: Path) -> None:
    run = f"--run-dir={sim}"
    assert "--mask is '8'; this latent has dimensions 0 to 7" in fails("masking", run, "--module=2", "--mask=8")
    assert "--keep is '1'; it must be left out where --mask is given" in fails("masking", run, "--mask=1", "--keep=1")
    for wrong in ("speaker:0", "speaker:two", ":3", "speaker,phone:3"):
        assert f"--keep is {wrong!r}; it must be LABEL:COUNT" in fails("masking", run, f"--keep={wrong}")
    everything = "--keep 0,1,2,3,4,5,6,7 keeps all 8 dimensions; leave out some"
    assert everything in fails("masking", run, "--module=2", "--keep=0,1,2,3,4,5,6,7")
    missing = fails("masking", run, "--module=2", "--mask=speaker:3")
    assert missing.endswith("--label speaker --module 2 --bias false")


def test_only_the_most_different_dimensions_move(analyze: Analyze, sim: Path, speech: Path) -> None:
    first = torch.tensor([[0.0, 0.0, 1.0], [0.0, 2.0, 1.0]])
    second = torch.tensor([[3.0, 0.5, 1.5], [5.0, 0.5, 1.5]])  # averages differ by 4, 0.5 and 0.5
    assert with_most_different(first, second, 1).tolist() == [[3.0, 0.0, 1.0], [5.0, 2.0, 1.0]]
    assert torch.equal(with_most_different(first, second, 3), second)

    (plain,) = analyze("interpolation", sim, "--module=2", "--steps=3")
    (result,) = analyze("interpolation", sim, "--module=2", "--steps=3", "--dimensions=2,8")
    assert "dimensions" not in plain["settings"]  # as results were named before
    assert plain["folder"] != result["folder"]
    levels = result["values"]["rms_by_dimensions"]
    assert levels["8"] == pytest.approx(plain["values"]["rms"])  # all eight
    assert levels["2"][:2] == pytest.approx(levels["8"][:2])  # the original and the first end
    clips = all_clips(speech)
    a, b = (module_outputs(sim, 2, clips[key])[0][0] for key in result["values"]["keys"])
    end = decoded(sim, with_most_different(a, b, 2)[None])[0]
    heard, _ = soundfile.read(result["folder"] / "interpolation-002-03.wav")
    assert np.abs(heard - end).max() < 1e-3
