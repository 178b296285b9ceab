"""The download command against a web server on this machine: killed, cheated, full; then pack without an argument."""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import soundfile
from rich.console import Console

from simdist.core.console import run
from simdist.core.file_locks import locked
from simdist.core.signals import SignalHandler, StoppedError
from simdist.data.splits import open_split
from simdist.download import __main__ as download
from simdist.download import addresses, downloads
from simdist.download.addresses import SUBSETS, Archive
from simdist.download.downloads import Layout
from simdist.download.unpacking import unpack
from simdist.pack import __main__ as pack
from tests.support.packing_cases import SmallCorpus, small_corpus
from tests.support.published import COMMAND, SUBSET, TAR, archive_of, published, tar_of, zip_of
from tests.support.web import Answer, Web

PART = f"{SUBSET}.tar.gz.part"


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> SmallCorpus:
    return small_corpus(tmp_path_factory.mktemp("corpus"), speakers=4, utterances=6)


@pytest.fixture(scope="module")
def content(corpus: SmallCorpus) -> bytes:
    return tar_of(corpus.source / "small")


@pytest.fixture
def web(corpus: SmallCorpus, content: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Web]:
    """A server with a small train-clean-100 and its labels, which takes openslr.org's place; in an empty folder."""
    monkeypatch.chdir(tmp_path)
    with published(corpus, monkeypatch, content) as web:
        yield web


def code_of(arguments: list[str], main=download.main) -> int:
    with pytest.raises(SystemExit) as ended:
        run(main, arguments)
    assert isinstance(ended.value.code, int)
    return ended.value.code


def there() -> list[str]:
    """Every file below the present folder but the locks."""
    return sorted(str(p) for p in Path().rglob("*") if p.is_file() and not p.name.endswith(".lock"))


def test_download_then_pack_without_an_argument(
    web: Web, corpus: SmallCorpus, capsys: pytest.CaptureFixture[str]
) -> None:
    assert download.main(COMMAND) == 0
    said = capsys.readouterr().out
    assert f"data/corpora/LibriSpeech/{SUBSET}: 24 utterances\n" in said
    assert f"data/corpora/labels/{SUBSET}/train_split.txt: 20 utterance ids\n" in said
    assert "data/corpora/labels/converted_aligned_phones.txt: phone labels of 24 utterances\n" in said
    assert said.endswith("next: python -m simdist.pack librispeech\n")
    for key in corpus.pcm:
        speaker, chapter, _ = key.split("-")
        fetched = Path(f"data/corpora/LibriSpeech/{SUBSET}/{speaker}/{chapter}/{key}.flac")
        assert fetched.read_bytes() == corpus.path(key).read_bytes()
    assert Path("data/corpora/labels/converted_aligned_phones.txt").read_bytes() == corpus.phones.read_bytes()
    files = [name for name in there() if not name.endswith((".flac", ".trans.txt"))]
    assert [Path(name).name for name in files] == [
        "SPEAKERS.TXT", "converted_aligned_phones.txt", "test_split.txt", "train_split.txt",
    ]  # fmt: skip

    assert pack.main(["librispeech", "--workers", "1", "--verify"]) == 0
    said = capsys.readouterr().out
    assert said.startswith(f"packing data/corpora/LibriSpeech with data/corpora/labels/{SUBSET}/train_split.txt, ")
    for name, list_of in (("train", corpus.train_split), ("test", corpus.test_split)):
        split = open_split(Path("data/librispeech"), name)
        assert set(split.index.key) == set(list_of.read_text().split())
        row = 1
        key = str(split.index.key[row])
        with tarfile.open(split.shard_path(int(split.index.shard[row]))) as tar:
            audio = tar.extractfile(f"{key}.flac")
            phones = tar.extractfile(f"{key}.phones.npy")
            assert audio is not None
            assert phones is not None
            pcm, _ = soundfile.read(io.BytesIO(audio.read()), dtype="int16")
            assert np.array_equal(pcm, corpus.pcm[key])
            assert np.load(io.BytesIO(phones.read())).tolist() == corpus.classes[key]


