"""LibriSpeech as `simdist.download` leaves it and `simdist.pack` finds it: what is there, what is missing, bringing it.

ROOT/LibriSpeech/SUBSET/…, ROOT/labels/train-clean-100/{train,test}_split.txt, ROOT/labels/converted_aligned_phones.txt
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console
from rich.markup import escape

from simdist.core.errors import FailedError, InputError
from simdist.core.progress import transfer
from simdist.core.signals import SignalHandler
from simdist.download.addresses import LABELLED_SUBSET, LABELS, LABELS_FOLDER, PHONES, TEST_SPLIT, TRAIN_SPLIT, Archive
from simdist.download.fetching import Patience, WebFile, fetch, part_of, size_of
from simdist.download.unpacking import list_fault, num_utterances, phones_fault, unpack, unpack_phones

DEFAULT_ROOT = Path("data/corpora")
REMEDY = "run the same command again to continue, or name another --mirror"
LABELS_BYTES = 200_000_000  # the phone labels of 100 hours, unpacked, twice for a moment


@dataclass(frozen=True)
class Layout:
    """Where everything lies below one folder."""

    root: Path = DEFAULT_ROOT

    @property
    def corpus(self) -> Path:
        return self.root / "LibriSpeech"

    @property
    def lists(self) -> tuple[Path, Path]:
        """The ids of CPC's train and test split."""
        folder = self.root / "labels" / LABELLED_SUBSET
        return folder / TRAIN_SPLIT, folder / TEST_SPLIT

    @property
    def phones(self) -> Path:
        return self.root / "labels" / f"{PHONES}.txt"

    def archive(self, archive: Archive) -> Path:
        return self.root / archive.name

    def labels(self) -> list[Path]:
        return [*self.lists, self.phones]

    def has(self, archive: Archive) -> bool:
        """Whether a subset is there, whole.

        Raises:
            InputError: its folder has fewer utterances, so it was not unpacked by simdist.
        """
        folder = self.corpus / archive.subset
        found = num_utterances(folder)
        if folder.exists() and found != archive.utterances:
            raise InputError(
                f"{folder} has {found:,} of {archive.utterances:,} utterances; simdist.download unpacks a subset whole "
                "or not at all, so this is another's: remove it, or choose another --to"
            )
        return found > 0


@dataclass(frozen=True)
class Sources:
    """The addresses to ask, in this order, and how long."""

    mirrors: Sequence[str]
    """Base addresses of SUBSET.tar.gz."""
    splits: str | None = None
    """Base address of train_split.txt and test_split.txt instead of the known ones."""
    phones: str | None = None
    """Address of the phone labels, plain or zipped, instead of the known ones."""
    patience: Patience = field(default_factory=Patience)

    def of_labels(self, name: str) -> Sequence[str]:
        if name == PHONES:
            return [self.phones] if self.phones else LABELS[name]
        return [f"{self.splits.rstrip('/')}/{name}"] if self.splits else LABELS[name]


@dataclass(frozen=True)
class Downloaded:
    """What of a layout is to be packed."""

    subsets: Sequence[str]
    """None means all."""
    lists: tuple[Path, Path] | None
    phones: Path | None


def downloaded(layout: Layout, subsets: Sequence[str]) -> Downloaded:
    """What simdist.pack takes where it is told no folder: these subsets, or all; or the labelled one with its labels.

    Raises:
        InputError: nothing was downloaded to `layout`.
    """
    if not layout.corpus.is_dir():
        raise InputError(
            f"no SOURCE is given, and there is no {layout.corpus}; `python -m simdist.download librispeech` makes it, "
            "or give SOURCE and OUT"
        )
    there = (layout.corpus / LABELLED_SUBSET).is_dir()
    labelled = set(subsets) == {LABELLED_SUBSET} if subsets else there
    lists = layout.lists if labelled and all(path.is_file() for path in layout.lists) else None
    phones = layout.phones if labelled and layout.phones.is_file() else None
    return Downloaded([LABELLED_SUBSET] if lists or phones else subsets, lists, phones)


