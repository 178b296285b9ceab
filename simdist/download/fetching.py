"""Download one file, whole and verified or not at all, and unpack it.

`PATH.part` grows over several attempts, then is renamed. Only consecutive attempts without a new byte count as
failures, so an unreliable connection still completes. If a server ignores `Range`, the bytes that already exist are
read and discarded.
"""

from __future__ import annotations

import os
import re
import shutil
import tarfile
import time
import zipfile
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import requests
import urllib3
from rich.console import Console

from simdist.core.errors import FailedError
from simdist.core.files import TEMPORARY, naming_the_disk, sync
from simdist.core.progress import transfer
from simdist.core.secrets import redacted
from simdist.core.signals import SignalHandler
from simdist.download.librispeech import PHONES, Archive, num_utterances

CHUNK = 1 << 16  # bytes
FIRST_WAIT = 1.0  # seconds before the first retry; doubled each time
LONGEST_WAIT = 60.0  # seconds between two attempts
RETRIED = (408, 425, 429)  # HTTP status codes; also everything from 500


class AddressError(Exception):
    """An address cannot provide the file; the text continues a sentence that begins with the address."""


class RetryError(Exception):
    """An attempt failed; another one, after `wait` seconds, may succeed."""

    def __init__(self, reason: str, wait: float = 0.0) -> None:
        super().__init__(reason)
        self.wait = wait


@dataclass(frozen=True)
class WebFile:
    """One file, how to verify it, and how patiently to download it."""

    path: Path
    size: int | None
    """Bytes, if known. Then an existing `PATH.part` is continued, from any address."""
    check: Callable[[Path], str]
    """What is wrong with the complete file; empty if nothing is. A file that fails is removed."""
    console: Console
    stop: SignalHandler
    retries: int
    """Consecutive failed attempts, after the first one, before the next address is tried."""
    timeout: float
    """Seconds of silence after which a connection counts as broken."""

    @property
    def part(self) -> Path:
        return part_of(self.path)

    def fetch(self, urls: Sequence[str], remedy: str) -> None:
        """Download the file from the first address that provides it.

        Raises:
            FailedError: every address failed (the message has each reason, then `remedy`), or the disk is full.
            StoppedError: a signal arrived; `PATH.part` can be continued.
        """
        reasons = []
        for url in urls:
            if self.size is None:
                self.part.unlink(missing_ok=True)
            resumed = size_of(self.part)
            if resumed:
                self.console.print(f"continuing {self.part.name} at byte {resumed:,}", markup=False)
            try:
                wrong = self._complete(url)
                if wrong and resumed:
                    again = f"{self.part.name}, continued: {redacted(url)} {wrong}; starting again"
                    self.console.print(again, markup=False)
                    wrong = self._complete(url)
                if wrong:
                    raise AddressError(f"{wrong}; the download is removed")
            except AddressError as error:
                reasons.append(f"{redacted(url)} {error}")
                if url != urls[-1]:
                    self.console.print(f"{reasons[-1]}; trying the next address", markup=False)
                continue
            sync(self.part)
            self.part.replace(self.path)
            sync(self.path.parent)
            return
        raise FailedError(f"{self.path.name} could not be downloaded: {'; '.join(reasons)}; {remedy}")

    def _complete(self, url: str) -> str:
        """Request the missing bytes until they are there; returns what is wrong with the part, and then removes it."""
        failures = 0
        while self.size is None or size_of(self.part) < self.size:
            self.stop.check()
            have = size_of(self.part)
            try:
                self._attempt(url, have)
                break
            except RetryError as error:
                failures = 0 if size_of(self.part) > have else failures + 1
                if failures > self.retries:
                    times = f", {failures} times in a row" if self.retries else ""
                    raise AddressError(f"{error}{times}") from error
                wait = max(error.wait, min(FIRST_WAIT * 2 ** max(failures - 1, 0), LONGEST_WAIT))
                if failures:
                    self.console.print(f"{redacted(url)} {error}; retrying in {wait:.0f} s", markup=False)
                until = time.monotonic() + wait
                while (left := until - time.monotonic()) > 0:
                    self.stop.check()
                    time.sleep(min(left, 0.2))
        if wrong := self.check(self.part):
            self.part.unlink()
        return wrong

    def _attempt(self, url: str, have: int) -> None:
        """Request the bytes from `have` on and append them; returns when the file is complete."""
        headers = {"Accept-Encoding": "identity"}  # a server that unpacks .gz would send other bytes
        if have:
            headers["Range"] = f"bytes={have}-"
        try:
            with requests.get(url, headers=headers, stream=True, timeout=self.timeout) as response:
                self._append(response, self._bytes_to_skip(response, have))
        except (requests.exceptions.SSLError, ValueError) as error:  # ValueError: not an address
            raise AddressError(f"cannot be requested: {error}") from error
        except (requests.RequestException, urllib3.exceptions.HTTPError) as error:
            is_unreached = isinstance(error, requests.ConnectionError | requests.Timeout)
            what = "does not answer" if is_unreached else "broke off"
            raise RetryError(f"{what} ({type(error).__name__})") from error
        if self.size is not None and size_of(self.part) < self.size:
            raise RetryError("ended early")

    def _bytes_to_skip(self, response: requests.Response, have: int) -> int:
        """How many bytes of a usable response exist already."""
        status, answer = response.status_code, f"answers {response.status_code} {response.reason}"
        if status in RETRIED or status >= 500:
            after = response.headers.get("Retry-After", "")
            raise RetryError(answer, min(float(after), LONGEST_WAIT) if after.isdigit() else 0.0)
        if status not in (200, 206):
            raise AddressError(answer)
        total = response.headers.get("Content-Length", "")
        if status == 206:
            sent, _, total = response.headers.get("Content-Range", "").partition("/")
            if not sent.startswith(f"bytes {have}-"):
                raise AddressError(f"{answer} with another range than requested")
        if self.size is not None and total.isdigit() and int(total) != self.size:
            raise AddressError(f"has {int(total):,} bytes instead of {self.size:,}: truncated, or another file")
        return 0 if status == 206 else have

    def _append(self, response: requests.Response, skipped: int) -> None:
        with (
            naming_the_disk(self.part.name, self.part.parent, (self.size or 0) - size_of(self.part)),
            self.part.open("ab") as out,
            transfer(self.console, self.path.name, self.size, out.tell()) as at,
        ):
            for chunk in response.raw.stream(CHUNK, decode_content=False):
                self.stop.check()
                out.write(chunk[skipped:])
                skipped = max(0, skipped - len(chunk))
                at(out.tell())
                if self.size is not None and out.tell() > self.size:
                    return  # another file, perhaps without an end: the check refuses it


