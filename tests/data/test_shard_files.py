"""Shards that go away for a while, or for ever: on real files that are moved, cut and put back while a reader waits."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from simdist.core.errors import InputError
from simdist.data.crops import CorruptSampleError, CropReader
from simdist.data.shard_files import Clock, ShardFiles
from simdist.data.splits import Split, open_split


class StoppedClock:
    """A clock that moves only when somebody sleeps; `events` happen at their second."""

    def __init__(self, events: dict[float, Callable[[], object]] | None = None) -> None:
        self.time, self.pauses, self._events = 0.0, [], dict(events or {})

    def sleep(self, seconds: float) -> None:
        assert seconds > 0
        self.time += seconds
        self.pauses.append(seconds)
        for due in [at for at in self._events if at <= self.time]:
            self._events.pop(due)()

    def clock(self) -> Clock:
        return Clock(lambda: self.time, self.sleep)


@pytest.fixture
def split(speech: Path, tmp_path: Path) -> Split:
    return open_split(shutil.copytree(speech, tmp_path / "shards"), "train")


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 8)


FAULTS: dict[str, Callable[[Path], object]] = {"lost": lambda path: path.unlink(), "cut off": cut}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_shard_that_comes_back_is_read_as_if_nothing_had_been(
    fault: str, split: Split, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = split.shard_path(0)
    expected = [CropReader(split).read_all(row) for row in range(len(split.index))]
    copy = shutil.copy(path, tmp_path / "copy.tar")
    FAULTS[fault](path)
    time = StoppedClock({20: lambda: shutil.copy(copy, path)})
    reader = CropReader(split, 60, time.clock())
    for row, whole in enumerate(expected):
        np.testing.assert_array_equal(reader.read_all(row), whole)
    assert 20 <= time.time < 26, "it looks every five seconds at least"
    assert time.pauses[:4] == [0.1, 0.2, 0.4, 0.8]
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 2
    assert said[0].startswith(f"shard {path} cannot be read (")
    assert said[0].endswith("; trying again for 60 s")
    assert said[1] == f"shard {path} can be read again, after {time.time:.0f} s"


def test_an_open_file_is_opened_anew_when_it_was_replaced_behind_its_name(split: Split, tmp_path: Path) -> None:
    """As on NFS, where the descriptor of a file that another client replaced is stale for ever."""
    path = split.shard_path(0)
    files = ShardFiles(split, 60, StoppedClock({1: lambda: shutil.move(tmp_path / "copy.tar", path)}).clock())
    size = path.stat().st_size
    whole = files.read(0, size, 0)
    shutil.copy(path, tmp_path / "copy.tar")
    cut(path)  # the descriptor that is open sees it
    assert files.read(0, size, 0) == whole


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE, errno.ETIMEDOUT])
def test_errors_of_a_file_system_that_is_away_pass(
    number: int, split: Split, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pread = os.pread

    def failing(descriptor: int, count: int, offset: int) -> bytes:
        if time.time < 3:
            raise OSError(number, os.strerror(number))
        return pread(descriptor, count, offset)

    expected = CropReader(split).read_all(2)
    monkeypatch.setattr(os, "pread", failing)
    time = StoppedClock()
    np.testing.assert_array_equal(CropReader(split, 60, time.clock()).read_all(2), expected)
    assert f"cannot be read ({os.strerror(number)})" in capsys.readouterr().err


@pytest.mark.parametrize("fault", FAULTS)
def test_a_shard_that_stays_away_is_named_with_the_reason_and_the_remedy(fault: str, split: Split) -> None:
    path = split.shard_path(0)
    FAULTS[fault](path)
    time = StoppedClock()
    with pytest.raises(InputError) as raised:
        CropReader(split, 60, time.clock()).read_all(len(split.index) - 1)
    assert not isinstance(raised.value, CorruptSampleError)
    reason = "No such file or directory" if fault == "lost" else f"it ends after {path.stat().st_size:,} bytes"
    assert str(raised.value) == (
        f"shard {path} cannot be read ({reason}), and could not for 60 s (data.retry_seconds); "
        "restore it or wait for its file system, then run the same command again"
    )
    assert time.time == pytest.approx(60)


def test_no_patience_means_no_waiting(split: Split, capsys: pytest.CaptureFixture[str]) -> None:
    split.shard_path(0).unlink()
    time = StoppedClock()
    with pytest.raises(InputError, match=r"cannot be read \(No such file or directory\); restore it"):
        CropReader(split, 0, time.clock()).read_all(0)
    assert time.pauses == []
    assert capsys.readouterr().err == ""


def test_what_will_not_pass_is_not_waited_for(split: Split) -> None:
    path = split.shard_path(0)
    path.unlink()
    path.mkdir()
    time = StoppedClock()
    with pytest.raises(InputError, match="Is a directory"):
        CropReader(split, 60, time.clock()).read_all(0)
    assert time.pauses == []


def test_a_corpus_of_more_shards_than_files_may_be_open(split: Split, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("simdist.data.shard_files.MOST_OPEN", 2)
    content = split.shard_path(0).read_bytes()[:100]
    facts = split.manifest.shards[0]
    for i in range(5):
        shutil.copy(split.shard_path(0), split.folder / f"copy-{i}.tar")
    split.manifest.shards[:] = [{**facts, "name": f"copy-{i}.tar"} for i in range(5)]
    files = ShardFiles(split)
    before = len(os.listdir("/proc/self/fd"))
    for i in (0, 1, 2, 3, 4, 0, 1):
        assert files.read(i, 100, 0) == content
    assert len(os.listdir("/proc/self/fd")) == before + 2
    del files
    assert len(os.listdir("/proc/self/fd")) == before
