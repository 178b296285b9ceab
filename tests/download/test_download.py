"""The download command against a web server on this machine: killed, cheated, full; then pack without an argument."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import pytest
from rich.console import Console

from simdist.core.console import run
from simdist.core.file_locks import locked
from simdist.core.signals import SignalHandler, StoppedError
from simdist.data.splits import open_split
from simdist.download import __main__ as download
from simdist.download.fetching import unpack
from simdist.download.librispeech import LABELS_FOLDER, SUBSETS, Archive, Layout
from simdist.pack import __main__ as pack
from tests.support.packing_cases import SmallCorpus, small_corpus
from tests.support.published import COMMAND, SUBSET, TAR, archive_of, published, tar_of, zip_of
from tests.support.web import Answer, Web

ROOT = Path("data/corpora")
ARCHIVE, PART = ROOT / f"{SUBSET}.tar.gz", ROOT / f"{SUBSET}.tar.gz.part"
AUDIO = [*COMMAND, "--no-labels"]
PHONES = ROOT / "labels" / "converted_aligned_phones.txt"


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


def there() -> list[Path]:
    """Every file below the present folder but the locks."""
    return sorted(path for path in Path().rglob("*") if path.is_file() and path.suffix != ".lock")


def audio() -> dict[str, bytes]:
    return {path.stem: path.read_bytes() for path in ROOT.glob(f"LibriSpeech/{SUBSET}/*/*/*.flac")}


def test_the_same_command_fetches_only_what_is_missing(
    web: Web, corpus: SmallCorpus, capsys: pytest.CaptureFixture[str]
) -> None:
    assert download.main(AUDIO) == 0
    assert [request.path for request in web.requests] == [TAR]
    said = capsys.readouterr().out
    assert f"data/corpora/LibriSpeech/{SUBSET}: 24 utterances\n" in said
    assert said.endswith(f"next: python -m simdist.pack librispeech data/corpora data/librispeech --subsets {SUBSET}\n")
    assert audio() == {key: corpus.path(key).read_bytes() for key in corpus.pcm}
    assert download.main(COMMAND) == 0
    assert [request.path for request in web.requests[1:]] == ["/train_split.txt", "/test_split.txt", "/phones.zip"]
    said = capsys.readouterr().out
    assert f"data/corpora/labels/{SUBSET}/train_split.txt: 20 utterance ids\n" in said
    assert said.endswith(
        f"{PHONES}: phone labels of 24 utterances\nnext: python -m simdist.pack librispeech\n",
    )
    assert PHONES.read_bytes() == corpus.phones.read_bytes()
    before = there()
    assert [path.name for path in before if path.suffix != ".flac" and ".trans" not in path.name] == [
        "SPEAKERS.TXT", "converted_aligned_phones.txt", "test_split.txt", "train_split.txt",
    ]  # fmt: skip
    Path(f"data/corpora/labels/{SUBSET}/test_split.txt").unlink()
    assert download.main(COMMAND) == 0
    assert [request.path for request in web.requests[4:]] == ["/test_split.txt"]
    capsys.readouterr()
    assert download.main(COMMAND) == 0
    assert capsys.readouterr().out.startswith(f"exists already: data/corpora/LibriSpeech/{SUBSET}\nnext: ")
    assert len(web.requests) == 5
    assert there() == before


# --- stopped ----------------------------------------------------------------------------------------------------------

REAL = """
import json, sys
from simdist.core.console import run
from simdist.download.__main__ import SUBSETS, Archive, main
told = json.loads(sys.argv.pop(1))
SUBSETS[told["subset"]] = Archive(**told)
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
    web: Web, corpus: SmallCorpus, content: bytes, signum: signal.Signals, code: int, said: str
) -> None:
    web.answers[TAR] = [Answer(pace=0.05)]
    told = json.dumps(asdict(SUBSETS[SUBSET]))
    command = [sys.executable, "-c", REAL, told, "librispeech", SUBSET, "--mirror", web.url, "--no-labels"]
    environ = os.environ | {"PYTHONPATH": str(Path(download.__file__).parent.parent.parent)}
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=environ)
    deadline = time.monotonic() + 60
    while not (PART.is_file() and PART.stat().st_size > 200_000) and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signum)
    _, error = process.communicate(timeout=30)
    assert process.returncode == code
    assert said in error
    assert "Traceback" not in error
    kept = PART.read_bytes()
    assert 200_000 < len(kept) < len(content)
    assert content.startswith(kept)
    assert there() == [PART]

    ended = subprocess.run(command, capture_output=True, text=True, env=environ)
    assert ended.returncode == 0, ended.stderr
    assert f"continuing {PART.name} at byte {len(kept):,}\n" in ended.stdout
    assert web.asked(TAR) == [None, f"bytes={len(kept)}-"]
    assert audio() == {key: corpus.path(key).read_bytes() for key in corpus.pcm}
    assert not list(ROOT.glob("*.tar.gz*"))


