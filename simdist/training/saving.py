"""Checkpoints written in the background: training waits only while weights are copied to host memory."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

from simdist.training.checkpoint import Checkpoint, Retention, save_checkpoint


class AsyncCheckpointer:
    """Writes a run's checkpoints, one after the other, in a thread of its own.

    Args:
        folder: where checkpoints lie.
        retention: which of them stay.
        allowed: asked just before a checkpoint is written; raises if this process may not write any more.
    """

    def __init__(self, folder: Path, retention: Retention, allowed: Callable[[], None]) -> None:
        self._folder, self._retention, self._allowed = folder, retention, allowed
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None
        self._saved = -1

    def save(self, checkpoint: Checkpoint) -> None:
        """Copy `checkpoint`, and begin to write the copy; a save that is under way is waited for first.

        Raises:
            InputError: that one failed.
        """
        self.finish()
        if checkpoint.step == self._saved:
            return
        self._thread = threading.Thread(target=self._write, args=(checkpoint.on_host(),), name="saver")
        self._thread.start()

    def finish(self) -> None:
        """Wait until everything is on disk.

        Raises:
            InputError: the last save failed.
        """
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        self.check()

    def check(self) -> None:
        """Raise what went wrong in the background."""
        if self._error is not None:
            raise self._error

    def forget(self) -> None:
        """Of a step that was saved before, the next checkpoint is another one."""
        self._saved = -1

    def _write(self, checkpoint: Checkpoint) -> None:
        try:
            self._allowed()
            save_checkpoint(self._folder, checkpoint, self._retention)
            self._saved = checkpoint.step
        except BaseException as error:  # raised again in the training thread
            self._error = error
