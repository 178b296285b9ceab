"""Modules that learn nothing: no latent dimension varies, and the contrastive task is guessed. No torch is needed."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

PATIENCE = 0.05  # of all steps, before a module is called idle
FEWEST, MOST = 100, 1000  # steps of patience


def collapsed_modules(line: Mapping[str, Any], num_negatives: int) -> list[int]:
    """Modules of a line of metrics that do not tell one clip from another.

    None of their dimensions is active, and their InfoNCE is that of a guess among the positive and N negatives,
    ln(N + 1), within 1 %. ReLUs that died look like this, and a posterior that collapsed onto the prior.

    Args:
        line: of metrics.jsonl; modules without these metrics (decoders) are not looked at.
        num_negatives: N.
    """
    guess = math.log(num_negatives + 1)
    return [
        module["module"]
        for module in line["modules"]
        if module.get("active_units") == 0 and abs(module.get("nce", 0.0) - guess) < 0.01 * guess
    ]


def is_patience_over(step: int, total_steps: int) -> bool:
    """Whether a module that has learnt nothing in so many steps should be spoken of."""
    return step >= min(max(FEWEST, PATIENCE * total_steps), MOST)
