"""A module's variational latent: two draws of it, and its KL, keeping only its mean and log-variance.

Legend: B clips, L frames, W frames of the window that is scored, C channels. Everything but `mu` is float32 or wider.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from simdist.models.convolution import apply
from simdist.models.precision import wide


def sample(
    mu: Tensor, log_var: Tensor, latent_noise: Tensor, context_noise: Tensor, start: int, reduction: str
) -> tuple[Tensor, Tensor, Tensor]:
    """Draw twice from N(mu, exp(log_var)), and compare it with N(0, I) (arXiv 2408.12936; arXiv 1312.6114, app. B).

    Args:
        mu, log_var: (B, L, C).
        latent_noise: (B, L, C) standard normal.
        context_noise: (B, W, C) standard normal, for the frames [start, start + W).
        start: first frame of the window.
        reduction: of the KL: `sum` sums over the L frames and averages the rest; `mean` averages all.

    Returns:
        The latent (B, L, C), the context (B, W, C), and the KL, scalar.
    """
    share = 1 / (mu.shape[0] * mu.shape[2] * (1 if reduction == "sum" else mu.shape[1]))
    return apply(_Sample, mu, log_var, latent_noise, context_noise, start, share)


class _Sample(torch.autograd.Function):
    """mu + exp(log_var / 2) * eps, twice, and the KL times B*C or B*L*C; `share` divides by that."""

    @staticmethod
    def forward(
        ctx: Any,
        mu: Tensor,
        log_var: Tensor,
        latent_noise: Tensor,
        context_noise: Tensor,
        start: int,
        share: float,
    ) -> tuple[Tensor, Tensor, Tensor]:
        ctx.save_for_backward(mu, log_var, latent_noise, context_noise)
        ctx.shown, ctx.share, ctx.mu_type = slice(start, start + context_noise.shape[1]), share, mu.dtype
        mu, std = wide(mu), (log_var * 0.5).exp_()
        kl = (_sum_of_squares(mu) + _sum_of_squares(std) - log_var.sum() - mu.numel()) * (0.5 * share)
        context = torch.addcmul(mu[:, ctx.shown], std[:, ctx.shown], context_noise)
        return torch.addcmul(mu, std, latent_noise), context, kl

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, to_latent: Tensor, to_context: Tensor, to_kl: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        mu, log_var, latent_noise, context_noise = ctx.saved_tensors
        weight = to_kl * ctx.share  # of the KL's terms
        to_mu = torch.addcmul(to_latent, wide(mu), weight)
        to_mu[:, ctx.shown] += to_context
        std = (log_var * 0.5).exp_()
        to_std = to_latent * latent_noise
        to_std[:, ctx.shown].addcmul_(to_context, context_noise)
        # d std / d log_var = std / 2, and the KL's derivative by log_var is (std^2 - 1) / 2
        to_log_var = to_std.addcmul_(std, weight).mul_(std).sub_(weight).mul_(0.5)
        return to_mu.to(ctx.mu_type), to_log_var, None, None, None, None


def _sum_of_squares(x: Tensor) -> Tensor:
    flat = x.reshape(-1)
    return flat.dot(flat)
