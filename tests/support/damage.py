"""What disks and people do to packed shards, for the tests that live through it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from simdist.data.splits import open_split


@contextmanager
def unchanged_times(path: Path) -> Iterator[None]:
    """Bytes rot on a disk without the file's time changing; a write that somebody made shows in it."""
    before = path.stat()
    yield
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def rotten_copy(root: str | Path, copy: Path, rows: list[int]) -> Path:
    """A copy of the shards in which samples of split `train` rotted: the first 200 bytes of a member are left."""
    shutil.copytree(root, copy)
    split = open_split(copy, "train")
    for row in rows:
        path = split.shard_path(int(split.index.shard[row]))
        with unchanged_times(path), path.open("r+b") as tar:
            tar.seek(int(split.index.offset[row]) + 200)
            tar.write(b"\xff" * int(split.index.size[row] - 200))
    return copy


def flip(path: Path, place: int | None = None) -> None:
    """Change one bit of a byte, the middle one if not told which; the file gets a new time."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2 if place is None else place] ^= 1
    path.write_bytes(content)
