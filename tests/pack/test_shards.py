"""A shard is a tar as webdataset writes it, and its rows say where each sample lies."""

from __future__ import annotations

import dataclasses
import io
import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
from rich.console import Console

from simdist.core.signals import SignalHandler
from simdist.data.audio import WAV_HEADER
from simdist.data.splits import Index, open_split
from simdist.pack.corpora import Corpus
from simdist.pack.librispeech import librispeech
from simdist.pack.packing import Options, pack
from simdist.pack.shards import Encoding, Shard, ShardJob, write_shard
from tests.support.packing_cases import SmallCorpus, small_corpus

LEAVES_FILES_OPEN = pytest.mark.filterwarnings(  # webdataset closes what it reads when it is collected
    "ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"
)
ENCODINGS: tuple[Encoding, ...] = ("flac", "wav")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> SmallCorpus:
    return small_corpus(tmp_path_factory.mktemp("corpus"))


def plan(corpus: SmallCorpus, phones: Path | None = None) -> Corpus:
    return librispeech(corpus.source, test_fraction=0, phones=phones or corpus.phones)


def write(corpus: SmallCorpus, folder: Path, encoding: Encoding = "flac", phones: Path | None = None) -> Shard:
    utterances = plan(corpus, phones).splits[0].utterances
    return write_shard(ShardJob(folder, "shard-000000.tar", utterances, encoding, 20_480))


@LEAVES_FILES_OPEN
@pytest.mark.parametrize("encoding", ENCODINGS)
def test_a_plain_webdataset_reads_audio_json_and_phones(corpus: SmallCorpus, tmp_path: Path, encoding: Encoding):
    webdataset = pytest.importorskip("webdataset")
    write(corpus, tmp_path, encoding)
    samples = list(webdataset.WebDataset(str(tmp_path / "shard-000000.tar"), shardshuffle=False))
    assert [s["__key__"] for s in samples] == list(corpus.pcm)
    for sample in samples:
        key = sample["__key__"]
        pcm, rate = soundfile.read(io.BytesIO(sample[encoding]), dtype="int16")
        assert rate == 16_000
        np.testing.assert_array_equal(pcm, corpus.pcm[key])
        np.testing.assert_array_equal(np.load(io.BytesIO(sample["phones.npy"])), corpus.classes[key])
        facts = json.loads(sample["json"])
        assert facts["speaker"] == key.split("-")[0]
        assert facts["chapter"] == "7"
        assert facts["text"] == f"WORDS OF {int(key[-4:])}"
        assert facts["num_samples"] == len(corpus.pcm[key])
        assert facts["sample_rate"] == 16_000


@LEAVES_FILES_OPEN
def test_a_shard_has_the_very_bytes_that_webdatasets_own_writer_gives(corpus: SmallCorpus, tmp_path: Path):
    webdataset = pytest.importorskip("webdataset")
    write(corpus, tmp_path)
    ours = tmp_path / "shard-000000.tar"
    theirs = tmp_path / "theirs.tar"
    with webdataset.TarWriter(str(theirs), encoder=False, user="", group="", mode=0o444, mtime=0) as writer:
        for sample in webdataset.WebDataset(str(ours), shardshuffle=False):
            writer.write({k: v for k, v in sample.items() if k == "__key__" or not k.startswith("__")})
    assert ours.read_bytes() == theirs.read_bytes()


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_rows_give_exactly_the_bytes_of_each_member(corpus: SmallCorpus, tmp_path: Path, encoding: Encoding):
    shard = write(corpus, tmp_path, encoding)
    tar = (tmp_path / "shard-000000.tar").read_bytes()
    assert [row["key"] for row in shard.rows] == list(corpus.pcm)
    for row in shard.rows:
        sound = tar[row["offset"] : row["offset"] + row["size"]]
        expected = corpus.pcm[row["key"]]
        pcm, _ = soundfile.read(io.BytesIO(sound), dtype="int16")
        np.testing.assert_array_equal(pcm, expected)
        phones = np.load(io.BytesIO(tar[row["phones_offset"] : row["phones_offset"] + row["phones_size"]]))
        assert phones.dtype == np.uint8
        np.testing.assert_array_equal(phones, corpus.classes[row["key"]])
        if encoding == "flac":
            assert sound == corpus.path(row["key"]).read_bytes(), "FLAC that fits is copied, not encoded again"
        else:
            assert sound[WAV_HEADER - 8 : WAV_HEADER - 4] == b"data"
            np.testing.assert_array_equal(np.frombuffer(sound[WAV_HEADER:], "<i2"), expected)


