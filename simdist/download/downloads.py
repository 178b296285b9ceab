"""LibriSpeech on disk, as `simdist.download` writes it and `simdist.pack` reads it: what exists, getting the rest.

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
from simdist.download.addresses import LABELED_SUBSET, LABELS, LABELS_FOLDER, PHONES, TEST_SPLIT, TRAIN_SPLIT, Archive
from simdist.download.fetching import Patience, WebFile, fetch, part_of, size_of
from simdist.download.unpacking import PHONES_LINE, UTTERANCE_ID, line_fault, num_utterances, unpack, write_labels

DEFAULT_ROOT = Path("data/corpora")
REMEDY = "run the same command again to resume, or name another --mirror"
LABELS_BYTES = 200_000_000  # the phone labels of 100 hours, downloaded and unpacked


@dataclass(frozen=True)
class Layout:
    """Paths below one folder."""

    root: Path = DEFAULT_ROOT

    @property
    def corpus(self) -> Path:
        return self.root / "LibriSpeech"

    @property
    def lists(self) -> tuple[Path, Path]:
        """The ids of CPC's train and test split."""
        folder = self.root / "labels" / LABELED_SUBSET
        return folder / TRAIN_SPLIT, folder / TEST_SPLIT

    @property
    def phones(self) -> Path:
        return self.root / "labels" / f"{PHONES}.txt"

    def has(self, archive: Archive) -> bool:
        """Whether a subset exists.

        Raises:
            InputError: its folder has fewer utterances, so it was not unpacked by simdist.
        """
        folder = self.corpus / archive.subset
        found = num_utterances(folder)
        if folder.exists() and found != archive.utterances:
            raise InputError(
                f"{folder} has {found:,} of {archive.utterances:,} utterances. simdist.download unpacks a subset whole "
                "or not at all, so it did not write this folder. Remove it, or choose another --to"
            )
        return found > 0


@dataclass(frozen=True)
class Origin:
    """Where to download from, and how patiently."""

    mirrors: Sequence[str]
    """Base addresses of SUBSET.tar.gz, tried in this order."""
    splits: str | None = None
    """Base address of train_split.txt and test_split.txt instead of the known ones."""
    phones: str | None = None
    """Address of the phone labels, plain or zipped, instead of the known ones."""
    patience: Patience = field(default_factory=Patience)


@dataclass(frozen=True)
class DownloadedCorpus:
    """What to pack of a layout."""

    subsets: Sequence[str]
    """Empty means all."""
    lists: tuple[Path, Path] | None
    phones: Path | None


def downloaded(layout: Layout, subsets: Sequence[str]) -> DownloadedCorpus:
    """What simdist.pack packs without SOURCE: these subsets, or all; or the labeled one with its labels.

    Raises:
        InputError: nothing was downloaded to `layout`.
    """
    if not layout.corpus.is_dir():
        raise InputError(
            f"SOURCE is missing, and {layout.corpus} does not exist. Run `python -m simdist.download librispeech` "
            "first, or give SOURCE and OUT"
        )
    there = (layout.corpus / LABELED_SUBSET).is_dir()
    labeled = set(subsets) == {LABELED_SUBSET} if subsets else there
    lists = layout.lists if labeled and all(path.is_file() for path in layout.lists) else None
    phones = layout.phones if labeled and layout.phones.is_file() else None
    return DownloadedCorpus([LABELED_SUBSET] if lists or phones else subsets, lists, phones)


def require_room(layout: Layout, missing: Sequence[Archive], labels: bool, keep_archives: bool) -> None:
    """Raise FailedError, with the bytes needed and free, unless the disk can hold everything that is missing."""
    needed = bytes_needed(layout, missing, keep_archives) + labels * LABELS_BYTES
    layout.root.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(layout.root).free
    if needed > free:
        raise FailedError(
            f"{layout.root} has {free:,} bytes free, and the archives and their content need {needed:,}. Free "
            f"{needed - free:,} more, name fewer subsets, or choose another --to"
        )


def bytes_needed(layout: Layout, missing: Sequence[Archive], keep_archives: bool) -> int:
    """Peak disk space in bytes, beyond what is occupied now."""
    taken = most = 0
    for archive in missing:
        path = layout.root / archive.name
        have = size_of(path) or size_of(part_of(path))
        most = max(most, taken + archive.size - have + archive.unpacked)
        taken += archive.unpacked + (archive.size if keep_archives else 0) - have
    return max(most, 0)


def download_subset(
    layout: Layout, archive: Archive, origin: Origin, keep_archives: bool, console: Console, stop: SignalHandler
) -> None:
    """Download, verify and unpack one subset; an existing archive is only verified.

    Raises:
        FailedError: no mirror sent the right bytes, or the disk is full.
        StoppedError: a signal arrived; the same call continues.
    """

    def fault(path: Path) -> str:
        digest = hashlib.md5(usedforsecurity=False)
        with path.open("rb") as file, transfer(console, f"verifying {path.name}", path.stat().st_size) as at:
            while chunk := file.read(1 << 20):
                stop.check()
                digest.update(chunk)
                at(file.tell())
        found = digest.hexdigest()
        return "" if found == archive.md5 else f"gave a file with md5 {found}, not {archive.md5}"

    path = layout.root / archive.name
    if path.is_file() and (wrong := fault(path)):
        console.print(f"{escape(str(path))} {wrong.removeprefix('gave a file ')}: downloading it again")
        path.unlink()
    if not path.is_file():
        urls = [f"{mirror}/{archive.name}" for mirror in origin.mirrors]
        fetch(WebFile(path, urls, archive.size, fault, REMEDY), origin.patience, console, stop)
    unpack(path, archive, layout.corpus, console, stop)
    if not keep_archives:
        path.unlink()
    console.print(f"{escape(str(layout.corpus / archive.subset))}: {archive.utterances:,} utterances")


def download_labels(layout: Layout, origin: Origin, console: Console, stop: SignalHandler) -> None:
    """Download the splits and phone labels that are missing.

    Raises:
        FailedError: every address failed or sent another file; says how to get the labels by hand.
        StoppedError: a signal arrived; the same call continues.
    """
    layout.lists[0].parent.mkdir(parents=True, exist_ok=True)
    remedy = (
        f"--no-labels leaves the labels out; by hand, put the files of {LABELS_FOLDER} in {layout.lists[0].parent} "
        f"(splits) and {layout.phones.parent} (phones, unzipped)"
    )
    for path in (*layout.lists, layout.phones):
        if path.is_file():
            continue
        is_phones = path == layout.phones
        own = origin.phones if is_phones else origin.splits and f"{origin.splits.rstrip('/')}/{path.name}"
        urls = [own] if own else LABELS[PHONES if is_phones else path.name]
        shape = (PHONES_LINE, "an utterance id and its classes") if is_phones else (UTTERANCE_ID, "an utterance id")
        came = path.with_suffix(".download") if is_phones else path
        fetch(WebFile(came, urls, None, lambda p, s=shape: line_fault(p, *s), remedy), origin.patience, console, stop)
        if is_phones:
            write_labels(came, path)
        with path.open("rb") as file:
            count = sum(1 for _ in file)
        what = f"phone labels of {count:,} utterances" if is_phones else f"{count:,} utterance ids"
        console.print(f"{escape(str(path))}: {what}")
