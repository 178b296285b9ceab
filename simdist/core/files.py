"""Crash-safe files: synced to disk, and renamed to their final name only when complete."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
import socket
import stat
import time
from collections.abc import Callable, Container, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import IO, Any, BinaryIO, TypeVar

import yaml

from simdist.core.errors import FailedError

T = TypeVar("T")

MOST_BYTES = 2**30  # of a file that is read as a whole: a million records of metrics
MOST_CONFIG_BYTES = 2**20
LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # ten times as fast where libyaml is available
FULL = (errno.ENOSPC, errno.EDQUOT)
READ_ONLY = (errno.EROFS, errno.EACCES, errno.EPERM)
PASSING = {
    getattr(errno, name)
    for name in (
        "EIO", "ESTALE", "ENOENT", "ETIMEDOUT", "EAGAIN", "ENODEV", "ENXIO", "EREMOTEIO", "ENOTCONN", "ESHUTDOWN",
        "ECONNRESET", "EHOSTDOWN", "EHOSTUNREACH", "ENETDOWN", "ENETUNREACH",
    )
    if hasattr(errno, name)
}  # fmt: skip
"""Errors that a network file system gives and takes back."""
PATIENCE = 30.0  # seconds until such an error is taken for one that stays
TEMPORARY = ".tmp-"  # prefix of the names of unfinished files
ABANDONED = 7 * 86400.0  # seconds without a change after which an unfinished file of another machine has no owner


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
        raise FailedError(
            f"{what} could not be written ({error.strerror or error}): it needs {needed:,} bytes below {folder}"
            f"{_free_space(folder)}. {remedy(error) or 'Look at that folder'} and run the same command again; "
            "nothing written before is lost"
        ) from error


def remedy(error: OSError) -> str | None:
    """What a user can do about an error of a file system; None if it rather is one of the program."""
    if error.errno in FULL:
        return "Free some space"
    if error.errno in READ_ONLY:
        return "Make it writable"
    if error.errno in (errno.EMFILE, errno.ENFILE):
        return "Allow more open files (ulimit -n)"
    return "Look at its disk or network" if error.errno in PASSING - {errno.ENOENT} else None


def patiently(action: Callable[[], T], but: Container[int | None] = ()) -> T:
    """The result of `action`, called again while a network file system fails for a moment.

    Args:
        action: may be called several times.
        but: errors that are raised at once.

    Raises:
        OSError: an error that stays.
    """
    end, pause = time.monotonic() + PATIENCE, 0.1
    while True:
        try:
            return action()
        except OSError as error:
            if error.errno not in PASSING or error.errno in but or time.monotonic() + pause > end:
                raise
        time.sleep(pause)
        pause = min(2 * pause, 5.0)


def _free_space(folder: Path) -> str:
    try:
        return f", whose disk has {shutil.disk_usage(folder).free:,} free"
    except OSError:
        return ""


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
    temporary = temporary_path(path)
    try:
        yield temporary
        sync(temporary)
        temporary.replace(path)
        sync(path.parent)
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def temporary_path(path: Path) -> Path:
    """Where to write a file or folder before it gets its name; removes what killed processes have left there."""
    remove_leftovers(path.parent)
    return path.with_name(f"{TEMPORARY}{os.getpid()}@{_machine()}@{path.name}")


@cache
def remove_leftovers(folder: Path) -> None:
    """Remove what killed processes left unfinished in `folder`. Only the first call in a process looks."""
    with suppress(OSError):
        for path in folder.iterdir():
            owner = re.match(rf"{re.escape(TEMPORARY)}(\d+)@([^@]+)@.", path.name)
            with suppress(OSError):
                if owner is None or _is_owned(int(owner[1]), owner[2], path.lstat().st_mtime):
                    continue
                shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


@cache
def _machine() -> str:
    """What gives process numbers their meaning: containers on one host may have its name and their own numbers."""
    try:
        return f"{socket.gethostname()}.{os.stat('/proc/self/ns/pid').st_ino}"
    except OSError:
        return socket.gethostname()


def _is_owned(pid: int, machine: str, changed: float) -> bool:
    """Whether a process may still be writing an unfinished file."""
    if machine != _machine():
        return time.time() - changed < ABANDONED
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        pass
    return True


def write_text(path: Path, text: str) -> None:
    """Replace a file's content atomically."""

    def write() -> None:
        with replacing(path) as temporary:
            temporary.write_text(text, encoding="utf-8")

    patiently(write, but=(errno.ENOENT,))


