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
from simdist.download import fetching
from simdist.download.fetching import WebFile, part_of
from tests.support.small_disk import small_disk
from tests.support.web import Answer, Web, web_server

CONTENT = random.Random(0).randbytes(1_000_000)
WRONG = CONTENT[:500_000] + b"\0" + CONTENT[500_001:]
SUM, WRONG_SUM = (hashlib.md5(content).hexdigest() for content in (CONTENT, WRONG))


@pytest.fixture
def web(monkeypatch: pytest.MonkeyPatch) -> Iterator[Web]:
    monkeypatch.setattr(fetching, "FIRST_WAIT", 0.01)
    with web_server() as web:
        web.files |= {"/a": CONTENT, "/b": CONTENT, "/wrong": WRONG, "/short": CONTENT[:700_000]}
        yield web


def check(path: Path) -> str:
    found = hashlib.md5(path.read_bytes()).hexdigest()
    return "" if found == SUM else f"gave a file with md5 {found}, not {SUM}"


def bring(
    web: Web, out: Path, *names: str, retries: int = 2, timeout: float = 5.0, stop: SignalHandler | None = None
) -> str:
    """Fetch from these names of the server, or addresses, in this order; returns what was said."""
    said = io.StringIO()
    console, urls = Console(file=said, soft_wrap=True), [n if "/" in n else f"{web.url}/{n}" for n in names]
    file = WebFile(out, len(CONTENT), check, console, stop or SignalHandler(), retries, timeout)
    file.fetch(urls, "try another --mirror")
    assert out.read_bytes() == CONTENT
    assert not part_of(out).exists()
    return said.getvalue().replace(web.url, "URL")


def test_a_line_that_drops_costs_no_byte_twice(web: Web, tmp_path: Path) -> None:
    """More drops than retries: each brought something; only an attempt that brings nothing counts."""
    web.answers["/a"] = [Answer(drop_after=n) for n in (200_000, 150_000, 1, 250_000, 0)]
    with pytest.raises(FailedError, match=r"/a broke off \(\w+\); try another --mirror"):
        bring(web, tmp_path / "a", "a", retries=0)
    assert part_of(tmp_path / "a").read_bytes() == CONTENT[:600_001]
    assert bring(web, tmp_path / "a", "a") == "continuing a.part at byte 600,001\n"
    assert web.asked("/a") == [None, *(f"bytes={n}-" for n in (200_000, 350_000, 350_001, 600_001, 600_001))]
    assert web.sent == len(CONTENT)


def test_a_server_without_ranges_is_read_past_what_is_there(web: Web, tmp_path: Path) -> None:
    web.answers["/a"] = [Answer(drop_after=600_000), Answer(ranges=False, drop_after=300_000), Answer(ranges=False)]
    bring(web, tmp_path / "a", "a")
    assert web.asked("/a") == [None, "bytes=600000-", "bytes=600000-"]


def test_a_busy_or_silent_server_is_asked_again_and_its_wait_is_kept(web: Web, tmp_path: Path) -> None:
    web.answers["/a"] = [Answer(503), Answer(429, headers={"Retry-After": "1"}), Answer(silent=1.0)]
    assert bring(web, tmp_path / "a", "a", retries=3, timeout=0.2).splitlines() == [
        "URL/a answers 503 Service Unavailable; retrying in 0 s",
        "URL/a answers 429 Too Many Requests; retrying in 1 s",
        "URL/a does not answer (ReadTimeout); retrying in 0 s",
    ]


def test_the_next_address_continues_where_the_first_gave_up(web: Web, tmp_path: Path) -> None:
    web.answers["/a"] = [Answer(drop_after=400_000), Answer(500), Answer(502), Answer(503)]
    said = bring(web, tmp_path / "a", "a", "short", "b")
    assert "URL/a answers 503 Service Unavailable, 3 times in a row; trying the next address" in said
    assert "URL/short has 700,000 bytes instead of 1,000,000: truncated, or another file; trying the next" in said
    assert web.asked("/short") == web.asked("/b") == ["bytes=400000-"]


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("x", "URL/x answers 404 Not Found"),
        ("short", "URL/short has 700,000 bytes instead of 1,000,000: truncated, or another file"),
        ("wrong", f"URL/wrong gave a file with md5 {WRONG_SUM}, not {SUM}; the download is removed"),
        ("http://", "http:// cannot be requested: Invalid URL 'http://': No host supplied"),
    ],
)
def test_what_cannot_help_is_asked_for_once_and_the_next_address_from_the_start(
    web: Web, tmp_path: Path, name: str, reason: str
) -> None:
    with pytest.raises(FailedError) as error:
        bring(web, tmp_path / "a", name)
    said = str(error.value).replace(web.url, "URL")
    assert said == f"a could not be downloaded: {reason}; try another --mirror"
    assert len(web.requests) == (name != "http://")
    assert list(tmp_path.iterdir()) == []
    assert bring(web, tmp_path / "a", name, "b") == f"{reason}; trying the next address\n"
    assert web.asked("/b") == [None]


@pytest.mark.parametrize(
    ("part", "asked"),
    [(b"\0" * 300_000, ["bytes=300000-", None]), (CONTENT + b"more", [None]), (CONTENT, [])],
    ids=["rotten", "too long", "whole"],
)
def test_a_part_of_something_else_is_begun_again(
    web: Web, tmp_path: Path, part: bytes, asked: list[str | None]
) -> None:
    part_of(tmp_path / "a").write_bytes(part)
    assert ("; starting again" in bring(web, tmp_path / "a", "a", retries=0)) == bool(asked)
    assert web.asked("/a") == asked


def test_no_server_at_all(web: Web, tmp_path: Path) -> None:
    with web_server() as gone:
        pass
    with pytest.raises(FailedError, match=r"/a does not answer \(ConnectionError\), 3 times in a row; try another"):
        bring(gone, tmp_path / "a", "a")


def test_a_stop_keeps_what_came(web: Web, tmp_path: Path) -> None:
    stop = SignalHandler()
    stop.signal_number = signal.SIGTERM
    part_of(tmp_path / "a").write_bytes(CONTENT[:70_000])
    with pytest.raises(StoppedError):
        bring(web, tmp_path / "a", "a", stop=stop)
    assert web.requests == []
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


def test_an_address_keeps_its_password_to_itself(web: Web, tmp_path: Path) -> None:
    with pytest.raises(FailedError, match="answers 404") as error:
        bring(web, tmp_path / "a", web.url.replace("http://", "http://me:hunter2hunter2@") + "/x")
    assert "hunter2" not in str(error.value)
