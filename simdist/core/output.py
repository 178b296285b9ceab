"""Output that cannot end the work: a terminal that is gone, a pipe whose reader has left, a log on a full disk.

Ctrl-C in `python -m simdist.train | tee log` ends tee, too. A run that then failed at its next line of output would
lose everything since the last checkpoint.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TextIO, cast

_UNSAFE = re.compile(
    r"\x1b(?!\[[0-9;]*[A-HJKm]|\[\?(?:25|1049)[hl])"  # other than colors, moves and erasing, as tables and bars use
    r"|[\x00-\x08\x0b\x0c\x0e-\x1a\x1c-\x1f\x7f-\x9f]"
)
_GONE = (errno.EPIPE, errno.EIO, errno.EBADF, errno.ENXIO)  # a full disk may have space again


def printable(text: str) -> str:
    """Text with every control character spelled out that could do more to a terminal than color and move its text.

    A folder's name or a job's log may hold any, and terminals obey some that set titles, copy or type.
    """
    return _UNSAFE.sub(lambda found: f"\\x{ord(found[0]):02x}", text)


class PrintableStream:
    """A text stream without control characters that are not ours; see `printable`."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        self._stream.write(printable(text))
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


class SafeStream(PrintableStream):
    """A text stream that drops what cannot be written.

    Args:
        stream: what is written to.
        name: of the stream, for the warning that is written to standard error when something is first dropped.
    """

    def __init__(self, stream: TextIO, name: str) -> None:
        super().__init__(stream)
        self._name = name
        self.failure: OSError | None = None
        """Why something was dropped."""

    def write(self, text: str) -> int:
        with self._dropping():
            super().write(text)
        return len(text)

    def flush(self) -> None:
        with self._dropping():
            self._stream.flush()

    @contextmanager
    def _dropping(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if error.errno in _GONE:
                self.silence()
            if self.failure is None:
                self.failure = error
                write_error(
                    f"warning: {self._name} cannot be written ({error.strerror}); the work continues without it"
                )
        except ValueError:  # closed
            pass

    def silence(self) -> None:
        """Send this and all later output of the stream, of child processes too, to /dev/null."""
        with contextlib.suppress(OSError, ValueError):
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, self._stream.fileno())
            os.close(null)


@contextmanager
def safe_output() -> Iterator[None]:
    """Drop output that cannot be written, within this context and at the interpreter's exit."""
    _open_closed_streams()
    before = sys.stdout, sys.stderr
    safe = SafeStream(before[0], "standard output"), SafeStream(before[1], "standard error")
    sys.stdout, sys.stderr = (cast("TextIO", stream) for stream in safe)
    try:
        yield
    finally:
        for stream in safe:
            stream.flush()
            if stream.failure is not None:
                stream.silence()  # what is still buffered would fail again when the interpreter exits
        sys.stdout, sys.stderr = before


def _open_closed_streams() -> None:
    """Give standard streams that the caller has closed to /dev/null, before a file of ours gets their numbers."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is not None:
            continue
        null = os.open(os.devnull, os.O_RDWR)
        if not _is_open(number):
            os.dup2(null, number)
        setattr(sys, name, os.fdopen(null, "w" if number else "r"))


def _is_open(number: int) -> bool:
    try:
        os.fstat(number)
    except OSError:
        return False
    return True


def write_error(text: str) -> None:
    """Write a line to standard error at once, from a signal handler too; does nothing where it cannot be written."""
    text = printable(text)
    try:
        number = sys.stderr.fileno()
    except (OSError, ValueError):  # captured by a program that this one is part of
        print(text, file=sys.stderr)
        return
    with contextlib.suppress(OSError):
        os.write(number, f"{text}\n".encode())
