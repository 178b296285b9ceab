"""Locks between processes: one that keeps two from writing one folder, and one that many readers may share."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import filelock

from simdist.core.errors import FailedError, InputError
from simdist.core.files import FULL, PASSING, patiently, remedy

LOCK_SECONDS = 2.0  # children of a process that was just killed may hold its lock for a moment


@contextmanager
def locked(out: Path, name: str = ".pack.lock", wait: bool = False, writer: str = "simdist.pack") -> Iterator[None]:
    """Create `out` and keep other packings, or other processes of `writer`, away from it."""

    def acquire() -> filelock.BaseFileLock:
        out.mkdir(parents=True, exist_ok=True)
        lock = filelock.FileLock(out / name, timeout=-1 if wait else LOCK_SECONDS)
        lock.acquire()
        return lock

    try:
        lock = patiently(acquire)
    except filelock.Timeout as error:
        raise InputError(f"another {writer} is writing to {out}; wait for it, or choose another folder") from error
    except OSError as error:
        what_to_do = remedy(error) or "Look at it"
        raise (FailedError if error.errno in PASSING.union(FULL) else InputError)(
            f"cannot write to {out}: {error.strerror}. {what_to_do}, or choose another folder"
        ) from error
    except NotImplementedError:
        lock = None  # a file system without locks, as Lustre may be mounted
    try:
        yield
    finally:
        if lock is not None:
            lock.release()


class SharedLock:
    """A lock on a file, held until `release` or the end of the process.

    Args:
        path: lock file, created if missing.
        shared: several processes may hold it together, but not with an exclusive one.
    """

    def __init__(self, path: Path, shared: bool = False) -> None:
        self._path, self._mode = path, fcntl.LOCK_SH if shared else fcntl.LOCK_EX
        self._descriptor: int | None = None

    def acquire(self) -> bool:
        """Acquire the lock if it is free; returns whether it is held now."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(descriptor, self._mode | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            return False
        except OSError:  # this file system has no locks
            pass
        self._descriptor = descriptor
        return True

    def release(self) -> None:
        """Release the lock if it is held."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


@contextmanager
def try_lock(path: Path) -> Iterator[bool]:
    """Try to hold an exclusive lock on `path`; yields whether it is held."""
    lock = SharedLock(path)
    try:
        yield lock.acquire()
    finally:
        lock.release()
