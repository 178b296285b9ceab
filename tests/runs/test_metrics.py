"""Records of metrics reach the disk whole and in order, whatever the file system does meanwhile."""

from __future__ import annotations

import errno
import os
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from simdist.config.schema import Config
from simdist.core.errors import FailedError
from simdist.core.files import append_json, read_json_lines
from simdist.runs.folder import Run
from simdist.runs.metrics import MetricsLog
from tests.support.small_disk import small_disk


def line(step: int) -> dict[str, Any]:
    return {"kind": "train", "step": step, "epoch": 0.1, "modules": [{"module": 0, "loss": 1.0, "accuracy": 0.5}]}


@pytest.fixture
def log(tmp_path: Path) -> MetricsLog:
    return MetricsLog(Run(tmp_path, Config()), 10, is_main=True)


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """The next writes fail as those of a network file system that is away."""
    left, write = [0], os.write

    def failing_write(descriptor: int, content: bytes) -> int:
        if left[0]:
            left[0] -= 1
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return write(descriptor, content)

    def fail(times: int) -> None:
        left[0] = times

    monkeypatch.setattr("simdist.core.files.os.write", failing_write)
    return fail


def steps(path: Path) -> list[int]:
    return [record["step"] for record in read_json_lines(path / "metrics.jsonl")]


def test_a_record_that_cannot_be_written_is_written_with_the_next(
    log: MetricsLog, failing: Callable[[int], None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log.record(line(1))
    failing(2)
    log.record(line(2))
    log.record(line(3))
    assert steps(tmp_path) == [1]
    log.record(line(4))
    assert steps(tmp_path) == [1, 2, 3, 4]
    assert capsys.readouterr().out.count("cannot be written (Input/output error); trying again at each record") == 1


def test_no_checkpoint_is_saved_without_the_records_before_it(
    log: MetricsLog, failing: Callable[[int], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("simdist.core.files.PATIENCE", 0.0)
    failing(2)
    log.record(line(1))
    with pytest.raises(FailedError, match=r"metrics of step 1 could not be written \(Input/output error\)"):
        log.flush()
    log.flush()
    assert steps(tmp_path) == [1]


def test_a_part_of_a_line_is_never_left(tmp_path: Path) -> None:
    """A disk with less space than a line takes a part of it, and says so only at the next write."""
    with small_disk(tmp_path / "disk", 64) as disk:
        path = disk.folder / "lines"
        record = {"text": "x" * 3000}
        with pytest.raises(OSError, match="No space left"):  # noqa: PT012
            for _ in range(1000):
                append_json(path, record)
        lines = path.read_bytes()
        assert lines.endswith(b"\n")
        assert read_json_lines(path) == [record] * lines.count(b"\n")


def test_a_tracker_that_dies_is_done_without(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """wandb-core, the process that Weights & Biases writes with, is killed."""
    config = replace(Config(), wandb=replace(Config().wandb, mode="offline"))
    log, before = MetricsLog(Run(tmp_path, config), 10, is_main=True), set(cores())
    with log.reporting(0):
        log.record(line(1))
        for pid in set(cores()) - before or before:
            os.kill(pid, signal.SIGKILL)
        for step in range(2, 6):
            time.sleep(0.1)
            log.record(line(step))
    assert steps(tmp_path) == [1, 2, 3, 4, 5]
    said = capsys.readouterr().out
    assert said.count("warning: Weights & Biases failed (") == 1
    assert "the work continues without it" in said


def cores() -> list[int]:
    children = Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read_text().split()
    return [int(pid) for pid in children if Path(f"/proc/{pid}/comm").read_text() == "wandb-core\n"]


def test_a_server_that_cannot_be_reached_makes_the_run_offline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")  # where nothing listens
    monkeypatch.setenv("WANDB_API_KEY", "0123456789" * 4)
    monkeypatch.setattr("simdist.runs.wandb_run.INIT_SECONDS", 2)
    config = replace(Config(), wandb=replace(Config().wandb, mode="online"))
    log = MetricsLog(Run(tmp_path, config), 10, is_main=True)
    with log.reporting(0):
        log.record(line(1))
    said = capsys.readouterr().out
    assert "warning: Weights & Biases cannot be reached (" in said
    assert "this run is offline" in said
    assert "wandb sync" in said
    assert list((tmp_path / "wandb").glob("offline-run-*/run-*.wandb"))


def test_a_pipe_in_place_of_the_file_is_refused(tmp_path: Path) -> None:
    """It would take lines until it is full, and then wait for ever."""
    os.mkfifo(tmp_path / "metrics.jsonl")
    with pytest.raises(OSError, match="it is not a regular file"):
        append_json(tmp_path / "metrics.jsonl", line(1))