def test_the_same_command_fetches_only_what_is_missing(web: Web, capsys: pytest.CaptureFixture[str]) -> None:
    assert download.main([*COMMAND, "--no-labels"]) == 0
    assert [request.path for request in web.requests] == [TAR]
    said = capsys.readouterr().out
    assert said.endswith(f"next: python -m simdist.pack librispeech data/corpora data/librispeech --subsets {SUBSET}\n")
    assert download.main(COMMAND) == 0
    assert [request.path for request in web.requests[1:]] == ["/train_split.txt", "/test_split.txt", "/phones.zip"]
    Path(f"data/corpora/labels/{SUBSET}/test_split.txt").unlink()
    assert download.main(COMMAND) == 0
    assert [request.path for request in web.requests[4:]] == ["/test_split.txt"]
    capsys.readouterr()
    before = there()
    assert download.main(COMMAND) == 0
    assert capsys.readouterr().out.startswith(f"exists already: data/corpora/LibriSpeech/{SUBSET}\nnext: ")
    assert len(web.requests) == 5
    assert there() == before


# --- stopped ----------------------------------------------------------------------------------------------------------

REAL = """
import json, sys
from simdist.core.console import run
from simdist.download import addresses
from simdist.download.__main__ import main
told = json.loads(sys.argv.pop(1))
addresses.SUBSETS[told["archive"]["subset"]] = addresses.Archive(**told["archive"])
run(main, sys.argv[1:])
"""


@pytest.mark.parametrize(
    ("signum", "code", "said"),
    [
        (signal.SIGKILL, -signal.SIGKILL, ""),
        (signal.SIGTERM, 75, "stopped by SIGTERM. Finished downloads are kept; run the same command"),
        (signal.SIGINT, 130, "stopped by SIGINT. Finished downloads are kept"),
    ],
)
def test_a_download_that_was_stopped_asks_for_the_rest_only(
    web: Web, corpus: SmallCorpus, content: bytes, tmp_path: Path, signum: signal.Signals, code: int, said: str
) -> None:
    web.answers[TAR] = [Answer(pace=0.05)]
    told = json.dumps({"archive": asdict(SUBSETS[SUBSET])})
    command = [sys.executable, "-c", REAL, told, "librispeech", SUBSET, "--mirror", web.url, "--no-labels"]
    environ = os.environ | {"PYTHONPATH": str(Path(download.__file__).parent.parent.parent)}
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=environ)
    part = Path("data/corpora") / PART
    deadline = time.monotonic() + 60
    while not (part.is_file() and part.stat().st_size > 200_000) and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signum)
    _, error = process.communicate(timeout=30)
    assert process.returncode == code
    assert said in error
    assert "Traceback" not in error
    kept = part.stat().st_size
    assert 200_000 < kept < len(content)
    assert part.read_bytes() == content[:kept]
    assert there() == [str(part)]

    ended = subprocess.run(command, capture_output=True, text=True, env=environ)
    assert ended.returncode == 0, ended.stderr
    assert f"continuing {PART} at byte {kept:,}\n" in ended.stdout
    assert web.asked(TAR) == [None, f"bytes={kept}-"]
    flac = {path.name: path.read_bytes() for path in Path("data/corpora/LibriSpeech").rglob("*.flac")}
    assert flac == {f"{key}.flac": corpus.path(key).read_bytes() for key in corpus.pcm}
    assert not [name for name in there() if "tar.gz" in name]


def test_what_a_kill_leaves_while_unpacking_is_cleared(web: Web, content: bytes) -> None:
    root = Path("data/corpora")
    left = root / f".tmp-{SUBSET}" / "LibriSpeech" / SUBSET / "1" / "2"
    left.mkdir(parents=True)
    (left / "1-2-0000.flac").write_bytes(b"half")
    (root / f"{SUBSET}.tar.gz").write_bytes(content)
    assert download.main([*COMMAND, "--no-labels", "--keep-archives"]) == 0
    assert web.requests == []
    assert len(list(root.rglob("*.flac"))) == 24
    assert not left.exists()
    assert (root / f"{SUBSET}.tar.gz").read_bytes() == content


def test_a_stop_while_unpacking_leaves_the_archive_and_nothing_else(web: Web, content: bytes) -> None:
    archive = Path("data/corpora") / f"{SUBSET}.tar.gz"
    archive.parent.mkdir(parents=True)
    archive.write_bytes(content)
    stop = SignalHandler()
    stop.signal_number = signal.SIGTERM
    with pytest.raises(StoppedError):
        unpack(archive, SUBSETS[SUBSET], Layout().corpus, Console(quiet=True), stop)
    assert there() == [str(archive)]
    assert not list(Path("data/corpora").glob(".tmp-*"))


def test_an_archive_that_rotted_is_fetched_again(web: Web, content: bytes, capsys: pytest.CaptureFixture) -> None:
    path = Path("data/corpora") / f"{SUBSET}.tar.gz"
    path.parent.mkdir(parents=True)
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    assert download.main([*COMMAND, "--no-labels"]) == 0
    assert "with md5 " in capsys.readouterr().out
    assert web.asked(TAR) == [None]


