"""Disentanglement scores: MIG, SAP and DCI.

- MIG (Chen et al. 2018, eq. 6): for each factor the gap between its two largest mutual informations with a dimension,
  over its entropy; dimensions in equal-width bins.
- SAP (Kumar et al. 2018): for each factor the gap between the two best test accuracies of a linear classifier that sees
  one dimension.
- DCI (Eastwood & Williams 2018): from the importances that a random forest gives the dimensions for each factor,
  disentanglement (a dimension serves one factor) and completeness (a factor is served by one dimension), each one minus
  an entropy; informativeness is the forests' test accuracy.

Factors should be independent of each other; where syllables and vowels are both labeled, consonants stand for
syllables.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure

from simdist.analyze import style
from simdist.analyze.encoder_under_test import EncoderUnderTest
from simdist.analyze.extras import optional
from simdist.analyze.labeled import LabeledAnalysis, Vectors, vectors_of, with_consonants
from simdist.analyze.registry import DisentanglementSettings
from simdist.analyze.result_writer import AnalysisResult, ResultWriter

Matrix = npt.NDArray[np.float64]
Classes = npt.NDArray[np.int64]
TREES = 100


def mutual_information(values: Matrix, classes: Classes, bins: int) -> Matrix:
    """(C,) mutual information in nats of each of C dimensions, in equal-width bins, with a factor of n vectors."""
    found = []
    for column in values.T:
        edges = np.histogram_bin_edges(column, bins)[1:-1]
        table = np.zeros((bins, int(classes.max()) + 1))
        np.add.at(table, (np.digitize(column, edges), classes), 1)
        joint = table / table.sum()
        independent = joint.sum(axis=1, keepdims=True) * joint.sum(axis=0, keepdims=True)
        seen = joint > 0
        found.append((joint[seen] * np.log(joint[seen] / independent[seen])).sum())
    return np.array(found)


def entropy(classes: Classes) -> float:
    """Entropy of a factor, in nats."""
    shares = np.bincount(classes) / len(classes)
    shares = shares[shares > 0]
    return float(-(shares * np.log(shares)).sum())


def gap(scores: Matrix) -> float:
    """The largest of (C,) scores minus the second largest; the largest itself if there is no other."""
    best = np.sort(scores)[::-1]
    return float(best[0] - (best[1] if len(best) > 1 else 0))


def single_accuracies(train: Matrix, test: Matrix, seen: Classes, asked: Classes) -> Matrix:
    """(C,) balanced test accuracy of a linear classifier that sees one dimension, for each of them.

    It answers with the class of the nearest mean: what linear discriminant analysis is on one dimension with classes of
    equal weight, so that there is nothing to tune.
    """
    present = np.unique(seen)
    means = np.stack([train[seen == number].mean(axis=0) for number in present])  # (K, C)
    answers = present[np.abs(test[:, None] - means).argmin(axis=1)]  # (n, C)
    return np.mean([(answers[asked == number] == number).mean(axis=0) for number in np.unique(asked)], axis=0)


def dci(importances: Matrix) -> dict[str, float]:
    """Disentanglement and completeness, in [0, 1], of (C, factors) importances that are not negative."""
    total = importances.sum()
    if total <= 0:
        return {"disentanglement": 0.0, "completeness": 0.0}
    by_dimension = 1 - _spread(importances)
    by_factor = 1 - _spread(importances.T)
    return {
        "disentanglement": float((by_dimension * importances.sum(axis=1)).sum() / total),
        "completeness": float((by_factor * importances.sum(axis=0)).sum() / total),
    }


def _spread(rows: Matrix) -> Matrix:
    """Entropy of each row's shares over the largest possible; 1 for a row of zeros, and where there is one column."""
    if rows.shape[1] == 1:
        return np.zeros(len(rows))
    sums = rows.sum(axis=1, keepdims=True)
    shares = np.where(sums > 0, rows / np.where(sums > 0, sums, 1), 1 / rows.shape[1])
    logs = np.log(np.where(shares > 0, shares, 1))
    return -(shares * logs).sum(axis=1) / np.log(rows.shape[1])


