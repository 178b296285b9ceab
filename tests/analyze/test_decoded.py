"""Traversals, interpolations and samples: what is written is what the decoder says of the right latents."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
import yaml

from simdist.analyze.latent_audio import spectrum
from simdist.core.random_streams import stream_seed
from simdist.loading import load_decoder
from tests.support.latents import all_clips, module_outputs

Analyze = Callable[..., list[dict]]
QUANTUM = 1 / 32768


def heard(folder: Path, name: str) -> np.ndarray:
    audio, rate = soundfile.read(folder / name)
    assert rate == 16000
    return audio


def test_a_traversal_moves_one_dimension(analyze: Analyze, sim: Path, speech: Path) -> None:
    key, audio = next(iter(all_clips(speech).items()))
    (result,) = analyze("traversal", sim, "--module=2", f"--start-at={key}", "--dimensions=5", "--steps=3", "--reach=2")
    mu, decoder = module_outputs(sim, 2, audio)[0], load_decoder(sim, 2)
    for place, value in enumerate((-2.0, 0.0, 2.0)):
        latent = mu.clone()
        latent[..., 5] = value
        expected = decoder.decode(latent, 5120)[0, 0].clamp(-1, 1).numpy()
        assert np.allclose(heard(result["folder"], f"dimension-005-{place:02d}.wav"), expected, atol=1.1 * QUANTUM)
    changes = []
    for dimension in range(8):
        ends = mu.repeat(2, 1, 1)
        ends[:, :, dimension] = torch.tensor([-2.0, 2.0])[:, None]
        low, high = decoder.decode(ends, 5120)[:, 0].double()
        changes.append((high - low).square().mean().sqrt().item())
    assert result["values"]["rms_change"] == pytest.approx(changes, rel=1e-3)


def test_a_traversal_begins_at_zero_and_takes_what_changes_most(analyze: Analyze, sim: Path) -> None:
    (result,) = analyze("traversal", sim, "--module=2", "--steps=2")
    values = result["values"]
    assert values["dimensions"] == np.argsort(-np.array(values["rms_change"]), kind="stable")[:4].tolist()
    assert values["values"] == [-2.68, 2.68]
    latent = torch.zeros(1, 32, 8)
    latent[..., values["dimensions"][0]] = -2.68
    expected = load_decoder(sim, 2).decode(latent, 5120)[0, 0].numpy()
    name = f"dimension-{values['dimensions'][0]:03d}-00.wav"
    assert np.allclose(heard(result["folder"], name), expected.clip(-1, 1), atol=1.1 * QUANTUM)


def test_an_interpolation_ends_at_both_clips(analyze: Analyze, sim: Path, speech: Path) -> None:
    clips = all_clips(speech)
    first, second = list(clips)[1::-1]
    (result,) = analyze("interpolation", sim, "--module=2", f"--keys={first},{second}", "--steps=3")
    decoder = load_decoder(sim, 2)
    a, b = (module_outputs(sim, 2, clips[key])[0] for key in (first, second))
    for place, latent in ((1, a), (2, (a + b) / 2), (3, b)):
        expected = decoder.decode(latent, 5120)[0, 0].numpy().clip(-1, 1)
        assert np.allclose(heard(result["folder"], f"interpolation-{place:02d}.wav"), expected, atol=1.1 * QUANTUM)
    for place, key in ((0, first), (4, second)):
        original = clips[key][0, 0].numpy()
        assert np.allclose(heard(result["folder"], f"interpolation-{place:02d}.wav"), original, atol=1.1 * QUANTUM)


def test_samples_are_the_decoded_prior(analyze: Analyze, sim: Path) -> None:
    (result,) = analyze("samples", sim, "--module=2", "--samples=2", "--seed=3")
    drawn = torch.randn(2, 32, 8, generator=torch.Generator().manual_seed(stream_seed(3, "prior")))
    expected = load_decoder(sim, 2).decode(drawn, 5120)[:, 0].numpy()
    for place in range(2):
        audio = heard(result["folder"], f"samples-{place:02d}.wav")
        assert np.allclose(audio, expected[place].clip(-1, 1), atol=1.1 * QUANTUM)
    assert result["values"]["rms"] == pytest.approx(np.sqrt((expected.astype(float) ** 2).mean()), rel=1e-4)


def test_a_sine_has_one_peak_of_its_level() -> None:
    time = np.arange(16000) / 16000
    frequencies, decibels = spectrum((0.5 * np.sin(2 * np.pi * 1000 * time)).astype(np.float32))
    assert frequencies[decibels.argmax()] == pytest.approx(1.0, abs=0.04)
    points = 8001 / 257  # frequencies that one point averages: a Hann line's energy is 1.5 bins of its peak
    assert decibels.max() == pytest.approx(10 * np.log10(0.25 * 1.5 / points), abs=0.5)


def test_wrong_wishes(fails: Callable[..., str], sim: Path, gim: Path, copied: Path) -> None:
    assert "has no prior to draw from (model.head is 'mu'" in fails("samples", f"--run-dir={gim}")
    assert "has no clip 'nobody'; it has such as" in fails("traversal", f"--run-dir={sim}", "--start-at=nobody")
    assert "this latent has 0 to 7" in fails("traversal", f"--run-dir={sim}", "--module=2", "--dimensions=8")
    assert "keys of two different clips" in fails("interpolation", f"--run-dir={sim}", "--keys=one")
    assert "--crop: a clip of 20 samples is too short" in fails("traversal", f"--run-dir={sim}", "--crop=20")
    printed = fails("traversal", f"--run-dir={sim}", "--module=2", "--loss=mel")
    assert f"simdist.decode --run-dir {sim} --module 2 --loss mel" in printed
    path = copied / "decoders" / "2-mse" / "config.yaml"
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | {"encoder_weights": "f" * 16}))
    assert "was trained on step 10 of the encoder" in fails("traversal", f"--run-dir={copied}", "--module=2")
    path.with_name("DONE").unlink()
    assert "2-mse is not finished. Resume it with" in fails("traversal", f"--run-dir={copied}", "--module=2")
