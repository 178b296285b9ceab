"""Where mixed precision must not reach: KL, log-variances, softmax and statistics are float32, or wider."""

from __future__ import annotations

import torch
from torch import Tensor


def wide(x: Tensor) -> Tensor:
    """`x` in float32; float64 stays as it is, so that tests can compare in it."""
    return x if x.dtype == torch.float64 else x.float()
