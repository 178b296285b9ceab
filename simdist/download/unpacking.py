"""Archives of others, unpacked: no member leads out of its folder, and a subset appears whole or not at all."""

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

from rich.console import Console

from simdist.core.errors import FailedError
from simdist.core.files import TEMPORARY, naming_the_disk, replacing, sync
from simdist.core.progress import transfer
from simdist.core.signals import SignalHandler
from simdist.download.addresses import PHONES, Archive

_ID = r"\d+-\d+-\d+"
_LIST_LINE = re.compile(_ID)
_PHONES_LINE = re.compile(rf"{_ID}( \d+)+ ?")


def unpack(path: Path, archive: Archive, corpus: Path, console: Console, stop: SignalHandler) -> None:
    """Unpack the file `path` of a subset into `corpus`/SUBSET, which appears by rename when all of it is there.

    Raises:
        FailedError: a member has no place in LibriSpeech's layout, utterances are missing, or the disk is full.
        StoppedError: a signal came; nothing is left of what was unpacked.
    """
    with _temporary_folder(corpus.parent / f"{TEMPORARY}{archive.subset}") as folder:
        with naming_the_disk(f"unpacked {path.name}", folder, archive.unpacked):
            _extract(path, archive.subset, folder, console, stop)
        unpacked = folder / corpus.name / archive.subset
        found = num_utterances(unpacked)
        if found != archive.utterances:
            raise FailedError(f"{path} holds {found:,} utterances of {archive.subset}, not {archive.utterances:,}")
        os.sync()  # one call for tens of thousands of files
        corpus.mkdir(exist_ok=True)
        for file in (p for p in unpacked.parent.iterdir() if p.is_file()):  # SPEAKERS.TXT and its like
            file.replace(corpus / file.name)
        unpacked.replace(corpus / archive.subset)
        sync(corpus)


def num_utterances(subset: Path) -> int:
    """How many .flac files a subset's folder has; 0 without one."""
    return sum(1 for _ in subset.glob("*/*/*.flac"))


@contextmanager
def _temporary_folder(folder: Path) -> Iterator[Path]:
    shutil.rmtree(folder, ignore_errors=True)  # of a process that was killed
    folder.mkdir(parents=True)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


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
    """Why a member has no place in LibriSpeech/SUBSET/…; empty if it has."""
    path = PurePosixPath(member.name)
    parts = path.parts
    if path.is_absolute() or ".." in parts:
        return "which leads out of the folder"
    if not (member.isfile() or member.isdir()):
        return "which is neither a file nor a folder"
    is_top_level = len(parts) == 2 and member.isfile()  # SPEAKERS.TXT and its like
    if parts[:1] != ("LibriSpeech",) or not (len(parts) == 1 or is_top_level or parts[1] == subset):
        return f"which does not belong to LibriSpeech/{subset}"
    return ""


# --- labels -----------------------------------------------------------------------------------------------------------


def list_fault(path: Path) -> str:
    """What shows that a file is not a list of utterance ids; empty if nothing does."""
    return _line_fault(path, _LIST_LINE, "an utterance id")


def phones_fault(path: Path) -> str:
    """The same for phone labels, plain or in a zip."""
    if not zipfile.is_zipfile(path):
        return _line_fault(path, _PHONES_LINE, "an utterance id and its classes")
    with zipfile.ZipFile(path) as archive:
        return "" if _phones_member(archive) else f"gave a zip without {PHONES}.txt"


def _line_fault(path: Path, shape: re.Pattern[str], meant: str) -> str:
    number = 0
    with path.open(encoding="utf-8", errors="replace") as file:
        for number, line in enumerate(file, 1):
            if not shape.fullmatch(line.strip()):
                shown = line.strip()[:40]
                return f"gave a file whose line {number} is {shown!r}, not {meant}"
    return "" if number else "gave an empty file"


def _phones_member(archive: zipfile.ZipFile) -> str | None:
    return next((n for n in archive.namelist() if PurePosixPath(n).name == f"{PHONES}.txt"), None)


def unpack_phones(path: Path, out: Path) -> None:
    """Write the phone labels in `path`, plain or in a zip, to `out`; `path` goes.

    Raises:
        FailedError: the zip is damaged, a line is no line of labels, or the disk is full.
    """
    try:
        with naming_the_disk(out.name, out.parent, 20 * path.stat().st_size), replacing(out) as temporary:
            _unzip_phones(path, temporary) if zipfile.is_zipfile(path) else shutil.copyfile(path, temporary)
            wrong = _line_fault(temporary, _PHONES_LINE, "an utterance id and its classes")
            if wrong:
                raise FailedError(f"{path.name} {wrong}; it is removed, run the same command again")
    finally:
        path.unlink(missing_ok=True)


def _unzip_phones(path: Path, out: Path) -> None:
    try:
        with zipfile.ZipFile(path) as archive, out.open("wb") as file:
            member = _phones_member(archive)
            assert member is not None, "phones_fault was asked before"
            with archive.open(member) as packed:
                shutil.copyfileobj(packed, file)
    except (zipfile.BadZipFile, EOFError, zlib.error) as error:
        raise FailedError(f"{path.name} is damaged ({error}); it is removed, run the same command again") from error
