"""The published protocols: batches, weight decay, clipping, fresh samples, few labels, against loops written out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from simdist.config.load import CONFIGS, read_config
from simdist.core.errors import InputError
from simdist.core.signals import SignalHandler
from simdist.models.encoder import GreedyEncoder
from simdist.models.probes import Probe
from simdist.probe.examples import CachedExamples, ResampledExamples
from simdist.probe.feature_extractors import FeatureExtractor, Resampling, encoder_extractor
from simdist.probe.few_labels import batch_size
from simdist.probe.labels import Targets
from simdist.probe.settings import ProbeSettings, for_label, protocol_of
from simdist.probe.training import ProbeProgress, num_steps, train_with_adam

CPU = torch.device("cpu")


def settings(label: str, **given: object) -> ProbeSettings:
    return for_label(ProbeSettings(**given), label)  # pyright: ignore[reportArgumentType]


def examples(num: int, scale: float = 1.0) -> CachedExamples:
    random = np.random.default_rng(0)
    classes = [np.array([row % 3]) for row in range(num)]
    vectors = {row: torch.from_numpy(scale * random.normal(size=(1, 4))).float() for row in range(num)}
    targets = Targets(np.arange(num), classes, ["a", "b", "c"])
    return CachedExamples(vectors, targets, np.zeros(num, np.int32), CPU, per_frame=False)


def test_what_the_thesis_did() -> None:
    syllable, vowel = settings("syllable", protocol="thesis"), settings("vowel", protocol="thesis")
    for found in (syllable, vowel):
        assert (found.epochs, found.lr, found.batch_size, found.drop_last) == (100, 1e-3, 171, True)
        assert (found.weight_decay, found.clip_grad_norm, found.latents) == (1e-5, 0.0, "resampled")
    assert (syllable.pooling, syllable.bias) == ("flatten", True)
    assert (vowel.pooling, vowel.bias) == ("max", False)


def test_what_the_papers_commands_do() -> None:
    speaker, phone = settings("speaker", protocol="paper"), settings("phone", protocol="paper")
    assert (speaker.epochs, speaker.lr, speaker.batch_size, speaker.crops) == (10, 1e-3, 8, 10)
    assert (phone.epochs, phone.lr, phone.batch_size, phone.drop_last) == (10, 1e-4, 1, False)
    assert speaker.clip_grad_norm == phone.clip_grad_norm == 1.0
    for label in ("syllable", "vowel"):
        found = settings(label, protocol="paper")
        assert (found.epochs, found.lr, found.batch_size, found.drop_last) == (50, 1e-3, 64, True)
        assert (found.pooling, found.bias, found.latents) == ("mean", True, "deterministic")
        assert not found.clip_grad_norm


def test_options_that_are_given_win_and_are_named() -> None:
    found = ProbeSettings(protocol="thesis", epochs=50, drop_last=False, bias=False)
    assert (for_label(found, "syllable").epochs, for_label(found, "syllable").batch_size) == (50, 171)
    assert protocol_of(found, "syllable") == "thesis, but epochs 50, drop_last false, bias false"
    assert protocol_of(replace(found, epochs=None, drop_last=None), "vowel") == "thesis"
    resolved = replace(settings("speaker", protocol="paper"), protocol=None)
    assert protocol_of(resolved, "speaker") == "paper"  # whoever sets the same options fulfills it
    assert protocol_of(ProbeSettings(), "speaker") is None
    with pytest.raises(InputError, match="--protocol thesis is for the labels syllable, vowel, not speaker"):
        settings("speaker", protocol="thesis")


def test_the_incomplete_batch_is_dropped_and_weights_decay() -> None:
    """20 examples in batches of 8 are two steps per epoch; torch's own Adam takes the same ones."""
    train = examples(20)
    wanted = settings("syllable", epochs=3, batch_size=8, drop_last=True, weight_decay=0.1, lr=0.05)
    probe, linear = Probe(4, 3, seed=2), torch.nn.Linear(4, 3)
    linear.load_state_dict(probe.output.state_dict())
    steps: list[int] = []
    train_with_adam(probe, train, wanted, ProbeProgress(None, SignalHandler()), advance=steps.append)
    assert len(steps) == num_steps(train, wanted) == 6
    optimizer = torch.optim.Adam(linear.parameters(), lr=0.05, weight_decay=0.1)
    for epoch in range(3):
        order = train.order(0, epoch).tolist()
        for places in (order[:8], order[8:16]):
            batch = train.batch(places, epoch)
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(linear(batch.features), batch.classes).backward()
            optimizer.step()
    assert torch.allclose(probe.output.weight, linear.weight, atol=1e-6)
    without = Probe(4, 3, seed=2)
    train_with_adam(without, train, replace(wanted, weight_decay=0.0), ProbeProgress(None, SignalHandler()))
    assert not torch.allclose(probe.output.weight, without.output.weight, atol=1e-3)


