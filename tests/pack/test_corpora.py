"""Which utterances a corpus has, in which split, and what is said where it cannot be used."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from simdist.core.errors import InputError
from simdist.data.labels import PHONES, num_phone_frames
from simdist.pack.artificial_speech import SYLLABLES, WORDS, artificial_speech
from simdist.pack.corpora import Corpus, held_out
from simdist.pack.librispeech import SplitLists, librispeech
from tests.support.packing_cases import SmallCorpus, small_corpus


@pytest.fixture
def corpus(tmp_path: Path) -> SmallCorpus:
    return small_corpus(tmp_path, num_samples=800)


def keys(corpus: Corpus, split: str) -> set[str]:
    return {u.key for plan in corpus.splits if plan.name == split for u in plan.utterances}


def test_the_folder_above_the_subset_the_subset_and_the_parent_of_librispeech_all_do(
    corpus: SmallCorpus, tmp_path: Path
):
    (tmp_path / "above").mkdir()
    shutil.copytree(corpus.source, tmp_path / "above" / "LibriSpeech")
    for source in (corpus.source, corpus.source / "small", tmp_path / "above"):
        found = librispeech(source)
        assert keys(found, "train") | keys(found, "test") == set(corpus.pcm)


def test_lists_decide_the_splits_and_report_what_is_not_there_or_in_both(corpus: SmallCorpus, tmp_path: Path):
    (tmp_path / "a.txt").write_text("11-7-0000\n11-7-0001\n99-1-0001\n")
    (tmp_path / "b.txt").write_text("11-7-0001\n12-7-0000\n")
    found = librispeech(corpus.source, lists=SplitLists(tmp_path / "a.txt", tmp_path / "b.txt"))
    assert keys(found, "train") == {"11-7-0000"}
    assert keys(found, "test") == {"12-7-0000"}
    train = [(p.path, p.reason) for p in found.splits[0].problems]
    assert train == [
        (str(tmp_path / "a.txt"), "11-7-0001 is in both lists, so it is in no split"),
        (str(tmp_path / "a.txt"), "99-1-0001 (line 3) is in the list but not on disk"),
    ]
    assert found.notes == ["in neither list, so not packed: 9 utterances on disk"]


def test_held_out_takes_a_share_of_each_speaker_whatever_the_order():
    pairs = [(f"{s}-1-{u:04d}", str(s)) for s, count in ((1, 20), (2, 2), (3, 1)) for u in range(count)]
    test = held_out(pairs, 0.1)
    assert test == held_out(reversed(pairs), 0.1)
    counts = {s: sum(key.startswith(f"{s}-") for key in test) for s in (1, 2, 3)}
    assert counts == {1: 2, 2: 1, 3: 0}
    assert held_out(pairs, 0) == set()


def test_without_a_test_fraction_there_is_no_test_split(corpus: SmallCorpus):
    found = librispeech(corpus.source, test_fraction=0)
    assert [plan.name for plan in found.splits] == ["train"]
    assert keys(found, "train") == set(corpus.pcm)


def test_classes_have_one_number_in_all_splits(corpus: SmallCorpus):
    tables = librispeech(corpus.source, phones=corpus.phones).label_tables()
    assert tables == {"speaker": ["11", "12", "13"], "phone": list(PHONES)}


def test_transcripts_and_sexes_are_read(corpus: SmallCorpus):
    (corpus.source / "SPEAKERS.TXT").write_text("; comment | x | y\n11   | F | small | 1.0 | A Name\n")
    found = {u.key: u for u in librispeech(corpus.source, test_fraction=0).splits[0].utterances}
    assert found["11-7-0002"].text == "WORDS OF 2"
    assert found["11-7-0002"].facts == {"subset": "small", "sex": "F"}
    assert found["12-7-0002"].facts == {"subset": "small"}


def test_misplaced_files_and_ids_found_twice_are_reported(corpus: SmallCorpus):
    chapter = corpus.path("11-7-0000").parent
    shutil.copy(chapter / "11-7-0000.flac", chapter / "12-7-0009.flac")
    shutil.copy(chapter / "11-7-0000.flac", chapter / "a.flac")
    shutil.copytree(corpus.source / "small" / "13", corpus.source / "tiny" / "13")
    found = librispeech(corpus.source, test_fraction=0)
    assert keys(found, "train") == set(corpus.pcm)
    reasons = {Path(p.path).name: p.reason for p in found.splits[0].problems}
    assert reasons["12-7-0009.flac"] == "its name does not fit its folder 11/7"
    assert reasons["a.flac"] == "its name is not SPEAKER-CHAPTER-UTT.flac"
    assert reasons["13-7-0001.flac"] == f"its id was already found at {corpus.path('13-7-0001')}"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"source": "nowhere"}, "SOURCE .*nowhere does not exist"),
        ({"source": "train.txt"}, "train.txt is a file"),
        (
            {"source": "bare"},
            "has no .flac file in the layout SUBSET/SPEAKER/CHAPTER/.*; it holds binary, empty, music/",
        ),
        ({"subsets": ["dev-other"]}, "has no subset dev-other; it has small"),
        ({"phones": "nowhere"}, "--phones .*nowhere cannot be read: No such file"),
        ({"phones": "bare"}, "--phones .*bare cannot be read: Is a directory"),
        ({"phones": "bare/empty"}, "--phones .*empty has no line for any of the 12 utterances; a line is"),
        ({"phones": "bare/binary"}, "--phones .*binary has no line for any of the 12 utterances; a line is"),
        ({"lists": ("nowhere", "test.txt")}, "nowhere cannot be read: No such file"),
        ({"lists": ("bare", "test.txt")}, "split list .*bare cannot be read: Is a directory"),
        ({"lists": ("bare/empty", "test.txt")}, "split list .*empty is empty; it should have one utterance id a line"),
        ({"lists": ("train.txt", "bare/binary")}, "split list .*binary is not text; it should have one utterance id"),
    ],
)
def test_input_that_cannot_be_used_is_named(corpus: SmallCorpus, tmp_path: Path, change: dict, message: str):
    (tmp_path / "bare" / "music").mkdir(parents=True)
    (tmp_path / "bare" / "empty").touch()
    (tmp_path / "bare" / "binary").write_bytes(bytes(range(256)))
    given = {"source": corpus.source, **change}
    for name in ("source", "phones"):
        if isinstance(given.get(name), str):
            given[name] = tmp_path / given[name]
    if "lists" in given:
        given["lists"] = SplitLists(*(tmp_path / name for name in given["lists"]))
    with pytest.raises(InputError, match=message):
        librispeech(**given)


def test_artificial_speech_names_become_words_syllables_and_vowels(tmp_path: Path):
    for folder, name in ((WORDS, "babidu_1"), (SYLLABLES, "babidu_1_3_du")):
        for part in ("train", "test"):
            (tmp_path / folder / part).mkdir(parents=True)
            (tmp_path / folder / part / f"{name}.wav").touch()
    (tmp_path / WORDS / "train" / "noise.wav").touch()
    found = artificial_speech(tmp_path)
    assert [plan.name for plan in found.splits] == [
        *("train", "test", "syllables_train", "syllables_test"),
        *("syllables_reshuffled_train", "syllables_reshuffled_test"),
    ]
    word, syllable = found.splits[0].utterances[0], found.splits[2].utterances[0]
    assert (word.key, word.labels, word.facts, word.exact_length) == (
        "babidu_1",
        {"session": "1"},
        {"word": "babidu"},
        10_240,
    )
    assert syllable.labels == {"syllable": "du", "vowel": "u", "session": "1"}
    assert {u.key for plan in found.splits[4:] for u in plan.utterances} == {
        "babidu_1_3_du_session1",
        "babidu_1_3_du_session2",
    }
    assert syllable.facts == {"word": "babidu", "position": 3}
    assert syllable.exact_length == 8_800
    assert [Path(p.path).name for p in found.splits[0].problems] == ["noise.wav"]
    shutil.rmtree(tmp_path / SYLLABLES / "test")
    with pytest.raises(InputError, match=r"no .wav file in split up data padded/test/; expected .* it holds"):
        artificial_speech(tmp_path)


def test_the_classes_are_those_of_the_original_labels(shared: Path):
    lines = (shared / "data" / "librispeech" / "labels" / "phones_41.txt").read_text().splitlines()
    assert lines == [f"{number} {name}" for number, name in enumerate(PHONES)]


def test_real_librispeech_has_both_splits_of_each_speaker(shared: Path):
    labels = shared / "data" / "librispeech" / "labels"
    lists = SplitLists(labels / "test-clean" / "train_split.txt", labels / "test-clean" / "test_split.txt")
    phones = labels / "converted_aligned_phones.txt"
    found = librispeech(shared / "data" / "librispeech", ["test-clean"], lists, phones=phones)
    assert [len(plan.utterances) for plan in found.splits] == [395, 78]
    assert [plan.problems for plan in found.splits] == [[], []]
    for plan in found.splits:
        assert len({u.speaker for u in plan.utterances}) == 40
        assert all(u.phones and u.text for u in plan.utterances)


@pytest.mark.parametrize(("num_samples", "frames"), [(0, 0), (399, 0), (400, 1), (559, 1), (560, 2), (20_480, 126)])
def test_frames_of_phone_labels(num_samples: int, frames: int):
    assert num_phone_frames(num_samples) == frames
