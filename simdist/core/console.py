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
from simdist.core.secrets import redacted
from simdist.core.signals import ignore_signals


def fail(message: str, code: int = EXIT_BAD_INPUT) -> NoReturn:
    """Print `error: message` to stderr and exit with `code`. With several ranks, only rank 0 prints."""
    if os.environ.get("RANK", "0") != "0":
        sys.exit(code)
    text = escape(redacted(message, keep_hashes=False))  # a wrong value rather than a commit
    Console(stderr=True, soft_wrap=True, highlight=False).print(f"[bold red]error:[/] {text}")
    sys.exit(code)


def run(main: Callable[[Sequence[str] | None], int], argv: Sequence[str] | None = None) -> NoReturn:
    """Call a command's `main` and exit with its code. An `InputError` becomes one line without a traceback."""
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
