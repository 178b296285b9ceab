"""Benchmarks are run by hand, so that renamed functions would be missed: all import, and two find what they call."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest

from benchmarks import __main__ as table
from benchmarks.outcomes import Outcome
from tests.support import ROOT

MODULES = sorted(path.stem for path in (ROOT / "benchmarks").glob("*.py"))


@pytest.mark.parametrize("name", MODULES)
def test_every_benchmark_imports(name: str) -> None:
    assert importlib.import_module(f"benchmarks.{name}").__doc__


def test_the_table_passes_its_options_on(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[object] = []

    def everything(*arguments: object) -> list[Outcome]:
        given.extend(arguments)
        return []

    monkeypatch.setattr(table, "everything", everything)
    monkeypatch.setattr(table, "show", lambda title, outcomes: None)
    monkeypatch.setattr(sys, "argv", ["benchmarks", "--source=speech", "--rounds=2"])
    table.main()
    assert given == [Path("data/artificial"), Path("speech"), 2]
