"""Redaction of keys and tokens in everything that is printed, logged, or written to a run folder.

Of variables and configurations only named ones are written. This module cleans the free text that remains: command
lines, git diffs, messages. A secret is recognized by its value (that of an environment variable with a telling name),
its format, its name (`api_key: …`, `--token …`), or its position (`https://user:SECRET@host`). Hashes, git commits and
paths stay readable: 40 hexadecimal digits are a Weights & Biases key only where they are a word of a command line or
assigned to a name, unless the name is that of a hash.
"""

from __future__ import annotations

import fnmatch
import itertools
import os
import re
from collections.abc import Mapping

HIDDEN = "[redacted]"
MIN_LENGTH = 8  # characters of a variable's value; shorter ones occur in ordinary text
PRIVATE_FILES = (
    ".env",
    ".env.*",
    ".envrc",
    ".netrc",
    "_netrc",
    ".pgpass",
    ".pypirc",
    ".git-credentials",
    "id_rsa*",
    "id_dsa*",
    "id_ecdsa*",
    "id_ed25519*",
    "*.pem",
    "*.key",
    "*.p12",
    "*.pfx",
    "*.jks",
    "*.kdbx",
    "*secret*.y*ml",
    "*secret*.json",
    "*credential*.y*ml",
    "*credential*.json",
)
"""Patterns for names of files that hold secrets."""

_NAME = (
    r"(?:(?:api|access|secret|private|account|auth|signing|encryption|wandb)[_-]?key(?:[_-]?id)?"
    r"|token|secret|passw(?:or)?d|passphrase|(?:db|user|smtp|ftp)[_-]?pass|[_-]pwd)(?:[_-]?\d+)?"
)
_VALUE = (  # punctuation ends an unquoted value only in front of a space or more punctuation
    r"(?!\[redacted\])(?:[bfru]{0,2}(?:\"{3}(?s:.{0,2000}?)\"{3}|\\+[\"'].*?\\+[\"']|\"(?:\\.|[^\"\\\n])*\"|'(?:\\.|[^'\\\n])*')"
    r"|(?:[^\s\"',;&)}\]]|[,;&)}\]](?=[^\s\"',;&)}\]]))+)"
)
_CONSTANT = r"None|True|False|null|str|int|float|bool|bytes|Path|Any|(?:torch\.)?Tensor|[-+]?\d{0,4}(?:\.\d+)?"
_ARGUMENTS = r"(?:[^\"'\n]|\"[A-Z_]*\"|'[A-Z_]*')*"  # of code; strings only as in os.environ["HF_TOKEN"]
_NO_VALUE = (
    rf"(?!(?P<quote>[\"']?)(?:{_CONSTANT})(?P=quote)(?:[\s,;:)}}\]|]|$)"
    rf"|self\.[A-Za-z_]+(?![\w.])|[A-Za-z_][\w.]*(?:\({_ARGUMENTS}\)|\[{_ARGUMENTS}\])"
    r"|[\"']?(?:`|\$[({]|\$[A-Z_][A-Z0-9_]*(?:[\s\"';)]|$)))"
)
_HASH_NAME = r"(?:commit|sha|rev|hash|digest|checksum|ref|head|tree|blob|parent|index)"
_HEX_KEY = r"[0-9a-f]{40}\b"

_FORMATS = {
    "Hugging Face": r"hf_(?:oauth_)?[A-Za-z0-9]{30,}|api_org_[A-Za-z0-9]{30,}",
    "GitHub": r"gh[oprsu]_[A-Za-z0-9][\w.-]{29,}|github_pat_\w{22,}",
    "GitLab": r"gl(?:pat|oas|dt|rt|cbt|ptt|ft|imt|agent|soat)-[\w-]{20,}",
    "AWS access key": r"(?:AKIA|ASIA|ABIA|ACCA)[A-Z0-9]{16}",
    "OpenAI, Anthropic, OpenRouter": r"sk-(?:(?:proj|svcacct|admin|ant|or)-[\w-]{20,}|[A-Za-z0-9]{20,})",
    "Slack": r"(?:xox[a-z]|xapp)-[\w-]{10,}",
    "Google": r"AIza[\w-]{30,}|GOCSPX-[\w-]{20,}|ya29\.[\w-]{20,}",
    "JSON Web Token, Neptune": r"eyJ[\w+/=-]{16,}(?:\.[\w+/=-]*)*",
    "PyPI": r"pypi-[\w-]{50,}",
    "npm": r"npm_[A-Za-z0-9]{30,}",
    "Stripe": r"[rs]k_(?:live|test)_[A-Za-z0-9]{20,}",
    "SendGrid": r"SG\.[\w-]{16,}\.[\w-]{16,}",
    "Weights & Biases": r"wandb_v\d+_\w{20,}|local-[0-9a-f]{40}",
}
_UP_TO_END = r"(?s:.{0,20000}?)-----END [A-Z0-9 ]*PRIVATE KEY(?: BLOCK)?-----"
_BASE64_LINES = r"(?:(?:\s|\\n|[\"'+-])*[A-Za-z0-9+/]{20,}={0,2})*"  # of a key that is cut off
_SCHEME = r"(?:bearer|basic|token)\s+"
_SIGNATURE = r"(?:[\w-]*(?:signature|token|credential|secret|password)|sig|key|api[_-]?key)"

