"""What a check found, and what to do about it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Level = Literal["ok", "warning", "error"]


@dataclass(frozen=True)
class Finding:
    """One line of the report."""

    subject: str
    """What was looked at: `machine`, `disk`, `partition`, …"""
    level: Level
    """`error`: it will not work; `warning`: it will, but not as you may think."""
    message: str
    """What is the case."""
    remedy: str = ""
    """What to do; empty where all is well."""


def ok(subject: str, message: str) -> Finding:
    """All is well."""
    return Finding(subject, "ok", message)


def warning(subject: str, message: str, remedy: str) -> Finding:
    """It works, but not as one may think."""
    return Finding(subject, "warning", message, remedy)


def error(subject: str, message: str, remedy: str) -> Finding:
    """It does not work."""
    return Finding(subject, "error", message, remedy)
