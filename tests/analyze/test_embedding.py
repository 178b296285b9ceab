"""t-SNE and scatter: neighbors and variance ratios against plain counts and scipy."""

from __future__ import annotations

import csv
import importlib.util
import itertools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import scipy.stats

from simdist.analyze.embedding import chance_agreement, neighbor_agreement
from simdist.analyze.scatter import variance_ratio

Analyze = Callable[..., list[dict]]


def test_neighbor_agreement_by_counting() -> None:
    random = np.random.default_rng(0)
    points, classes = random.normal(size=(60, 3)), random.integers(0, 3, 60)
    distances = ((points[:, None] - points[None]) ** 2).sum(-1)
    np.fill_diagonal(distances, np.inf)
    nearest = np.argsort(distances, axis=1)[:, :5]
    assert neighbor_agreement(points, classes) == pytest.approx((classes[nearest] == classes[:, None]).mean())
    apart = points + 100 * classes[:, None]
    assert neighbor_agreement(apart, classes) == 1


def test_chance_is_the_share_of_pairs_alike() -> None:
    classes = np.array([0, 0, 0, 1, 1, 2])
    pairs = list(itertools.permutations(classes, 2))
    assert chance_agreement(classes) == pytest.approx(np.mean([a == b for a, b in pairs]))


def test_variance_ratio_is_scipys_f() -> None:
    random = np.random.default_rng(1)
    classes = random.integers(0, 4, 80)
    values = random.normal(size=(80, 3)) + classes[:, None] * [0.0, 0.5, 2.0]
    values = np.column_stack([values, np.ones(80)])
    groups = [values[classes == k, :3] for k in range(4)]
    assert variance_ratio(values, classes)[:3] == pytest.approx(scipy.stats.f_oneway(*groups).statistic)
    assert variance_ratio(values, classes)[3] == 0


def test_tsne_of_frames(analyze: Analyze, sim: Path) -> None:
    (result,) = analyze("embedding", sim, "--module=3", "--label=phone", "--examples=150", "--perplexity=10")
    found = result["values"]["labels"]["phone"]
    assert found["vectors"] == 150
    with (result["folder"] / "tsne-phone.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 150
    plane = np.array([[float(row["x"]), float(row["y"])] for row in rows])
    names = np.unique([row["phone"] for row in rows], return_inverse=True)[1]
    assert found["neighbours_alike_in_plane"] == pytest.approx(neighbor_agreement(plane, names), abs=0.01)
    assert found["chance"] == pytest.approx(chance_agreement(names))


def test_too_few_vectors(fails: Callable[..., str], sim: Path) -> None:
    asked, before = ("embedding", f"--run-dir={sim}", "--label=phone", "--module=3"), set((sim / "analysis").glob("*"))
    printed = fails(*asked, "--examples=60", "--perplexity=30")
    assert "60 vectors are too few for --perplexity 30" in printed
    assert "lower it to below 20" in printed
    assert "4 vectors are too few for a map; it takes 8 or more" in fails(*asked, "--examples=4")
    assert set((sim / "analysis").glob("*")) == before  # what was refused leaves nothing behind


def test_few_vectors_get_a_lower_perplexity(analyze: Analyze, sim: Path) -> None:
    (result,) = analyze("embedding", sim, "--module=3", "--label=phone", "--examples=60")
    assert result["values"]["labels"]["phone"]["perplexity"] == 15


@pytest.mark.skipif(importlib.util.find_spec("umap") is not None, reason="umap-learn is installed")
def test_umap_says_how_to_install_it(fails: Callable[..., str], sim: Path) -> None:
    assert "needs umap, which is not installed: pip install umap-learn" in fails(
        "embedding", f"--run-dir={sim}", "--method=umap"
    )


def test_scatter_takes_the_dimensions_that_tell_apart(analyze: Analyze, fails: Callable[..., str], sim: Path) -> None:
    (best,) = analyze("scatter", sim, "--module=1", "--label=speaker")
    found = best["values"]["labels"]["speaker"]
    assert found["variance_ratios"] == sorted(found["variance_ratios"], reverse=True)
    chosen = ",".join(map(str, reversed(found["dimensions"])))
    (named,) = analyze("scatter", sim, "--module=1", "--label=speaker", f"--dimensions={chosen}")
    assert named["values"]["labels"]["speaker"]["variance_ratios"] == found["variance_ratios"][::-1]
    printed = fails("scatter", f"--run-dir={sim}", "--module=1", "--dimensions=0,1,8")
    assert "it must be three different ones of 0 to 7" in printed
