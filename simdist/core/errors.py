"""The exceptions a user is meant to read, and the exit codes every command shares.

`InputError` carries a sentence that says what was wrong, what is allowed and what to do; every command prints it
without a traceback and exits with its code. Anything else that escapes is a defect and keeps its traceback.
"""

from collections.abc import Sequence

EXIT_OK = 0
EXIT_FAILED = 1
EXIT_BAD_INPUT = 2
EXIT_PREEMPTED = 75  # EX_TEMPFAIL: what was done is saved, run the same command again
EXIT_INTERRUPTED = 130  # Ctrl-C, as shells report it


class InputError(Exception):
    """Something the user gave cannot be used; the message says what, what is allowed, and the way out."""

    exit_code = EXIT_BAD_INPUT
    is_shared = False
    """Whether all ranks raise it with the same message, so that one of them prints it for all."""


class FailedError(InputError):
    """Something outside went wrong after work had begun: a full disk, numbers that diverge. Said in the same way."""

    exit_code = EXIT_FAILED


class PeerLostError(InputError):
    """Another rank has ended, and this one cannot go on without it. The same command resumes the run."""

    exit_code = EXIT_PREEMPTED


def shortened(names: Sequence[str], most: int = 8) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def counted(number: int, noun: str) -> str:
    """`1 clip`, `1,234 clips`."""
    return f"{number:,} {noun}{'s' * (number != 1)}"


def require(condition: bool, key: str, value: object, allowed: str) -> None:
    """Raise a ValueError that names a key, its value and what is allowed, unless `condition` holds."""
    if not condition:
        raise ValueError(f"{key} is {value!r}; it must be {allowed}")


def require_option(condition: bool, name: str, value: object, allowed: str) -> None:
    """Like `require`, for a field that is an option on the command line."""
    require(condition, f"--{name.replace('_', '-')}", value, allowed)
