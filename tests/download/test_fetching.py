"""One file over a bad line: the same bytes in the end, nothing fetched twice, and sentences that say what was wrong."""

from __future__ import annotations

import hashlib
import io
import random
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from rich.console import Console

from simdist.core.errors import FailedError
from simdist.core.signals import SignalHandler, StoppedError
from simdist.download.fetching import Patience, WebFile, fetch, part_of
from tests.support.small_disk import small_disk
from tests.support.web import Answer, Web, web_server

CONTENT = random.Random(0).randbytes(1_000_000)
WRONG = CONTENT[:500_000] + b"\0" + CONTENT[500_001:]
SUM = hashlib.md5(CONTENT).hexdigest()
HURRY = Patience(retries=2, timeout=5, first_wait=0.01)


@pytest.fixture
def web() -> Iterator[Web]:
    with web_server() as web:
        web.files |= {"/a": CONTENT, "/b": CONTENT, "/wrong": WRONG, "/short": CONTENT[:700_000], "/empty": b""}
        yield web


def check(path: Path) -> str:
    found = hashlib.md5(path.read_bytes()).hexdigest()
    return "" if found == SUM else f"gave a file with md5 {found}, not {SUM}"


def bring(web: Web, out: Path, *names: str, patience: Patience = HURRY, stop: SignalHandler | None = None) -> str:
    """Fetch from these names of the server, in this order; returns what was said."""
    said = io.StringIO()
    file = WebFile(out, [f"{web.url}/{name}" for name in names], len(CONTENT), check, "try another --mirror")
    fetch(file, patience, Console(file=said, soft_wrap=True), stop or SignalHandler())
    return said.getvalue().replace(web.url, "URL")


def test_a_line_that_drops_costs_no_byte_twice(web: Web, tmp_path: Path) -> None:
    """More drops than retries: each brought something; only an attempt that brings nothing counts."""
    web.answers["/a"] = [Answer(drop_after=n) for n in (200_000, 150_000, 1, 250_000, 0)]
    with pytest.raises(FailedError, match=r"/a broke off \(\w+\); try another --mirror"):
        bring(web, tmp_path / "a", "a", patience=Patience(retries=0, first_wait=0.01))
    assert part_of(tmp_path / "a").read_bytes() == CONTENT[:600_001]
    assert bring(web, tmp_path / "a", "a") == "continuing a.part at byte 600,001\n"
    assert (tmp_path / "a").read_bytes() == CONTENT
    assert not part_of(tmp_path / "a").exists()
    assert web.asked("/a") == [None, *(f"bytes={n}-" for n in (200_000, 350_000, 350_001, 600_001, 600_001))]
    assert web.sent == len(CONTENT)


def test_a_server_without_ranges_is_read_past_what_is_there(web: Web, tmp_path: Path) -> None:
    web.answers["/a"] = [Answer(drop_after=600_000), Answer(ranges=False, drop_after=300_000), Answer(ranges=False)]
    bring(web, tmp_path / "a", "a")
    assert (tmp_path / "a").read_bytes() == CONTENT
    assert web.asked("/a") == [None, "bytes=600000-", "bytes=600000-"]


def test_a_busy_server_is_asked_again_and_its_wait_is_kept(web: Web, tmp_path: Path) -> None:
    web.answers["/a"] = [Answer(503), Answer(429, headers={"Retry-After": "1"})]
    said = bring(web, tmp_path / "a", "a")
    assert said.splitlines() == [
        "URL/a answers 503 Service Unavailable; retrying in 0 s",
        "URL/a answers 429 Too Many Requests; retrying in 1 s",
    ]
    assert (tmp_path / "a").read_bytes() == CONTENT


def test_the_next_address_continues_where_the_first_gave_up(web: Web, tmp_path: Path) -> None:
    web.answers["/a"] = [Answer(drop_after=400_000), Answer(500), Answer(502), Answer(503)]
    said = bring(web, tmp_path / "a", "a", "b")
    assert "URL/a answers 503 Service Unavailable, 3 times in a row; trying the next address" in said
    assert web.asked("/b") == ["bytes=400000-"]
    assert (tmp_path / "a").read_bytes() == CONTENT


def test_a_missing_file_is_asked_for_once(web: Web, tmp_path: Path) -> None:
    with pytest.raises(FailedError) as error:
        bring(web, tmp_path / "out", "x", "y")
    assert str(error.value).replace(web.url, "URL") == (
        "out could not be downloaded: URL/x answers 404 Not Found; URL/y answers 404 Not Found; try another --mirror"
    )
    assert len(web.requests) == 2
    assert list(tmp_path.iterdir()) == []


