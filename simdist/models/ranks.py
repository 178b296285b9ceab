"""What a model computes over all ranks, with its gradient: latents to draw negatives from, statistics of BatchNorm.

`accelerator.gather` carries no gradient. DDP averages gradients, so each rank's loss must depend on every latent that
it uses, also on those of other ranks: `torch.distributed.nn` sends their gradients back.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
import torch.distributed.nn.functional as collective
from torch import Tensor, nn

from simdist.models.precision import wide
from simdist.models.span_timer import COLLECTIVES


def world() -> tuple[int, int]:
    """(rank, number of ranks); (0, 1) without processes."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_available() and dist.is_initialized() else (0, 1)


def gather_clips(latent: Tensor) -> tuple[Tensor, int]:
    """The latents of all ranks, in their order, and the first clip of this rank.

    Args:
        latent: (B, L, C), of one shape on all ranks.

    Returns:
        (world_size * B, L, C) with gradient, and rank * B.
    """
    rank, size = world()
    if size == 1:
        return latent, 0
    return torch.cat(_all_gather(latent.contiguous())), rank * len(latent)


def _all_gather(tensor: Tensor) -> tuple[Tensor, ...]:
    """The tensors of all ranks, with gradient."""
    with COLLECTIVES.span(tensor.device):
        gathered = collective.all_gather(tensor)
    COLLECTIVES.span_backward(gathered[0])
    return gathered


class SyncBatchNorm(nn.BatchNorm1d):
    """BatchNorm1d whose training statistics are those of all ranks' batches, which are equally large.

    torch's own runs on GPUs only; this one runs on any backend, with statistics in float32 or wider.
    """

    def forward(self, input: Tensor) -> Tensor:
        """(B*L, C) -> (B*L, C)."""
        if not self.training or world()[1] == 1:
            return super().forward(input)
        values = wide(input)
        variance, mean = torch.var_mean(values, dim=0, correction=0)  # (C,) of this rank
        means, variances = torch.stack(_all_gather(torch.stack([mean, variance]))).unbind(1)  # (ranks, C)
        mean = means.mean(0)
        variance = (variances + (means - mean).square()).mean(0)
        track(self, mean.detach(), variance.detach(), count=len(input) * len(means))
        scale = self.weight * torch.rsqrt(variance + self.eps)
        return (values * scale + (self.bias - mean * scale)).to(input.dtype)


def track(norm: nn.BatchNorm1d, mean: Tensor, variance: Tensor, count: int) -> None:
    """Let a BatchNorm remember the (biased) statistics of a batch with `count` values a channel, as torch's does."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    assert norm.num_batches_tracked is not None
    assert norm.momentum is not None
    norm.num_batches_tracked.add_(1)
    norm.running_mean.lerp_(mean.to(norm.running_mean.dtype), norm.momentum)
    norm.running_var.lerp_((variance * count / (count - 1)).to(norm.running_var.dtype), norm.momentum)