# --- room -------------------------------------------------------------------------------------------------------------


def require_room(layout: Layout, missing: Sequence[Archive], labels: bool, keep_archives: bool) -> None:
    """Raise FailedError, with the bytes needed and free, unless the disk can hold what is still to come."""
    needed = _needed(layout, missing, keep_archives) + labels * LABELS_BYTES
    layout.root.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(layout.root).free
    if needed > free:
        raise FailedError(
            f"{layout.root} has {free:,} bytes free, and {needed:,} are needed for archives and what is unpacked from "
            f"them: make room for {needed - free:,} more, ask for fewer subsets, or choose another --to"
        )


def _needed(layout: Layout, missing: Sequence[Archive], keep_archives: bool) -> int:
    """The most bytes that are taken at one time, beyond those that are taken now."""
    taken = most = 0
    for archive in missing:
        path = layout.archive(archive)
        have = size_of(path) or size_of(part_of(path))
        most = max(most, taken + archive.size - have + archive.unpacked)
        taken += archive.unpacked + (archive.size if keep_archives else 0) - have
    return max(most, 0)


# --- bringing it ------------------------------------------------------------------------------------------------------


def bring_subset(
    layout: Layout, archive: Archive, sources: Sources, keep_archives: bool, console: Console, stop: SignalHandler
) -> None:
    """Fetch, check and unpack one subset; an archive that is there already is only checked.

    Raises:
        FailedError: no mirror gave the right bytes, or the disk is full.
        StoppedError: a signal came; the same call continues.
    """

    def fault(file: Path) -> str:
        found = _md5(file, console, stop)
        return "" if found == archive.md5 else f"gave a file with md5 {found}, not {archive.md5}"

    path = layout.archive(archive)
    if path.is_file() and (wrong := fault(path)):
        console.print(f"{escape(str(path))} {wrong.removeprefix('gave a file ')}: it is fetched again")
        path.unlink()
    if not path.is_file():
        urls = [f"{mirror}/{archive.name}" for mirror in sources.mirrors]
        file = WebFile(path, urls, archive.size, fault, REMEDY)
        fetch(file, sources.patience, console, stop)
    unpack(path, archive, layout.corpus, console, stop)
    if not keep_archives:
        path.unlink()
    console.print(f"{escape(str(layout.corpus / archive.subset))}: {archive.utterances:,} utterances")


def _md5(path: Path, console: Console, stop: SignalHandler) -> str:
    digest = hashlib.md5(usedforsecurity=False)
    with path.open("rb") as file, transfer(console, f"checking {path.name}", path.stat().st_size) as at:
        while chunk := file.read(1 << 20):
            stop.check()
            digest.update(chunk)
            at(file.tell())
    return digest.hexdigest()


def bring_labels(layout: Layout, sources: Sources, console: Console, stop: SignalHandler) -> None:
    """Fetch the splits and phone labels that are missing.

    Raises:
        FailedError: an address gave none, or another file; says how to get them by hand.
        StoppedError: a signal came; the same call continues.
    """
    layout.lists[0].parent.mkdir(parents=True, exist_ok=True)
    remedy = (
        f"--no-labels leaves the labels out; by hand, put the files of {LABELS_FOLDER} in {layout.lists[0].parent} "
        f"(splits) and {layout.phones.parent} (phones, unzipped)"
    )
    for path in layout.lists:
        if not path.is_file():
            file = WebFile(path, sources.of_labels(path.name), None, list_fault, remedy)
            fetch(file, sources.patience, console, stop)
            console.print(f"{escape(str(path))}: {_num_lines(path):,} utterance ids")
    if not layout.phones.is_file():
        came = layout.phones.with_name(f"{PHONES}.download")
        file = WebFile(came, sources.of_labels(PHONES), None, phones_fault, remedy)
        fetch(file, sources.patience, console, stop)
        unpack_phones(came, layout.phones)
        console.print(f"{escape(str(layout.phones))}: phone labels of {_num_lines(layout.phones):,} utterances")


def _num_lines(path: Path) -> int:
    with path.open("rb") as file:
        return sum(1 for _ in file)
