"""Metrics against scikit-learn, scipy and a bootstrap written out."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import accuracy_score, balanced_accuracy_score, confusion_matrix, precision_recall_fscore_support

from simdist.probe.metrics import mean_interval, summarize, without
from simdist.probe.training import Evaluation

NAMES = ["a", "b", "c", "d"]


def answers(num: int = 600, utterances: int = 30) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """True classes, answers and utterances; class d never occurs, though it is answered."""
    random = np.random.default_rng(0)
    owner = random.integers(utterances, size=num)
    true = (owner + random.integers(2, size=num)) % 3
    said = np.where(random.random(num) < 0.6, true, random.integers(4, size=num))
    return true, said, owner


def evaluation(true: np.ndarray, said: np.ndarray, owner: np.ndarray) -> Evaluation:
    shape = (int(owner.max()) + 1, 4)
    correct, total, confusion = np.zeros(shape, int), np.zeros(shape, int), np.zeros((4, 4), int)
    for t, s, o in zip(true, said, owner, strict=True):
        total[o, t] += 1
        correct[o, t] += t == s
        confusion[t, s] += 1
    return Evaluation(correct, total, confusion, 1.0)


def test_against_scikit_learn() -> None:
    true, said, owner = answers()
    found = summarize(evaluation(true, said, owner), NAMES, 100, 0)
    assert found["accuracy"]["value"] == pytest.approx(accuracy_score(true, said))
    with pytest.warns(UserWarning, match="y_pred contains classes not in y_true"):
        balanced = balanced_accuracy_score(true, said)
    assert found["balanced_accuracy"]["value"] == pytest.approx(balanced)
    assert found["confusion"] == confusion_matrix(true, said, labels=range(4)).tolist()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # class d has no recall: scikit-learn says so, and takes 0
        table = np.array(precision_recall_fscore_support(true, said, labels=range(4)))
    for number, row in enumerate(found["per_class"]):
        assert row["vectors"] == table[3, number]
        for name, values in zip(("precision", "recall", "f1"), table[:3], strict=True):
            assert (row[name] or 0) == pytest.approx(values[number])
    assert found["per_class"][3]["recall"] is None


def test_the_interval_resamples_utterances() -> None:
    true, said, owner = answers()
    found = summarize(evaluation(true, said, owner), NAMES, 4000, 0)
    random, drawn = np.random.default_rng(1), []
    hits = [(true == said)[owner == o] for o in range(30)]
    for _ in range(4000):
        picked = np.concatenate([hits[o] for o in random.integers(30, size=30)])
        drawn.append(picked.mean())
    low, high = np.quantile(drawn, [0.025, 0.975])
    assert found["accuracy"]["interval"] == pytest.approx([low, high], abs=0.004)


def test_without_silence() -> None:
    true, said, owner = answers()
    kept = true != 0
    found = without(evaluation(true, said, owner), 0, 100, 0)
    assert found["accuracy"]["value"] == pytest.approx(accuracy_score(true[kept], said[kept]))


@pytest.mark.parametrize("num", [2, 5, 15, 40])
def test_the_interval_of_a_mean_is_students(num: int) -> None:
    values = np.random.default_rng(num).random(num).tolist()
    found = mean_interval(values)
    expected = stats.t.interval(0.95, num - 1, loc=np.mean(values), scale=stats.sem(values))
    assert (found.low, found.high) == pytest.approx(expected, rel=1e-3)