def test_too_few_examples_for_one_batch() -> None:
    wanted = settings("syllable", batch_size=21, drop_last=True)
    with pytest.raises(InputError, match=r"--drop-last leaves no batch: there are 20 .* Use --batch-size 20 or less"):
        train_with_adam(Probe(4, 3), examples(20), wanted, ProbeProgress(None, SignalHandler()))


def test_large_gradients_are_clipped(monkeypatch: pytest.MonkeyPatch) -> None:
    """All parameters together have norm 1 at most; smaller gradients stay as they are."""
    norms: list[float] = []
    step = torch.optim.Adam.step

    def spied(self: torch.optim.Adam, *args: object) -> object:
        gradients = [p.grad for group in self.param_groups for p in group["params"]]
        norms.append(float(torch.cat([g.flatten() for g in gradients]).norm()))
        return step(self, *args)  # pyright: ignore[reportArgumentType]

    monkeypatch.setattr(torch.optim.Adam, "step", spied)
    for clip in (0.0, 1.0):
        wanted = settings("syllable", epochs=1, batch_size=20, clip_grad_norm=clip)
        for scale in (100.0, 0.01):
            train_with_adam(Probe(4, 3), examples(20, scale), wanted, ProbeProgress(None, SignalHandler()))
    large, small, clipped, kept = norms
    assert large > 10
    assert clipped == pytest.approx(1.0, rel=1e-4)
    assert kept == pytest.approx(small)
    assert small < 1


@pytest.mark.parametrize(("per_class", "size"), [(1, 9), (2, 18), (16, 144), (32, 288), (64, 288), (128, 288)])
def test_few_labels_are_one_batch_up_to_32_per_class(per_class: int, size: int) -> None:
    classes = [np.array([number]) for number in range(9) for _ in range(per_class)]
    targets = Targets(np.arange(len(classes)), classes, list("abcdefghi"))
    assert batch_size(targets, per_class) == size
    rarer = targets.only(np.arange(9) < 8)  # a class that training never shows
    assert batch_size(rarer, per_class) == size // 9 * 8
    assert settings("syllable", protocol="thesis", examples_per_class="1,2").batch_size is None


def thesis_encoder(log_var: float = -1.0) -> tuple[GreedyEncoder, FeatureExtractor]:
    """The thesis's encoder, untrained, with a spread of exp(-0.5) in each latent."""
    config = read_config(CONFIGS / "vgim_thesis.yaml")
    encoder = GreedyEncoder(config.model, config.loss, 0).eval().requires_grad_(False)
    for module in encoder.stack:
        assert module.log_var is not None
        module.log_var.weight.zero_()
        assert module.log_var.bias is not None
        module.log_var.bias.fill_(log_var)
    return encoder, encoder_extractor("untrained", encoder, config.model)


def resampled(found: FeatureExtractor, module: int, audio: Tensor, seed: int = 0) -> ResampledExamples:
    resampling = found.resampling
    assert isinstance(resampling, Resampling)
    with torch.no_grad():
        gaussians = resampling.gaussians(audio)
    width = gaussians.shape[2]
    targets = Targets(np.arange(len(audio)), [np.array([0])] * len(audio), ["a"])
    vectors = {row: one.flatten()[None] for row, one in enumerate(gaussians)}
    stored = CachedExamples(vectors, targets, np.zeros(len(audio), np.int32), CPU, per_frame=False)
    return ResampledExamples(
        stored, lambda x, noise: resampling.draw(x.unflatten(1, (-1, width)), module, noise).flatten(1), seed, CPU
    )


