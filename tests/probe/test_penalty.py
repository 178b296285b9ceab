"""The penalty of an L-BFGS probe: chosen where it is known, over recordings, the same when interrupted."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss

from simdist.core.errors import InputError
from simdist.core.signals import SignalHandler, StoppedError
from simdist.models.probes import Probe
from simdist.probe import penalty as penalty_module
from simdist.probe.examples import CachedExamples, ExampleBatch, HeldExamples
from simdist.probe.labels import Targets, recordings
from simdist.probe.optimum import Objective, Optimum, descend
from simdist.probe.penalty import PATH, Penalty, choose_penalty, fold_masks
from simdist.probe.settings import ProbeSettings, for_label
from simdist.probe.training import ProbeProgress
from tests.probe.test_probe_training import StopAfter

SETTINGS = for_label(ProbeSettings(probe="lbfgs"), "speaker")
NUM, DIMENSIONS = 600, 20


def held(features: np.ndarray, classes: np.ndarray) -> CachedExamples:
    vectors = {row: torch.from_numpy(one).float()[None] for row, one in enumerate(features)}
    targets = Targets(np.arange(len(classes)), [classes[row : row + 1] for row in range(len(classes))], ["a", "b", "c"])
    return CachedExamples(vectors, targets, np.zeros(len(classes), np.int32), torch.device("cpu"), per_frame=False)


def drawn(deviation: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Classes that follow softmax(W x), where the weights' standard deviation is known."""
    random = np.random.default_rng(seed)
    features = random.normal(size=(NUM, DIMENSIONS))
    logits = features @ random.normal(size=(DIMENSIONS, 3)) * deviation
    return features, (logits + random.gumbel(size=logits.shape)).argmax(1)


def choose(features: np.ndarray, classes: np.ndarray, groups: np.ndarray, path: Path | None = None) -> Penalty:
    progress = ProbeProgress(path, SignalHandler())
    return choose_penalty(Probe(features.shape[1], 3), held(features, classes), groups, SETTINGS, progress)


