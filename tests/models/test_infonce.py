"""InfoNCE against a definition written out in loops, and its negatives against the distribution they should have."""

from __future__ import annotations

import math
from typing import Literal

import pytest
import torch
from torch import Tensor

from simdist.core.errors import InputError
from simdist.models.infonce import draw_negatives, info_nce

B, L, C, C_CONTEXT, K, N = 3, 14, 5, 4, 3, 6


@pytest.fixture
def tensors() -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = ((B, L, C_CONTEXT), (B, L, C), (K * C, C_CONTEXT))
    context, latent, predictor = (
        torch.randn(*shape, generator=generator, dtype=torch.float64, requires_grad=True) for shape in shapes
    )
    return context, latent, predictor


def written_out(
    context: Tensor, latent: Tensor, predictor: Tensor, negatives: Tensor, start: int, window: int
) -> tuple[Tensor, float]:
    """Equation 4 of arXiv 1807.03748, one anchor and one step at a time."""
    flat = latent.reshape(-1, C)
    losses, correct = [], []
    for k in range(1, K + 1):
        of_step, hits = [], []
        for b in range(B):
            for a in range(window - k):
                prediction = predictor[(k - 1) * C : k * C] @ context[b, start + a]
                rows = negatives[b, a] if negatives.dim() == 3 else negatives[b, a, k - 1]
                positive = prediction @ latent[b, start + a + k]
                negative = torch.stack([prediction @ flat[row] for row in rows])
                of_step.append(-torch.log_softmax(torch.cat([positive[None], negative]), 0)[0])
                hits.append(float(positive > negative.max()))
        losses.append(torch.stack(of_step).mean())
        correct.append(sum(hits) / len(hits))
    return torch.stack(losses).mean(), sum(correct) / K


@pytest.mark.parametrize(("start", "window"), [(0, L), (3, 8), (L - 5, 5)])
@pytest.mark.parametrize("per_step", [False, True])
def test_loss_and_gradients_equal_the_definition(
    tensors: tuple[Tensor, Tensor, Tensor], start: int, window: int, per_step: bool
) -> None:
    shape = (B, window - 1, K, N) if per_step else (B, window - 1, N)
    negatives = torch.randint(B * L, shape, generator=torch.Generator().manual_seed(1))
    expected, expected_accuracy = written_out(*tensors, negatives, start, window)
    wanted = torch.autograd.grad(expected, tensors)
    context, latent, predictor = tensors
    shown = context[:, start : start + window]
    loss, accuracy = info_nce(shown, latent, predictor, negatives, start=start, steps=K)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-12)
    assert accuracy.item() == pytest.approx(expected_accuracy)
    for ours, theirs in zip(torch.autograd.grad(loss, tensors), wanted, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)


def test_a_guess_costs_ln_of_the_candidates(tensors: tuple[Tensor, Tensor, Tensor]) -> None:
    context, latent, predictor = tensors
    negatives = torch.zeros(B, L - 1, N, dtype=torch.int64)
    loss, accuracy = info_nce(context, latent, 0 * predictor, negatives, start=0, steps=K)
    assert loss.item() == pytest.approx(math.log(N + 1))
    assert accuracy.item() == 0  # a tie is not a hit: a collapsed module knows nothing


@pytest.mark.parametrize("seed", range(20))
def test_a_negative_that_is_the_positive_is_no_hit(seed: int) -> None:
    """The same score by two computations: were it left to rounding, the accuracy would depend on the machine."""
    torch.manual_seed(seed)
    context, latent, predictor = torch.randn(B, L, 64), torch.randn(B, L, 64), torch.eye(64).repeat(K, 1)
    rows = torch.arange(B)[:, None] * L + torch.arange(L - 1) + 1  # (B, A): the latent that follows each anchor
    _, accuracy = info_nce(context, latent, predictor, rows[..., None].repeat(1, 1, N), start=0, steps=K)
    _, apart = info_nce(context, latent, predictor, (rows[..., None] + L) % (B * L), start=0, steps=K)
    per_step = [
        (context[:, : L - k] * latent[:, k:]).sum(2) > (context[:, : L - k] * latent[:, 1 : L - k + 1]).sum(2)
        for k in range(2, K + 1)
    ]
    assert accuracy.item() == pytest.approx(sum(float(hits.float().mean()) for hits in per_step) / K)
    assert apart > 0.2


