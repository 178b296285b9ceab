"""One writer per run: the process that holds `lease.json` in its folder and keeps it fresh.

After a node failure, orphans may keep running next to the requeued job; after `kill -9` of a launcher, its ranks do.
File locks end with the wrong process or do not exist on the file system. So the holder touches the file every few
seconds, and another process takes over only after watching it for a while without a touch. A holder that was suspended
finds another name in the file and stops. A job that SLURM has requeued takes over from its own orphans immediately.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
import time
import uuid
from pathlib import Path
from typing import Any

from simdist.core.errors import InputError
from simdist.core.files import write_json
from simdist.core.requeue import job_id
from simdist.runs.folder import LEASE

REFRESH = 3.0  # seconds between two touches
PATIENCE = 30.0  # seconds without a touch after which a holder on another host counts as dead


class LeaseLostError(InputError):
    """Another process has taken over the run."""


class Lease:
    """The right to write a run.

    Args:
        folder: the run folder.
        refresh: seconds between two touches.
        patience: seconds without a touch after which another process takes over.
    """

    def __init__(self, folder: Path, refresh: float = REFRESH, patience: float = PATIENCE) -> None:
        self._path = folder / LEASE
        self._refresh, self._patience = refresh, patience
        self._token = uuid.uuid4().hex
        self._ended = threading.Event()
        self._is_lost = False
        self._looked = time.monotonic()

    def __enter__(self) -> Lease:
        """Take the lease.

        Raises:
            InputError: another process holds it.
        """
        self._path.parent.mkdir(parents=True, exist_ok=True)
        holder, mine = self._read(), _describe(self._token)
        outlives = holder is not None and _is_earlier_life(holder, mine)
        if holder is not None and not outlives and not _is_dead(holder):
            self._wait_until_it_rests(holder)
        write_json(self._path, mine)
        # the orphan checks every `refresh` seconds; if two processes take over at once, the second one wins
        time.sleep(2 * self._refresh if outlives else 0.05)
        if not self._is_mine():
            raise InputError(f"another process has just started to write {self._path.parent}. Run this command later")
        threading.Thread(target=self._keep_fresh, daemon=True, name="lease").start()
        return self

    def __exit__(self, *error: object) -> None:
        """Release the lease."""
        self._ended.set()
        if self._is_mine():
            self._path.unlink(missing_ok=True)

    def check(self) -> None:
        """Raise `LeaseLostError` if another process has taken over. Reads the file first after a suspension."""
        if time.monotonic() - self._looked > 2 * self._refresh:
            self._look()
        if self._is_lost:
            holder = self._read()
            now = f"is written by process {holder['pid']} on {holder['host']} now" if holder else "was taken over"
            raise LeaseLostError(
                f"{self._path.parent} {now}, because this process did not respond for {self._patience:.0f} s. "
                "Stopping without writing"
            )

    def _wait_until_it_rests(self, holder: dict[str, Any]) -> None:
        """Wait until the file was not touched for `patience` seconds."""
        touched, watched = self._touched(), time.monotonic()
        while time.monotonic() - watched < self._patience:
            time.sleep(min(self._refresh, self._patience) / 4)
            if not self._path.exists():
                return
            if self._touched() != touched:
                raise InputError(
                    f"{self._path.parent} is being trained by process {holder['pid']} on {holder['host']}; "
                    f"wait for it, or stop it there with `kill {holder['pid']}` and run this command again"
                )

    def _keep_fresh(self) -> None:
        while not self._ended.wait(self._refresh):
            if self._look():
                return

    def _look(self) -> bool:
        """Refresh the lease. Returns whether it is lost."""
        with contextlib.suppress(OSError):  # a short failure of the file system; the patience is ten times longer
            self._is_lost = self._is_lost or not self._is_mine()
            if not self._is_lost:
                os.utime(self._path)
            self._looked = time.monotonic()
        return self._is_lost

    def _is_mine(self) -> bool:
        return (self._read() or {}).get("token") == self._token

    def _read(self) -> dict[str, Any] | None:
        try:
            holder = json.loads(self._path.read_text())
            return holder if {"host", "pid", "token"} <= holder.keys() else None
        except (FileNotFoundError, ValueError, AttributeError):
            return None

    def _touched(self) -> int:
        with contextlib.suppress(FileNotFoundError):
            return self._path.stat().st_mtime_ns
        return 0


def _describe(token: str) -> dict[str, Any]:
    """Identity of this process."""
    life = int(os.environ.get("SLURM_RESTART_COUNT", 0))
    job = {"job": job_id(os.environ), "life": life}
    return {"host": socket.gethostname(), "pid": os.getpid(), "token": token, "since": time.time(), **job}


def _is_earlier_life(holder: dict[str, Any], mine: dict[str, Any]) -> bool:
    """Whether the holder is the same SLURM job before it was requeued."""
    return mine["job"] is not None and holder.get("job") == mine["job"] and holder.get("life", 0) < mine["life"]


def _is_dead(holder: dict[str, Any]) -> bool:
    """Whether the holder ran on this host and has ended."""
    if holder["host"] != socket.gethostname():
        return False
    try:
        os.kill(holder["pid"], 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return False
