"""MIG, SAP and DCI where they are known: copied factors, mixed ones, tables by hand."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import mutual_info_score

from simdist.analyze.disentanglement import dci, entropy, gap, mutual_information, score, single_accuracies
from simdist.analyze.labeled import Vectors, with_consonants
from simdist.analyze.registry import DisentanglementSettings
from simdist.analyze.result_writer import ResultWriter
from simdist.core.signals import SignalHandler

Analyze = Callable[..., list[dict]]


@contextmanager
def silent(what: str, total: int, unit: str) -> Iterator[Callable[[int], None]]:
    yield lambda count: None


def factors(n: int, seed: int) -> dict[str, np.ndarray]:
    random = np.random.default_rng(seed)
    return {"speaker": random.integers(0, 4, n), "vowel": random.integers(0, 3, n)}


def vectors(values: np.ndarray, classes: dict[str, np.ndarray]) -> Vectors:
    return Vectors(values, classes, {"speaker": list("abcd"), "vowel": list("aiu")})


def test_mutual_information_is_scikit_learns() -> None:
    random = np.random.default_rng(0)
    classes = random.integers(0, 3, 400)
    values = random.normal(size=(400, 2)) + classes[:, None] * [0.0, 1.5]
    found = mutual_information(values, classes, 10)
    for d in range(2):
        edges = np.linspace(values[:, d].min(), values[:, d].max(), 11)
        binned = np.clip(np.searchsorted(edges, values[:, d], side="right") - 1, 0, 9)
        assert found[d] == pytest.approx(mutual_info_score(classes, binned))
    assert found[1] > found[0] + 0.2
    assert entropy(classes) == pytest.approx(mutual_info_score(classes, classes))


def test_copied_factors_are_disentangled_and_mixed_ones_are_not(tmp_path: Path) -> None:
    """One dimension a factor, and one of noise: all scores high. Two dimensions that both hold both: near 0."""
    writer, settings = ResultWriter(tmp_path, SignalHandler(), silent), DisentanglementSettings()
    found = {}
    for name in ("copied", "mixed"):
        sides = []
        for seed in (0, 1):
            known = factors(600, seed)
            noise = np.random.default_rng(seed + 9).normal(size=600)
            a, b = known["speaker"].astype(float), known["vowel"].astype(float)
            columns = [a, b, noise] if name == "copied" else [a + 0.3 * b, a + 0.3 * b + 1e-3 * noise]
            sides.append(vectors(np.column_stack(columns), known))
        found[name] = score(sides[0], sides[1], settings, writer)["values"]
    copied, mixed = found["copied"], found["mixed"]
    assert copied["mig"] == pytest.approx(1, abs=0.05)
    assert copied["sap"] > 0.5
    assert copied["disentanglement"] > 0.8  # full-grown trees give the noise some importance
    assert copied["completeness"] > 0.65
    assert copied["informativeness"] > 0.99
    assert mixed["mig"] < 0.1
    assert mixed["sap"] < 0.1
    assert mixed["disentanglement"] < 0.1
    assert mixed["completeness"] < 0.1


def test_dci_by_hand() -> None:
    assert dci(np.eye(3)) == {"disentanglement": pytest.approx(1), "completeness": pytest.approx(1)}
    assert dci(np.ones((4, 2))) == {"disentanglement": pytest.approx(0), "completeness": pytest.approx(0)}
    assert dci(np.zeros((4, 2))) == {"disentanglement": 0, "completeness": 0}
    importances = np.array([[0.9, 0.1], [0.1, 0.9], [0.0, 0.0]])
    spread = -(0.9 * np.log(0.9) + 0.1 * np.log(0.1))
    found = dci(importances)
    assert found["disentanglement"] == pytest.approx(1 - spread / np.log(2))
    assert found["completeness"] == pytest.approx(1 - spread / np.log(3))


def test_gap_and_single_accuracies() -> None:
    assert gap(np.array([0.2, 0.9, 0.5])) == pytest.approx(0.4)
    assert gap(np.array([0.7])) == pytest.approx(0.7)
    random = np.random.default_rng(3)
    seen, asked = random.integers(0, 2, 300), random.integers(0, 2, 300)
    train = np.column_stack([5.0 * seen + random.normal(size=300), random.normal(size=300), np.ones(300)])
    test = np.column_stack([5.0 * asked + random.normal(size=300), random.normal(size=300), np.ones(300)])
    threshold = (train[seen == 0, 0].mean() + train[seen == 1, 0].mean()) / 2
    recalls = [((test[asked == k, 0] > threshold) == bool(k)).mean() for k in (0, 1)]
    found = single_accuracies(train, test, seen, asked)
    assert found[0] == pytest.approx(np.mean(recalls))
    assert found[1] == pytest.approx(0.5, abs=0.1)
    assert found[2] == 0.5  # a dimension that never changes always gives the same answer


def test_syllables_become_consonants() -> None:
    names = {"syllable": ["ba", "bi", "da", "di"], "vowel": ["a", "i"]}
    classes = {"syllable": np.array([0, 1, 2, 3, 3]), "vowel": np.array([0, 1, 0, 1, 1])}
    found = with_consonants(Vectors(np.zeros((5, 2)), classes, names))
    assert found.names["consonant"] == ["b", "d"]
    assert found.classes["consonant"].tolist() == [0, 0, 1, 1, 1]
    assert set(found.classes) == {"consonant", "vowel"}
    other = Vectors(np.zeros((5, 2)), classes, {**names, "syllable": ["ba", "bi", "da", "d"]})
    assert with_consonants(other) is other


def test_the_command_scores_speakers_and_phones(analyze: Analyze, sim: Path) -> None:
    (result,) = analyze("disentanglement", sim, "--module=0", "--label=speaker", "--examples=200")
    found = result["values"]["factors"]["speaker"]
    assert found["completeness"] >= 0
    assert found["disentanglement"] == 1  # of a single factor every dimension serves at most that one
    assert found["vectors"]["train"] > found["vectors"]["test"] == 4
    (phones,) = analyze("disentanglement", sim, "--module=3", "--label=phone", "--examples=300")
    assert phones["values"]["factors"]["phone"]["vectors"] == {"train": 300, "test": 300}
