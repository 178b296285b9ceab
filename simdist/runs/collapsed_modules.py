"""Detection of modules that learn nothing: no latent dimension varies, and InfoNCE is at chance."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

PATIENCE = 0.05  # share of all steps before a warning
MIN_STEPS, MAX_STEPS = 100, 1000  # bounds of the patience


def collapsed_modules(line: Mapping[str, Any], num_negatives: Sequence[int]) -> list[int]:
    """Modules whose latent does not depend on the clip, in a record of metrics.

    None of their dimensions is active, and their InfoNCE is within 1 % of chance, ln(N + 1). Causes are dead ReLUs and
    posterior collapse.

    Args:
        line: a record of metrics.jsonl. Modules without these metrics (decoders) are ignored.
        num_negatives: N of each module.
    """
    collapsed = []
    for module in line["modules"]:
        guess = math.log(num_negatives[module["module"]] + 1) if module["module"] < len(num_negatives) else math.inf
        if module.get("active_units") == 0 and abs(module.get("nce", 0.0) - guess) < 0.01 * guess:
            collapsed.append(module["module"])
    return collapsed


def is_patience_over(step: int, total_steps: int) -> bool:
    """Whether to warn about collapsed modules at a step."""
    return step >= min(max(MIN_STEPS, PATIENCE * total_steps), MAX_STEPS)
