"""The pack command: what it leaves on disk, what it says, and that being killed costs nothing but time."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile

from simdist.core.console import run
from simdist.core.signals import SignalHandler
from simdist.data.splits import open_split
from simdist.pack import parallel
from simdist.pack.__main__ import main
from tests.support.packing_cases import RATE, SmallCorpus, small_corpus


@pytest.fixture
def corpus(tmp_path: Path) -> SmallCorpus:
    return small_corpus(tmp_path)


def packed(out: Path) -> dict[str, str]:
    """Every file that a finished packing leaves, by hash."""
    files = sorted(p for p in out.rglob("*") if p.is_file() and p.name != ".pack.lock")
    return {str(p.relative_to(out)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def code_of(arguments: list[str]) -> int:
    with pytest.raises(SystemExit) as ended:
        run(main, arguments)
    assert isinstance(ended.value.code, int)
    return ended.value.code


def test_the_same_command_gives_the_same_bytes_with_one_worker_or_two(corpus: SmallCorpus, tmp_path: Path):
    for out, workers in (("a", "1"), ("b", "1"), ("c", "2")):
        main(corpus.arguments(tmp_path / out, "--workers", workers, "--shard-samples", "2"))
    assert packed(tmp_path / "a") == packed(tmp_path / "b") == packed(tmp_path / "c")
    names = {Path(name).name for name in packed(tmp_path / "a")}
    assert names == {"manifest.json", "index.npz", "report.json", *(f"shard-{i:06d}.tar" for i in range(5))}
    fingerprints = {open_split(tmp_path / out, "train").manifest.fingerprint for out in "abc"}
    assert len(fingerprints) == 1


def test_a_complete_split_stays_and_another_one_needs_overwrite(
    corpus: SmallCorpus, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    out = tmp_path / "out"
    assert main(corpus.arguments(out)) == 0
    first = packed(out)
    assert main(corpus.arguments(out)) == 0
    assert packed(out) == first
    assert "already packed: train: 9 utterances" in capsys.readouterr().out
    assert code_of(corpus.arguments(out, "--encoding", "wav")) == 2
    assert f"{out / 'train'} is complete, but was packed with encoding flac, not wav" in capsys.readouterr().err
    shutil.copy(corpus.test_split, tmp_path / "copy.txt")
    assert main(corpus.arguments(out, "--test-split", str(tmp_path / "copy.txt"))) == 0
    corpus.test_split.write_text("11-7-0000\n")
    assert code_of(corpus.arguments(out)) == 2
    assert "packed with another --test-split list; add --overwrite" in capsys.readouterr().err
    assert main(corpus.arguments(out, "--overwrite", "--encoding", "wav")) == 0
    assert open_split(out, "test").manifest.num_samples == 1
    assert open_split(out, "train").manifest.encoding == "wav"


def test_every_kind_of_bad_file_is_reported_and_left_out(
    corpus: SmallCorpus, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    keys = [key for key in corpus.pcm if not key.endswith("-0000")]
    path = corpus.path
    whole = path(keys[0]).read_bytes()
    path(keys[0]).write_bytes(whole[: len(whole) // 2])
    damaged = bytearray(path(keys[1]).read_bytes())
    damaged[len(damaged) // 2] ^= 0x10
    path(keys[1]).write_bytes(damaged)
    soundfile.write(path(keys[2]), corpus.pcm[keys[2]], 8_000, subtype="PCM_16")
    soundfile.write(path(keys[3]), np.stack([corpus.pcm[keys[3]]] * 2, axis=1), RATE, subtype="PCM_16")
    path(keys[4]).write_bytes(b"")
    soundfile.write(path(keys[5]), np.zeros(0, np.int16), RATE, subtype="PCM_16")
    path(keys[6]).unlink()
    with corpus.test_split.open("a") as file:
        file.write(f"{keys[7]}\n")
    short = "11-7-0000"
    soundfile.write(path(short), corpus.pcm[short][:8_000], RATE, subtype="PCM_16")
    lines = corpus.phones.read_text().splitlines()
    lines[0] = " ".join(lines[0].split()[: 1 + 1 + (8_000 - 400) // 160])
    corpus.phones.write_text("\n".join(lines) + "\n")

    assert main(corpus.arguments(tmp_path / "out")) == 0
    reports = [json.loads((tmp_path / "out" / s / "report.json").read_text()) for s in ("train", "test")]
    found = {(p["path"], p["reason"]): p["packed"] for report in reports for p in report["problems"]}
    expected = {
        (path(keys[0]), "truncated"),
        (path(keys[1]), "corrupt"),
        (path(keys[2]), "its sample rate is 8,000 Hz; 16,000 Hz is needed"),
        (path(keys[3]), "has 2 channels; mono is needed"),
        (path(keys[4]), "is empty (0 bytes)"),
        (path(keys[5]), "is empty"),
        (corpus.train_split, f"{keys[6]} (line 7) is in the list but not on disk"),
        (corpus.train_split, f"{keys[7]} is in both lists"),
        (corpus.test_split, f"{keys[7]} is in both lists"),
        (path(short), "is shorter than a crop (8,000 of 20,480 samples)"),
    }
    for file, part in expected:
        assert [part for p, reason in found if p == str(file) and part in reason], f"{file}: {part} not in {found}"
    assert len(found) == len(expected)
    assert [p for (p, _), kept in found.items() if kept] == [str(path(short))]
    assert (reports[0]["packed"], reports[0]["left_out"]) == (1, 8)
    assert set(open_split(tmp_path / "out", "train").index.key) == {keys[8]}
    assert short in open_split(tmp_path / "out", "test").index.key
    said = capsys.readouterr().out
    assert all(f"{file}: " in said for file, _ in expected)

    assert code_of(corpus.arguments(tmp_path / "strict", "--strict")) == 2
    assert "--strict: 10 problems" in capsys.readouterr().err
    assert not list((tmp_path / "strict").rglob("manifest.json"))
    assert main(corpus.arguments(tmp_path / "strict")) == 0
    assert packed(tmp_path / "strict") == packed(tmp_path / "out")


def test_a_split_with_nothing_usable_is_an_error(corpus: SmallCorpus, tmp_path: Path, capsys: pytest.CaptureFixture):
    for key in corpus.pcm:
        if key.endswith("-0000"):
            corpus.path(key).write_bytes(b"no flac")
    assert code_of(corpus.arguments(tmp_path / "out")) == 2
    assert "split 'test' would be empty" in capsys.readouterr().err
    assert not (tmp_path / "out" / "test" / "manifest.json").exists()


MANY_SHARDS = ["--shard-samples", "2", "--encoding", "wav"]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[SmallCorpus, dict[str, str]]:
    """A corpus whose packing takes long enough to be stopped, and what an undisturbed packing leaves."""
    folder = tmp_path_factory.mktemp("undisturbed")
    corpus = small_corpus(folder, speakers=30, utterances=6)
    main(corpus.arguments(folder / "out", *MANY_SHARDS, "--workers", "1"))
    return corpus, packed(folder / "out")


@pytest.mark.parametrize(
    ("signum", "code", "said"),
    [
        (signal.SIGKILL, -signal.SIGKILL, ""),
        (signal.SIGTERM, 75, "stopped by SIGTERM. Finished shards are kept; run the same command to resume"),
        (signal.SIGUSR2, 75, "stopped by SIGUSR2"),
        (signal.SIGINT, 130, "stopped by SIGINT"),
    ],
)
def test_a_packing_that_was_stopped_continues_to_the_same_result(
    undisturbed: tuple[SmallCorpus, dict[str, str]],
    tmp_path: Path,
    signum: signal.Signals,
    code: int,
    said: str,
    capsys: pytest.CaptureFixture[str],
):
    corpus, expected = undisturbed
    out = tmp_path / "out"
    command = [sys.executable, "-m", "simdist.pack", *corpus.arguments(out, *MANY_SHARDS, "--workers", "2")]
    process = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    deadline = time.monotonic() + 30
    while len(list(out.glob("*/shard-*.tar"))) < 5 and time.monotonic() < deadline:
        time.sleep(0.001)
    if signum == signal.SIGINT:
        os.killpg(process.pid, signum)  # as Ctrl-C does: to the workers as well
    else:
        process.send_signal(signum)
    _, error = process.communicate(timeout=20)
    assert process.returncode == code
    assert said in error
    assert "Traceback" not in error
    assert not list(out.rglob("manifest.json")), "stopped too late to test anything"
    if signum != signal.SIGKILL:
        assert not list(out.rglob(".tmp-*"))
    before = {p: p.stat().st_mtime_ns for p in out.glob("*/shard-*.tar")}
    main(corpus.arguments(out, *MANY_SHARDS, "--workers", "1"))
    assert "shards are finished already" in capsys.readouterr().out
    kept = sum(p.stat().st_mtime_ns == mtime for p, mtime in before.items())
    assert kept >= 4, "finished shards are not packed again"
    assert packed(out) == expected


SMALL_SHARDS = ["--shard-samples", "2"]


@pytest.fixture
def half_packed(corpus: SmallCorpus, tmp_path: Path) -> Path:
    """An OUT with shards of two utterances and no split complete: one file was bad, and now is not."""
    bad = corpus.path("12-7-0001")
    whole = bad.read_bytes()
    bad.write_bytes(whole[:100])
    assert code_of(corpus.arguments(tmp_path / "half", "--strict", *SMALL_SHARDS)) == 2
    bad.write_bytes(whole)
    return tmp_path / "half"


def test_shards_that_were_written_from_other_input_are_packed_again(
    corpus: SmallCorpus, half_packed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    capsys.readouterr()
    assert main(corpus.arguments(half_packed, "--strict", *SMALL_SHARDS)) == 0
    assert "continuing: 6 of 7 shards are finished already" in capsys.readouterr().out
    main(corpus.arguments(tmp_path / "fresh", *SMALL_SHARDS))
    assert packed(half_packed) == packed(tmp_path / "fresh")


@pytest.mark.parametrize(
    ("more", "difference"),
    [
        (["--shard-samples", "3"], "shard-samples 2, not 3"),
        (["--encoding", "wav"], "encoding flac, not wav"),
        (["--min-samples", "100"], "min-samples 20480, not 100"),
    ],
)
def test_half_a_packing_is_not_thrown_away_by_other_options(
    corpus: SmallCorpus,
    half_packed: Path,
    tmp_path: Path,
    more: list[str],
    difference: str,
    capsys: pytest.CaptureFixture[str],
):
    before = packed(half_packed)
    options = [*SMALL_SHARDS, *more]
    assert code_of(corpus.arguments(half_packed, *options)) == 2
    said = (
        f"{half_packed / 'train'} is half packed, with {difference}; add --overwrite to replace it, or choose another"
    )
    assert said in capsys.readouterr().err
    assert packed(half_packed) == before
    assert main(corpus.arguments(half_packed, *options, "--overwrite")) == 0
    main(corpus.arguments(tmp_path / "fresh", *options))
    assert packed(half_packed) == packed(tmp_path / "fresh")


def test_verify_finds_damage_in_a_complete_split(
    corpus: SmallCorpus, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    out = tmp_path / "out"
    assert main(corpus.arguments(out, "--verify")) == 0
    assert "verified: every shard matches its sha256, and every sample matches its source" in capsys.readouterr().out
    split = open_split(out, "train")
    shard = split.shard_path(0)
    stored = bytearray(shard.read_bytes())
    stored[split.index.offset[2] + split.index.size[2] // 2] ^= 0x04
    shard.write_bytes(stored)
    assert main(corpus.arguments(out)) == 0, "without --verify a complete split is not read"
    capsys.readouterr()
    assert main(corpus.arguments(out, "--verify")) == 1
    said = capsys.readouterr().out
    assert f"{shard}: is damaged" in said
    assert f"{shard}:{split.index.key[2]}: " in said
    assert "2 problems" in said


def test_tars_of_somebody_else_are_not_touched(corpus: SmallCorpus, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    out = tmp_path / "out"
    main(["librispeech", str(corpus.source), str(out), "--test-fraction", "0"])
    theirs = out / "test" / "shard-000000.tar"
    theirs.parent.mkdir()
    theirs.write_bytes(b"precious")
    before = packed(out)
    assert code_of(corpus.arguments(out, "--overwrite")) == 2
    assert "shard-000000.tar, not written by simdist.pack" in capsys.readouterr().err
    assert packed(out) == before


@pytest.mark.parametrize(
    ("out", "message"),
    [
        ("source", "SOURCE .*/source and OUT .*/source are one folder; choose an OUT apart from the corpus"),
        ("link", "are one folder"),
        ("source/small/../packed", "lie one inside the other"),
        (".", "lie one inside the other"),
        (
            "papers",
            "OUT .*/papers holds drafts/, thesis.pdf, but no split packed by simdist.pack; choose a new or empty",
        ),
        ("tars", "OUT .*/tars holds train/, but no split packed"),
        ("run", "OUT .*/run has a metrics.jsonl, as run folders do; choose a new or empty folder"),
    ],
)
def test_no_folder_of_others_becomes_out(
    corpus: SmallCorpus, tmp_path: Path, out: str, message: str, capsys: pytest.CaptureFixture[str]
):
    (tmp_path / "link").symlink_to("source")
    for file in ("papers/thesis.pdf", "papers/drafts/1.tex", "tars/train/shard-000000.tar", "run/metrics.jsonl"):
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).touch()
    before = sorted(tmp_path.rglob("*"))
    for command in (corpus.arguments(tmp_path / out), ["synthetic", str(corpus.source), str(tmp_path / out)]):
        assert code_of(command) == 2
        assert re.search(message, capsys.readouterr().err)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_source_that_was_not_generated_is_not_filled(
    corpus: SmallCorpus, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    before = sorted(tmp_path.rglob("*"))
    assert code_of(["synthetic", str(corpus.source), str(tmp_path / "out")]) == 2
    assert "holds small/, but no corpus that was generated; choose a new or empty folder" in capsys.readouterr().err
    assert sorted(tmp_path.rglob("*")) == before


def test_an_out_with_nothing_but_hidden_files_and_empty_folders_will_do(corpus: SmallCorpus, tmp_path: Path):
    (tmp_path / "out" / "train").mkdir(parents=True)
    (tmp_path / "out" / ".gitkeep").touch()
    assert main(corpus.arguments(tmp_path / "out")) == 0


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--workers", "0"], "--workers is 0; it must be at least 1"),
        (["--shard-samples", "0"], "--shard-samples is 0; it must be at least 1"),
        (["--subsets", "nope"], "has no subset nope; it has small"),
        (["--subsets", "small", "a", "b,c"], "has no subset a, b, c; it has small"),
        (["--encoding", "mp3"], "mp3"),
        (["--train-split", "nowhere.txt"], "split list nowhere.txt cannot be read: No such file"),
        (["--phones", "nowhere.txt"], "--phones nowhere.txt cannot be read: No such file"),
        (["--wrokers", "2"], "did you mean 'workers'?"),
    ],
)
def test_wrong_options_give_one_line_and_exit_code_2(
    corpus: SmallCorpus, tmp_path: Path, more: list[str], message: str, capsys: pytest.CaptureFixture[str]
):
    assert code_of(corpus.arguments(tmp_path / "out", *more)) == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.startswith("error: ")
    assert said.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--test-fraction", "1"], "--test-fraction is 1; it must be at least 0 and less than 1"),
        (["--train-split", "a.txt"], "--train-split is given without the other list"),
    ],
)
def test_wrong_splits_give_one_line(
    corpus: SmallCorpus, tmp_path: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
):
    assert code_of(["librispeech", str(corpus.source), str(tmp_path / "out"), *arguments]) == 2
    assert message in capsys.readouterr().err


def test_an_out_that_cannot_be_written_is_named(
    corpus: SmallCorpus, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    (tmp_path / "file").touch()
    assert code_of(corpus.arguments(tmp_path / "file" / "out")) == 2
    assert f"cannot write to {tmp_path / 'file' / 'out'}: Not a directory" in capsys.readouterr().err


def test_a_full_disk_gives_one_line_with_the_bytes_needed_and_leaves_no_temporary(corpus: SmallCorpus, tmp_path: Path):
    """A limit on the size of files fails as a full disk does: in the middle of a write."""
    out = tmp_path / "out"
    limited = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000));"
        "from simdist.core.console import run; from simdist.pack.__main__ import main; run(main, sys.argv[1:])"
    )
    for workers in ("1", "2"):
        command = [sys.executable, "-c", limited, *corpus.arguments(out, "--workers", workers)]
        ended = subprocess.run(command, capture_output=True, text=True)
        assert ended.returncode == 1
        assert "cannot be written: File too large; what is missing needs about" in ended.stderr
        assert ended.stderr.count("\n") == 1
        assert not list(out.rglob(".tmp-*"))
    assert main(corpus.arguments(out)) == 0


@pytest.mark.parametrize("command", [[], ["librispeech"], ["artificial-speech"], ["synthetic"]])
def test_help_shows_examples(command: list[str], capsys: pytest.CaptureFixture[str]):
    assert code_of([*command, "--help"]) == 0
    said = capsys.readouterr().out
    assert f"python -m simdist.pack {command[0] if command else 'synthetic'}" in said
    assert max(map(len, said.splitlines())) <= 120


def test_help_has_a_whole_line_for_each_corpus(capsys: pytest.CaptureFixture[str]):
    assert code_of(["--help"]) == 0
    said = capsys.readouterr().out
    for name in ("librispeech", "artificial-speech", "synthetic"):
        assert re.search(rf"^ +{name} +[A-Z][^\n]+\w{{3}}\.$", said, re.MULTILINE)


def test_errors_name_a_help_that_can_be_called(capsys: pytest.CaptureFixture[str]):
    assert code_of(["librispeech", "a", "b", "c"]) == 2
    assert "(all options: python -m simdist.pack librispeech --help)" in capsys.readouterr().err


def blocked_signals(job: int, check_stop: Callable[[], None]) -> set[int]:
    return {int(number) for number in signal.pthread_sigmask(signal.SIG_BLOCK, [])}


def test_workers_are_deaf_to_the_signals_of_the_group_from_their_first_moment():
    """Nothing in a worker itself blocks signals: the mask is what it was started with."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [])
    for blocked in parallel.results(blocked_signals, [0, 1], 2, SignalHandler()):
        assert blocked >= {signal.SIGINT, signal.SIGTERM, signal.SIGUSR2}
    assert signal.pthread_sigmask(signal.SIG_BLOCK, []) == before


