"""LibriSpeech's layout: which utterances there are, in which split, with which transcript and phone labels.

SUBSET/SPEAKER/CHAPTER/SPEAKER-CHAPTER-UTT.flac and SPEAKER-CHAPTER.trans.txt, SPEAKERS.TXT next to the subsets
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from simdist.core.errors import InputError, counted, shortened
from simdist.core.files import read_regular
from simdist.pack.corpora import (
    Corpus,
    CorpusProblem,
    PhoneLine,
    SplitPlan,
    Utterance,
    file_status,
    held_out,
    require_folder,
    some_names,
)

TEST_FRACTION = 0.1
LAYOUT = "SUBSET/SPEAKER/CHAPTER/SPEAKER-CHAPTER-UTT.flac"
_KEY = re.compile(r"\d+-\d+-\d+")


@dataclass(frozen=True)
class SplitLists:
    """Two files of utterance ids, one id a line."""

    train: Path
    test: Path


def librispeech(
    source: Path,
    subsets: Sequence[str] = (),
    lists: SplitLists | None = None,
    test_fraction: float = TEST_FRACTION,
    phones: Path | None = None,
) -> Corpus:
    """Plan the splits `train` and `test` of a corpus in LibriSpeech's layout.

    Args:
        source: folder that holds the subsets, or `LibriSpeech/`, or is a subset itself.
        subsets: names of subsets; none means all.
        lists: which id is in which split; without it, `test_fraction` of each speaker is held out by a hash of the id.
        phones: file with a line `ID class class …` for each utterance.

    Raises:
        InputError: a path, a subset or a list cannot be used.
    """
    folders = _subset_folders(source, subsets)
    problems: list[CorpusProblem] = []
    notes: list[str] = []
    utterances = _utterances(folders, problems, notes)
    if not utterances:
        raise InputError(f"{source} has no usable .flac file: {problems[0].path}: {problems[0].reason}")
    silent = sum(not u.text for u in utterances.values())
    if silent:
        notes.append(f"no transcript (SPEAKER-CHAPTER.trans.txt), so an empty text: {counted(silent, 'utterance')}")
    if phones is not None:
        utterances = _with_phones(utterances, phones, problems)
    splits = _listed(utterances, lists, problems, notes) if lists else _hashed(utterances, test_fraction, problems)
    parameters = {
        "subsets": sorted(f.name for f in folders),
        "train_split": _digest(lists.train) if lists else None,
        "test_split": _digest(lists.test) if lists else None,
        "test_fraction": None if lists else test_fraction,
        "phones": _digest(phones) if phones else None,
    }
    return Corpus("librispeech", splits, parameters, notes)


# --- files ------------------------------------------------------------------------------------------------------------


def _subset_folders(source: Path, wanted: Sequence[str]) -> list[Path]:
    require_folder(source)
    if not wanted and _is_subset(source):
        return [source]
    there: list[Path] = []
    for root in (source, source / "LibriSpeech"):
        if root.is_dir() and not there:
            there = sorted(p for p in root.iterdir() if p.is_dir() and _is_subset(p))
    if not there:
        raise InputError(f"{source} has no .flac file in the layout {LAYOUT}; it holds {some_names(source)}")
    unknown = [name for name in wanted if name not in {p.name for p in there}]
    if unknown:
        names = ", ".join(p.name for p in there)
        raise InputError(f"--subsets: {source} has no subset {shortened(unknown)}; it has {names}")
    return [p for p in there if not wanted or p.name in wanted]


def _is_subset(folder: Path) -> bool:
    return next(folder.glob("*/*/*.flac"), None) is not None


def _utterances(folders: list[Path], problems: list[CorpusProblem], notes: list[str]) -> dict[str, Utterance]:
    found: dict[str, Utterance] = {}
    for folder in folders:
        sexes = _sexes(folder.parent / "SPEAKERS.TXT", notes)
        for chapter in sorted(p for p in folder.glob("*/*") if p.is_dir()):
            texts = _transcripts(chapter, notes)
            for entry in _flac_files(chapter, problems):
                key = Path(entry.name).stem
                reason = _misnamed(key, chapter)
                if not reason and key in found:
                    reason = f"its id was already found at {found[key].path}"
                if reason:
                    problems.append(CorpusProblem(entry.path, reason))
                    continue
                speaker, status = chapter.parent.name, file_status(entry.path)
                found[key] = Utterance(
                    key=key,
                    path=entry.path,
                    size=status.size,
                    mtime_ns=status.mtime_ns,
                    speaker=speaker,
                    chapter=chapter.name,
                    text=texts.get(key, ""),
                    facts={"subset": folder.name} | ({"sex": sexes[speaker]} if speaker in sexes else {}),
                )
    return found


def _flac_files(chapter: Path, problems: list[CorpusProblem]) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(chapter) as entries:
            return sorted((e for e in entries if e.name.endswith(".flac")), key=lambda e: e.name)
    except OSError as error:
        problems.append(CorpusProblem(str(chapter), f"cannot be read: {error.strerror}"))
        return []


def _misnamed(key: str, chapter: Path) -> str:
    if not _KEY.fullmatch(key):
        return "its name is not SPEAKER-CHAPTER-UTT.flac"
    if not key.startswith(f"{chapter.parent.name}-{chapter.name}-"):
        return f"its name does not fit its folder {chapter.parent.name}/{chapter.name}"
    return ""


def _transcripts(chapter: Path, notes: list[str]) -> dict[str, str]:
    texts: dict[str, str] = {}
    for path in sorted(chapter.glob("*.trans.txt")):
        for line in _lines(path, notes):
            key, _, text = line.strip().partition(" ")
            texts[key] = text.strip()
    return texts


def _sexes(path: Path, notes: list[str]) -> dict[str, str]:
    rows = (line.split("|") for line in _lines(path, notes)) if path.is_file() else ()
    return {row[0].strip(): row[1].strip() for row in rows if len(row) > 2 and not row[0].startswith(";")}


def _lines(path: Path, notes: list[str]) -> list[str]:
    try:
        return read_regular(path).decode(errors="replace").splitlines()
    except OSError as error:
        notes.append(f"{path} cannot be read: {error.strerror}")
        return []


# --- labels -----------------------------------------------------------------------------------------------------------


def _with_phones(utterances: dict[str, Utterance], path: Path, problems: list[CorpusProblem]) -> dict[str, Utterance]:
    """Utterances that have a line of classes; the others become problems.

    Raises:
        InputError: none has one, so the file is another or no text at all.
    """
    labeled: dict[str, Utterance] = {}
    for key, line in _phone_lines(path):
        if key in utterances:
            labeled[key] = dataclasses.replace(utterances[key], phones=line)
    if not labeled:
        raise InputError(
            f"--phones {path} has no line for any of the {len(utterances):,} utterances; "
            "a line is an utterance id and one class each 10 ms"
        )
    for key in utterances.keys() - labeled.keys():
        problems.append(CorpusProblem(utterances[key].path, f"has no line of phones in {path}"))
    return labeled


def _phone_lines(path: Path) -> Iterator[tuple[str, PhoneLine]]:
    offset = 0
    try:
        with path.open("rb") as file:
            for line in file:
                key, space, rest = line.partition(b" ")
                begin = offset + len(key) + len(space)
                yield key.decode(errors="replace").strip(), PhoneLine(str(path.absolute()), begin, len(rest))
                offset += len(line)
    except OSError as error:
        raise InputError(f"--phones {path} cannot be read: {error.strerror}") from error


# --- splits -----------------------------------------------------------------------------------------------------------


def _listed(
    utterances: dict[str, Utterance], lists: SplitLists, problems: list[CorpusProblem], notes: list[str]
) -> list[SplitPlan]:
    ids = {"train": _read_list(lists.train), "test": _read_list(lists.test)}
    of_file = {"train": lists.train, "test": lists.test}
    both = ids["train"].keys() & ids["test"].keys()
    bad = {Path(p.path).stem for p in problems}
    splits = []
    for name, keys in ids.items():
        path = of_file[name]
        own = [p for p in problems if Path(p.path).stem in keys]
        own += [CorpusProblem(str(path), f"{key} is in both lists, so it is in no split") for key in sorted(both)]
        absent = sorted(keys.keys() - utterances.keys() - bad)
        own += [CorpusProblem(str(path), f"{key} (line {keys[key]}) is in the list but not on disk") for key in absent]
        usable = [utterances[key] for key in keys if key in utterances and key not in both]
        splits.append(SplitPlan(name, usable, own))
    rest = len(utterances.keys() - ids["train"].keys() - ids["test"].keys())
    if rest:
        notes.append(f"in neither list, so not packed: {counted(rest, 'utterance')} on disk")
    return splits


def _hashed(utterances: dict[str, Utterance], fraction: float, problems: list[CorpusProblem]) -> list[SplitPlan]:
    test = held_out(((u.key, u.speaker) for u in utterances.values()), fraction)
    train = SplitPlan("train", [u for key, u in utterances.items() if key not in test], problems)
    if not test:
        return [train]
    return [train, SplitPlan("test", [u for key, u in utterances.items() if key in test])]


def _read_list(path: Path) -> dict[str, int]:
    """Ids of a list, in its order, with the line each stands on."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise InputError(f"split list {path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"split list {path} is not text; it should have one utterance id a line") from error
    ids = {line.strip(): number for number, line in enumerate(lines, 1) if line.strip()}
    if not ids:
        raise InputError(f"split list {path} is empty; it should have one utterance id a line")
    return ids


def _digest(path: Path) -> str:
    """Identity of a list's content, so that the same list in another place counts as the same."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()[:16]
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from error
