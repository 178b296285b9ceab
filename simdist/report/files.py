"""Read files of other processes and versions: a torn, foreign or missing file is reported, never an error."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

from simdist.core.files import read_regular
from simdist.runs.records import LARGEST, MOST_RESULT_BYTES, Record, RecordError, read_record

SHAPELESS = (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError)
"""What reading a file of another shape than expected raises; a `RecordError` is a ValueError."""


@dataclass(frozen=True)
class UnreadableFile:
    """A file that could not be used."""

    path: Path
    reason: str

    def __str__(self) -> str:
        return f"{self.path} {self.reason}"


def read_result(path: Path, kind: type[Record], what: str, problems: list[UnreadableFile]) -> Record | None:
    """The record in a JSON file; None, and a problem that says it is no `what`, if there is none."""
    try:
        return read_record(path, kind)
    except OSError as error:
        problems.append(UnreadableFile(path, f"cannot be read ({reason_of(error)})"))
    except RecordError as error:
        problems.append(UnreadableFile(path, f"is not the result of {what} ({reason_of(error)})"))
    return None


def read_table(path: Path) -> list[dict[str, str]]:
    """The rows of a CSV file.

    Raises:
        OSError: the file cannot be read, is not a regular file, or is too large.
        ValueError: it is no text.
    """
    try:
        return list(csv.DictReader(StringIO(read_regular(path, MOST_RESULT_BYTES).decode(), newline="")))
    except csv.Error as error:
        raise ValueError(str(error)) from error


def finite(text: str) -> float:
    """The number in a cell of a table.

    Raises:
        ValueError: it is none, or not finite.
    """
    value = float(text)
    if not math.isfinite(value) or abs(value) > LARGEST:
        raise ValueError(f"{text[:20]} is not a finite number")
    return value


def reason_of(error: Exception) -> str:
    """An error in a few words, without line breaks."""
    if isinstance(error, OSError):
        return error.strerror or type(error).__name__
    if isinstance(error, KeyError):
        return f"no {error.args[0]!r}"
    return " ".join(str(error).split())[:200] or type(error).__name__


def flat(content: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested keys joined by dots."""
    found: dict[str, Any] = {}
    for key, value in content.items():
        found |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return found
