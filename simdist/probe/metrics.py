"""Numbers of a tested probe: accuracy, balanced accuracy, a table by class, and intervals over utterances."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from simdist.probe.training import Evaluation

COVERAGE = 0.95


@dataclass(frozen=True)
class Score:
    """A number with its interval."""

    value: float
    low: float
    high: float

    def as_dict(self) -> dict[str, Any]:
        return {"value": self.value, "interval": [self.low, self.high]}


def accuracy(correct: npt.NDArray[Any], total: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """Share of vectors recognized; (..., K) counts by class -> (...)."""
    return correct.sum(-1) / np.maximum(total.sum(-1), 1)


def balanced_accuracy(correct: npt.NDArray[Any], total: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """Mean over the classes that occur of the share recognized; (..., K) counts by class -> (...)."""
    recall = np.where(total > 0, correct / np.maximum(total, 1), 0.0)
    return recall.sum(-1) / np.maximum((total > 0).sum(-1), 1)


def scores(
    correct: npt.NDArray[np.int64], total: npt.NDArray[np.int64], resamplings: int, seed: int
) -> tuple[Score, Score]:
    """Accuracy and balanced accuracy with percentile bootstrap intervals (Efron 1979).

    Whole utterances are drawn with replacement: an utterance's frames or crops are no independent trials.

    Args:
        correct, total: (U, K) counts by utterance and true class.
        resamplings: B.
        seed: decides the draws.
    """
    num_utterances = len(total)
    random = np.random.default_rng(seed)
    shares = np.full(num_utterances, 1 / num_utterances)
    times = random.multinomial(num_utterances, shares, size=resamplings).astype(np.float64)  # (B, U)
    drawn_correct, drawn_total = times @ correct, times @ total  # (B, K)
    found = []
    for measure in (accuracy, balanced_accuracy):
        low, high = np.quantile(measure(drawn_correct, drawn_total), [(1 - COVERAGE) / 2, (1 + COVERAGE) / 2])
        found.append(Score(float(measure(correct.sum(0), total.sum(0))), float(low), float(high)))
    return found[0], found[1]


def summarize(evaluation: Evaluation, names: list[str], resamplings: int, seed: int) -> dict[str, Any]:
    """The `test` part of a result."""
    plain, balanced = scores(evaluation.correct, evaluation.total, resamplings, seed)
    return {
        "accuracy": plain.as_dict(),
        "balanced_accuracy": balanced.as_dict(),
        "loss": evaluation.loss,
        "per_class": per_class(evaluation.confusion, names),
        "confusion": evaluation.confusion.tolist(),
    }


def without(evaluation: Evaluation, left_out: int, resamplings: int, seed: int) -> dict[str, Any]:
    """Accuracies over the vectors whose true class is not number `left_out` (silence)."""
    kept = np.arange(evaluation.total.shape[1]) != left_out
    plain, balanced = scores(evaluation.correct[:, kept], evaluation.total[:, kept], resamplings, seed)
    return {"accuracy": plain.as_dict(), "balanced_accuracy": balanced.as_dict()}


def per_class(confusion: npt.NDArray[np.int64], names: list[str]) -> list[dict[str, Any]]:
    """Vectors, recall, precision and F1 of every class; None where one is not defined."""
    rows = []
    for number, name in enumerate(names):
        hit = int(confusion[number, number])
        true, said = int(confusion[number].sum()), int(confusion[:, number].sum())
        recall, precision = (hit / true if true else None), (hit / said if said else None)
        f1 = 2 * hit / (true + said) if true + said else None
        rows.append({"class": name, "vectors": true, "recall": recall, "precision": precision, "f1": f1})
    return rows


def mean_interval(values: list[float]) -> Score:
    """Mean over repetitions, with the 95 % interval of Student's t around it."""
    spread = float(np.std(values, ddof=1)) if len(values) > 1 else 0.0
    half = _student_t(len(values) - 1) * spread / len(values) ** 0.5
    mean = float(np.mean(values))
    return Score(mean, mean - half, mean + half)


def _student_t(freedom: int) -> float:
    """The 97.5 % quantile of Student's t; beyond 30 degrees of freedom the expansion of Abramowitz & Stegun 26.7.5."""
    table = [0.0, 12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145]
    if freedom < len(table):
        return table[max(freedom, 0)]
    z = 1.959964
    first, second = (z**3 + z) / 4, (5 * z**5 + 16 * z**3 + 3 * z) / 96
    return z + first / freedom + second / freedom**2