def write_json(path: Path, content: Any) -> None:
    """Replace a file's content with JSON atomically."""
    write_text(path, json.dumps(content, indent=1, ensure_ascii=False))


def append_json(path: Path, record: dict[str, Any]) -> None:
    """Append one line as a whole or not at all, after ending a line that a killed process left incomplete."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NONBLOCK, 0o666)
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):  # a pipe would take lines until it is full, and wait
            raise OSError(errno.EINVAL, "it is not a regular file", str(path))
        size = os.fstat(descriptor).st_size
        torn = size > 0 and os.pread(descriptor, 1, size - 1) != b"\n"
        line = (torn * "\n" + json.dumps(record) + "\n").encode()
        try:
            while line:  # a disk that is nearly full takes a part
                line = line[os.write(descriptor, line) :]
        except OSError:
            os.ftruncate(descriptor, size)
            raise
    finally:
        os.close(descriptor)


def open_regular(path: Path, most: int | None = MOST_BYTES) -> BinaryIO:
    """Open a regular file for reading. Unlike `open`, this neither waits for a pipe nor begins to read a device.

    Args:
        path: the file.
        most: bytes that it may have; None allows any size.

    Raises:
        OSError: it does not exist, is not a regular file, or is larger.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    found = os.fstat(descriptor)
    if stat.S_ISREG(found.st_mode) and (most is None or found.st_size <= most):
        return os.fdopen(descriptor, "rb")
    os.close(descriptor)
    if stat.S_ISREG(found.st_mode):
        raise OSError(errno.EFBIG, f"it has {found.st_size:,} bytes, at most {most:,} are read", str(path))
    raise OSError(errno.EINVAL, "it is not a regular file", str(path))


def read_regular(path: Path, most: int | None = MOST_BYTES) -> bytes:
    """The content of a regular file; see `open_regular`."""
    with open_regular(path, most) as file:
        return file.read(-1 if most is None else most)


@dataclass(frozen=True)
class NumberedLine:
    """One line of a text file that is not blank."""

    number: int
    """From 1."""
    raw: bytes
    """Without its line break."""
    is_torn: bool = False
    """Whether it is the last one and has no line break: a process writes it, or was killed while it did."""


def numbered_lines(path: Path, most: int | None = MOST_BYTES) -> list[NumberedLine]:
    """Every line that is not blank; [] if the file does not exist.

    Args:
        path: the file.
        most: bytes that it may have; None allows any size.

    Raises:
        OSError: the file cannot be read, is not a regular file, or is larger.
    """
    try:
        lines = read_regular(path, most).split(b"\n")
    except FileNotFoundError:
        return []
    return [NumberedLine(number, raw, number == len(lines)) for number, raw in enumerate(lines, 1) if raw.strip()]


class AliasError(ValueError):
    """YAML has aliases."""


def load_yaml(text: str) -> Any:
    """Content of YAML.

    Raises:
        AliasError: it has aliases, with which a short file can hold billions of values.
        yaml.YAMLError: it is no YAML.
    """
    if "*" in text and any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text, LOADER)):
        raise AliasError("has YAML aliases (*name); write their values out")
    return LOADER(text).get_single_data()


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    """The objects in a JSON-lines file; [] if it does not exist. Lines that hold something else are left out."""
    records = []
    for line in numbered_lines(path):
        with suppress(ValueError, RecursionError):
            found = json.loads(line.raw.decode())
            records += [found] if isinstance(found, dict) else []
    return records
