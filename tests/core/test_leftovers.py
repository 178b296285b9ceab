"""Unfinished files of killed processes: removed by the next process that writes there, and nothing else is."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from simdist.core.files import ABANDONED, remove_leftovers, temporary_path, write_text

WRITER = """
import sys, time
from pathlib import Path
from simdist.core.files import replacing
with replacing(Path(sys.argv[1])) as temporary:
    temporary.write_text("half")
    print("writing", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def writing(tmp_path: Path) -> Iterator[Callable[[str], subprocess.Popen[str]]]:
    """Starts a process that is writing a file."""
    started: list[subprocess.Popen[str]] = []

    def start(name: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", WRITER, str(tmp_path / name)]
        started.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
        assert started[-1].stdout is not None
        assert started[-1].stdout.readline() == "writing\n"
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.communicate()


def unfinished(folder: Path) -> set[str]:
    return {path.name.rpartition("@")[2] for path in folder.glob(".tmp-*@*")}


def test_of_killed_processes_are_removed(tmp_path: Path, writing: Callable[[str], subprocess.Popen[str]]) -> None:
    killed = writing("killed.json")
    writing("alive.json")
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    assert unfinished(tmp_path) == {"killed.json", "alive.json"}
    write_text(tmp_path / "other.json", "{}")
    assert unfinished(tmp_path) == {"alive.json"}
    assert (tmp_path / "other.json").read_text() == "{}"


def test_folders_of_killed_processes_are_removed(tmp_path: Path) -> None:
    ended = subprocess.Popen(["true"])
    ended.wait()
    left = temporary_path(tmp_path / "run")
    left = left.with_name(left.name.replace(str(os.getpid()), str(ended.pid), 1))
    (left / "checkpoints").mkdir(parents=True)
    remove_leftovers.cache_clear()  # `temporary_path` has looked already
    remove_leftovers(tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "name",
    [
        ".tmp-notes",
        ".tmp-4194303-old.json",
        ".tmp-x@y@z",
        "x.tmp-4194303@elsewhere.1@x",
        ".tmp-4194303@elsewhere.1@recent",
        ".tmp-4194303@@x",
        ".tmp-4194303@a@",
    ],
)
def test_nothing_else_is_removed(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("")
    remove_leftovers(tmp_path)
    assert (tmp_path / name).exists()


def test_of_another_machine_after_a_week(tmp_path: Path) -> None:
    old = tmp_path / ".tmp-1@elsewhere.1@x"
    old.write_text("")
    os.utime(old, (0, old.stat().st_mtime - ABANDONED - 60))
    remove_leftovers(tmp_path)
    assert not old.exists()


def test_a_folder_that_is_away_is_no_error(tmp_path: Path) -> None:
    remove_leftovers(tmp_path / "nothing")
