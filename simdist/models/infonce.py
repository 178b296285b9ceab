"""InfoNCE of one greedy module: tell the latent k frames ahead from N others (arXiv 1807.03748, eq. 4).

Legend: B clips, L frames, W frames of the window, A = W - 1 anchors, K steps, N negatives, C channels of the latent.

The one surprising decision: an anchor shares its N negatives over its K steps. The objective's expectation is that of
independent draws, and all scores of a module become one batched product (K, C) x (C, K + N) an anchor, instead of
K x N gathered copies of the latents.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from simdist.models.precision import wide


def draw_negatives(
    batch: int,
    frames: int,
    start: int,
    anchors: int,
    steps: int,
    num_negatives: int,
    *,
    source: Literal["batch", "sequence", "global"],
    exclude_positive: bool,
    generator: torch.Generator,
    rank: int = 0,
    world_size: int = 1,
) -> Tensor:
    """Uniform negatives for every anchor, as rows of the latents flattened to (B*L, C).

    Args:
        batch, frames: B and L of the latents that negatives come from.
        start: first frame of the window.
        anchors: A, frames of the window that predict.
        steps: K; with `exclude_positive`, none of the K latents that follow an anchor is drawn for it.
        num_negatives: N.
        source: all latents of this rank's batch, those of all ranks (`global`), or those of the anchor's own sequence
            (GIM, arXiv 1905.11786).
        exclude_positive: as above; otherwise a negative may rarely be the positive itself, as upstream.
        generator: source of randomness; its device is the result's.
        rank, world_size: with `global`, rows count over the ranks' batches one after the other.

    Returns:
        (B, A, N) int64.
    """
    device = generator.device
    ranks = world_size if source == "global" else 1
    clip = torch.arange(batch, device=device)[:, None, None] + (rank * batch if ranks > 1 else 0)  # (B, 1, 1)
    frame = torch.arange(start, start + anchors, device=device)[None, :, None]  # (1, A, 1)
    excluded = (frames - 1 - frame).clamp(max=steps) if exclude_positive else torch.zeros_like(frame)  # (1, A, 1)
    population = frames if source == "sequence" else ranks * batch * frames
    uniform = torch.rand(batch, anchors, num_negatives, generator=generator, device=device, dtype=torch.float64)
    drawn = (uniform * (population - excluded)).long()
    first_positive = frame + 1 + (0 if source == "sequence" else clip * frames)  # positives are consecutive rows
    drawn = torch.where(drawn >= first_positive, drawn + excluded, drawn) if exclude_positive else drawn
    return drawn + clip * frames if source == "sequence" else drawn


def info_nce(
    context: Tensor,
    latent: Tensor,
    predictor: Tensor,
    negatives: Tensor,
    *,
    start: int,
    steps: int,
    first_clip: int = 0,
) -> tuple[Tensor, Tensor]:
    """Loss and accuracy of one module.

    Args:
        context: (B, W, C_context) what predicts: the frames of the window.
        latent: (B_all, L, C) what is predicted, and where negatives come from. With negatives of all ranks, B_all is
            their clips; otherwise B.
        predictor: (K*C, C_context) all W_k.
        negatives: (B, A, N) rows of the flattened latents, shared by an anchor's steps; or (B, A, K, N), its own for
            each step (used to replay upstream's draws).
        start: first frame of the window, whose anchors and positives are frames [start, start + W) of a clip.
        steps: K < W.
        first_clip: the clip of `latent` that belongs to the context's first.

    Returns:
        loss, scalar float32: mean over k of the mean over anchors with t + k in the window.
        accuracy, scalar float32: share of predictions in which the positive scores above every negative.
    """
    batch, window, _ = context.shape
    frames, channels = latent.shape[1:]
    anchors = window - 1
    predicted = F.linear(context[:, :anchors], predictor).view(batch * anchors, steps, channels)  # (B*A, K, C)
    ahead = torch.arange(1, steps + 1, device=latent.device)  # (K,)
    target = torch.arange(anchors, device=latent.device)[:, None] + ahead  # (A, K) frame within the window
    inside = target < window
    clip = (torch.arange(batch, device=latent.device)[:, None, None] + first_clip) * frames
    positives = clip + start + target.clamp(max=window - 1)  # (B, A, K) rows of the flattened latents
    flat = latent.reshape(-1, channels)  # (B_all, L, C) -> (B_all*L, C)
    if negatives.dim() == 3:
        rows = torch.cat([positives, negatives], dim=2).flatten(0, 1)  # (B*A, K+N)
        scores = wide(torch.bmm(predicted, F.embedding(rows, flat).transpose(1, 2)))  # (B*A, K, K+N)
        positive = scores[:, :, :steps].diagonal(dim1=1, dim2=2)  # (B*A, K): step k's score of step k's latent
        negative = scores[:, :, steps:]  # (B*A, K, N)
    else:
        positive = wide(torch.einsum("akc,akc->ak", predicted, flat[positives.flatten(0, 1)]))
        negative = wide(torch.einsum("akc,aknc->akn", predicted, flat[negatives.flatten(0, 1)]))
    loss = torch.logsumexp(torch.cat([positive.unsqueeze(2), negative], dim=2), dim=2) - positive
    correct = (positive > negative.amax(dim=2)).float()
    weight = inside.to(loss.dtype) / (inside.sum(dim=0) * steps * batch)  # (A, K): mean over anchors, then over steps
    weight = weight.repeat(batch, 1)  # (B*A, K)
    return (loss * weight).sum(), (correct * weight).sum()