def test_wrong_bytes_are_removed_and_the_next_address_is_asked(web: Web, tmp_path: Path) -> None:
    said = bring(web, tmp_path / "a", "wrong", "b")
    found = hashlib.md5(WRONG).hexdigest()
    assert f"URL/wrong gave a file with md5 {found}, not {SUM}; the download is removed; trying the next" in said
    assert web.asked("/b") == [None], "nothing of the wrong file is continued"
    assert (tmp_path / "a").read_bytes() == CONTENT
    with pytest.raises(FailedError, match=f"URL|{found}.*; try another --mirror$"):
        bring(web, tmp_path / "c", "wrong")
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_a_file_that_the_server_has_cut_off_is_not_even_fetched(web: Web, tmp_path: Path) -> None:
    with pytest.raises(FailedError, match="/short has 700,000 bytes instead of 1,000,000: truncated, or another"):
        bring(web, tmp_path / "a", "short")
    part_of(tmp_path / "a").write_bytes(CONTENT[:1000])
    said = bring(web, tmp_path / "a", "short", "a")
    assert "URL/short has 700,000 bytes" in said
    assert web.asked("/a") == ["bytes=1000-"]
    assert (tmp_path / "a").read_bytes() == CONTENT


@pytest.mark.parametrize("part", [b"\0" * 300_000, CONTENT + b"more"], ids=["rotten", "too long"])
def test_a_part_of_something_else_is_begun_again(web: Web, tmp_path: Path, part: bytes) -> None:
    part_of(tmp_path / "a").write_bytes(part)
    bring(web, tmp_path / "a", "a")
    assert web.asked("/a") == [f"bytes={len(part)}-", None]
    assert (tmp_path / "a").read_bytes() == CONTENT


def test_a_whole_part_asks_for_nothing(web: Web, tmp_path: Path) -> None:
    part_of(tmp_path / "a").write_bytes(CONTENT)
    bring(web, tmp_path / "a", "a")
    assert web.requests == []
    assert (tmp_path / "a").read_bytes() == CONTENT


def test_a_silent_server_counts_as_broken(web: Web, tmp_path: Path) -> None:
    web.answers["/a"] = [Answer(silent=1.0)]
    said = bring(web, tmp_path / "a", "a", patience=Patience(retries=2, timeout=0.2, first_wait=0.01))
    assert "URL/a does not answer (ReadTimeout); retrying in" in said
    assert (tmp_path / "a").read_bytes() == CONTENT


def test_no_server_at_all(tmp_path: Path) -> None:
    with web_server() as web:
        pass
    with pytest.raises(FailedError, match=r"/a does not answer \(ConnectionError\), 3 times in a row; try another"):
        bring(web, tmp_path / "a", "a")


def test_a_stop_keeps_what_came(web: Web, tmp_path: Path) -> None:
    stop = SignalHandler()
    web.answers["/a"] = [Answer(503)]
    stop.signal_number = signal.SIGTERM
    with pytest.raises(StoppedError):
        bring(web, tmp_path / "a", "a", stop=stop)
    assert web.requests == []
    part_of(tmp_path / "a").write_bytes(CONTENT[:70_000])
    with pytest.raises(StoppedError):
        bring(web, tmp_path / "a", "a", stop=stop)
    assert part_of(tmp_path / "a").read_bytes() == CONTENT[:70_000]


def test_a_full_disk_is_named_and_what_came_is_continued(web: Web, tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", kilobytes=300) as disk:
        with pytest.raises(FailedError, match=r"a\.part could not be written \(No space left on device\): it needs"):
            bring(web, disk.folder / "a", "a")
        kept = part_of(disk.folder / "a").stat().st_size
        assert 0 < kept <= 300 * 1024
        disk.resize(2000)
        bring(web, disk.folder / "a", "a")
        assert web.asked("/a") == [None, f"bytes={kept}-"]
        assert (disk.folder / "a").read_bytes() == CONTENT


def test_an_address_that_is_none(tmp_path: Path) -> None:
    file = WebFile(tmp_path / "a", ["http://"], 10, check, "try another")
    with pytest.raises(FailedError, match="http:// cannot be requested: Invalid URL"):
        fetch(file, HURRY, Console(quiet=True), SignalHandler())


def test_an_address_keeps_its_password_to_itself(web: Web, tmp_path: Path) -> None:
    url = web.url.replace("http://", "http://me:hunter2hunter2@")
    with pytest.raises(FailedError) as error:
        fetch(WebFile(tmp_path / "a", [f"{url}/x"], 10, check, ""), HURRY, Console(quiet=True), SignalHandler())
    assert "hunter2" not in str(error.value)
    assert "answers 404" in str(error.value)
