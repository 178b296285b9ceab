"""The contribution score against its plain definition, one pair, one size, one decoding at a time."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from simdist.analyze.command import AnalyzeCommand
from simdist.analyze.contribution import PROGRESS, Scorer, ratios_of_means, scores_of, summarize
from simdist.analyze.encoder_under_test import sampled
from simdist.analyze.fast_decoding import FastDecoder
from simdist.analyze.registry import ContributionSettings
from simdist.core.signals import SignalHandler, StoppedError
from simdist.data.splits import Index
from simdist.loading import load_decoder
from tests.support.latents import all_clips, module_outputs

Analyze = Callable[..., list[dict]]
SIZES = (1, 3, 5, 8)


def plain_scores(run: Path, module: int, latents: list[torch.Tensor]) -> np.ndarray:
    """(N, N, S) by the definition; NaN on the diagonal."""
    decoder, count = load_decoder(run, module), len(latents)
    scores = np.full((count, count, len(SIZES)), np.nan)
    for a in range(count):
        for b in range(count):
            if a == b:
                continue
            target = decoder.decode(latents[b], 5120).double()
            nothing = (decoder.decode(latents[a], 5120).double() - target).square().mean()
            difference = (latents[a].mean(1) - latents[b].mean(1)).square()[0]
            for place, size in enumerate(SIZES):
                mixed = latents[a].clone()
                for dimension in difference.argsort(descending=True)[:size].tolist():
                    mixed[:, :, dimension] = latents[b][:, :, dimension]
                scores[a, b, place] = (decoder.decode(mixed, 5120).double() - target).square().mean() / nothing
    return scores


def test_scores_are_those_of_the_definition(analyze: Analyze, sim: Path, speech: Path) -> None:
    options = ("--module=2", f"--sizes={','.join(map(str, SIZES))},512", "--batch=5")
    (result,) = analyze("contribution", sim, *options)
    stored = np.load(result["folder"] / "scores.npz")
    clips = all_clips(speech)
    assert sorted(clips) == sorted(stored["keys"].tolist())
    expected = plain_scores(sim, 2, [module_outputs(sim, 2, clips[key])[0] for key in stored["keys"].tolist()])
    assert stored["sizes"].tolist() == list(SIZES)  # 512 is all eight, and so is 8
    assert np.allclose(stored["scores"], expected, rtol=1e-3, atol=1e-5, equal_nan=True)
    curve = result["values"]["curve"]
    pairs = expected[~np.eye(len(expected), dtype=bool)]
    assert [point["mean"] for point in curve] == pytest.approx(pairs.mean(0).tolist(), rel=1e-3, abs=1e-5)
    assert [point["median"] for point in curve] == pytest.approx(np.median(pairs, 0).tolist(), rel=1e-3, abs=1e-5)
    assert curve[-1]["mean"] == 0


def test_the_papers_curve_is_a_ratio_of_means_on_samples(analyze: Analyze, sim: Path, speech: Path) -> None:
    options = ("--module=2", f"--sizes={','.join(map(str, SIZES))}", "--definition=paper", "--seed=3")
    (result,) = analyze("contribution", sim, *options)
    assert result["definition"] == "paper"
    assert "-paper-step" in result["folder"].name
    assert result["folder"].joinpath("contribution.png").is_file()
    stored, clips = np.load(result["folder"] / "scores.npz"), all_clips(speech)
    mu, log_var = module_outputs(sim, 2, torch.cat([clips[key] for key in stored["keys"].tolist()]))
    assert log_var is not None
    latents = list(sampled(mu, log_var, 3).split(1))
    decoder, sums, pairs = load_decoder(sim, 2), np.zeros(1 + len(SIZES)), 0
    for a in latents:
        for b in latents:
            if a is b:
                continue
            target, pairs = decoder.decode(b, 5120).double(), pairs + 1
            order = (a.mean(1) - b.mean(1)).square()[0].argsort(descending=True)
            for place, size in enumerate((0, *SIZES)):
                mixed = a.clone()
                mixed[:, :, order[:size]] = b[:, :, order[:size]]
                sums[place] += float((decoder.decode(mixed, 5120).double() - target).square().mean())
    curve = result["values"]["curve"]
    assert [point["dimensions"] for point in curve] == [0, *SIZES]
    assert [point["error"] for point in curve] == pytest.approx((sums / pairs).tolist(), rel=1e-3, abs=1e-9)
    assert [point["ratio"] for point in curve] == pytest.approx((sums / sums[0]).tolist(), rel=1e-3, abs=1e-6)
    (ours,) = analyze("contribution", sim, "--module=2", f"--sizes={','.join(map(str, SIZES))}", "--seed=3")
    assert "definition" not in ours
    assert ours["folder"] != result["folder"]


def test_a_ratio_of_means_is_no_mean_of_ratios() -> None:
    errors = np.full((2, 2, 2), np.nan)  # nothing replaced, and one dimension
    errors[0, 1], errors[1, 0] = (4.0, 1.0), (1.0, 0.5)
    start, one = ratios_of_means(errors, [1])
    assert (start["ratio"], start["error"]) == (1.0, 2.5)
    assert (one["ratio"], one["error"]) == (pytest.approx(1.5 / 5), 0.75)
    assert summarize(scores_of(errors), [1])[0]["mean"] == pytest.approx((0.25 + 0.5) / 2)


def test_bf16_is_near_float32(sim: Path, speech: Path) -> None:
    """With a decoder without biases, whose sounds differ by as much as they are loud."""
    decoder = load_decoder(sim, 2)
    for layer in decoder.stack:
        assert layer.bias is not None
        torch.nn.init.zeros_(layer.bias)
    latents = torch.randn(4, 32, 8, generator=torch.Generator().manual_seed(0))
    fine, coarse = (
        Scorer.of(FastDecoder(decoder, 32, dtype), latents, [2, 4], 8, dtype)
        for dtype in (torch.float32, torch.bfloat16)
    )
    found, expected = (scores_of(scorer.row(1)[None])[0] for scorer in (coarse, fine))
    assert np.allclose(found, expected, atol=0.02, equal_nan=True)
    assert coarse.noise(fine.decoded) < 0.01
    assert fine.noise(fine.decoded) == 0


def test_bf16_that_is_too_coarse_is_said(analyze: Analyze, sim: Path) -> None:
    """A decoder that was never trained gives all clips nearly one sound."""
    (result,) = analyze("contribution", sim, "--module=2", "--sizes=2", "--precision=bf16")
    assert result["values"]["rounding_noise"] > 0.01
    assert "use --precision float32" in result["summary"][-1]


def test_summarize_leaves_out_what_is_not_a_number() -> None:
    scores = np.full((3, 3, 1), np.nan)
    scores[0, 1], scores[1, 0], scores[2, 0], scores[0, 2] = 0.1, 0.2, 0.3, 0.8
    (point,) = summarize(scores, [4])
    assert point["dimensions"] == 4
    assert point["mean"] == pytest.approx(0.35)
    assert point["median"] == pytest.approx(0.25)
    assert (point["lower_quartile"], point["upper_quartile"]) == pytest.approx((0.175, 0.425))


class StopAfter(SignalHandler):
    """A signal that arrives once so many questions were asked."""

    def __init__(self, questions: int) -> None:
        super().__init__()
        self._left = questions

    @property
    def signal_number(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        self._left -= 1
        return signal.SIGTERM if self._left < 0 else 0

    @signal_number.setter
    def signal_number(self, value: int) -> None:
        assert value == 0


def test_a_stopped_analysis_goes_on(analyze: Analyze, sim: Path, copied: Path) -> None:
    from rich.console import Console

    settings = ContributionSettings(run=copied, module="2", sizes="2,4")
    with pytest.raises(StoppedError):
        AnalyzeCommand(Console(quiet=True), StopAfter(4)).work("contribution", settings)
    (progress,) = copied.glob(f"analysis/*/{PROGRESS}")
    done = int(np.load(progress)["done"])
    assert 0 < done < 4
    assert not list(copied.glob("analysis/*/result.json"))
    (rest,) = analyze("contribution", copied, "--module=2", "--sizes=2,4")
    assert not progress.exists()
    (whole,) = analyze("contribution", sim, "--module=2", "--sizes=2,4")
    assert rest["values"] == whole["values"]
    assert analyze("contribution", copied, "--module=2", "--sizes=2,4") == []  # done already
    assert len(analyze("contribution", copied, "--module=2", "--sizes=2,4", "--force")) == 1


def test_without_a_decoder_or_partners(fails: Callable[..., str], copied: Path, speech: Path, tmp_path: Path) -> None:
    printed = fails("contribution", f"--run-dir={copied}", "--module=1")
    assert f"accelerate launch -m simdist.decode --run-dir {copied} --module 1 --loss mse" in printed
    assert "module 3 is a GRU alone" in fails("contribution", f"--run-dir={copied}", "--module=3")
    assert "--clips is 1; it must be at least 2" in fails("contribution", f"--run-dir={copied}", "--clips=1")
    assert "--sizes is '0,2'; it must be numbers of 1 or more" in fails(
        "contribution", f"--run-dir={copied}", "--sizes=0,2"
    )
    single = tmp_path / "single" / "test"
    single.mkdir(parents=True)
    for path in (speech / "test").iterdir():
        (single / path.name).write_bytes(path.read_bytes())
    index = Index.load(single / "index.npz")
    kept = {name: getattr(index, name)[:1] for name in index.__dataclass_fields__ if name != "labels"}
    Index(**kept, labels={name: values[:1] for name, values in index.labels.items()}).save(single / "index.npz")
    manifest = json.loads((single / "manifest.json").read_text()) | {"num_samples": 1}
    (single / "manifest.json").write_text(json.dumps(manifest))
    printed = fails("contribution", f"--run-dir={copied}", "--module=2", f"--data-root={single.parent}")
    assert "has 1 clip; the score compares pairs" in printed
