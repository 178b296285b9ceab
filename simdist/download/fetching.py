"""Download one file, whole and checked or not at all: `PATH.part` grows over several attempts, then is renamed.

Only consecutive attempts without a new byte count as failures, so an unreliable connection still completes. If a server
ignores `Range`, the bytes that already exist are read and discarded.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import requests
import urllib3
from rich.console import Console
from rich.markup import escape

from simdist.core.errors import FailedError
from simdist.core.files import naming_the_disk, sync
from simdist.core.progress import transfer
from simdist.core.secrets import redacted
from simdist.core.signals import SignalHandler

CHUNK = 1 << 16  # bytes
LONGEST_WAIT = 60.0  # seconds between two attempts
RETRIED = (408, 425, 429)  # HTTP status codes; also everything from 500


@dataclass(frozen=True)
class Patience:
    """When to retry, and when to give up an address."""

    retries: int = 5
    """Consecutive failed attempts, after the first one, before the next address is tried."""
    timeout: float = 30.0
    """Seconds of silence after which a connection counts as broken."""
    first_wait: float = 1.0
    """Seconds before the first retry; doubled each time."""


@dataclass(frozen=True)
class WebFile:
    """One file, its addresses, and how to verify it."""

    path: Path
    urls: Sequence[str]
    """Tried in this order."""
    size: int | None
    """Bytes, if known. Then an existing `PATH.part` is continued, from any address."""
    check: Callable[[Path], str]
    """What is wrong with the complete file; empty if nothing is. A file that fails is removed."""
    remedy: str
    """What the user can do if every address fails."""


class AddressError(Exception):
    """An address cannot provide the file; the text continues a sentence that begins with the address."""


class RetryError(Exception):
    """An attempt failed; another one, after `wait` seconds, may succeed."""

    def __init__(self, reason: str, wait: float = 0.0) -> None:
        super().__init__(reason)
        self.wait = wait


def fetch(file: WebFile, patience: Patience, console: Console, stop: SignalHandler) -> None:
    """Download a file from the first address that provides it.

    Raises:
        FailedError: every address failed (the message has each reason), or the disk is full.
        StoppedError: a signal arrived; `PATH.part` is synced and can be continued.
    """
    part, reasons = part_of(file.path), []
    for url in file.urls:
        if file.size is None:
            part.unlink(missing_ok=True)
        resumed = size_of(part)
        try:
            wrong = _download(url, file, patience, console, stop)
            if wrong and resumed:
                console.print(f"{escape(part.name)}, continued: {redacted(url)} {escape(wrong)}; starting again")
                wrong = _download(url, file, patience, console, stop)
            if wrong:
                raise AddressError(f"{wrong}; the download is removed")
        except AddressError as error:
            reasons.append(f"{redacted(url)} {error}")
            if url != file.urls[-1]:
                console.print(f"{escape(reasons[-1])}; trying the next address")
            continue
        part.replace(file.path)
        sync(file.path.parent)
        return
    raise FailedError(f"{file.path.name} could not be downloaded: {'; '.join(reasons)}; {file.remedy}")


def part_of(path: Path) -> Path:
    return path.with_name(f"{path.name}.part")


def size_of(path: Path) -> int:
    """Bytes of a file; 0 without one."""
    return path.stat().st_size if path.exists() else 0


def _download(url: str, file: WebFile, patience: Patience, console: Console, stop: SignalHandler) -> str:
    """Retry until the part is complete, then check it; returns what is wrong with it, and removes it if anything is."""
    part, failures = part_of(file.path), 0
    if size_of(part):
        console.print(f"continuing {escape(part.name)} at byte {size_of(part):,}")
    with transfer(console, file.path.name, file.size, size_of(part)) as at:
        while (have := size_of(part)) != file.size:
            stop.check()
            try:
                _attempt(url, file, have, patience.timeout, at, stop)
                break
            except RetryError as error:
                failures = 0 if size_of(part) > have else failures + 1
                if failures > patience.retries:
                    times = f", {failures} times in a row" if patience.retries else ""
                    raise AddressError(f"{error}{times}") from error
                wait = max(error.wait, min(patience.first_wait * 2 ** max(failures - 1, 0), LONGEST_WAIT))
                if failures:
                    console.print(f"{escape(redacted(url))} {escape(str(error))}; retrying in {wait:.0f} s")
                until = time.monotonic() + wait
                while (left := until - time.monotonic()) > 0:
                    stop.check()
                    time.sleep(min(left, 0.2))
    wrong = file.check(part)
    if wrong:
        part.unlink()
    return wrong


def _attempt(
    url: str, file: WebFile, have: int, timeout: float, at: Callable[[int], None], stop: SignalHandler
) -> None:
    """Request the missing bytes and append them; returns when the file is complete."""
    headers = {"Accept-Encoding": "identity"}  # a server that unpacks .gz would send other bytes
    if have:
        headers["Range"] = f"bytes={have}-"
    try:
        with requests.get(url, headers=headers, stream=True, timeout=timeout) as response:
            _append(response, file, _bytes_to_skip(response, file, have), at, stop)
    except (requests.exceptions.SSLError, ValueError) as error:  # ValueError: not an address
        raise AddressError(f"cannot be requested: {error}") from error
    except (requests.RequestException, urllib3.exceptions.HTTPError) as error:
        is_unreached = isinstance(error, requests.ConnectionError | requests.Timeout)
        what = "does not answer" if is_unreached else "broke off"
        raise RetryError(f"{what} ({type(error).__name__})") from error
    if file.size is not None and size_of(part_of(file.path)) != file.size:
        raise RetryError("ended early")


def _bytes_to_skip(response: requests.Response, file: WebFile, have: int) -> int:
    """How many bytes of a usable response exist already."""
    status, answer = response.status_code, f"answers {response.status_code} {response.reason}"
    if status in RETRIED or status >= 500:
        after = response.headers.get("Retry-After", "")
        raise RetryError(answer, min(float(after), LONGEST_WAIT) if after.isdigit() else 0.0)
    if status == 416:  # the part is longer than the file, so it belongs to another one
        part_of(file.path).unlink(missing_ok=True)
        raise RetryError(answer)
    if status not in (200, 206):
        raise AddressError(answer)
    start, total = 0, response.headers.get("Content-Length", "")
    if status == 206:
        sent = re.match(r"bytes (\d+)-\d+/(\d+|\*)", response.headers.get("Content-Range", ""))
        if not sent or int(sent[1]) != have:
            raise AddressError(f"{answer} with another range than requested")
        start, total = have, sent[2]
    if file.size is not None and total.isdigit() and int(total) != file.size:
        raise AddressError(f"has {int(total):,} bytes instead of {file.size:,}: truncated, or another file")
    return have - start


def _append(
    response: requests.Response, file: WebFile, skipped: int, at: Callable[[int], None], stop: SignalHandler
) -> None:
    part, size = part_of(file.path), file.size
    with naming_the_disk(part.name, part.parent, (size or 0) - size_of(part)), part.open("ab") as out:
        try:
            for chunk in response.raw.stream(CHUNK, decode_content=False):
                stop.check()
                out.write(chunk[skipped:])
                skipped = max(0, skipped - len(chunk))
                at(out.tell())
                if size is not None and out.tell() > size:
                    part.unlink()
                    raise AddressError(f"sends more than the {size:,} bytes of the file")
        finally:
            out.flush()
            os.fsync(out.fileno())