def test_artificial_speech_is_resampled_cut_padded_and_labeled(tmp_path: Path):
    """A tone keeps its pitch through resampling; lengths are those of the papers."""
    source = tmp_path / "source"
    for folder, name, rate, seconds in (
        ("reshuffledv2", "babidu_1", 44_100, 0.9),
        ("split up data padded", "babidu_1_3_du", 22_050, 0.52),
    ):
        tone = np.sin(2 * np.pi * 1000 * np.arange(int(seconds * rate)) / rate)
        for part in ("train", "test"):
            (source / folder / part).mkdir(parents=True)
            soundfile.write(source / folder / part / f"{name}.wav", 0.5 * tone, rate, subtype="PCM_16")
    out = tmp_path / "out"
    assert main(["artificial-speech", str(source), str(out), "--encoding", "wav", "--workers", "1"]) == 0
    for split, length, voiced in (("train", 10_240, 10_240), ("syllables_test", 8_800, int(0.52 * RATE))):
        opened = open_split(out, split)
        stored = opened.shard_path(0).read_bytes()[opened.index.offset[0] + 44 :][: 2 * length]
        pcm = np.frombuffer(stored, "<i2") / 32768
        assert opened.index.num_samples.tolist() == [length]
        expected = 0.5 * np.sin(2 * np.pi * 1000 * np.arange(length) / RATE)
        np.testing.assert_allclose(pcm[100 : voiced - 100], expected[100 : voiced - 100], atol=0.005)
        assert not pcm[voiced + 1 :].any()
    assert opened.manifest.labels == {
        "session": ["1", "2"],
        "speaker": ["de_boer"],
        "syllable": ["du"],
        "vowel": ["u"],
    }
    assert opened.index.labels["session"].tolist() == [1], "the folder `test` is the second session"
    assert opened.index.labels["syllable"].tolist() == [0]
    with tarfile.open(opened.shard_path(0)) as tar:
        facts = json.load(tar.extractfile("babidu_1_3_du.json"))  # pyright: ignore[reportArgumentType]
    assert facts == {
        "speaker": "de_boer",
        "chapter": "",
        "text": "du",
        "num_samples": 8_800,
        "sample_rate": 16_000,
        "syllable": "du",
        "vowel": "u",
        "session": "2",
        "word": "babidu",
        "position": 3,
    }


