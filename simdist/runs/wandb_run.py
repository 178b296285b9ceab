"""Start a run of Weights & Biases that records no secrets."""

from __future__ import annotations

import sys
from typing import Any

from simdist.core.secrets import redacted_words
from simdist.runs.folder import code_state


def start_wandb(**options: Any) -> Any:
    """Call `wandb.init` so that it sees a redacted command line, and of the code only the commit.

    On its own, it records `sys.argv`, the URL of the git remote and the uncommitted changes as they are.
    """
    import wandb

    settings = wandb.Settings(silent=True, disable_git=True, disable_code=True, git_commit=code_state()[0])
    words = sys.argv
    sys.argv = redacted_words(words)
    try:
        return wandb.init(**options, settings=settings)
    finally:
        sys.argv = words