# --- cheated ----------------------------------------------------------------------------------------------------------


def test_a_wrong_checksum_says_what_came_and_leaves_nothing(
    web: Web, content: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    wrong = content[:-1] + bytes([content[-1] ^ 1])
    web.files[f"/bad{TAR}"] = wrong
    assert code_of(["librispeech", SUBSET, "--mirror", f"{web.url}/bad", "--no-labels"]) == 1
    said = capsys.readouterr().err
    expected, came = (hashlib.md5(c).hexdigest() for c in (content, wrong))
    assert said == (
        f"error: {SUBSET}.tar.gz could not be downloaded: {web.url}/bad{TAR} gave a file with md5 {came}, not "
        f"{expected}; the download is removed; run the same command again to resume, or name another --mirror\n"
    )
    assert there() == []
    assert download.main(["librispeech", SUBSET, "--mirror", f"{web.url}/bad", "openslr", "--no-labels"]) == 0
    assert len(list(Path("data/corpora/LibriSpeech").rglob("*.flac"))) == 24


@pytest.mark.parametrize(
    ("member", "reason"),
    [
        ("/tmp/simdist-evil", "which leads out of the folder"),
        ("LibriSpeech/../../evil", "which leads out of the folder"),
        ("LibriSpeech/other/1/2/1-2-0000.flac", f"which does not belong to LibriSpeech/{SUBSET}"),
        ("evil", f"which does not belong to LibriSpeech/{SUBSET}"),
        ("link", "which is neither a file nor a folder"),
    ],
)
def test_an_archive_cannot_write_elsewhere(
    web: Web, corpus: SmallCorpus, tmp_path: Path, member: str, reason: str, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Even one whose md5 is right."""
    evil = tar_of(corpus.source / "small", more={member: "evil"}) if member != "link" else tar_of(linked(tmp_path))
    web.files[TAR] = evil
    monkeypatch.setitem(SUBSETS, SUBSET, archive_of(evil, len(corpus.pcm)))
    assert code_of([*COMMAND, "--no-labels"]) == 1
    said = capsys.readouterr().err
    assert f"holds '{member}', {reason}; nothing of it is unpacked" in said or (member == "link" and reason in said)
    assert there() == [f"data/corpora/{SUBSET}.tar.gz", *(["linked/1"] if member == "link" else [])]
    assert not Path("/tmp/simdist-evil").exists()


def linked(folder: Path) -> Path:
    (folder / "linked").mkdir()
    (folder / "linked" / "1").symlink_to("/etc/passwd")
    return folder / "linked"


def test_labels_that_are_a_web_page_are_refused_after_the_audio(web: Web, capsys: pytest.CaptureFixture[str]) -> None:
    web.files["/page/train_split.txt"] = b"<!DOCTYPE html><html>Sign in</html>"
    assert code_of([*COMMAND, "--splits-url", f"{web.url}/page"]) == 1
    said = capsys.readouterr()
    assert f"data/corpora/LibriSpeech/{SUBSET}: 24 utterances" in said.out
    assert (
        f"train_split.txt could not be downloaded: {web.url}/page/train_split.txt gave a file whose line 1 is "
        "'<!DOCTYPE html><html>Sign in</html>', not an utterance id; the download is removed; --no-labels leaves"
    ) in said.err
    assert f"by hand, put the files of {addresses.LABELS_FOLDER} in data/corpora/labels/{SUBSET} (splits)" in said.err
    assert not Path(f"data/corpora/labels/{SUBSET}/train_split.txt").exists()
    assert download.main([*COMMAND, "--splits-url", web.url]) == 0
    assert web.asked(TAR) == [None]


@pytest.mark.parametrize(
    ("sent", "reason"),
    [
        (b"11-7-0000 1 2 three\n", "line 1 is '11-7-0000 1 2 three', not an utterance id and its classes"),
        (b"", "gave an empty file"),
        (zip_of("no labels"), "line 1 is 'no labels', not an utterance id and its classes; the download is removed"),
    ],
    ids=["words", "nothing", "zip"],  # a zip holds the time it was made: as a name it would differ between workers
)
def test_phones_that_are_none_are_refused(
    web: Web, sent: bytes, reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    web.files["/phones.txt"] = sent
    assert code_of([*COMMAND, "--phones-url", f"{web.url}/phones.txt"]) == 1
    assert reason in capsys.readouterr().err
    assert not list(Path("data/corpora/labels").glob("converted*"))


def test_plain_phones_do_as_well(web: Web, corpus: SmallCorpus) -> None:
    web.files["/phones.txt"] = corpus.phones.read_bytes()
    assert download.main([*COMMAND, "--phones-url", f"{web.url}/phones.txt"]) == 0
    assert Path("data/corpora/labels/converted_aligned_phones.txt").read_bytes() == corpus.phones.read_bytes()


def test_a_subset_that_somebody_unpacked_in_part_is_not_taken_for_whole(
    web: Web, capsys: pytest.CaptureFixture[str]
) -> None:
    download.main([*COMMAND, "--no-labels"])
    shutil.rmtree(f"data/corpora/LibriSpeech/{SUBSET}/11")
    assert code_of(COMMAND) == 2
    assert f"data/corpora/LibriSpeech/{SUBSET} has 18 of 24 utterances. simdist.download" in capsys.readouterr().err


def test_two_downloads_do_not_write_one_folder(web: Web, capsys: pytest.CaptureFixture[str]) -> None:
    with locked(Path("data/corpora"), ".download.lock"):
        assert code_of(COMMAND) == 2
    assert "another simdist.download is writing to data/corpora; wait for it" in capsys.readouterr().err
    assert web.requests == []


# --- room -------------------------------------------------------------------------------------------------------------


def test_too_little_room_is_said_before_anything_is_fetched(
    web: Web, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = Archive(SUBSET, 1_000_000, "", 100, 1.0)
    monkeypatch.setitem(SUBSETS, SUBSET, archive)
    free = 2_429_599
    monkeypatch.setattr(downloads.shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(0, 0, free))
    assert code_of([*COMMAND, "--no-labels"]) == 1
    assert capsys.readouterr().err == (
        "error: data/corpora has 2,429,599 bytes free, and the archives and their content need 2,429,600. Free 1 more, "
        "name fewer subsets, or choose another --to\n"
    )
    assert web.requests == []
    (Path("data/corpora") / PART).write_bytes(b"x")
    assert code_of([*COMMAND, "--no-labels"]) == 1, "there is room now, but what comes is another file"
    assert "content need" not in capsys.readouterr().err
    assert len(web.requests) == 1


def test_archives_go_before_the_next_comes(tmp_path: Path) -> None:
    archives = [Archive(name, 1_000_000, "", 0, 1.0) for name in ("dev-clean", "dev-other")]
    assert downloads.bytes_needed(Layout(tmp_path), archives, keep_archives=False) == 1_000_000 + 2 * 1_020_000
    assert downloads.bytes_needed(Layout(tmp_path), archives, keep_archives=True) == 2 * 1_000_000 + 2 * 1_020_000
    (tmp_path / "dev-clean.tar.gz").write_bytes(bytes(1_000_000))
    assert downloads.bytes_needed(Layout(tmp_path), archives, keep_archives=False) == 2 * 1_020_000


# --- the command line -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["librispeech", "train-clean-10"], "unknown subset 'train-clean-10': did you mean 'train-clean-100'? the sub"),
        (["vctk"], "unknown corpus 'vctk'; the only one is librispeech, and --list shows its subsets"),
        ([], "CORPUS is missing; the only one is librispeech"),
        (["librispeech", "--mirror", "mars"], "--mirror 'mars' is neither one of openslr, us, eu, cn nor an address"),
        (
            ["librispeech", "--phones-url", "phones.zip"],
            "--phones-url 'phones.zip' is not an address; it must begin with",
        ),
        (["librispeech", "--retries", "-1"], "--retries is -1; it must be at least 0"),
        (["librispeech", "--timeout", "0"], "--timeout is 0; it must be more than 0 seconds"),
        (["librispeech", "--miror", "eu"], "did you mean 'mirror'?"),
    ],
)
def test_wrong_options_give_one_line_and_exit_code_2(
    web: Web, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert code_of(arguments) == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.startswith("error: ")
    assert said.count("\n") == 1
    assert web.requests == []


def test_the_list_has_every_subset_and_says_which_are_there(web: Web, capsys: pytest.CaptureFixture[str]) -> None:
    download.main([*COMMAND, "--no-labels"])
    capsys.readouterr()
    assert download.main(["--list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[1:]] == list(SUBSETS)
    assert [line.endswith("  in data/corpora/LibriSpeech") for line in lines[1:]] == [n == SUBSET for n in SUBSETS]
    assert lines[-1].split() == ["train-other-500", "30.59", "GB", "31.81", "GB", "496.7", "148,688"]


def test_help_has_examples(capsys: pytest.CaptureFixture[str]) -> None:
    assert code_of(["--help"]) == 0
    said = capsys.readouterr().out
    assert "python -m simdist.download librispeech train-clean-100\n" in said
    assert max(map(len, said.splitlines())) <= 120


# --- pack without an argument -----------------------------------------------------------------------------------------


def test_pack_says_how_to_get_what_is_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert code_of(["librispeech"], pack.main) == 2
    assert "data/corpora/LibriSpeech does not exist. Run `python -m simdist.download librispeech` first, or" in (
        capsys.readouterr().err
    )
    assert code_of(["librispeech", "source"], pack.main) == 2
    assert "OUT is missing. Give SOURCE and OUT, or neither" in capsys.readouterr().err
    assert there() == []


def test_pack_prefers_what_it_is_told(web: Web, corpus: SmallCorpus, capsys: pytest.CaptureFixture[str]) -> None:
    download.main(COMMAND)
    some = Path("some.txt")
    some.write_text("11-7-0001\n")
    rest = Path("rest.txt")
    rest.write_text("12-7-0001\n")
    lists = ["--train-split", str(some), "--test-split", str(rest)]
    assert pack.main(["librispeech", "--workers", "1", *lists]) == 0
    assert open_split(Path("data/librispeech"), "train").index.key.tolist() == ["11-7-0001"]
    assert pack.main(["librispeech", "--workers", "1", "--overwrite", "--test-fraction", "0.5"]) == 0
    train = open_split(Path("data/librispeech"), "train")
    assert 6 <= len(train.index) <= 18
    assert (train.index.phones_offset > 0).all(), "phones are found all the same"


def test_labels_are_not_taken_for_other_subsets(web: Web, capsys: pytest.CaptureFixture[str]) -> None:
    download.main(COMMAND)
    other = Path("data/corpora/LibriSpeech/dev-clean/77/7")
    other.mkdir(parents=True)
    source = next(Path(f"data/corpora/LibriSpeech/{SUBSET}/11/7").glob("*.flac"))
    for i in range(4):
        shutil.copy(source, other / f"77-7-000{i}.flac")
    capsys.readouterr()
    assert pack.main(["librispeech", "--workers", "1", "--subsets", "dev-clean", "--test-fraction", "0"]) == 0
    assert capsys.readouterr().out.startswith("packing data/corpora/LibriSpeech\n")
    assert len(open_split(Path("data/librispeech"), "train").index) == 4
    assert pack.main(["librispeech", "--workers", "1", "--overwrite"]) == 0
    assert len(open_split(Path("data/librispeech"), "train").index) == 20, "the labeled subset alone"


def test_real_speech_from_archive_to_shards(
    shared: Path, web: Web, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = shared / "data" / "librispeech" / "LibriSpeech" / "test-clean"
    if not real.is_dir():
        pytest.skip(f"no LibriSpeech at {real}")
    speakers = sorted(real.iterdir())[:2]
    flac = [path for speaker in speakers for path in sorted(speaker.rglob("*.flac"))]
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz", compresslevel=1) as tar:
        for speaker in speakers:
            tar.add(speaker, f"LibriSpeech/test-clean/{speaker.name}")
    web.files["/test-clean.tar.gz"] = packed.getvalue()
    web.answers["/test-clean.tar.gz"] = [Answer(drop_after=100_000), Answer(503)]
    monkeypatch.setitem(SUBSETS, "test-clean", archive_of(packed.getvalue(), len(flac), "test-clean"))
    assert download.main(["librispeech", "test-clean", "--mirror", "openslr"]) == 0
    assert web.asked("/test-clean.tar.gz") == [None, "bytes=100000-", "bytes=100000-"]
    assert pack.main(["librispeech", "--workers", "1", "--test-fraction", "0"]) == 0
    split = open_split(Path("data/librispeech"), "train")
    assert set(split.index.key) == {path.stem for path in flac}
    row = split.index.key.tolist().index(flac[0].stem)
    with tarfile.open(split.shard_path(int(split.index.shard[row]))) as tar:
        member = tar.extractfile(f"{flac[0].stem}.flac")
        assert member is not None
        pcm, rate = soundfile.read(io.BytesIO(member.read()), dtype="int16")
    assert rate == 16_000
    assert np.array_equal(pcm, soundfile.read(flac[0], dtype="int16")[0])