def negatives(source: Literal["batch", "sequence"], exclude_positive: bool, draws: int = 4000) -> Tensor:
    return draw_negatives(
        B, L, 2, 9, K, draws, source=source, exclude_positive=exclude_positive, generator=torch.Generator()
    )  # fmt: skip


@pytest.mark.parametrize("exclude_positive", [False, True])
@pytest.mark.parametrize("source", ["batch", "sequence"])
def test_negatives_are_uniform_over_what_is_allowed(
    source: Literal["batch", "sequence"], exclude_positive: bool
) -> None:
    drawn = negatives(source, exclude_positive)
    assert drawn.shape == (B, 9, 4000)
    for b in range(B):
        for a in range(9):
            allowed = set(range(B * L) if source == "batch" else range(b * L, (b + 1) * L))
            if exclude_positive:
                allowed -= {b * L + 2 + a + k for k in range(1, K + 1) if 2 + a + k < L}
            counts = torch.bincount(drawn[b, a], minlength=B * L)
            assert set(torch.nonzero(counts).flatten().tolist()) == allowed
            mean = 4000 / len(allowed)
            assert (counts[sorted(allowed)] - mean).abs().max() < 6 * math.sqrt(mean)


SAMPLINGS = {  # by Löwe's numbers: of 2 clips with 5 frames, the window [1, 5), 2 steps; (clip, anchor, k): candidates
    0: {
        (0, 0, 1): [3, 4, 7, 8, 9],  # rows that any anchor predicts with k = 1: 2, 3, 4, 7, 8, 9; the positive is 2
        (0, 2, 1): [2, 3, 7, 8, 9],
        (1, 1, 1): [2, 3, 4, 7, 9],
        (0, 0, 2): [4, 8, 9],  # with k = 2: 3, 4, 8, 9
        (1, 1, 2): [3, 4, 8],
    },
    1: {(0, 0, 1): list(range(10)), (1, 1, 2): list(range(10))},  # all rows; one in ten is the positive
    2: {(0, 0, 1): [0, 1, 2, 3, 4], (1, 1, 2): [5, 6, 7, 8, 9]},  # the sequence, beyond the window, too
}
NAMES: dict[int, Literal["other_positives", "batch", "sequence"]] = {0: "other_positives", 1: "batch", 2: "sequence"}


@pytest.mark.parametrize("method", SAMPLINGS)
def test_each_negative_has_the_distribution_of_loewes_sampling(method: int) -> None:
    """Every candidate is equally likely, and nothing else is drawn."""
    count, generator = 20_000, torch.Generator().manual_seed(method)
    drawn = draw_negatives(
        2, 5, 1, 3, 2, count, source=NAMES[method], exclude_positive=False, generator=generator
    )  # fmt: skip
    for (clip, anchor, k), candidates in SAMPLINGS[method].items():
        of_step = drawn[clip, anchor] if drawn.dim() == 3 else drawn[clip, anchor, k - 1]
        shares = torch.bincount(of_step, minlength=10) / count
        expected = torch.tensor([1 / len(candidates) if row in candidates else 0.0 for row in range(10)])
        assert (shares - expected).abs().max() < 6 * (0.25 / count) ** 0.5
        assert shares[expected == 0].sum() == 0
    if method == 0:  # her code draws each negative of each anchor and step on its own
        pairs = torch.bincount(drawn[0, 0, 0] * 10 + drawn[0, 1, 0], minlength=100).view(10, 10) / count
        assert (pairs[[3, 4, 7, 8, 9]][:, [2, 4, 7, 8, 9]] - 1 / 25).abs().max() < 6 * (0.04 / count) ** 0.5


def test_other_positives_need_another_anchor() -> None:
    words = "no other anchor predicts 3 steps ahead in a batch of 1 with 4 frames"
    with pytest.raises(InputError, match=words):
        draw_negatives(
            1, 9, 0, 3, 3, 5, source="other_positives", exclude_positive=False, generator=torch.Generator()
        )  # fmt: skip


def test_negatives_repeat_with_their_generator() -> None:
    assert torch.equal(negatives("batch", False, 10), negatives("batch", False, 10))
