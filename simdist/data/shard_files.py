"""Bytes out of a split's tars, from a file system that may not answer for a while.

A network file system that is restarted, or fails over, refuses reads for seconds to minutes, or shows a file shorter
than it is. Such a read is tried again, with the file reopened, until it succeeds or the patience is over. A few
files are kept open at a time: a corpus may have more shards than a process may open.
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

from simdist.core.errors import InputError
from simdist.core.files import PASSING
from simdist.core.output import write_error
from simdist.data.splits import Split

RETRY_SECONDS = 60.0
MOST_OPEN = 64  # tars; an epoch's order mixes 16 at a time
FIRST_PAUSE, LONGEST_PAUSE = 0.1, 5.0  # seconds between two attempts; each pause is twice the one before


@dataclass(frozen=True)
class Clock:
    """Time as the waiting sees it; a test brings its own."""

    now: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep


class _OpenFile:
    """A descriptor that is closed when nobody reads from it any more, whichever thread that is."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor

    def __del__(self, close: Callable[[int], None] = os.close) -> None:
        close(self.descriptor)


class ShardFiles:
    """The tars of one split; may be sent to another process, which opens its own, and shared by threads.

    Args:
        split: an opened split.
        retry_seconds: how long a read that fails is tried again; 0 fails at once.
        clock: tells and passes the time of waiting.
    """

    def __init__(self, split: Split, retry_seconds: float = RETRY_SECONDS, clock: Clock | None = None) -> None:
        self._split, self._retry_seconds, self._clock = split, retry_seconds, clock or Clock()
        self._open = lru_cache(MOST_OPEN)(lambda shard: _OpenFile(os.open(split.shard_path(shard), os.O_RDONLY)))

    def __reduce__(self) -> tuple[type[ShardFiles], tuple[Split, float, Clock]]:
        return ShardFiles, (self._split, self._retry_seconds, self._clock)

    def read(self, shard: int, count: int, offset: int) -> bytes:
        """Bytes [offset, offset + count) of a tar.

        Raises:
            InputError: they cannot be read, and could not for `retry_seconds`.
        """
        try:
            return self._read_once(shard, count, offset)
        except OSError as error:
            return self._read_patiently(shard, count, offset, error)

    def _read_once(self, shard: int, count: int, offset: int) -> bytes:
        file = self._open(shard)
        content = os.pread(file.descriptor, count, offset)
        if len(content) < count:
            raise OSError(errno.EIO, f"it ends after {os.fstat(file.descriptor).st_size:,} bytes")
        return content

    def _read_patiently(self, shard: int, count: int, offset: int, error: OSError) -> bytes:
        path, begin, pause = self._split.shard_path(shard), self._clock.now(), FIRST_PAUSE
        if self._retry_seconds > 0 and error.errno in PASSING:
            write_error(f"shard {path} cannot be read ({error.strerror}); trying again for {self._retry_seconds:g} s")
        while error.errno in PASSING and (left := begin + self._retry_seconds - self._clock.now()) > 0:
            self._clock.sleep(min(pause, left))
            pause = min(2 * pause, LONGEST_PAUSE)
            self._open.cache_clear()
            try:
                content = self._read_once(shard, count, offset)
            except OSError as again:
                error = again
            else:
                write_error(f"shard {path} can be read again, after {self._clock.now() - begin:.0f} s")
                return content
        waited = self._clock.now() - begin
        tried = f", and could not for {waited:.0f} s (data.retry_seconds)" if waited >= 1 else ""
        raise InputError(
            f"shard {path} cannot be read ({error.strerror}){tried}; restore it or wait for its file system, "
            "then run the same command again"
        ) from error
