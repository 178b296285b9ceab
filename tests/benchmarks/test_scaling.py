"""The paper tables: the formula, and that the document shows what the script prints."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.support import ROOT

sys.path.insert(0, str(ROOT))

from benchmarks.scaling import NVLINK, Fabric, all_reduce_time


def scaling(*options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "benchmarks.scaling", *options]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


def test_the_document_shows_what_the_script_prints() -> None:
    document = (ROOT / "docs" / "explanation" / "scaling.md").read_text()
    printed = scaling().stdout.splitlines()
    assert len(printed) > 40
    assert [line for line in printed if line not in document] == [], (
        "print the tables again into docs/explanation/scaling.md"
    )


def test_all_reduce_is_a_ring_s() -> None:
    slow = Fabric("slow", bandwidth=1e9, latency=0.0)
    assert all_reduce_time(1e9, 1, 1, slow, 1.0) == 0
    assert all_reduce_time(1e9, 1, 2, slow, 1.0) == pytest.approx(1.0)
    assert all_reduce_time(1e9, 1, 8, slow, 0.5) == pytest.approx(3.5)
    assert all_reduce_time(0, 3, 2, NVLINK, 1.0) == pytest.approx(3 * 2 * NVLINK.latency)


def test_impossible_options_are_one_line() -> None:
    done = scaling("--clips", "0")
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "--clips must be at least 1" in done.stderr
