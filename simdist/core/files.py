"""Crash-safe files: synced to disk, and renamed to their final name only when complete."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from simdist.core.errors import FailedError

FULL = (errno.ENOSPC, errno.EDQUOT)
TEMPORARY = ".tmp-"  # prefix of the names of unfinished files


class HashedWriter:
    """A writable file that hashes its content."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file = file
        self.digest = hashlib.sha256()

    def write(self, content: bytes) -> int:
        self.digest.update(content)
        return self.file.write(content)


@contextmanager
def naming_the_disk(what: str, folder: Path, needed: int) -> Iterator[None]:
    """Turn an `OSError` into a `FailedError` that says what could not be written, where, and its size in bytes."""
    try:
        yield
    except OSError as error:
        remedy = "Free some space" if error.errno in FULL else "Make the folder writable"
        raise FailedError(
            f"{what} could not be written ({error.strerror or error}): it needs {needed:,} bytes below {folder}"
            f"{_free_space(folder)}. {remedy} and run the same command again; nothing written before is lost"
        ) from error


def _free_space(folder: Path) -> str:
    try:
        return f", whose disk has {shutil.disk_usage(folder).free:,} free"
    except OSError:
        return ""


def read_regular(path: str | Path) -> bytes:
    """Read a whole file.

    Raises:
        OSError: it cannot be read, or is a folder, a FIFO (which would block) or a device.
    """
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise OSError(errno.EINVAL, "not a regular file", str(path))
    return Path(path).read_bytes()


def sha256_of(path: Path) -> str:
    """sha256 of a file's content in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sync(path: Path) -> None:
    """Flush a closed file or a folder's entries to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path that is synced and renamed to `path` if the block ends without an error."""
    temporary = path.with_name(f"{TEMPORARY}{os.getpid()}-{path.name}")
    try:
        yield temporary
        sync(temporary)
        temporary.replace(path)
        sync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Replace a file's content atomically."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, content: Any) -> None:
    """Replace a file's content with JSON atomically."""
    write_text(path, json.dumps(content, indent=1, ensure_ascii=False))


def append_json(path: Path, record: dict[str, Any]) -> None:
    """Append one line in a single write, after ending a line that a killed process left incomplete."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
    try:
        size = os.fstat(descriptor).st_size
        torn = size > 0 and os.pread(descriptor, 1, size - 1) != b"\n"
        os.write(descriptor, (torn * "\n" + json.dumps(record) + "\n").encode())
    finally:
        os.close(descriptor)


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    """All complete lines of a JSON-lines file; [] if it does not exist."""
    records = []
    text = path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
    for line in text.splitlines():
        try:
            records.append(json.loads(line))
        except ValueError:
            continue
    return records