class Disentanglement(LabeledAnalysis):
    """See the module's docstring; an `Analysis`."""

    def __init__(self, encoder: EncoderUnderTest, module: int, settings: DisentanglementSettings) -> None:
        super().__init__(encoder, module, settings)
        self._settings = settings
        optional("sklearn")

    def work(self, writer: ResultWriter) -> AnalysisResult:
        """See `Analysis`."""
        values, summary, settings = {}, [], self._settings
        for where in self.found:
            train, test = (
                with_consonants(
                    vectors_of(
                        self.encoder, self.module, where, split, settings.examples, settings.seed, writer.stop.check
                    )
                )
                for split in (where.pair.train, where.pair.test)
            )
            name = "-".join(train.classes)
            found = score(train, test, settings, writer)
            values[name] = found["values"]
            writer.table(f"dimensions-{name}", found["rows"])
            writer.figure(f"factors-{name}", figure_of(found["rows"], list(train.classes), self.where))
            summary += _sentences(found["values"])
        return AnalysisResult({"factors": values}, summary)


def score(train: Vectors, test: Vectors, settings: DisentanglementSettings, writer: ResultWriter) -> dict[str, Any]:
    """All three scores from vectors to learn from and vectors to test on; `values`, and `rows` of a table."""
    factors = {}
    columns: dict[str, Matrix] = {}
    with writer.bar("scoring factors", len(train.classes), "factors") as advance:
        for factor, seen in train.classes.items():
            writer.stop.check()
            asked = test.classes[factor]
            information = mutual_information(test.values, asked, settings.bins)
            accuracies = single_accuracies(train.values, test.values, seen, asked)
            forest = _forest(train.values, seen, settings.seed)
            factors[factor] = {
                "classes": len(np.unique(asked)),
                "mig": gap(information) / max(entropy(asked), 1e-12),
                "sap": gap(accuracies),
                "best_dimension": int(information.argmax()),
                "informativeness": float(forest.score(test.values, asked)),
                "majority": float((asked == np.bincount(seen).argmax()).mean()),
            }
            columns |= {
                f"mutual_information_{factor}": information,
                f"accuracy_{factor}": accuracies,
                f"importance_{factor}": np.asarray(forest.feature_importances_),
            }
            advance(1)
    importances = np.stack([columns[f"importance_{factor}"] for factor in factors], axis=1)
    rows = [
        {"dimension": d} | {name: float(column[d]) for name, column in columns.items()}
        for d in range(train.values.shape[1])
    ]
    scores = {name: float(np.mean([f[name] for f in factors.values()])) for name in ("mig", "sap", "informativeness")}
    values = {"vectors": {"train": len(train), "test": len(test)}, **scores, **dci(importances), "factors": factors}
    return {"values": values, "rows": rows}


def _forest(values: Matrix, classes: Classes, seed: int) -> Any:
    ensemble = optional("sklearn.ensemble")
    return ensemble.RandomForestClassifier(TREES, random_state=seed, n_jobs=1).fit(values, classes)


def figure_of(rows: list[dict[str, Any]], factors: list[str], where: str) -> Figure:
    """Importance of each dimension for each factor, as shares of the factor's sum."""
    shares = np.array([[row[f"importance_{factor}"] for row in rows] for factor in factors])
    figure = style.new_figure(float(np.clip(2.5 + 0.09 * len(rows), 6, 12)), 1.9 + 0.3 * len(factors))
    axes = figure.subplots()
    image = axes.imshow(shares, cmap=style.SEQUENTIAL, vmin=0, aspect="auto", interpolation="nearest")
    figure.colorbar(image, label="importance\n(share of the factor's)", pad=0.01)
    axes.set_yticks(range(len(factors)), factors)
    axes.set(xlabel="latent dimension", ylabel="factor")
    axes.set_title(f"DCI importances: {where}")
    return figure


def _sentences(values: dict[str, Any]) -> list[str]:
    lines = [
        f"MIG {values['mig']:.3f}, SAP {values['sap']:.3f}, DCI disentanglement {values['disentanglement']:.3f}, "
        f"completeness {values['completeness']:.3f}, informativeness {values['informativeness']:.3f}"
    ]
    for factor, found in values["factors"].items():
        lines.append(
            f"  {factor} ({found['classes']} classes): MIG {found['mig']:.3f}, SAP {found['sap']:.3f}, forest "
            f"{100 * found['informativeness']:.1f} % (majority {100 * found['majority']:.1f} %)"
        )
    return lines
