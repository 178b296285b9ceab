"""How commands end: with an exit code and, if they fail, an error in one line."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn

from rich.console import Console
from rich.markup import escape

from simdist.core.errors import EXIT_BAD_INPUT, EXIT_FAILED, EXIT_INTERRUPTED, InputError
from simdist.core.files import FULL
from simdist.core.output import SafeStream, safe_output
from simdist.core.secrets import redacted
from simdist.core.signals import ignore_signals


def fail(message: str, code: int = EXIT_BAD_INPUT) -> NoReturn:
    """Print `error: message` to stderr and exit with `code`. With several ranks, only rank 0 prints."""
    if os.environ.get("RANK", "0") != "0":
        sys.exit(code)
    text = escape(redacted(message))
    Console(stderr=True, soft_wrap=True, highlight=False).print(f"[bold red]error:[/] {text}")
    sys.exit(code)


def run(
    main: Callable[[Sequence[str] | None], int], argv: Sequence[str] | None = None, *, is_viewer: bool = False
) -> NoReturn:
    """Call a command's `main` and exit with its code. An `InputError` becomes one line without a traceback.

    Args:
        main: the command.
        argv: its arguments; None for those of the process.
        is_viewer: the command has no purpose but its output, and ends when nobody reads it.
    """
    if is_viewer:
        try:
            _run(main, argv)
        except BrokenPipeError:
            SafeStream(sys.stdout, "").silence()
            sys.exit(EXIT_FAILED)
    with safe_output():
        _run(main, argv)


def _run(main: Callable[[Sequence[str] | None], int], argv: Sequence[str] | None) -> NoReturn:
    try:
        code = main(argv)
    except InputError as error:
        fail(str(error), error.exit_code)
    except KeyboardInterrupt:
        fail("interrupted", EXIT_INTERRUPTED)
    except OSError as error:
        if error.errno not in FULL:
            raise
        fail(
            f"{error.filename or 'a disk'}: {error.strerror}. Free some space and run the same command again",
            EXIT_FAILED,
        )
    ignore_signals()  # the work is done: a preemption while Python exits must not turn it into a failure
    sys.exit(code)