def part_of(path: Path) -> Path:
    """Where a file grows until it is complete."""
    return path.with_name(f"{path.name}.part")


def size_of(path: Path) -> int:
    """Bytes of a file; 0 without one."""
    return path.stat().st_size if path.exists() else 0


def unpack(path: Path, archive: Archive, corpus: Path, console: Console, stop: SignalHandler) -> None:
    """Unpack a subset's archive into `corpus`/SUBSET, which is renamed into place when it is complete.

    Raises:
        FailedError: a member leads out of the folder, utterances are missing, or the disk is full.
        StoppedError: a signal arrived; the partial folder is removed.
    """
    folder = corpus.parent / f"{TEMPORARY}{archive.subset}"
    shutil.rmtree(folder, ignore_errors=True)  # of a killed process
    folder.mkdir(parents=True)
    try:
        with (
            naming_the_disk(f"unpacked {path.name}", folder, archive.unpacked),
            path.open("rb") as file,
            tarfile.open(fileobj=file, mode="r|gz") as tar,
            transfer(console, f"unpacking {path.name}", path.stat().st_size) as at,
        ):
            for member in tar:
                stop.check()
                tar.extract(member, folder, filter="data")  # refuses what leads out of the folder
                at(file.tell())
        unpacked = folder / corpus.name / archive.subset
        found = num_utterances(unpacked)
        if found != archive.utterances:
            raise FailedError(f"{path} holds {found:,} utterances of {archive.subset}, not {archive.utterances:,}")
        os.sync()  # one call for tens of thousands of files
        corpus.mkdir(exist_ok=True)
        for file in unpacked.parent.glob("*.TXT"):  # SPEAKERS.TXT etc.
            file.replace(corpus / file.name)
        unpacked.replace(corpus / archive.subset)
        sync(corpus)
    except (tarfile.TarError, EOFError, zlib.error) as error:
        raise FailedError(f"{path} is damaged ({error}); remove it and run the same command again") from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def label_fault(path: Path, shape: str, meant: str) -> str:
    """What is wrong with a file of labels, which is unzipped if it is a zip; empty if nothing is.

    Args:
        path: text, or a zip with the phone labels.
        shape: regular expression that every line must match.
        meant: what such a line is, for the message.
    """
    if zipfile.is_zipfile(path):
        try:
            with zipfile.ZipFile(path) as zipped:
                names = [name for name in zipped.namelist() if PurePosixPath(name).name == PHONES]
                content = zipped.read(names[0] if names else PHONES)
        except (zipfile.BadZipFile, EOFError, zlib.error, KeyError) as error:
            return f"gave a zip that cannot be read ({error})"
        with naming_the_disk(path.name, path.parent, len(content)):
            path.write_bytes(content)
    number = 0
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            text = line.decode(errors="replace").strip()
            if not re.fullmatch(shape, text):
                return f"gave a file whose line {number} is {text[:40]!r}, not {meant}"
    return "" if number else "gave an empty file"
