"""Unpack downloaded archives: no member leaves its folder, and a subset appears whole or not at all."""

from __future__ import annotations

import os
import re
import shutil
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import IO

from rich.console import Console

from simdist.core.errors import FailedError
from simdist.core.files import TEMPORARY, naming_the_disk, replacing, sync
from simdist.core.progress import transfer
from simdist.core.signals import SignalHandler
from simdist.download.addresses import PHONES, Archive

UTTERANCE_ID = re.compile(r"\d+-\d+-\d+")
PHONES_LINE = re.compile(r"\d+-\d+-\d+( \d+)+ ?")


def unpack(path: Path, archive: Archive, corpus: Path, console: Console, stop: SignalHandler) -> None:
    """Unpack a subset's archive into `corpus`/SUBSET, which is renamed into place when it is complete.

    Raises:
        FailedError: a member does not belong to LibriSpeech's layout, utterances are missing, or the disk is full.
        StoppedError: a signal arrived; the partial folder is removed.
    """
    folder = corpus.parent / f"{TEMPORARY}{archive.subset}"
    shutil.rmtree(folder, ignore_errors=True)  # of a killed process
    folder.mkdir(parents=True)
    try:
        with naming_the_disk(f"unpacked {path.name}", folder, archive.unpacked):
            _extract(path, archive.subset, folder, console, stop)
        unpacked = folder / corpus.name / archive.subset
        found = num_utterances(unpacked)
        if found != archive.utterances:
            raise FailedError(f"{path} holds {found:,} utterances of {archive.subset}, not {archive.utterances:,}")
        os.sync()  # one call for tens of thousands of files
        corpus.mkdir(exist_ok=True)
        for file in (p for p in unpacked.parent.iterdir() if p.is_file()):  # SPEAKERS.TXT etc.
            file.replace(corpus / file.name)
        unpacked.replace(corpus / archive.subset)
        sync(corpus)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def num_utterances(subset: Path) -> int:
    """Number of .flac files in a subset's folder; 0 if there is none."""
    return sum(1 for _ in subset.glob("*/*/*.flac"))


def _extract(path: Path, subset: str, folder: Path, console: Console, stop: SignalHandler) -> None:
    try:
        with (
            path.open("rb") as file,
            tarfile.open(fileobj=file, mode="r|gz") as tar,
            transfer(console, f"unpacking {path.name}", path.stat().st_size) as at,
        ):
            for member in tar:
                stop.check()
                if reason := _refusal(member, subset):
                    raise FailedError(f"{path} holds {member.name!r}, {reason}; nothing of it is unpacked")
                tar.extract(member, folder, filter="data")
                at(file.tell())
    except (tarfile.TarError, EOFError, zlib.error) as error:
        raise FailedError(f"{path} is damaged ({error}); remove it and run the same command again") from error


def _refusal(member: tarfile.TarInfo, subset: str) -> str:
    """Why a member does not belong to LibriSpeech/SUBSET/…; empty if it does."""
    path = PurePosixPath(member.name)
    parts = path.parts
    if path.is_absolute() or ".." in parts:
        return "which leads out of the folder"
    if not (member.isfile() or member.isdir()):
        return "which is neither a file nor a folder"
    is_top_level = len(parts) == 2 and member.isfile()  # SPEAKERS.TXT etc.
    if parts[:1] != ("LibriSpeech",) or not (len(parts) == 1 or is_top_level or parts[1] == subset):
        return f"which does not belong to LibriSpeech/{subset}"
    return ""


def line_fault(path: Path, shape: re.Pattern[str], meant: str) -> str:
    """What is wrong with a text file, plain or zipped, whose lines must all have one shape; empty if nothing is."""
    number = 0
    try:
        with _open_labels(path) as file:
            for number, line in enumerate(file, 1):
                text = line.decode(errors="replace").strip()
                if not shape.fullmatch(text):
                    return f"gave a file whose line {number} is {text[:40]!r}, not {meant}"
    except (zipfile.BadZipFile, EOFError, zlib.error, KeyError) as error:
        return f"gave a zip that cannot be read ({error})"
    return "" if number else "gave an empty file"


def write_labels(path: Path, out: Path) -> None:
    """Write the text in `path`, plain or zipped, to `out`, and remove `path`."""
    with (
        naming_the_disk(out.name, out.parent, 20 * path.stat().st_size),
        _open_labels(path) as file,
        replacing(out) as temporary,
        temporary.open("wb") as copy,
    ):
        shutil.copyfileobj(file, copy)
    path.unlink()


@contextmanager
def _open_labels(path: Path) -> Iterator[IO[bytes]]:
    if not zipfile.is_zipfile(path):
        with path.open("rb") as file:
            yield file
        return
    with zipfile.ZipFile(path) as archive:
        names = [name for name in archive.namelist() if PurePosixPath(name).name == f"{PHONES}.txt"]
        with archive.open(names[0] if names else f"{PHONES}.txt") as file:
            yield file
