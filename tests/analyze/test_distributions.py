"""Dimensions against the prior: the same numbers from scipy and torch.distributions."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import scipy.stats
import torch

from simdist.analyze.distributions import kl_divergence, ks_distance
from tests.support.latents import all_clips, module_outputs

Analyze = Callable[..., list[dict]]


def test_ks_distance_is_scipys() -> None:
    random = np.random.default_rng(0)
    z = np.column_stack([random.normal(size=500), random.uniform(-1, 3, 500), np.zeros(500)])
    expected = [scipy.stats.kstest(z[:, d], "norm").statistic for d in range(3)]
    assert ks_distance(z) == pytest.approx(expected, abs=1e-12)


def test_kl_is_torchs() -> None:
    mu, log_var = torch.randn(2, 50, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    posterior = torch.distributions.Normal(mu, (log_var / 2).exp())
    prior = torch.distributions.Normal(torch.zeros_like(mu), torch.ones_like(mu))
    expected = torch.distributions.kl_divergence(posterior, prior).mean(0)
    assert torch.allclose(torch.from_numpy(kl_divergence(mu.numpy(), log_var.numpy())), expected)


def test_the_command_describes_the_encoders_latent(analyze: Analyze, sim: Path, speech: Path) -> None:
    results = analyze("distributions", sim, "--shown=1")
    assert [result["module"] for result in results] == [0, 1, 2]  # the GRU has no distribution, and is passed over
    mu, log_var = module_outputs(sim, 1, torch.cat(list(all_clips(speech).values())))
    assert log_var is not None
    with (results[1]["folder"] / "dimensions.csv").open() as file:
        rows = list(csv.DictReader(file))
    expected = kl_divergence(mu.flatten(0, 1).double().numpy(), log_var.flatten(0, 1).double().numpy())
    assert [float(row["kl"]) for row in rows] == pytest.approx(expected.tolist(), rel=1e-3)
    spread = mu.flatten(0, 1).var(0)
    assert [row["active"] == "True" for row in rows] == (spread > 0.01).tolist()
    values = results[1]["values"]
    assert values["active_units"] == int((spread > 0.01).sum())
    assert values["kl_nats_per_frame"] == pytest.approx(expected.sum(), rel=1e-3)


def test_collapse_is_said(analyze: Analyze, sim: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (well,) = analyze("distributions", sim, "--module=0", "--clips=1", "--shown=1", "--collapsed-below=1e-9")
    assert well["values"]["warning"] is None
    capsys.readouterr()
    (ill,) = analyze("distributions", sim, "--module=0", "--clips=1", "--shown=1", "--collapsed-below=1e9")
    assert "posterior collapse: 8 of 8 dimensions say nothing" in ill["values"]["warning"]
    assert "WARNING: posterior collapse" in capsys.readouterr().out


def test_gim_and_a_gru_have_no_distribution(fails: Callable[..., str], sim: Path, gim: Path) -> None:
    printed = fails("distributions", f"--run-dir={gim}")
    assert "module 0 of" in printed
    assert "has no distribution (model.head is 'mu', as in GIM and CPC)" in printed
    assert "has no distribution (it is a GRU)" in fails("distributions", f"--run-dir={sim}", "--module=3")
