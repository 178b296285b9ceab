"""Read files of other processes and versions: a torn, foreign or missing file is reported, never an error."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SHAPELESS = (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError)
"""What reading a file of another shape than expected raises; torn JSON and bytes that are no text are ValueErrors."""


@dataclass(frozen=True)
class UnreadableFile:
    """A file that could not be used."""

    path: Path
    reason: str

    def __str__(self) -> str:
        return f"{self.path} {self.reason}"


def read_json(path: Path, problems: list[UnreadableFile]) -> dict[str, Any] | None:
    """The object in a JSON file; None, and a problem, if there is none."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(found, dict):
            return found
        problems.append(UnreadableFile(path, "holds no JSON object; another program's file?"))
    except (OSError, ValueError, RecursionError) as error:
        problems.append(UnreadableFile(path, f"cannot be read ({reason_of(error)}); is it being written, or torn?"))
    return None


def reason_of(error: Exception) -> str:
    """An error in a few words, without line breaks."""
    if isinstance(error, OSError):
        return error.strerror or type(error).__name__
    if isinstance(error, KeyError):
        return f"no {error.args[0]!r}"
    return " ".join(str(error).split())[:120] or type(error).__name__


def flat(content: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested keys joined by dots."""
    found: dict[str, Any] = {}
    for key, value in content.items():
        found |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return found
