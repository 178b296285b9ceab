"""Classifiers that read a label off frozen features: a linear layer, or one hidden layer before it."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Probe(nn.Module):
    """(N, D) features -> (N, num_classes) logits.

    Features are first shifted and scaled by the buffers `mean` and `scale`, (D,), which are 0 and 1 unless set.

    Args:
        dimensions: D.
        num_classes: of the label.
        hidden: width of a hidden ReLU layer; None for a linear probe.
        bias: of the last layer.
        seed: decides the first weights.
    """

    mean: Tensor
    scale: Tensor

    def __init__(
        self, dimensions: int, num_classes: int, hidden: int | None = None, bias: bool = True, seed: int = 0
    ) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(dimensions))
        self.register_buffer("scale", torch.ones(dimensions))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.hidden = nn.Linear(dimensions, hidden) if hidden else None
            self.output = nn.Linear(hidden or dimensions, num_classes, bias=bias)

    def forward(self, features: Tensor) -> Tensor:
        """Logits, in the features' precision or float32, whichever is wider."""
        x = self.standardized(features.to(torch.promote_types(features.dtype, torch.float32)))
        return self.output(x if self.hidden is None else self.hidden(x).relu())

    def standardized(self, features: Tensor) -> Tensor:
        """(N, D) features, shifted and scaled."""
        return (features - self.mean) / self.scale
