"""Locks that keep two processes from writing one folder."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import filelock

from simdist.core.errors import InputError

LOCK_SECONDS = 2.0  # children of a process that was just killed may hold its lock for a moment


@contextmanager
def locked(out: Path, name: str = ".pack.lock", wait: bool = False, writer: str = "simdist.pack") -> Iterator[None]:
    """Create `out` and keep other packings, or other processes of `writer`, away from it."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        lock = filelock.FileLock(out / name, timeout=-1 if wait else LOCK_SECONDS)
        lock.acquire()
    except filelock.Timeout as error:
        raise InputError(f"another {writer} is writing to {out}; wait for it, or choose another folder") from error
    except OSError as error:
        raise InputError(f"cannot write to {out}: {error.strerror}; choose another folder") from error
    except NotImplementedError:
        lock = None  # a file system without locks, as Lustre may be mounted
    try:
        yield
    finally:
        if lock is not None:
            lock.release()
