"""Every promise of the page on reliability names tests that exist."""

from __future__ import annotations

import re

import pytest

from tests.support import ROOT

PAGE = (ROOT / "docs" / "explanation" / "reliability.md").read_text()
TABLE = PAGE.partition("## What is promised")[2].partition("\n## ")[0]
PROMISES = [line.strip("| ").split(" | ") for line in TABLE.splitlines() if line.startswith("| ")][1:]


def test_there_are_promises() -> None:
    assert len(PROMISES) > 15


@pytest.mark.parametrize("row", PROMISES, ids=lambda row: row[0].replace("**", "")[:40])
def test_a_promise_says_how_it_is_kept_and_names_its_tests(row: list[str]) -> None:
    _, _, tests = row
    paths = re.findall(r"`(tests/[\w/.]+)`", tests)
    assert paths
    assert all((ROOT / path).exists() for path in paths)
