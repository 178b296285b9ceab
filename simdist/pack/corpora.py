"""What a corpus is to the packer: utterances sorted into splits, and the problems met while listing them.

`librispeech.py` and `artificial_speech.py` list files only; no audio is opened here, so a plan of 100 h takes seconds.
Bad audio is found later, by the process that packs it.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from simdist.core.errors import InputError, shortened
from simdist.data.labels import PHONES


@dataclass(frozen=True)
class PhoneLine:
    """Where an utterance's classes stand in a text file; the worker that packs it reads and parses them."""

    path: str
    offset: int
    """Byte at which the classes begin (after the id)."""
    size: int
    """Bytes up to the end of the line."""


@dataclass(frozen=True)
class Utterance:
    """One audio file that is to become one sample of a shard."""

    key: str
    path: str
    size: int
    """Bytes of the file."""
    mtime_ns: int
    speaker: str
    chapter: str = ""
    text: str = ""
    labels: dict[str, str] = field(default_factory=dict)
    """Class names of the utterance that the index holds as numbers, besides the speaker: syllable, vowel."""
    facts: dict[str, Any] = field(default_factory=dict)
    """More that goes into KEY.json and nowhere else, such as the word or the reader's sex."""
    phones: PhoneLine | None = None
    resample: bool = False
    """Convert other sample rates to 16 kHz; otherwise they are a problem."""
    exact_length: int | None = None
    """Cut or pad with zeros to so many samples at 16 kHz."""

    def classes(self) -> dict[str, str]:
        return {"speaker": self.speaker, **self.labels}


@dataclass(frozen=True, order=True)
class CorpusProblem:
    """Something wrong with one file or one line of a list."""

    path: str
    reason: str
    packed: bool = False
    """Whether the utterance is in the shards all the same."""
    kind: str = ""
    """`short`, `silent` or `clipped`, where that is the problem."""

    def __post_init__(self) -> None:
        for name in ("path", "reason"):  # file names that are not UTF-8 could be neither printed nor written
            object.__setattr__(self, name, getattr(self, name).encode(errors="backslashreplace").decode())


@dataclass(frozen=True)
class SplitPlan:
    """The utterances that are to become one split."""

    name: str
    utterances: list[Utterance]
    problems: list[CorpusProblem] = field(default_factory=list)


@dataclass(frozen=True)
class Corpus:
    """All splits of a corpus, ready to be packed."""

    name: str
    splits: list[SplitPlan]
    parameters: dict[str, Any]
    """What decided which utterances are in which split; kept in the manifest, so that a later call can compare."""
    notes: list[str] = field(default_factory=list)
    """Sentences to tell the user that are no problems."""

    def label_tables(self) -> dict[str, list[str]]:
        """Class names of each label, shared by all splits so that a class has one number in train and test."""
        names: dict[str, set[str]] = {}
        with_phones = False
        for utterance in (u for split in self.splits for u in split.utterances):
            for label, value in utterance.classes().items():
                names.setdefault(label, set()).add(value)
            with_phones = with_phones or utterance.phones is not None
        tables = {label: sorted(values, key=_by_number) for label, values in sorted(names.items())}
        return tables | ({"phone": list(PHONES)} if with_phones else {})


def _by_number(name: str) -> tuple[int, str]:
    return (int(name) if name.isdigit() else -1, name)


def scattered(key: str) -> str:
    """A hash of `key` to sort by: an order that looks random, and is the same everywhere and for ever."""
    return hashlib.sha256(key.encode()).hexdigest()


def held_out(utterances: Iterable[tuple[str, str]], fraction: float) -> set[str]:
    """Keys to test on: `fraction` of each speaker's, at least one of every speaker with two or more.

    Args:
        utterances: pairs of key and speaker.
        fraction: 0 holds out nothing.
    """
    of_speaker: dict[str, list[str]] = {}
    for key, speaker in utterances:
        of_speaker.setdefault(speaker, []).append(key)
    chosen: set[str] = set()
    for keys in of_speaker.values():
        if fraction > 0 and len(keys) > 1:
            count = min(max(1, round(fraction * len(keys))), len(keys) - 1)
            chosen.update(sorted(keys, key=scattered)[:count])
    return chosen


class FileStatus(NamedTuple):
    """What an `Utterance` notes about its file."""

    size: int
    mtime_ns: int


def file_status(path: str | Path) -> FileStatus:
    """Size and time of a file; zeros if it cannot be read, which the process that packs it reports."""
    try:
        status = os.stat(path)
    except OSError:
        return FileStatus(0, 0)
    return FileStatus(status.st_size, status.st_mtime_ns)


def require_folder(source: Path) -> None:
    if not source.exists():
        raise InputError(f"SOURCE {source} does not exist; give the folder that holds the corpus")
    if not source.is_dir():
        raise InputError(f"SOURCE {source} is a file; give the folder that holds the corpus (unpack an archive first)")


def visible(folder: Path) -> list[Path]:
    return sorted(p for p in folder.iterdir() if not p.name.startswith("."))


def some_names(folder: Path) -> str:
    """The first few things in a folder, for a message that says what was found."""
    return shortened([p.name + ("/" if p.is_dir() else "") for p in visible(folder)]) or "nothing"
