"""InfoNCE of one greedy module: tell the latent k frames ahead from N others (arXiv 1807.03748, eq. 4).

Legend: B clips, L frames, W frames of the window, A = W - 1 anchors, K steps, N negatives, C channels of the latent.

The one surprising decision: an anchor shares its N negatives over its K steps. The objective's expectation is that of
independent draws, and all scores of a module become one batched product (K, C) x (C, K + N) an anchor, instead of
K x N gathered copies of the latents.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from simdist.models.convolution import apply
from simdist.models.precision import wide


def draw_negatives(
    batch: int,
    frames: int,
    start: int,
    anchors: int,
    steps: int,
    num_negatives: int,
    *,
    source: Literal["batch", "sequence"],
    exclude_positive: bool,
    generator: torch.Generator,
) -> Tensor:
    """Uniform negatives for every anchor of a group of clips, as rows of its latents flattened to (B*L, C).

    Args:
        batch, frames: B clips of the group and L of their latents, which negatives come from.
        start: first frame of the window.
        anchors: A, frames of the window that predict.
        steps: K; with `exclude_positive`, none of the K latents that follow an anchor is drawn for it.
        num_negatives: N.
        source: all latents of the group (`batch`), or those of the anchor's own sequence (GIM, arXiv 1905.11786).
        exclude_positive: as above; otherwise a negative may rarely be the positive, as in the reference code.
        generator: source of randomness; its device is the result's.

    Returns:
        (B, A, N) int64.
    """
    device = generator.device
    clip = torch.arange(batch, device=device)[:, None, None]  # (B, 1, 1)
    frame = torch.arange(start, start + anchors, device=device)[None, :, None]  # (1, A, 1)
    excluded = (frames - 1 - frame).clamp(max=steps) if exclude_positive else torch.zeros_like(frame)  # (1, A, 1)
    population = frames if source == "sequence" else batch * frames
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
        latent: (B_all, L, C) what is predicted, and where negatives come from. Of a group that spans ranks, B_all is
            its clips; otherwise B.
        predictor: (K*C, C_context) all W_k.
        negatives: (B, A, N) rows of the flattened latents, shared by an anchor's steps; or (B, A, K, N), its own for
            each step (used to replay the reference implementation's draws).
        start: first frame of the window, whose anchors and positives are frames [start, start + W) of a clip.
        steps: K < W.
        first_clip: the clip of `latent` that belongs to the context's first.

    Returns:
        loss, scalar float32: mean over k of the mean over anchors with t + k in the window.
        accuracy, scalar float32: share of predictions in which the positive scores above every negative.
    """
    batch, window, _ = context.shape
    channels, anchors = latent.shape[2], window - 1
    predicted = F.linear(context[:, :anchors], predictor).view(batch, anchors, steps, channels)
    ahead = torch.arange(1, steps + 1, device=latent.device)  # (K,)
    target = torch.arange(anchors, device=latent.device)[:, None] + ahead  # (A, K) frame within the window
    if negatives.dim() == 3:
        positive, negative = apply(_Scores, predicted, latent, negatives, start, first_clip)
    else:
        positive, negative = _scores_of_each_step(predicted, latent, negatives, target.clamp(max=anchors) + start)
    loss = F.softplus(negative.logsumexp(dim=3) - positive, threshold=40)  # -log softmax of the positive, (B, A, K)
    size = positive.detach().abs()
    margin = _rounding(predicted.dtype, positive.dtype) * torch.maximum(size, size.mean())  # sums near 0 cancel
    correct = (positive - negative.amax(dim=3) > margin).float()
    inside = target < window
    weight = inside.to(loss.dtype) / (inside.sum(dim=0) * steps * batch)  # (A, K): mean over anchors, then over steps
    return (loss * weight).sum(), (correct * weight).sum()


def _rounding(multiplied: torch.dtype, summed: torch.dtype) -> float:
    """Relative difference below which two scores tie: equal latents (silence, the positive itself) are no hit."""
    narrow = torch.finfo(multiplied).eps if multiplied.itemsize < summed.itemsize else 0.0
    return max(narrow, 64 * torch.finfo(summed).eps)