def test_real_artificial_speech_has_the_lengths_and_labels_of_the_papers(shared: Path, tmp_path: Path):
    archive = shared / "data" / "artificial_speech.tar.xz"
    if not archive.is_file():
        pytest.skip(f"no artificial speech at {archive}")
    with tarfile.open(archive) as tar:  # the first files of each folder: unpacking all would take long
        counts: dict[str, int] = {}
        for member in tar:
            folder = os.path.dirname(member.name)
            counts[folder] = counts.get(folder, 0) + 1
            if member.name.endswith(".wav") and counts[folder] <= 12:
                tar.extract(member, tmp_path / "source", filter="data")
    found = next((tmp_path / "source").rglob("reshuffledv2")).parent
    assert main(["artificial-speech", str(found), str(tmp_path / "out"), "--strict", "--workers", "1"]) == 0
    for split, length in (("train", 10_240), ("test", 10_240), ("syllables_train", 8_800), ("syllables_test", 8_800)):
        opened = open_split(tmp_path / "out", split)
        assert len(opened.index) >= 10
        assert set(opened.index.num_samples) == {length}
        if split.startswith("syllables"):
            names = [opened.manifest.labels["syllable"][i] for i in opened.index.labels["syllable"]]
            assert names == [key[-2:] for key in opened.index.key]
            assert [opened.manifest.labels["vowel"][i] for i in opened.index.labels["vowel"]] == [n[1] for n in names]
    reshuffled = [open_split(tmp_path / "out", f"syllables_reshuffled_{part}").index for part in ("train", "test")]
    published = [open_split(tmp_path / "out", f"syllables_{part}").index for part in ("train", "test")]
    assert sum(map(len, reshuffled)) == sum(map(len, published))
    assert len(reshuffled[1]) == round(0.2 * sum(map(len, reshuffled)))
    assert not set(reshuffled[0].key) & set(reshuffled[1].key)
    divided = [open_split(tmp_path / "out", f"syllables_reshuffled_{part}").index for part in ("fit", "validation")]
    assert sorted(key for index in divided for key in index.key) == sorted(reshuffled[0].key)
    assert len(divided[1]) == round(0.2 * len(reshuffled[0]))
    sessions = np.concatenate([index.labels["session"] for index in reshuffled])
    assert np.bincount(sessions).tolist() == [len(index) for index in published], "each published split is a session"


def test_real_librispeech_packs_without_a_problem(shared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    source = shared / "data" / "librispeech"
    labels = source / "labels"
    if not (source / "LibriSpeech" / "test-clean").is_dir():
        pytest.skip(f"no LibriSpeech at {source}")
    lists = [f"--{name}-split={labels / 'test-clean' / f'{name}_split.txt'}" for name in ("train", "test")]
    phones = f"--phones={labels / 'converted_aligned_phones.txt'}"
    command = [
        "librispeech",
        str(source),
        str(tmp_path),
        "--subsets=test-clean",
        *lists,
        phones,
        "--strict",
        "--verify",
    ]
    assert main(command) == 0
    for name, count in (("train", 395), ("test", 78)):
        split = open_split(tmp_path, name)
        assert len(split.index) == split.manifest.num_samples == count
        assert len(set(split.index.labels["speaker"])) == len(split.manifest.labels["speaker"]) == 40
        assert (split.index.phones_offset > 0).all()
    assert "train: 395 utterances, 37.4 min, 40 speakers" in capsys.readouterr().out
