"""Records of a sweep's jobs: the latest starts, and lines that are damaged."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from launch.records import Record, Records
from simdist.core.errors import InputError


def test_records_know_the_latest_start_and_submissions_that_were_cut_off(tmp_path: Path) -> None:
    records = Records(tmp_path)
    records.announce("first", ["a"])
    records.started(Record("a", "gpu", "7", Path("log"), parents={"b": "6"}, identity="i"))
    records.numbered("first")
    records.announce("second", ["b"])
    assert records.lost_groups() == {"second"}
    records.started(Record("a", "local", "8", Path("other")))
    records.ended("a", 75)
    latest = records.latest()["a"]
    assert (latest.id, latest.cluster, latest.code, latest.starts, latest.log) == ("8", "local", 75, 2, Path("other"))


def damage(records: Path, line: str) -> None:
    with records.open("a") as file:
        file.write(line + "\n")


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ('{"event": "started", "time": 1, "job": "a"}', "'started' without 'cluster'"),
        ('{"event": "ended", "time": 1, "code": 0}', "'ended' without 'job'"),
        ('{"event": "numbered", "time": 1, "job": "a"}', "'numbered' without 'group'"),
        ('{"event": "ended", "time": "x", "job": "a", "code": 0}', "time: Expected"),
        ('{"event": "ended", "time": 1, "job": ["a"], "code": 0}', "job: Expected"),
        ('{"event": "ended", "time": 1, "job": "a", "code": "0"}', "code: Expected"),
        ('{"event": "won", "time": 1}', "event: Invalid enum value"),
        ('{"time": 1}', "missing required field event"),
        ("[]", "Expected object"),
        ("\0\0\0", "it is no JSON"),
    ],
)
def test_a_damaged_line_of_the_records_is_named_and_left_out(tmp_path: Path, line: str, reason: str) -> None:
    records = Records(tmp_path)
    records.started(Record("a", "gpu", "7", Path("log")))
    before = records.latest(), records.lost_groups(), records.cancelled_jobs()
    damage(tmp_path / "jobs.jsonl", line)
    (sentence,) = records.damaged()
    assert sentence.startswith(f"warning: {tmp_path}/jobs.jsonl is damaged and read without line 2: ")
    assert reason in sentence
    assert (records.latest(), records.lost_groups(), records.cancelled_jobs()) == before


def test_records_that_are_no_file_are_one_sentence(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "jobs.jsonl")
    with pytest.raises(InputError, match=r"jobs\.jsonl cannot be read \(.*\)\. Look at it"):
        Records(tmp_path).latest()
