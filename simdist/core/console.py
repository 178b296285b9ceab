"""How a command ends: one-line errors and exit codes."""

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
    """Print `error: message` to stderr and exit with `code`; of several ranks that all fail alike, the first speaks."""
    if os.environ.get("RANK", "0") != "0":
        sys.exit(code)
    text = escape(redacted(message))
    Console(stderr=True, soft_wrap=True, highlight=False).print(f"[bold red]error:[/] {text}")
    sys.exit(code)


def run(main: Callable[[Sequence[str] | None], int], argv: Sequence[str] | None = None) -> NoReturn:
    """Call a command's `main` and exit with its code; an `InputError` is printed as one line, without a traceback."""
    try:
        code = main(argv)
    except InputError as error:
        fail(str(error), error.exit_code)
    except KeyboardInterrupt:
        fail("interrupted", EXIT_INTERRUPTED)
    except OSError as error:
        if error.errno not in FULL:
            raise
        fail(f"{error.filename or 'a disk'}: {error.strerror}; make room and run the same command again", EXIT_FAILED)
    ignore_signals()  # the work is done: a preemption that comes while Python ends must not turn it into a failure
    sys.exit(code)
