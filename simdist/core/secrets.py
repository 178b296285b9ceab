"""Redaction of keys and tokens in everything that is printed, logged, or written to a run folder.

A secret is recognized by its value (that of an environment variable with a telling name), its name (`api_key: …`,
`--token …`, `PASSWORD=…`), its format (Weights & Biases keys), or its position (`https://user:SECRET@host`).
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping

HIDDEN = "[redacted]"
MIN_LENGTH = 8  # characters of a variable's value; shorter ones occur in ordinary text

_NAME = r"(?:api[_-]?key|access[_-]?key|token|secret|passw(?:or)?d)"
_VARIABLE = re.compile(rf"{_NAME}$", re.IGNORECASE)
_SHAPE = re.compile(r"\b(?:wandb_v\d+_\w{20,}|(?:local-)?[0-9a-f]{40})\b", re.IGNORECASE)
_ASSIGNED = re.compile(  # begins where a word begins: from each of its characters, a long word would take for ever
    rf"(?P<name>(?<![\w.-])[\w.-]*{_NAME}[\"']?\]?\s*[=:]\s*)(?:\"[^\"\n]*\"|'[^'\n]*'|[^\s\"',;&)}}]+)", re.IGNORECASE
)
_IN_URL = re.compile(r"(?P<before>://[^\s/@:]*:)[^\s/@]+(?=@)")


def redacted(text: str, environ: Mapping[str, str] = os.environ) -> str:
    """`text` without secrets. Git commit hashes look like keys and are redacted, too."""
    for name, value in environ.items():
        if len(value) >= MIN_LENGTH and _VARIABLE.search(name):
            text = text.replace(value, HIDDEN)
    text = _SHAPE.sub(HIDDEN, text)
    text = _IN_URL.sub(rf"\g<before>{HIDDEN}", text)
    return _ASSIGNED.sub(rf"\g<name>{HIDDEN}", text)


def redacted_words(words: list[str], environ: Mapping[str, str] = os.environ) -> list[str]:
    """A command line without secrets, including the word after an option such as `--token`."""
    shown: list[str] = []
    for word in words:
        named = bool(shown) and shown[-1].startswith("-") and "=" not in shown[-1] and _VARIABLE.search(shown[-1])
        shown.append(HIDDEN if named else redacted(word, environ))
    return shown


def is_secret(text: str, environ: Mapping[str, str] = os.environ) -> bool:
    """Whether `text` is or contains a secret."""
    return _SHAPE.search(text) is not None or redacted(text, environ) != text