_PATTERNS = tuple(
    re.compile(pattern)
    for pattern in (
        rf"(?P<keep>)-----BEGIN [A-Z0-9 ]*PRIVATE KEY(?: BLOCK)?-----(?:{_UP_TO_END}|{_BASE64_LINES})",
        rf"(?P<keep>(?<![A-Za-z0-9]))(?:{'|'.join(_FORMATS.values())})",
        r"(?P<keep>://(?:[^\s/@:]*:)?)(?:(?<=:)[^\s/\"<>]+|[^\s/@:]{20,})(?=@)",  # the password, or a token as the user
        rf"(?P<keep>(?i:[?&;]{_SIGNATURE}=))[^\s&#\"'<>\\]+",
        r"(?P<keep>\bsig=)[\w%+/=-]{20,}",
        r"(?P<keep>(?:hooks\.slack\.com/services|discord(?:app)?\.com/api/webhooks)/)[\w/-]+",
        rf"(?P<keep>(?i:\bauthorization[\"']?\]?\s*[:=,]\s*[\"']?(?:{_SCHEME})?))(?!(?i:{_SCHEME})){_NO_VALUE}{_VALUE}",
        r"(?P<keep>(?i:\bcookie):\s*)[^\s\"';]+(?:;\s*[\w.-]+=[^\s\"';]+)*",
        r"(?P<keep>\b(?:[Bb]earer|Basic)\s+)(?=\S*\d)[\w.~+/=-]{8,}",
        rf"(?P<keep>\b(?:machine|login|account)\s+[+-]?\s*\S+\s+[+-]?\s*password\s+){_VALUE}",  # netrc
        rf"(?m:(?P<keep>^[+-]?\s*password[ \t]+){_VALUE}(?=[ \t]*$))",
        rf"(?i:(?P<keep>\blogin[\s(]+(?:--?\S+\s+)*[\"']?){_HEX_KEY})",
        rf"(?i:(?P<keep>(?<![\w.-])(?![\w.-]*{_HASH_NAME})[\w.-]+[\"']?\]?\s*[=:]\s*[\"']?){_HEX_KEY})",
        rf"(?P<keep>(?<![\w-])--?(?i:[\w.-]*{_NAME})[ \t]+)(?!-){_NO_VALUE}{_VALUE}",
        rf"(?P<keep>(?i:{_NAME})\\*[\"']?\]?\s*(?:=>|:=|[=:])\s*){_NO_VALUE}{_VALUE}",
    )
)
_TELLING = re.compile(rf"{_NAME}$", re.IGNORECASE)
_KEY = re.compile(rf"(?<![\w/]){_HEX_KEY}(?!/)", re.IGNORECASE)
_OF_HASH = re.compile(_HASH_NAME, re.IGNORECASE)
_AWS_SECRET_KEY = re.compile(r"(?<![\w/.-])[A-Za-z0-9][A-Za-z0-9/+]{39}(?![\w/+=.-])")


def redacted(text: str, environ: Mapping[str, str] = os.environ, keep_hashes: bool = True) -> str:
    """`text` without secrets.

    Args:
        text: free text.
        environ: variables whose values are hidden if their names are those of secrets.
        keep_hashes: whether 40 hexadecimal digits without a name are a git commit; False takes them for a key.
    """
    for name, value in environ.items():
        if len(value) >= MIN_LENGTH and _TELLING.search(name):
            text = text.replace(value, HIDDEN)
    for pattern in _PATTERNS:
        text = pattern.sub(rf"\g<keep>{HIDDEN}", text)
    if not keep_hashes:
        text = _KEY.sub(HIDDEN, text)
    return _AWS_SECRET_KEY.sub(lambda found: HIDDEN if _is_random(found[0]) else found[0], text)


def redacted_words(words: list[str], environ: Mapping[str, str] = os.environ) -> list[str]:
    """A command line without secrets, including the word after an option such as `--token`."""
    shown: list[str] = []
    for before, word in itertools.pairwise(["", *words]):
        is_option = before.startswith("-")
        is_key = _KEY.fullmatch(word) and not (is_option and _OF_HASH.search(before))
        is_named = is_option and _TELLING.search(before)
        follows_name = redacted(f"{before} {word}", environ).endswith(f" {HIDDEN}")
        shown.append(HIDDEN if is_key or is_named or follows_name else redacted(word, environ))
    return shown


def is_secret(text: str, environ: Mapping[str, str] = os.environ) -> bool:
    """Whether `text` is or contains a secret, or 40 hexadecimal digits, which could be one."""
    return redacted(text, environ, keep_hashes=False) != text


def is_private(name: str) -> bool:
    """Whether a file of this name usually holds secrets."""
    return any(fnmatch.fnmatch(name.lower(), pattern) for pattern in PRIVATE_FILES)


def _is_random(word: str) -> bool:
    """Whether lower case, upper case and digits alternate as in an AWS secret key, not as in a path in CamelCase."""
    kinds = [(char.isdigit(), char.isupper()) for char in word if char.isalnum()]
    changes = sum(a != b for a, b in itertools.pairwise(kinds))
    return len(set(kinds)) == 3 and len(set(word)) >= 24 and 3 * changes > len(kinds)