@pytest.mark.parametrize("deviation", [0.15, 0.5])
def test_the_best_penalty_is_that_of_the_prior_that_made_the_weights(deviation: float) -> None:
    """The mode of the posterior has l2 = 1 / (N deviation^2): 0.074 and 0.0067 here; the path has steps of 3.2."""
    found = choose(*drawn(deviation), np.arange(NUM) // 3)
    assert 1 / 4 < found.l2 * NUM * deviation**2 < 4
    assert (found.held_out, found.num_groups, found.num_examples) == ("recordings", 200, NUM)
    best = min(found.path, key=lambda tried: tried.loss)
    assert found.l2 == best.l2
    assert len(found.path) == found.path.index(best) + 3  # two in a row that are worse


def test_held_out_losses_are_those_of_scikit_learn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(penalty_module, "TOLERANCE", 1e-5)
    features, classes = drawn(0.5)
    groups = np.arange(NUM) // 7
    found = choose(features, classes, groups)
    for tried in found.path[1::3]:
        losses, correct = [], 0
        for fold in fold_masks(groups, 0):
            reference = LogisticRegression(C=1 / ((~fold).sum() * tried.l2), tol=1e-8, max_iter=2000)
            reference.fit(features[~fold], classes[~fold])
            shares = reference.predict_proba(features[fold])
            losses.append(log_loss(classes[fold], shares, labels=[0, 1, 2], normalize=False))
            correct += int((shares.argmax(1) == classes[fold]).sum())
        assert tried.loss == pytest.approx(sum(losses) / NUM, abs=2e-4)
        assert tried.accuracy == pytest.approx(correct / NUM, abs=2 / NUM)


def test_a_recording_is_in_one_fold() -> None:
    random = np.random.default_rng(0)
    for num_groups in (2, 5, 40):
        groups = random.integers(num_groups, size=300) * 11
        folds = fold_masks(groups, seed=3)
        assert len(folds) == min(5, num_groups)
        assert (np.sum(folds, axis=0) == 1).all()
        for first in range(len(folds)):
            for second in range(first):
                assert not set(groups[folds[first]]) & set(groups[folds[second]])
    assert {int(fold.sum()) for fold in folds} <= set(range(50, 71))
    assert not all(np.array_equal(*pair) for pair in zip(folds, fold_masks(groups, 4), strict=True))


def test_what_only_a_recording_has_in_common_is_not_learned() -> None:
    """Examples repeat their recording's noise: a weak penalty pays unless they are held out together."""
    random = np.random.default_rng(0)
    groups = np.repeat(np.arange(60), 10)
    classes = (groups % 3).astype(np.int64)
    features = np.repeat(random.normal(size=(60, 40)), 10, axis=0) + 0.1 * random.normal(size=(NUM, 40))
    features[:, 0] += 0.5 * classes
    together, alone = choose(features, classes, groups), choose(features, classes, np.arange(NUM))
    assert together.l2 > 30 * alone.l2
    assert together.path[0].accuracy < 0.7 < alone.path[-1].accuracy


def test_from_the_last_optimum_or_from_zero_it_is_the_same_optimum() -> None:
    features, classes = drawn(0.5)
    batch = ExampleBatch(torch.from_numpy(features), torch.from_numpy(classes), torch.arange(NUM))
    found: list[tuple[Optimum, torch.Tensor]] = []
    for path in ((1.0, 0.1, 0.01), (0.01,)):
        probe = Probe(DIMENSIONS, 3).double()
        torch.nn.init.zeros_(probe.output.weight)
        torch.nn.init.zeros_(probe.output.bias)
        reached = [
            descend(probe, Objective(probe, HeldExamples(batch), l2), 1e-7, 1000, lambda *state: None) for l2 in path
        ]
        found.append((reached[-1], probe.output.weight.detach()))
    (warm, weights), (cold, same) = found
    assert warm.converged
    assert warm.loss == pytest.approx(cold.loss, abs=1e-10)
    assert torch.allclose(weights, same, atol=1e-4)


def test_a_search_that_was_stopped_finds_the_same(tmp_path: Path) -> None:
    features, classes = drawn(0.3)
    groups = np.arange(NUM) // 3
    whole, stops = choose(features, classes, groups), 0
    while True:
        progress = ProbeProgress(tmp_path / "progress.pt", StopAfter(5))
        try:
            parts = choose_penalty(
                Probe(DIMENSIONS, 3, seed=stops), held(features, classes), groups, SETTINGS, progress
            )
            break
        except StoppedError:
            stops += 1
    assert stops > 3
    assert parts == whole


def test_a_part_stands_for_many(monkeypatch: pytest.MonkeyPatch) -> None:
    """Half of the vectors: penalties are halved, because the best one falls as the examples grow."""
    features, classes = drawn(0.3)
    monkeypatch.setattr(penalty_module, "MOST_NUMBERS", NUM // 2 * DIMENSIONS)
    found = choose(features, classes, np.arange(NUM) // 3)
    assert found.num_examples == NUM // 2
    assert [tried.l2 for tried in found.path] == pytest.approx([l2 / 2 for l2 in PATH[: len(found.path)]])


def test_classes_with_one_recording_are_held_out_by_utterance() -> None:
    features, classes = drawn(0.3)
    assert choose(features, classes, classes).held_out == "utterances"
    with pytest.raises(InputError, match=r"no class has two training utterances. Give it, such as --l2 1e-4"):
        choose(features[:3], np.arange(3), np.arange(3))


def test_recordings_are_words_and_chapters() -> None:
    keys = ["19-198-0001", "19-198-0002", "19-227-0001", "babibu_1_1_ba", "babibu_1_3_bu", "babibu_2_1_ba"]
    keys += ["babibu_1_1_ba_session1", "babibu_1_2_bi_session1", "babibu_1_1_ba_session2", "note", "babibu_1"]
    split: Any = SimpleNamespace(index=SimpleNamespace(key=np.array(keys)))
    found = recordings(split, np.arange(len(keys)))
    assert [list(found).index(number) for number in found] == [0, 0, 2, 3, 3, 5, 6, 6, 8, 9, 3]
    assert recordings(split, np.array([1, 0])).tolist() == [0, 0]


def test_the_result_says_how_it_was_fitted(
    probe: Callable[..., list[dict]], capsys: pytest.CaptureFixture[str]
) -> None:
    (chosen,) = probe("--label=speaker", "--module=0", "--probe=lbfgs", "--crops=2")
    train = chosen["train"]
    assert train["examples"] == 2 * chosen["data"]["train"]["utterances"]
    assert train["dimensions"] == 32
    assert chosen["probe"]["l2"] is None
    assert train["l2"] in [tried["l2"] for tried in train["cross_validation"]["path"]]
    printed = " ".join(capsys.readouterr().out.split())
    assert f"32 features, {train['examples']} examples, training accuracy" in printed
    assert "cross-validated over" in printed
    (given,) = probe("--label=speaker", "--module=0", "--probe=lbfgs", "--crops=2", "--pooling=flatten", "--l2=1e-5")
    assert (given["train"]["l2"], given["train"]["cross_validation"]) == (1e-5, None)
    assert given["train"]["accuracy"] == 1
    assert any("interpolates its training examples (8,160 features" in text for text in given["warnings"])
    assert "warning: the L-BFGS probe of speaker on trained module 0 interpolates" in capsys.readouterr().out
