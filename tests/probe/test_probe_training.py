"""Probes in memory: the exact optimum against scikit-learn, Adam against a loop written out, stopping, few labels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from simdist.core.signals import SignalHandler, StoppedError
from simdist.models.probes import Probe
from simdist.probe.examples import CachedExamples, few
from simdist.probe.labels import Targets
from simdist.probe.optimum import fit_optimum
from simdist.probe.settings import ProbeSettings, for_label
from simdist.probe.training import ProbeProgress, evaluate, standardize, train_with_adam

CPU = torch.device("cpu")
NAMES = ["a", "b", "c"]


def data(num: int = 120, crops: int = 1) -> tuple[dict[int, torch.Tensor], Targets]:
    random = np.random.default_rng(0)
    classes = random.integers(3, size=num)
    centers = random.normal(size=(3, 6)) * [1, 5, 0.1, 1, 1, 1]
    vectors = centers[classes][:, None] + random.normal(size=(num, crops, 6)) * [1, 20, 0.2, 1, 1, 1]
    rows = {row: torch.from_numpy(vectors[row]).float() for row in range(num)}
    return rows, Targets(np.arange(num), [classes[row : row + 1] for row in range(num)], NAMES)


def examples(crops: int = 1) -> CachedExamples:
    vectors, targets = data(crops=crops)
    return CachedExamples(vectors, targets, np.zeros(len(targets.rows), np.int32), CPU, per_frame=False)


def phones(num: int = 20) -> tuple[dict[int, torch.Tensor], Targets]:
    random = np.random.default_rng(1)
    classes = [random.integers(3, size=random.integers(5, 9)) for _ in range(num)]
    vectors = {row: torch.randn(len(c) + 1, 6).half() for row, c in enumerate(classes)}
    return vectors, Targets(np.arange(num), classes, NAMES)


class StopAfter(SignalHandler):
    """A signal that arrives after so many questions."""

    def __init__(self, questions: int) -> None:
        super().__init__()
        self._left = questions

    def check(self) -> None:
        self._left -= 1
        self.signal_number = 15 * (self._left <= 1)  # the next step sees it, saves, and ends
        if self._left <= 0:
            raise StoppedError(15)


@pytest.mark.parametrize("bias", [True, False])
def test_l_bfgs_finds_what_scikit_learn_finds(bias: bool) -> None:
    train = examples(crops=2)
    settings = for_label(ProbeSettings(probe="lbfgs", l2=1e-3, tolerance=1e-8), "speaker")
    probe = Probe(6, 3, bias=bias)
    standardize(probe, train)
    found = fit_optimum(probe, train, settings, ProbeProgress(None, SignalHandler()))
    assert found.converged
    (batch,) = train.everything()
    scaled = ((batch.features - probe.mean) / probe.scale).double().numpy()
    assert np.allclose(scaled.std(0), 1, atol=1e-5)
    reference = LogisticRegression(C=1 / (len(scaled) * 1e-3), fit_intercept=bias, tol=1e-10, max_iter=5000)
    reference.fit(scaled, batch.classes.numpy())
    assert np.allclose(probe.output.weight.detach().numpy(), reference.coef_, atol=1e-4)
    weight = probe.output.weight.detach().double().requires_grad_()
    offset = probe.output.bias.detach().double() if bias else 0
    loss = torch.nn.functional.cross_entropy(torch.from_numpy(scaled) @ weight.T + offset, batch.classes)
    (gradient,) = torch.autograd.grad(loss + 0.5e-3 * weight.square().sum(), weight)
    assert gradient.abs().max() < 1e-6


@pytest.mark.parametrize("stops", [[2], [3], [2, 2, 3], [2] * 40])
def test_an_optimum_that_was_stopped_is_the_same_bit_for_bit(tmp_path: Path, stops: list[int]) -> None:
    """Stopped after the second round of iterations, the third, several, and every one, the last too."""
    random = np.random.default_rng(0)
    classes = [random.integers(5, size=1) for _ in range(80)]
    vectors = {row: torch.from_numpy(random.normal(size=(1, 30))).float() for row in range(80)}  # separable: a long way
    targets = Targets(np.arange(80), classes, ["a", "b", "c", "d", "e"])
    train = CachedExamples(vectors, targets, np.zeros(80, np.int32), CPU, per_frame=False)
    settings = for_label(ProbeSettings(probe="lbfgs", l2=1e-6, tolerance=1e-7), "speaker")
    whole, parts, num_stopped = Probe(30, 5), Probe(30, 5), 0
    found = fit_optimum(whole, train, settings, ProbeProgress(None, SignalHandler()))
    assert found.converged
    assert found.iterations > 60
    for questions in stops:
        try:
            fit_optimum(parts, train, settings, ProbeProgress(tmp_path / "progress.pt", StopAfter(questions)))
        except StoppedError:
            num_stopped += 1
        parts = Probe(30, 5, seed=99)
    assert num_stopped == min(len(stops), found.iterations // 20)
    assert fit_optimum(parts, train, settings, ProbeProgress(tmp_path / "progress.pt", SignalHandler())) == found
    assert all(torch.equal(a, b) for a, b in zip(whole.state_dict().values(), parts.state_dict().values(), strict=True))


def test_an_optimum_does_not_resume_from_a_file_that_holds_weights_alone(tmp_path: Path) -> None:
    settings = for_label(ProbeSettings(probe="lbfgs", l2=1e-4), "speaker")
    whole, other = Probe(6, 3), Probe(6, 3)
    found = fit_optimum(whole, examples(), settings, ProbeProgress(None, SignalHandler()))
    torch.save({"weights": Probe(6, 3, seed=7).double().state_dict(), "iterations": 10}, tmp_path / "progress.pt")
    assert fit_optimum(other, examples(), settings, ProbeProgress(tmp_path / "progress.pt", SignalHandler())) == found
    assert torch.equal(whole.output.weight, other.output.weight)


def test_adam_takes_the_steps_that_upstream_takes() -> None:
    """Cross-entropy, Adam with torch's defaults, a crop an epoch: the same loop with torch's Linear and Adam."""
    train, settings = examples(crops=3), for_label(ProbeSettings(epochs=4, batch_size=50), "speaker")
    probe = Probe(6, 3, seed=5)
    linear = torch.nn.Linear(6, 3)
    linear.load_state_dict(probe.output.state_dict())
    train_with_adam(probe, train, settings, ProbeProgress(None, SignalHandler()))
    optimizer = torch.optim.Adam(linear.parameters(), lr=1e-3)
    vectors, targets = data(crops=3)
    for epoch in range(4):
        order = train.order(0, epoch)
        assert sorted(order) == list(range(120))
        for rows in (order[:50], order[50:100], order[100:]):
            optimizer.zero_grad()
            x = torch.stack([vectors[row][epoch % 3] for row in rows])
            y = torch.tensor([int(targets.classes[row][0]) for row in rows])
            torch.nn.functional.cross_entropy(linear(x), y).backward()
            optimizer.step()
    assert torch.allclose(probe.output.weight, linear.weight, atol=1e-5)


@pytest.mark.parametrize("per_frame", [False, True])
def test_stopped_and_continued_equals_undisturbed(tmp_path: Path, per_frame: bool) -> None:
    vectors, targets = phones() if per_frame else data()
    train = CachedExamples(vectors, targets, np.zeros(len(targets.rows), np.int32), CPU, per_frame)
    settings = for_label(ProbeSettings(probe="mlp", epochs=5, batch_size=7), "phone" if per_frame else "speaker")
    whole = Probe(6, 3, hidden=8)
    loss = train_with_adam(whole, train, settings, ProbeProgress(None, SignalHandler()))
    for questions in (4, 6):
        with pytest.raises(StoppedError):
            train_with_adam(
                Probe(6, 3, 8), train, settings, ProbeProgress(tmp_path / "progress.pt", StopAfter(questions))
            )
    parts = Probe(6, 3, hidden=8, seed=99)
    assert train_with_adam(parts, train, settings, ProbeProgress(tmp_path / "progress.pt", SignalHandler())) == loss
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), parts.parameters(), strict=True))


def test_every_vector_is_tested_once() -> None:
    vectors, targets = phones()
    found = evaluate(
        Probe(6, 3), CachedExamples(vectors, targets, np.zeros(20, np.int32), CPU, per_frame=True), 3, SignalHandler()
    )
    assert found.total.sum(0).tolist() == targets.counts().tolist()
    assert found.total.sum(1).tolist() == [len(classes) for classes in targets.classes]
    assert found.confusion.sum() == found.total.sum()
    assert np.diag(found.confusion).tolist() == found.correct.sum(0).tolist()


@pytest.mark.parametrize("per_frame", [False, True])
def test_few_examples_are_nested_and_balanced(per_frame: bool) -> None:
    vectors, targets = phones() if per_frame else data(crops=2)
    found = {size: few(vectors, targets, per_frame, size, seed=3) for size in (1, 4, 16)}
    for size, (drawn, chosen) in found.items():
        assert chosen.counts().tolist() == [size] * 3
        assert {tensor.shape[0] for tensor in drawn.values()} == {1 if per_frame else 2}
    as_sets = {size: {tuple(t.flatten().tolist()) for t in drawn.values()} for size, (drawn, _) in found.items()}
    assert as_sets[1] < as_sets[4] < as_sets[16]
    other, _ = few(vectors, targets, per_frame, 4, seed=4)
    assert {tuple(t.flatten().tolist()) for t in other.values()} != as_sets[4]
    if per_frame:  # a frame keeps its own class
        everything = {
            tuple(features.float().tolist()): int(label)
            for row, classes in zip(targets.rows, targets.classes, strict=True)
            for features, label in zip(vectors[int(row)][1:], classes, strict=True)
        }
        drawn, chosen = found[16]
        for row, classes in zip(chosen.rows, chosen.classes, strict=True):
            assert everything[tuple(drawn[int(row)][0].tolist())] == int(classes[0])
