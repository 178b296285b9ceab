"""How far long work has come: a bar on a terminal, plain lines in a log."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

PLAIN_SECONDS = 5.0  # between two lines of progress where there is no terminal


@contextmanager
def progress(console: Console, what: str, total: int, unit: str = "utterances") -> Iterator[Callable[[int], None]]:
    """A bar on a terminal, else a line every few seconds; yields a function that takes how many more are done."""
    if console.is_terminal:
        columns = (TextColumn(what), BarColumn(), MofNCompleteColumn(), TextColumn(unit), TimeRemainingColumn())
        with Progress(*columns, console=console, transient=True) as bar:
            task = bar.add_task(what, total=total)
            yield lambda count: bar.advance(task, count)
        return
    done, last = 0, time.monotonic()

    def advance(count: int) -> None:
        nonlocal done, last
        done += count
        if time.monotonic() - last > PLAIN_SECONDS:
            console.print(f"{what}: {done:,} of {total:,} {unit}")
            last = time.monotonic()

    yield advance
