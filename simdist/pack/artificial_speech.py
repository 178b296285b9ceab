"""Bart de Boer's artificial speech as used for SIM and V-GIM: words of three syllables by one speaker, and syllables.

Words lose what goes beyond 10,240 samples at 16 kHz; syllables get one length of 8,800, as the papers' clips have it.

The words were recorded twice. WORD_1 is of the first session, and a few words have a WORD_2 of the second, which is
4.3 dB louder. The published folders of syllables are one session each, so a probe that is trained on one and tested on
the other is also measured on another recording. The thesis drew 20 % of all 2,541 syllables for its test; its draw is
not published, and `syllables_reshuffled_train` and `syllables_reshuffled_test` are ours. To choose among configurations
without looking at the test, the former is divided again, into `syllables_reshuffled_fit` and `…_validation`.
"""

from __future__ import annotations

import os
import re
from dataclasses import replace
from pathlib import Path

from simdist.core.errors import InputError
from simdist.data.labels import SESSION
from simdist.pack.corpora import (
    Corpus,
    CorpusProblem,
    SplitPlan,
    Utterance,
    file_status,
    require_folder,
    scattered,
    some_names,
)

WORDS = "reshuffledv2"
SYLLABLES = "split up data padded"
WORD_LENGTH = 10_240  # samples at 16 kHz
SYLLABLE_LENGTH = 8_800  # samples at 16 kHz
SPEAKER = "de_boer"
RESHUFFLED = "syllables_reshuffled_"
TEST_SHARE = 0.2  # of the reshuffled syllables, and of what is left the share of the validation

_SYLLABLE = "[bdg][aiu]"
_WORD_NAME = re.compile(rf"(?P<word>(?:{_SYLLABLE}){{3}})_(?P<session>\d+)")
_SYLLABLE_NAME = re.compile(rf"(?P<word>(?:{_SYLLABLE}){{3}})_\d+_(?P<position>[123])_(?P<syllable>{_SYLLABLE})")


def artificial_speech(source: Path) -> Corpus:
    """Plan the splits `train`, `test` (words), `syllables_train`, `syllables_test`, and the latter reshuffled.

    Raises:
        InputError: the folders are not there or hold no .wav file.
    """
    require_folder(source)
    splits = []
    for folder, prefix, pattern, length in (
        (WORDS, "", _WORD_NAME, WORD_LENGTH),
        (SYLLABLES, "syllables_", _SYLLABLE_NAME, SYLLABLE_LENGTH),
    ):
        for part in ("train", "test"):
            splits.append(_split(source, source / folder / part, prefix + part, pattern, length))
    splits += _reshuffled([utterance for split in splits[2:] for utterance in split.utterances])
    return Corpus("artificial-speech", splits, {})


def _reshuffled(syllables: list[Utterance]) -> list[SplitPlan]:
    """A fifth of all syllables to test on, and the rest, also as a fifth to validate on and the rest of that.

    Keys have the session, because names occur in both. A division that leaves a part empty is left out.
    """
    keyed = [replace(syllable, key=f"{syllable.key}_session{syllable.labels[SESSION]}") for syllable in syllables]
    keyed.sort(key=lambda syllable: scattered(syllable.key))
    count = max(1, round(TEST_SHARE * len(keyed)))
    test, train = keyed[:count], keyed[count:]
    count = round(TEST_SHARE * len(train))
    parts = {"train": train, "test": test}
    if 0 < count < len(train):
        parts |= {"fit": train[count:], "validation": train[:count]}
    return [SplitPlan(RESHUFFLED + part, sorted(found, key=lambda u: u.key)) for part, found in parts.items()]


def _split(source: Path, folder: Path, name: str, pattern: re.Pattern[str], length: int) -> SplitPlan:
    if not folder.is_dir() or next(folder.glob("*.wav"), None) is None:
        raise InputError(
            f"{source} has no .wav file in {folder.relative_to(source)}/; expected {WORDS}/{{train,test}}/WORD_N.wav "
            f"and {SYLLABLES}/{{train,test}}/WORD_N_I_SYL.wav, and it holds {some_names(source)}"
        )
    utterances: list[Utterance] = []
    problems: list[CorpusProblem] = []
    with os.scandir(folder) as entries:
        for entry in sorted((e for e in entries if e.name.endswith(".wav")), key=lambda e: e.name):
            match = pattern.fullmatch(Path(entry.name).stem)
            if match:
                utterances.append(_utterance(entry, match.groupdict(), length))
            else:
                problems.append(CorpusProblem(entry.path, f"its name is not that of a file in {folder.parent.name}"))
    return SplitPlan(name, utterances, problems)


def _utterance(entry: os.DirEntry[str], parts: dict[str, str], length: int) -> Utterance:
    facts: dict[str, object] = {"word": parts["word"]}
    if "session" in parts:
        labels = {SESSION: parts["session"]}
    else:
        session = "1" if Path(entry.path).parent.name == "train" else "2"
        labels = {"syllable": parts["syllable"], "vowel": parts["syllable"][-1], SESSION: session}
        facts["position"] = int(parts["position"])
    status = file_status(entry.path)
    return Utterance(
        key=Path(entry.name).stem,
        path=entry.path,
        size=status.size,
        mtime_ns=status.mtime_ns,
        speaker=SPEAKER,
        text=parts.get("syllable", parts["word"]),
        labels=labels,
        facts=facts,
        resample=True,
        exact_length=length,
    )
