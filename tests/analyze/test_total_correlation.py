"""Total correlation against closed forms and scikit-learn's kernel density."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.neighbors import KernelDensity

from simdist.analyze.total_correlation import (
    frames_of_each,
    gaussian_total_correlation,
    kernel_entropy,
    kernel_total_correlation,
    shuffled,
    standardized,
)
from tests.support.latents import all_clips, module_outputs

Analyze = Callable[..., list[dict]]


def gaussian(covariance: np.ndarray, n: int) -> np.ndarray:
    return np.random.default_rng(0).multivariate_normal(np.zeros(len(covariance)), covariance, n)


def test_gaussian_closed_form_of_a_known_covariance() -> None:
    covariance = np.array([[4.0, 1.2, 0.0], [1.2, 1.0, 0.3], [0.0, 0.3, 0.25]])
    expected = 0.5 * (np.log(np.diag(covariance)).sum() - np.linalg.slogdet(covariance)[1])
    assert gaussian_total_correlation(gaussian(covariance, 200_000)) == pytest.approx(expected, rel=0.02)
    x = gaussian(np.array([[1, 0.8], [0.8, 1]]), 500)
    rho = np.corrcoef(x.T)[0, 1]
    assert gaussian_total_correlation(x) == pytest.approx(-0.5 * np.log(1 - rho**2))
    constant = np.column_stack([x, np.ones(500)])
    assert gaussian_total_correlation(constant) == pytest.approx(gaussian_total_correlation(x))


def test_a_linear_dependence_is_infinite() -> None:
    x = np.random.default_rng(1).normal(size=(5, 8))
    assert gaussian_total_correlation(x) == float("inf")  # fewer vectors than dimensions


@pytest.mark.parametrize(("dimensions", "bandwidth"), [(1, 0.1), (3, 0.1), (6, 0.7)])
def test_kernel_entropy_is_scikit_learns(dimensions: int, bandwidth: float) -> None:
    x = np.random.default_rng(2).normal(size=(1203, dimensions))
    expected = -KernelDensity(bandwidth=bandwidth, rtol=0, atol=0).fit(x).score_samples(x).mean()
    assert kernel_entropy(x, bandwidth) == pytest.approx(expected, rel=1e-9)


def test_kernel_estimate_finds_a_dependence() -> None:
    """Of two Gaussians with correlation 0.9 it comes near the closed form; shuffled, near nothing."""
    x = standardized(gaussian(np.array([[1, 0.9], [0.9, 1]]), 4000))
    exact = -0.5 * np.log(1 - 0.81)
    value, apart = (kernel_total_correlation(part, 0.1) for part in (x, shuffled(x, 0)))
    assert value - apart == pytest.approx(exact, rel=0.1)
    assert apart < 0.3 * exact


def test_shuffling_keeps_each_dimension_and_breaks_what_joins_them() -> None:
    x = gaussian(np.array([[1, 0.9], [0.9, 1]]), 2000)
    y = shuffled(x, 3)
    assert np.array_equal(np.sort(x, axis=0), np.sort(y, axis=0))
    assert abs(np.asarray(np.corrcoef(y.T))[0, 1]) < 0.1


def test_the_command_measures_the_encoders_latent(analyze: Analyze, sim: Path, speech: Path) -> None:
    """All frames of all clips, so that the draw of frames cannot matter: the sum over all dimensions is known."""
    results = analyze("total-correlation", sim, "--module=1", "--frames=100000", "--sizes=2,50")
    clips = torch.cat(list(all_clips(speech).values()))
    mu = module_outputs(sim, 1, clips)[0].flatten(0, 1).double().numpy()
    values = results[0]["values"]
    assert values["frames"] == len(mu)
    full = values["gaussian"][-1]
    assert full["dimensions"] == 8
    assert full["total_correlation"] == pytest.approx(gaussian_total_correlation(mu), rel=1e-3)
    raw = sum(kernel_entropy(mu[:, [d]], 0.1) for d in range(8)) - kernel_entropy(mu, 0.1)
    assert values["kde"][-1]["total_correlation"] == pytest.approx(raw, rel=1e-3, abs=1e-6)
    assert full["excess"] == pytest.approx(full["total_correlation"] - full["shuffled"])


def test_sampled_latents_need_a_distribution(analyze: Analyze, fails: Callable[..., str], sim: Path, gim: Path) -> None:
    (plain,) = analyze("total-correlation", sim, "--module=0", "--clips=2", "--frames=300")
    (sampled,) = analyze("total-correlation", sim, "--module=0", "--clips=2", "--frames=300", "--latents=sampled")
    assert sampled["values"]["gaussian"] != plain["values"]["gaussian"]
    printed = fails("total-correlation", f"--run-dir={gim}", "--latents=sampled")
    assert "has no distribution to sample from (model.head is 'mu'); use --latents deterministic" in printed


def test_the_papers_definition_is_three_draws_of_five_frames_of_each_clip(analyze: Analyze, sim: Path) -> None:
    (result,) = analyze("total-correlation", sim, "--module=1", "--definition=paper", "--sizes=2,8", "--clips=2")
    values = result["values"]
    clips = values["frames"] // 5
    assert values["frames"] == 5 * clips
    assert clips > 2  # --clips is of our definition
    assert values["draws"] == 3
    assert set(values) == {"frames", "draws", "kde"}
    assert [point["dimensions"] for point in values["kde"]] == [2, 8]
    assert all(point["deviation"] > 0 for point in values["kde"])
    (again,) = analyze("total-correlation", sim, "--module=1", "--definition=paper", "--sizes=2,8", "--force")
    assert again["values"] == values


def test_frames_of_each_takes_as_many_of_every_clip() -> None:
    latents = np.arange(2 * 7 * 3, dtype=float).reshape(2, 7, 3)
    found = frames_of_each(latents, 4, 1)
    assert found.shape == (8, 3)
    of_clip = [sorted(int(row[0]) // 3 for row in part) for part in (found[:4], found[4:])]
    assert all(len(set(frames)) == 4 for frames in of_clip)
    assert (max(of_clip[0]) < 7, min(of_clip[1]) >= 7) == (True, True)
    assert len(frames_of_each(latents, 9, 1)) == 14
    assert not np.array_equal(found, frames_of_each(latents, 4, 2))
