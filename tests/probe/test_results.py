"""The table of probes on the terminal."""

from __future__ import annotations

from typing import Any

import pytest
from rich.console import Console

from simdist.probe.results import as_table


def result(label: str, **test: Any) -> dict[str, Any]:
    score = {"value": 0.5, "interval": [0.4, 0.6]}
    return {
        "label": label,
        "source": {"kind": "mfcc", "module": None, "step": None},
        "probe": {"probe": "linear"},
        "test": {"accuracy": score, "balanced_accuracy": score} | test,
        "chance": 0.25,
        "majority": {"accuracy": 0.3},
    }


def test_the_table_says_what_its_columns_are(capsys: pytest.CaptureFixture[str]) -> None:
    """And has a column without silence only for phones."""
    quiet = {"accuracy": {"value": 0.71, "interval": [0.7, 0.72]}}
    for results, is_shown in (
        ([result("speaker")], False),
        ([result("speaker"), result("phone", without_silence=quiet)], True),
    ):
        Console(width=140).print(as_table(results))
        said = " ".join(capsys.readouterr().out.split())
        assert "balanced: mean of the classes' own accuracies" in said
        assert "majority: accuracy of always answering the most frequent class" in said
        assert ("without silence: accuracy where" in said) == ("71.0 [70.0, 72.0]" in said) == is_shown
        assert said.count("without silence") == 2 * is_shown
        assert said.count("50.0 [40.0, 60.0]") == 2 * len(results)
