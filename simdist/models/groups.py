"""What a model computes over a group of clips, which see each other: negatives, and statistics of BatchNorm.

A rank holds whole groups, or a group spans several ranks (`peers`), which then exchange latents and statistics.
`accelerator.gather` carries no gradient. DDP averages gradients, so each rank's loss must depend on every latent that
it uses, also on those of other ranks, and sends their gradients back.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from simdist.models.convolution import apply
from simdist.models.precision import wide
from simdist.models.span_timer import COLLECTIVES


def share_group(model: nn.Module, peers: dist.ProcessGroup | None) -> None:
    """Let all modules of a model compute over the group that this rank shares with `peers`; None: over whole groups."""
    for module in model.modules():
        if hasattr(module, "peers"):
            object.__setattr__(module, "peers", peers)


def gather_clips(latent: Tensor, peers: dist.ProcessGroup | None) -> Tensor:
    """The latents of a group, (G, L, C) with gradient, of which this rank has (B, L, C).

    Args:
        latent: of one shape on all ranks.
        peers: the ranks that share the group, in the order of its clips; None if it is whole.
    """
    return latent if peers is None else _all_gather(latent, peers).flatten(0, 1)


def group_variance(values: Tensor, groups: int, peers: dist.ProcessGroup | None) -> Tensor:
    """Variance (groups, C) of (B, L, C) over the clips and frames of each group, float32 or wider; no gradient."""
    rows = wide(values.detach()).unflatten(0, (groups, -1)).flatten(1, 2)  # (groups, G*L, C)
    if peers is None:
        return rows.var(dim=1)
    _, variance = _over_peers(rows[0], peers)
    count = rows.shape[1] * peers.size()
    return (variance * count / (count - 1))[None]


def _over_peers(values: Tensor, peers: dist.ProcessGroup) -> tuple[Tensor, Tensor]:
    """Mean and biased variance (C,) over the equally many rows (N, C) of each peer."""
    variance, mean = torch.var_mean(values, dim=0, correction=0)  # (C,) of this rank
    means, variances = _all_gather(torch.stack([mean, variance]), peers).unbind(1)  # (peers, C)
    mean = means.mean(0)
    return mean, (variances + (means - mean).square()).mean(0)


def _all_gather(tensor: Tensor, peers: dist.ProcessGroup) -> Tensor:
    """The tensors of all peers, stacked in a first dimension, with gradient."""
    return apply(_AllGather, tensor, peers)


class _AllGather(torch.autograd.Function):
    """torch's own (`torch.distributed.nn`) fails under gloo in a group that lacks rank 0."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, peers: dist.ProcessGroup) -> Tensor:
        ctx.peers = peers
        gathered = [torch.empty_like(tensor, memory_format=torch.contiguous_format) for _ in range(peers.size())]
        with COLLECTIVES.span(tensor.device):
            dist.all_gather(gathered, tensor.contiguous(), group=peers)
        return torch.stack(gathered)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        own = torch.empty_like(gradient[0], memory_format=torch.contiguous_format)
        with COLLECTIVES.span(gradient.device):
            dist.reduce_scatter(own, list(gradient.contiguous()), group=ctx.peers)
        return own, None


class GroupBatchNorm(nn.BatchNorm1d):
    """BatchNorm1d that normalizes each group of clips by its own statistics, in training.

    Its running statistics follow the mean over this rank's groups; `train_step` averages them over ranks. torch's own
    synchronized BatchNorm runs on GPUs only; this one runs on any backend, with statistics in float32 or wider.
    """

    peers: dist.ProcessGroup | None = None
    """The ranks that share one group with this one; None if the groups are whole."""

    def forward(self, input: Tensor, groups: int = 1) -> Tensor:
        """(B*L, C) -> (B*L, C), of so many groups of equally many rows, one after the other."""
        if not self.training or (groups == 1 and self.peers is None):
            return super().forward(input)
        if self.peers is not None:
            return self._forward_shared(input, self.peers)
        parts, statistics = [], []
        for rows in input.chunk(groups):
            mean, variance = torch.zeros_like(self.weight), torch.zeros_like(self.weight)
            parts.append(F.batch_norm(rows, mean, variance, self.weight, self.bias, True, 1.0, self.eps))
            statistics.append(torch.stack([mean, variance]))
        mean, variance = torch.stack(statistics).detach().mean(0)
        self.track(mean, variance)
        return torch.cat(parts)

    def track(self, mean: Tensor, variance: Tensor) -> None:
        """Move the running statistics towards these (unbiased) ones, as torch's BatchNorm does after each forward."""
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        assert self.momentum is not None
        self.num_batches_tracked.add_(1)
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), self.momentum)
        self.running_var.lerp_(variance.to(self.running_var.dtype), self.momentum)

    def _forward_shared(self, input: Tensor, peers: dist.ProcessGroup) -> Tensor:
        values = wide(input)
        mean, variance = _over_peers(values, peers)
        count = len(input) * peers.size()
        self.track(mean.detach(), variance.detach() * count / (count - 1))
        scale = self.weight * torch.rsqrt(variance + self.eps)
        return (values * scale + (self.bias - mean * scale)).to(input.dtype)