def test_samples_of_module_0_are_those_of_its_gaussian_and_new_in_each_batch() -> None:
    """4,000 draws: mean mu and variance exp(log_var), frame by frame; a batch repeats only itself."""
    encoder, extractor = thesis_encoder()
    audio = 0.3 * torch.randn(3, 1, 1280, generator=torch.Generator().manual_seed(0))
    found = resampled(extractor, 0, audio)
    draws = torch.stack([found.batch([0, 1, 2], epoch).features for epoch in range(4000)])
    mean = encoder.encode(audio, 0).flatten(1)
    assert torch.allclose(draws.mean(0), mean, atol=5 * float(np.exp(-0.5) / 4000**0.5))
    assert torch.allclose(draws.var(0), torch.full_like(mean, np.exp(-1)), rtol=0.15)
    assert torch.equal(draws[7], found.batch([0, 1, 2], 7).features)
    assert not torch.equal(found.batch([0, 1], 7).features, found.batch([1, 0], 7).features.flip(0))
    assert not torch.equal(resampled(extractor, 0, audio, seed=1).batch([0, 1, 2], 7).features, draws[7])
    (once,), (again,) = found.everything(), found.everything()
    assert torch.equal(once.features, again.features)


def test_samples_of_module_1_are_what_the_encoder_samples_from_audio() -> None:
    """Module 1 reads a sample of module 0: with the same generator, the same numbers."""
    encoder, extractor = thesis_encoder()
    resampling = extractor.resampling
    assert resampling is not None
    audio = 0.3 * torch.randn(2, 1, 1280, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        drawn = resampling.draw(resampling.gaussians(audio), 1, torch.Generator().manual_seed(5))
    sampled = encoder.encode(audio, 1, deterministic=False, generator=torch.Generator().manual_seed(5))
    assert torch.allclose(drawn, sampled, atol=1e-5)
    last = encoder.stack[1].log_var
    assert last is not None
    assert last.bias is not None
    last.bias.fill_(-30)  # without noise of its own, module 1 varies with what it reads
    found = resampled(extractor, 1, audio)
    assert not torch.allclose(found.batch([0, 1], 0).features, found.batch([0, 1], 1).features, atol=1e-3)


def test_stopped_and_resumed_draws_the_same_samples() -> None:
    """The noise of a batch depends on seed, epoch and batch alone, so new objects of a resumed command agree."""
    _, extractor = thesis_encoder()
    audio = 0.3 * torch.randn(6, 1, 1280, generator=torch.Generator().manual_seed(2))
    first, second = (resampled(extractor, 1, audio) for _ in range(2))
    first.batch([3], 0)
    assert torch.equal(first.batch([4, 2], 9).features, second.batch([4, 2], 9).features)


def test_repetitions_share_features_and_differ_in_their_seed(
    probe: Callable[..., list[dict]], run_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ("--label=speaker", "--module=0", "--epochs=2", "--crops=2", "--lr=0.1")
    results = probe(*options, "--seed=3", "--repetitions=3")
    assert sorted(result["probe"]["seed"] for result in results) == [3, 4, 5]
    assert {result["view"]["seed"] for result in results} == {3}
    assert len({result["test"]["loss"] for result in results}) == 3
    assert len(list(run_folder.glob("probes/features/*/entry.json"))) == 2
    values = [100 * result["test"]["accuracy"]["value"] for result in results]
    assert f"{np.mean(values):.1f} ± {np.std(values, ddof=1):.1f}" in capsys.readouterr().out
    assert len(probe(*options, "--seed=3", "--repetitions=4")) == 1  # only the fourth is new
    with pytest.raises(InputError, match="a single optimum"):
        probe("--label=speaker", "--probe=lbfgs", "--repetitions=2")


def test_the_command_follows_a_protocol(probe: Callable[..., list[dict]], run_folder: Path) -> None:
    """SIM's speakers as published, with the thesis's sampling on top; MFCC has nothing to sample."""
    options = ("--label=speaker", "--module=0,3", "--epochs=2", "--crops=2")
    results = probe(*options, "--protocol=paper", "--latents=resampled")
    assert len(results) == 2
    for result in results:
        assert result["protocol"] == "paper, but latents resampled, epochs 2, crops 2"
        assert result["view"]["resampled"]
        assert result["view"]["sampled"]
        assert (result["probe"]["clip_grad_norm"], result["probe"]["drop_last"]) == (1.0, True)
    assert results[1]["source"]["dimensions"] == 32
    (plain,) = probe("--label=speaker", "--module=0", "--epochs=1")
    assert plain["protocol"] is None
    assert "resampled" not in plain["view"]
    assert {"weight_decay", "clip_grad_norm", "drop_last"}.isdisjoint(plain["probe"])
    (mfcc,) = probe("--label=speaker", "--features=mfcc", "--epochs=1", "--latents=resampled")
    assert not mfcc["view"]["sampled"]
    assert probe(*options, "--protocol=paper", "--latents=resampled") == []
    entries = list(run_folder.glob("probes/features/*/entry.json"))
    assert sum('"gaussian"' in path.read_text() for path in entries) == 2