def _scores_of_each_step(predicted: Tensor, latent: Tensor, negatives: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Scores with negatives (B, A, K, N) of each step's own; `target` are the positives' frames, (A, K)."""
    flat = latent.flatten(0, 1)
    positive = torch.einsum("bakc,bakc->bak", predicted, latent[: len(predicted), target])
    negative = torch.einsum("bakc,baknc->bakn", predicted, flat[negatives])
    return wide(positive), wide(negative)


class _Scores(torch.autograd.Function):
    """Scores of K positives, (B, A, K), and of the N negatives that an anchor's steps share, (B, A, K, N).

    All that is kept are the predictions and the latents, in the type of the predictions. Positives are views of the
    latents; negatives are gathered in both passes.
    """

    @staticmethod
    def forward(
        ctx: Any, predicted: Tensor, latent: Tensor, negatives: Tensor, start: int, first_clip: int
    ) -> tuple[Tensor, Tensor]:
        targets = latent.to(predicted.dtype)
        ctx.save_for_backward(predicted, targets, negatives)
        ctx.place, ctx.latent_type = (start, first_clip), latent.dtype
        positive = torch.linalg.vecdot(predicted, _positives(predicted, targets, start, first_clip))
        negative = torch.bmm(predicted.flatten(0, 1), _gathered(targets, negatives).transpose(1, 2))
        return wide(positive), wide(negative).view(*predicted.shape[:3], -1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, to_positive: Tensor, to_negative: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        predicted, targets, negatives = ctx.saved_tensors
        batch, anchors, steps, _ = predicted.shape
        start, first_clip = ctx.place
        to_positive = to_positive.to(predicted.dtype)[..., None]  # (B, A, K, 1)
        to_negative = to_negative.to(predicted.dtype).flatten(0, 1)  # (B*A, K, N)
        to_predicted = torch.bmm(to_negative, _gathered(targets, negatives)).view_as(predicted)
        to_predicted.addcmul_(to_positive, _positives(predicted, targets, start, first_clip))
        if not ctx.needs_input_grad[1]:  # a GRU's targets are its input, which no gradient reaches
            return to_predicted, None, None, None, None
        rows = torch.bmm(to_negative.transpose(1, 2), predicted.flatten(0, 1)).flatten(0, 1)  # (B*A*N, C)
        to_latent = _summed_rows(rows, negatives.flatten(), targets.shape)
        own = to_latent[first_clip : first_clip + batch, start:]
        for k in range(1, steps + 1):
            shown = slice(0, anchors - k + 1)  # anchors whose target is in the window
            own[:, k : anchors + 1] += to_positive[:, shown, k - 1] * predicted[:, shown, k - 1]
        return to_predicted, to_latent.to(ctx.latent_type), None, None, None


def _positives(predicted: Tensor, targets: Tensor, start: int, first_clip: int) -> Tensor:
    """The K latents that follow each anchor, (B, A, K, C); zeros behind the window."""
    batch, anchors, steps, _ = predicted.shape
    window = targets[first_clip : first_clip + batch, start + 1 : start + 1 + anchors]
    return F.pad(window, (0, 0, 0, steps - 1)).unfold(1, steps, 1).transpose(2, 3)


def _gathered(targets: Tensor, negatives: Tensor) -> Tensor:
    """The latents of (B, A, N) rows, (B*A, N, C)."""
    return F.embedding(negatives.flatten(0, 1), targets.flatten(0, 1))


def _summed_rows(values: Tensor, rows: Tensor, shape: torch.Size) -> Tensor:
    """Latents' gradient (B_all, L, C), float32 or wider, to which each of `values` adds in its row.

    The same numbers come out each time: index_add_ is exact in its order on a CPU, embeddings' gradient on a GPU.
    """
    values, count = wide(values), shape[0] * shape[1]
    if values.is_cuda:
        return torch.ops.aten.embedding_dense_backward(values, rows, count, -1, False).view(shape)
    return values.new_zeros(count, shape[2]).index_add_(0, rows, values).view(shape)