def test_what_a_kill_leaves_while_unpacking_is_cleared(web: Web, content: bytes) -> None:
    left = ROOT / f".tmp-{SUBSET}" / "LibriSpeech" / SUBSET / "1" / "2"
    left.mkdir(parents=True)
    (left / "1-2-0000.flac").write_bytes(b"half")
    ARCHIVE.write_bytes(content)
    assert download.main([*AUDIO, "--keep-archives"]) == 0
    assert web.requests == []
    assert len(list(ROOT.rglob("*.flac"))) == len(audio()) == 24
    assert not left.exists()
    assert ARCHIVE.read_bytes() == content


def test_a_stop_while_unpacking_leaves_the_archive_and_nothing_else(web: Web, content: bytes) -> None:
    ROOT.mkdir(parents=True)
    ARCHIVE.write_bytes(content)
    stop = SignalHandler()
    stop.signal_number = signal.SIGTERM
    with pytest.raises(StoppedError):
        unpack(ARCHIVE, SUBSETS[SUBSET], Layout().corpus, Console(quiet=True), stop)
    assert list(ROOT.iterdir()) == [ARCHIVE]


# --- cheated ----------------------------------------------------------------------------------------------------------


def test_rotten_bytes_are_fetched_again_from_where_they_are_right(
    web: Web, content: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    ROOT.mkdir(parents=True)
    ARCHIVE.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    web.files[f"/bad{TAR}"] = ARCHIVE.read_bytes()
    assert code_of(["librispeech", SUBSET, "--mirror", f"{web.url}/bad", "--no-labels"]) == 1
    said = capsys.readouterr()
    assert re.match(rf"{ARCHIVE} with md5 \w+, not \w+: downloading it again\n", said.out)
    assert said.err.count("\n") == 1
    assert there() == []
    assert download.main(["librispeech", SUBSET, "--mirror", f"{web.url}/bad/", "openslr", "--no-labels"]) == 0
    assert len(audio()) == 24


@pytest.mark.parametrize(
    ("member", "utterances", "said"),
    [
        ("/tmp/simdist-evil", 24, ""),
        ("LibriSpeech/../../evil", 24, "which is outside the destination); remove it and run the same command again"),
        ("LibriSpeech/README.TXT", 25, f"{ARCHIVE} holds 24 utterances of {SUBSET}, not 25"),
    ],
)
def test_an_archive_is_unpacked_whole_and_into_its_folder_only(
    web: Web, corpus: SmallCorpus, member: str, utterances: int, said: str,
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Even one whose md5 is right."""
    web.files[TAR] = tar_of(corpus.source / "small", more={member: "evil"})
    monkeypatch.setitem(SUBSETS, SUBSET, archive_of(web.files[TAR], utterances))
    assert code_of(AUDIO) == bool(said)
    assert said in capsys.readouterr().err
    assert len(audio()) == (0 if said else 24)
    assert ARCHIVE.exists() == bool(said)
    assert not list(ROOT.glob(".tmp-*"))
    assert not list(Path().rglob("*evil"))
    assert not Path("/tmp/simdist-evil").exists()


def test_labels_that_are_a_web_page_are_refused_after_the_audio(web: Web, capsys: pytest.CaptureFixture[str]) -> None:
    web.files["/page/train_split.txt"] = b"<!DOCTYPE html><html>Sign in</html>"
    assert code_of([*COMMAND, "--splits-url", f"{web.url}/page"]) == 1
    said = capsys.readouterr()
    assert f"data/corpora/LibriSpeech/{SUBSET}: 24 utterances" in said.out
    assert (
        f"train_split.txt could not be downloaded: {web.url}/page/train_split.txt gave a file whose line 1 is "
        "'<!DOCTYPE html><html>Sign in</html>', not an utterance id; the download is removed; --no-labels leaves"
    ) in said.err
    assert f"by hand, put the files of {LABELS_FOLDER} in data/corpora/labels/{SUBSET} (splits)" in said.err
    assert not Path(f"data/corpora/labels/{SUBSET}/train_split.txt").exists()
    assert download.main([*COMMAND, "--splits-url", web.url]) == 0
    assert web.asked(TAR) == [None]


@pytest.mark.parametrize(
    ("sent", "reason"),
    [
        (b"11-7-0000 1 2\n11-7-0001 1 2 three\n", "line 2 is '11-7-0001 1 2 three', not an utterance id and its class"),
        (b"", "gave an empty file"),
        (zip_of("no labels"), "line 1 is 'no labels', not an utterance id and its classes; the download is removed"),
        (zip_of("1-2-3 4")[:-30] + zip_of("1-2-3 4")[-22:], "gave a zip that cannot be read ("),
        (b"11-7-0000 1 2 3\n", None),
    ],
    ids=["words", "nothing", "zip", "torn", "plain"],  # a zip holds its time: as a name it would differ between workers
)
def test_phones_are_checked(web: Web, sent: bytes, reason: str | None, capsys: pytest.CaptureFixture[str]) -> None:
    web.files["/phones.txt"] = sent
    assert code_of([*COMMAND, "--phones-url", f"{web.url}/phones.txt"]) == (1 if reason else 0)
    assert (reason or "") in capsys.readouterr().err
    assert [path.read_bytes() for path in PHONES.parent.glob("converted*")] == ([] if reason else [sent])


def test_a_subset_that_somebody_unpacked_in_part_is_not_taken_for_whole(
    web: Web, capsys: pytest.CaptureFixture[str]
) -> None:
    download.main(AUDIO)
    shutil.rmtree(f"data/corpora/LibriSpeech/{SUBSET}/11")
    assert code_of(COMMAND) == 2
    assert f"data/corpora/LibriSpeech/{SUBSET} has 18 of 24 utterances. simdist.download" in capsys.readouterr().err


def test_two_downloads_do_not_write_one_folder(web: Web, capsys: pytest.CaptureFixture[str]) -> None:
    with locked(ROOT, ".download.lock"):
        assert code_of(COMMAND) == 2
    assert "another simdist.download is writing to data/corpora; wait for it" in capsys.readouterr().err
    assert web.requests == []


# --- room -------------------------------------------------------------------------------------------------------------


def test_archives_go_before_the_next_comes(tmp_path: Path) -> None:
    archives = [Archive(name, 1_000_000, "", 0, 1.0) for name in ("dev-clean", "dev-other")]
    assert download.bytes_needed(Layout(tmp_path), archives, keep_archives=False) == 1_000_000 + 2 * 1_020_000
    assert download.bytes_needed(Layout(tmp_path), archives, keep_archives=True) == 2 * 1_000_000 + 2 * 1_020_000
    (tmp_path / "dev-clean.tar.gz").write_bytes(bytes(1_000_000))
    assert download.bytes_needed(Layout(tmp_path), archives, keep_archives=False) == 2 * 1_020_000


def test_too_little_room_is_said_before_anything_is_fetched(
    web: Web, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    needed = download.bytes_needed(Layout(), [SUBSETS[SUBSET]], keep_archives=False)
    monkeypatch.setattr(download.shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(0, 0, needed - 1))
    assert code_of(AUDIO) == 1
    assert f"and the archives and their content need {needed:,}. Free 1 more, name" in capsys.readouterr().err
    assert web.requests == []
    PART.write_bytes(web.files[TAR][:1])
    assert code_of(AUDIO) == 0


# --- the command line -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["librispeech", "train-clean-10"], "unknown subset 'train-clean-10': did you mean 'train-clean-100'? valid: "),
        (["vctk"], "unknown corpus 'vctk'; the only one is librispeech, and --list shows its subsets"),
        ([], "CORPUS is missing; the only one is librispeech"),
        (["librispeech", "--mirror", "mars"], "--mirror 'mars' is neither one of openslr, us, eu, cn nor an address"),
        (["librispeech", "--phones-url", "phones.zip"], "--phones-url 'phones.zip' is not an address; it must begin"),
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
    (ROOT / "LibriSpeech" / SUBSET).mkdir(parents=True)
    assert download.main(["--list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[1:]] == list(SUBSETS)
    assert [line.endswith("  in data/corpora/LibriSpeech") for line in lines[1:]] == [n == SUBSET for n in SUBSETS]
    assert lines[-1].split() == ["train-other-500", "30.59", "GB", "31.81", "GB", "496.7", "148,688"]


# --- pack without an argument -----------------------------------------------------------------------------------------


def packed(split: str) -> list[str]:
    return open_split(Path("data/librispeech"), split).index.key.tolist()


def test_pack_takes_what_was_downloaded_unless_told_otherwise(
    web: Web, corpus: SmallCorpus, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert code_of(["librispeech", "source"], pack.main) == 2
    assert "OUT is missing. Give SOURCE and OUT, or neither to pack what simdist.download" in capsys.readouterr().err
    download.main(COMMAND)
    capsys.readouterr()
    command = ["librispeech", "--workers", "1", "--overwrite"]
    assert pack.main([*command, "--verify"]) == 0
    assert capsys.readouterr().out.startswith(
        f"packing data/corpora/LibriSpeech with data/corpora/labels/{SUBSET}/train_split.txt, "
    )
    assert set(packed("train")) == set(corpus.train_split.read_text().split())
    assert set(packed("test")) == set(corpus.test_split.read_text().split())
    Path("some.txt").write_text("11-7-0001\n")
    Path("rest.txt").write_text("12-7-0001\n")
    assert pack.main([*command, "--train-split", "some.txt", "--test-split", "rest.txt"]) == 0
    assert packed("train") == ["11-7-0001"]
    assert pack.main([*command, "--test-fraction", "0.5"]) == 0
    assert 6 <= len(packed("train")) <= 18
    assert (open_split(Path("data/librispeech"), "train").index.phones_offset > 0).all(), (
        "phones are found all the same"
    )

    other = tar_of(corpus.source / "small", "dev-clean")
    web.files["/dev-clean.tar.gz"] = other
    monkeypatch.setitem(SUBSETS, "dev-clean", archive_of(other, 24, "dev-clean"))
    web.requests.clear()
    capsys.readouterr()
    assert download.main(["librispeech", "dev-clean", "--mirror", "openslr"]) == 0
    assert len(web.requests) == 1, "CPC's labels are of another subset"
    assert capsys.readouterr().out.endswith("librispeech data/corpora data/librispeech --subsets dev-clean\n")
    assert pack.main([*command, "--subsets", "dev-clean", "--test-fraction", "0"]) == 0
    assert capsys.readouterr().out.startswith("packing data/corpora/LibriSpeech\n")
    assert len(packed("train")) == 24
    assert pack.main(command) == 0
    assert len(packed("train")) == 20, "the labeled subset alone"