def test_the_saved_index_and_manifest_agree_with_the_shards(corpus: SmallCorpus, tmp_path: Path):
    pack(plan(corpus), tmp_path, Options(shard_samples=5), Console(quiet=True), SignalHandler())
    split = open_split(tmp_path, "train")
    assert split.manifest.num_samples == len(split.index) == len(corpus.pcm)
    assert [shard["num_samples"] for shard in split.manifest.shards] == [5, 5, 2]
    assert split.manifest.num_seconds == pytest.approx(sum(map(len, corpus.pcm.values())) / 16_000)
    assert set(split.index.key) == set(corpus.pcm)
    for i, key in enumerate(split.index.key):
        with split.shard_path(int(split.index.shard[i])).open("rb") as file:
            file.seek(split.index.offset[i])
            pcm, _ = soundfile.read(io.BytesIO(file.read(split.index.size[i])), dtype="int16")
        np.testing.assert_array_equal(pcm, corpus.pcm[key])
        assert split.index.num_samples[i] == len(pcm)
        assert split.manifest.labels["speaker"][split.index.labels["speaker"][i]] == key.split("-")[0]
    assert isinstance(Index.load(split.folder / "index.npz"), Index)


def test_phones_are_fitted_within_three_frames_and_refused_beyond(corpus: SmallCorpus, tmp_path: Path):
    keys = list(corpus.classes)
    changed = {key: list(c) for key, c in corpus.classes.items()}
    changed[keys[0]] = changed[keys[0]][:-3]
    changed[keys[1]] += [0, 0, 0]
    changed[keys[2]] = changed[keys[2]][:-4]
    changed[keys[3]][5] = 41
    lines = [" ".join([key, *map(str, c)]) for key, c in changed.items()]
    lines[4] = f"{keys[4]} SIL SIL"
    del lines[5]
    (tmp_path / "phones.txt").write_text("\n".join(lines))
    missing = plan(corpus, tmp_path / "phones.txt").splits[0].problems
    assert [(p.path, p.reason) for p in missing] == [
        (str(corpus.path(keys[5])), f"has no line of phones in {tmp_path / 'phones.txt'}")
    ]
    shard = write(corpus, tmp_path, phones=tmp_path / "phones.txt")
    assert [p.path for p in shard.problems] == [str(corpus.path(key)) for key in keys[2:5]]
    assert "frames of 10 ms, but" in shard.problems[0].reason
    assert "not all within 0..40" in shard.problems[1].reason
    assert "are not numbers" in shard.problems[2].reason
    packed = {row["key"]: row for row in shard.rows}
    assert list(packed) == keys[:2] + keys[6:]
    tar = (tmp_path / "shard-000000.tar").read_bytes()
    for key, expected in ((keys[0], changed[keys[0]] + [changed[keys[0]][-1]] * 3), (keys[1], corpus.classes[keys[1]])):
        row = packed[key]
        stored = tar[row["phones_offset"] : row["phones_offset"] + row["phones_size"]]
        assert np.load(io.BytesIO(stored)).tolist() == expected


def test_a_shard_that_is_given_up_leaves_nothing_behind(corpus: SmallCorpus, tmp_path: Path):
    calls = []

    def stop_at_the_third() -> None:
        calls.append(None)
        if len(calls) == 3:
            raise KeyboardInterrupt

    job = ShardJob(tmp_path, "shard-000000.tar", plan(corpus).splits[0].utterances, "flac", 20_480)
    with pytest.raises(KeyboardInterrupt):
        write_shard(job, stop_at_the_third)
    assert list(tmp_path.iterdir()) == []


def test_a_job_is_another_when_anything_it_is_made_from_changes(corpus: SmallCorpus, tmp_path: Path):
    utterances = plan(corpus).splits[0].utterances
    job = ShardJob(tmp_path, "shard-000000.tar", utterances, "flac", 20_480)
    assert job.fingerprint() == dataclasses.replace(job).fingerprint()
    newer = [dataclasses.replace(utterances[0], mtime_ns=utterances[0].mtime_ns + 1), *utterances[1:]]
    others = [
        dataclasses.replace(job, encoding="wav"),
        dataclasses.replace(job, utterances=newer),
        dataclasses.replace(job, utterances=utterances[1:]),
    ]
    assert len({job.fingerprint(), *(other.fingerprint() for other in others)}) == 4
