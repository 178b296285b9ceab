"""Two draws and the KL against torch.distributions, with gradients, in float64."""

from __future__ import annotations

import pytest
import torch

from simdist.models.gaussian import sample

B, L, C, START, WINDOW = 2, 7, 3, 2, 4


@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_draws_kl_and_gradients(reduction: str) -> None:
    mu, log_var = (torch.randn(B, L, C, dtype=torch.float64, requires_grad=True) for _ in range(2))
    noise, shown_noise = torch.randn(B, L, C, dtype=torch.float64), torch.randn(B, WINDOW, C, dtype=torch.float64)
    normal = torch.distributions.Normal(mu, (log_var / 2).exp())
    each = torch.distributions.kl_divergence(normal, torch.distributions.Normal(0.0, 1.0))
    kl = each.mean() * (L if reduction == "sum" else 1)
    latent = mu + (log_var / 2).exp() * noise
    shown = slice(START, START + WINDOW)
    context = mu[:, shown] + (log_var[:, shown] / 2).exp() * shown_noise
    ours = sample(mu, log_var, noise, shown_noise, START, reduction)
    for value, expected in zip(ours, (latent, context, kl), strict=True):
        torch.testing.assert_close(value, expected, rtol=1e-10, atol=1e-12)
    weights = [torch.randn_like(value) for value in ours]
    loss = sum((w * value).sum() for w, value in zip(weights, ours, strict=True))
    expected = sum((w * value).sum() for w, value in zip(weights, (latent, context, kl), strict=True))
    assert isinstance(loss, torch.Tensor)
    assert isinstance(expected, torch.Tensor)
    for got, wanted in zip(
        torch.autograd.grad(loss, (mu, log_var)), torch.autograd.grad(expected, (mu, log_var)), strict=True
    ):
        torch.testing.assert_close(got, wanted, rtol=1e-10, atol=1e-12)


def test_everything_is_float32_from_a_bf16_mean() -> None:
    mu, log_var = torch.randn(B, L, C).bfloat16().requires_grad_(), torch.randn(B, L, C, requires_grad=True)
    latent, context, kl = sample(mu, log_var, torch.randn(B, L, C), torch.randn(B, WINDOW, C), START, "mean")
    assert latent.dtype == context.dtype == kl.dtype == torch.float32
    (latent.sum() + context.sum() + kl).backward()
    assert mu.grad is not None
    assert mu.grad.dtype == torch.bfloat16
