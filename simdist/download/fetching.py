"""One file from the web, whole and checked or not at all: `PATH.part` grows over many attempts, then is renamed.

A broken connection is tried again with growing pauses, and only attempts in a row that bring no new byte count as
failures, so that a line that drops every gigabyte still brings thirty. A server that ignores `Range` sends the file
from its beginning; what is there already is then read past, not written twice.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import requests
import tenacity
import urllib3
from rich.console import Console
from rich.markup import escape

from simdist.core.errors import FailedError
from simdist.core.files import naming_the_disk, sync
from simdist.core.progress import transfer
from simdist.core.secrets import redacted
from simdist.core.signals import SignalHandler

CHUNK = 1 << 16  # bytes; what a broken connection may lose
LONGEST_WAIT = 60.0  # seconds between two attempts
TRY_AGAIN = (408, 425, 429)  # and everything from 500 on
Check = Callable[[Path], str]
"""What is wrong with a file that came whole; empty if nothing is."""


@dataclass(frozen=True)
class Patience:
    """How long an address is tried."""

    retries: int = 5
    """Attempts in a row without a new byte, after the first, before an address is given up."""
    timeout: float = 30.0
    """Seconds of silence after which a connection counts as broken."""
    first_wait: float = 1.0
    """Seconds before the second attempt; then twice as long each time."""


class AddressError(Exception):
    """An address cannot give the file; its text completes a sentence that begins with the address."""


class BrokenError(Exception):
    """An attempt ended early and brought nothing; another may work."""

    def __init__(self, reason: str, wait: float = 0.0) -> None:
        super().__init__(reason)
        self.wait = wait


@dataclass(frozen=True)
class WebFile:
    """One file, where it may come from, and how to know that it is right."""

    path: Path
    urls: Sequence[str]
    """Asked in this order."""
    size: int | None
    """Bytes, where known. Then a `PATH.part` of an earlier call, or from another address, is continued."""
    check: Check
    """Applied to the whole file before it gets its name; a file that fails is removed."""
    remedy: str
    """What to do when no address gave it."""


def fetch(file: WebFile, patience: Patience, console: Console, stop: SignalHandler) -> None:
    """Bring a file from the first of its addresses that gives it.

    Raises:
        FailedError: no address gave it; the message has each one's reason. Or the disk is full.
        StoppedError: a signal came; `PATH.part` is synced and can be continued.
    """
    part = part_of(file.path)
    reasons = []
    for url in file.urls:
        if file.size is None:
            part.unlink(missing_ok=True)
        try:
            _from_address(url, file, patience, console, stop)
        except AddressError as error:
            reasons.append(f"{_shown(url)} {error}")
            if url != file.urls[-1]:
                console.print(f"{escape(reasons[-1])}; trying the next address")
            continue
        part.replace(file.path)
        sync(file.path.parent)
        return
    raise FailedError(f"{file.path.name} could not be fetched: {'; '.join(reasons)}; {file.remedy}")


def part_of(path: Path) -> Path:
    return path.with_name(f"{path.name}.part")


def size_of(path: Path) -> int:
    """Bytes of a file; 0 without one."""
    return path.stat().st_size if path.exists() else 0


def _from_address(url: str, file: WebFile, patience: Patience, console: Console, stop: SignalHandler) -> None:
    part = part_of(file.path)
    resumed = size_of(part)
    if resumed:
        console.print(f"continuing {escape(part.name)} at byte {resumed:,}")
    with transfer(console, file.path.name, file.size, resumed) as at:
        _whole(_Source(url, part, file.size, patience, at, stop), console)
    wrong = file.check(part)
    if not wrong:
        return
    part.unlink()
    if not resumed:
        raise AddressError(f"{wrong}; what came is removed")
    console.print(f"{escape(part.name)}, continued: {_shown(url)} {escape(wrong)}; starting again")
    _from_address(url, file, patience, console, stop)


def _shown(url: str) -> str:
    return redacted(url)


@dataclass(frozen=True)
class _Source:
    """One address, and the part that it is to complete."""

    url: str
    part: Path
    size: int | None
    patience: Patience
    at: Callable[[int], None]
    stop: SignalHandler


# --- attempts ---------------------------------------------------------------------------------------------------------


def _whole(source: _Source, console: Console) -> None:
    """Attempts until the file is whole; `AddressError` when too many in a row bring nothing."""
    patience = source.patience

    def pause(seconds: float) -> None:
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            source.stop.check()
            time.sleep(min(left, 0.2))

    def wait(state: tenacity.RetryCallState) -> float:
        error = state.outcome.exception() if state.outcome else None
        return max(longer(state), error.wait if isinstance(error, BrokenError) else 0.0)

    def log(state: tenacity.RetryCallState) -> None:
        error = state.outcome.exception() if state.outcome else None
        seconds = state.next_action.sleep if state.next_action else 0.0
        console.print(f"{escape(_shown(source.url))} {escape(str(error))}; again in {seconds:.0f} s")

    longer = tenacity.wait_exponential(multiplier=patience.first_wait, max=LONGEST_WAIT)
    retrying = tenacity.Retrying(
        retry=tenacity.retry_if_exception_type(BrokenError),
        stop=tenacity.stop_after_attempt(patience.retries + 1),
        wait=wait,
        sleep=pause,
        before_sleep=log,
        reraise=True,
    )
    try:
        while not retrying(_attempt, source):
            pause(patience.first_wait)
    except BrokenError as error:
        times = f", {patience.retries + 1} times in a row" if patience.retries else ""
        raise AddressError(f"{error}{times}") from error


def _attempt(source: _Source) -> bool:
    """Ask for what is missing. Whether the file is whole; False where the connection broke after new bytes."""
    have = size_of(source.part)
    if have == source.size:
        return True
    source.stop.check()
    headers = {"Accept-Encoding": "identity"}  # a server that unpacks .gz on the way would give other bytes
    if have:
        headers["Range"] = f"bytes={have}-"
    try:
        with requests.get(source.url, headers=headers, stream=True, timeout=source.patience.timeout) as response:
            _append(response, source, _passed_over(response, source, have))
    except (requests.exceptions.SSLError, ValueError) as error:  # ValueError: not an address at all
        raise AddressError(f"cannot be asked: {error}") from error
    except (requests.RequestException, urllib3.exceptions.HTTPError) as error:
        unreached = isinstance(error, requests.ConnectionError | requests.Timeout)
        return _grew(source, have, f"{'does not answer' if unreached else 'broke off'} ({type(error).__name__})")
    if source.size is None or size_of(source.part) == source.size:
        return True
    return _grew(source, have, "ended early")


def _grew(source: _Source, have: int, reason: str) -> bool:
    if size_of(source.part) <= have:
        raise BrokenError(reason)
    return False


def _passed_over(response: requests.Response, source: _Source, have: int) -> int:
    """How many of the bytes that come are there already, if the answer is one to use."""
    status = response.status_code
    answer = f"answers {status} {response.reason}"
    if status in TRY_AGAIN or status >= 500:
        after = response.headers.get("Retry-After", "")
        raise BrokenError(answer, min(float(after), LONGEST_WAIT) if after.isdigit() else 0.0)
    if status == 416:  # the part is longer than the file: it was of another one
        source.part.unlink(missing_ok=True)
        raise BrokenError(answer)
    if status not in (200, 206):
        raise AddressError(answer)
    start, total = 0, response.headers.get("Content-Length", "")
    if status == 206:
        begin = re.match(r"bytes (\d+)-\d+/(\d+|\*)", response.headers.get("Content-Range", ""))
        if not begin or int(begin[1]) != have:
            raise AddressError(f"{answer} with another range than asked for")
        start, total = have, begin[2]
    if source.size is not None and total.isdigit() and int(total) != source.size:
        raise AddressError(f"has {int(total):,} bytes where the file has {source.size:,}: cut off, or another file")
    return have - start


def _append(response: requests.Response, source: _Source, passed_over: int) -> None:
    part, size = source.part, source.size
    with naming_the_disk(part.name, part.parent, (size or 0) - size_of(part)), part.open("ab") as file:
        try:
            for chunk in response.raw.stream(CHUNK, decode_content=False):
                source.stop.check()
                file.write(chunk[passed_over:])
                passed_over = max(0, passed_over - len(chunk))
                source.at(file.tell())
                if size is not None and file.tell() > size:
                    part.unlink()
                    raise AddressError(f"sends more than the {size:,} bytes of the file")
        finally:
            file.flush()
            os.fsync(file.fileno())
