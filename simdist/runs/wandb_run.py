"""A run of Weights & Biases that records no secrets, and cannot end the work that it mirrors."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from simdist.config.schema import WandbConfig
from simdist.core.secrets import redacted_words
from simdist.runs.folder import code_state

INIT_SECONDS = 30  # that a start may take; wandb's own patience is three times as long


class WandbRun:
    """Mirrors numbers and files. When wandb fails, it says so once, and does nothing more.

    Where the server cannot be reached, the run is offline.

    Args:
        settings: `wandb` of the configuration; with mode `disabled`, nothing is ever done.
        log: prints a line.
        steps: the step axis of each metric pattern.
        options: further ones of `wandb.init`.
    """

    def __init__(
        self, settings: WandbConfig, log: Callable[[str], None], steps: dict[str, str], **options: Any
    ) -> None:
        self._log, self._run, self._mode = log, None, settings.mode
        if settings.mode == "disabled":
            return
        common = {"project": settings.project, "entity": settings.entity, "resume": "allow", **options}
        with self._silencing():
            try:
                self._run = start_wandb(mode=settings.mode, **common)
            except Exception as error:
                if settings.mode == "offline":
                    raise
                self._log(f"warning: Weights & Biases cannot be reached ({_reason(error)}); this run is offline")
                self._mode = "offline"
                _end_service()  # it still holds the name of the run
                self._run = start_wandb(mode="offline", **common)
            for pattern, step in steps.items():
                self._run.define_metric(step)
                self._run.define_metric(pattern, step_metric=step)

    def log(self, fields: dict[str, Any]) -> None:
        """Log numbers, and paths of sounds (.wav) and pictures (.png)."""
        if self._run is None:
            return
        with self._silencing():
            self._run.log(
                {name: _as_media(value) if isinstance(value, Path) else value for name, value in fields.items()}
            )

    def finish(self) -> None:
        """End the run. Of one that is offline, say how to upload it."""
        if self._run is None:
            return
        with self._silencing():
            self._run.finish()
            if self._mode == "offline":
                self._log(f"wandb was offline. On a machine with internet: wandb sync {Path(self._run.dir).parent}")

    @contextmanager
    def _silencing(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # whatever a tracker raises
            self._run = None
            self._log(f"warning: Weights & Biases failed ({_reason(error)}); the work continues without it")
            _end_service()  # or its handler at exit would fail, too


def start_wandb(**options: Any) -> Any:
    """Call `wandb.init` so that it sees a redacted command line, and of the code only the commit.

    On its own, it records `sys.argv`, the URL of the git remote and the uncommitted changes as they are.
    """
    import wandb

    settings = wandb.Settings(
        silent=True, disable_git=True, disable_code=True, git_commit=code_state()[0], init_timeout=INIT_SECONDS
    )
    words = sys.argv
    sys.argv = redacted_words(words)
    try:
        return wandb.init(**options, settings=settings)
    finally:
        sys.argv = words


def _end_service() -> None:
    """End the process that wandb writes with."""
    import wandb

    with suppress(Exception):
        wandb.teardown()


def _as_media(path: Path) -> Any:
    import wandb

    return wandb.Audio(str(path), caption=path.stem) if path.suffix == ".wav" else wandb.Image(str(path))


def _reason(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
