"""How commands end: with an exit code and, if they fail, an error in one line."""

from __future__ import annotations

import os
import signal
import socket
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn, TextIO, cast

from rich.console import Console
from rich.markup import escape

from simdist.core.errors import EXIT_BAD_INPUT, EXIT_FAILED, EXIT_INTERRUPTED, InputError
from simdist.core.files import remedy
from simdist.core.output import PrintableStream, SafeStream, safe_output
from simdist.core.secrets import redacted
from simdist.core.signals import ignore_signals


def fail(message: str, code: int = EXIT_BAD_INPUT, is_shared: bool = True) -> NoReturn:
    """Print `error: message` to stderr and exit with `code`.

    Args:
        message: one or more sentences.
        code: exit code.
        is_shared: all ranks fail with this message, and rank 0 prints it, and the first rank of each other node, whose
            files may be others. Else every rank prints.
    """
    rank, local_rank = (os.environ.get(name, "0") for name in ("RANK", "LOCAL_RANK"))
    if rank != "0" and is_shared and (local_rank != "0" or has_group()):
        sys.exit(code)
    text = escape(redacted(message, keep_hashes=False)) + f" (rank {rank} on {socket.gethostname()})" * (rank != "0")
    Console(stderr=True, soft_wrap=True, highlight=False).print(f"[bold red]error:[/] {text}")
    sys.exit(code)


def has_group() -> bool:
    """Whether this process can talk to the other ranks, so that a failure that all share is known to be shared."""
    distributed = sys.modules.get("torch.distributed")
    return distributed is not None and distributed.is_available() and distributed.is_initialized()


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
        before = sys.stdout, sys.stderr
        sys.stdout, sys.stderr = (cast("TextIO", PrintableStream(stream)) for stream in before)
        try:
            _run(main, argv)
        except BrokenPipeError:
            SafeStream(before[0], "").silence()
            sys.exit(EXIT_FAILED)
        finally:
            sys.stdout, sys.stderr = before
    with safe_output():
        _run(main, argv)


def _run(main: Callable[[Sequence[str] | None], int], argv: Sequence[str] | None) -> NoReturn:
    if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:  # as the package has left it for the time of imports
        signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        code = main(argv)
    except InputError as error:
        fail(str(error), error.exit_code, error.is_shared or not has_group())
    except KeyboardInterrupt:
        fail("interrupted", EXIT_INTERRUPTED)
    except OSError as error:
        what_to_do = remedy(error)
        if what_to_do is None:
            raise
        sentence = f"{error.filename or 'a disk'}: {error.strerror}. {what_to_do} and run the same command again"
        fail(sentence, EXIT_FAILED, is_shared=False)
    ignore_signals()  # the work is done: a preemption while Python exits must not turn it into a failure
    sys.exit(code)
