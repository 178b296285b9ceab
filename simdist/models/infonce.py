"""InfoNCE of one greedy module: tell the latent k frames ahead from N others (arXiv 1807.03748, eq. 4).

Legend: B clips, L frames, W frames of the window, A = W - 1 anchors, K steps, N negatives, C channels of the latent, G
sets of negatives that S predictions share.

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

from simdist.core.errors import InputError
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
    source: Literal["batch", "sequence", "other_positives"],
    exclude_positive: bool,
    generator: torch.Generator,
) -> Tensor:
    """Uniform negatives for every anchor of a group of clips, as rows of its latents flattened to (B*L, C).

    In Löwe's code (arXiv 1905.11786), `other_positives` is sampling method 0, `batch` 1 and `sequence` 2. An anchor's
    negatives are distributed as they are there. Her methods 1 and 2 draw without replacement over the batch, so
    negatives of different anchors depend on each other; here they are independent.

    Args:
        batch, frames: B clips of the group and L of their latents, which negatives come from.
        start: first frame of the window.
        anchors: A, frames of the window that predict.
        steps: K; with `exclude_positive`, none of the K latents that follow an anchor is drawn for it.
        num_negatives: N.
        source: all latents of the group (`batch`), those of the anchor's own sequence, or for each step k those that
            other anchors of the group predict with it (`other_positives`).
        exclude_positive: as above; otherwise a negative may rarely be the positive, as in the reference code.
        generator: source of randomness; its device is the result's.

    Returns:
        (B, A, N) int64; with `other_positives` (B, A, K, N), of which those with a target behind the window are unused.

    Raises:
        InputError: `other_positives`, and an anchor is the only one that predicts K steps ahead.
    """
    device = generator.device
    if source == "other_positives":
        return _other_positives(batch, frames, start, anchors, steps, num_negatives, generator)
    clip = torch.arange(batch, device=device)[:, None, None]  # (B, 1, 1)
    frame = torch.arange(start, start + anchors, device=device)[None, :, None]  # (1, A, 1)
    excluded = (frames - 1 - frame).clamp(max=steps) if exclude_positive else torch.zeros_like(frame)  # (1, A, 1)
    population = frames if source == "sequence" else batch * frames
    uniform = torch.rand(batch, anchors, num_negatives, generator=generator, device=device, dtype=torch.float64)
    drawn = (uniform * (population - excluded)).long()
    first_positive = frame + 1 + (0 if source == "sequence" else clip * frames)  # positives are consecutive rows
    drawn = torch.where(drawn >= first_positive, drawn + excluded, drawn) if exclude_positive else drawn
    return drawn + clip * frames if source == "sequence" else drawn


def _other_positives(
    batch: int, frames: int, start: int, anchors: int, steps: int, num_negatives: int, generator: torch.Generator
) -> Tensor:
    """(B, A, K, N): at step k, uniform over frames [start + k, start + W) of all clips, without the positive."""
    device = generator.device
    if batch * (anchors + 1 - steps) < 2:
        raise InputError(
            f"loss.negatives is other_positives, but no other anchor predicts {steps} steps ahead in a batch of "
            f"{batch} with {anchors + 1} frames. Use a larger data.group, a longer data.crop, or loss.negatives=batch"
        )
    shape = (batch, anchors, steps, num_negatives)
    uniform = torch.rand(shape, generator=generator, device=device, dtype=torch.float64)
    ahead = torch.arange(1, steps + 1, device=device)[:, None]  # (K, 1)
    targets = anchors + 1 - ahead  # per clip and step, (K, 1)
    population = batch * targets
    clip = torch.arange(batch, device=device)[:, None, None, None]
    anchor = torch.arange(anchors, device=device)[:, None, None]
    others = 1 + (uniform * (population - 1)).long()  # the positive's distance to a target of another anchor
    drawn = (clip * targets + anchor + others) % population
    return drawn // targets * frames + start + ahead + drawn % targets


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
            each step.
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
    positive, negative = apply(_Scores, predicted, latent, negatives, start, first_clip)
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


class _Scores(torch.autograd.Function):
    """Scores of K positives, (B, A, K), and of N negatives, (B, A, K, N), which an anchor's steps share or do not.

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
        negative = torch.bmm(_grouped(predicted, negatives), _gathered(targets, negatives).transpose(1, 2))
        return wide(positive), wide(negative).view(*predicted.shape[:3], -1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, to_positive: Tensor, to_negative: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        predicted, targets, negatives = ctx.saved_tensors
        batch, anchors, steps, _ = predicted.shape
        start, first_clip = ctx.place
        to_positive = to_positive.to(predicted.dtype)[..., None]  # (B, A, K, 1)
        grouped = _grouped(predicted, negatives)
        to_negative = to_negative.to(predicted.dtype).view(*grouped.shape[:2], -1)  # (G, S, N)
        to_predicted = torch.bmm(to_negative, _gathered(targets, negatives)).view_as(predicted)
        to_predicted.addcmul_(to_positive, _positives(predicted, targets, start, first_clip))
        if not ctx.needs_input_grad[1]:  # a GRU's targets are its input, which no gradient reaches
            return to_predicted, None, None, None, None
        rows = torch.bmm(to_negative.transpose(1, 2), grouped).flatten(0, 1)  # (G*N, C)
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


def _grouped(predicted: Tensor, negatives: Tensor) -> Tensor:
    """(B, A, K, C) -> (G, S, C), by the negatives that they share: (B*A, K, C), or (B*A*K, 1, C)."""
    return predicted.flatten(0, 1) if negatives.dim() == 3 else predicted.flatten(0, 2).unsqueeze(1)


def _gathered(targets: Tensor, negatives: Tensor) -> Tensor:
    """The latents of G sets of N rows, (G, N, C)."""
    return F.embedding(negatives.flatten(0, -2), targets.flatten(0, 1))


def _summed_rows(values: Tensor, rows: Tensor, shape: torch.Size) -> Tensor:
    """Latents' gradient (B_all, L, C), float32 or wider, to which each of `values` adds in its row.

    The same numbers come out each time: index_add_ is exact in its order on a CPU, embeddings' gradient on a GPU.
    """
    values, count = wide(values), shape[0] * shape[1]
    if values.is_cuda:
        return torch.ops.aten.embedding_dense_backward(values, rows, count, -1, False).view(shape)
    return values.new_zeros(count, shape[2]).index_add_(0, rows, values).view(shape)
