"""How far long work has come: a bar on a terminal, plain lines in a log."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

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


@contextmanager
def transfer(console: Console, what: str, total: int | None, begin: int = 0) -> Iterator[Callable[[int], None]]:
    """The same for bytes, with rate and remaining time; yields a function that takes how many there are by now."""
    if console.is_terminal:
        columns = (TextColumn(what), BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
        with Progress(*columns, console=console, transient=True) as bar:
            task = bar.add_task(what, total=total, completed=begin)
            yield lambda done: bar.update(task, completed=done)
        return
    last_done, last = begin, time.monotonic()

    def at(done: int) -> None:
        nonlocal last_done, last
        seconds = time.monotonic() - last
        if seconds > PLAIN_SECONDS:
            console.print(_transferred(what, done, total, max(1.0, (done - last_done) / seconds)))
            last_done, last = done, time.monotonic()

    yield at


def _transferred(what: str, done: int, total: int | None, rate: float) -> str:
    """A line such as `x.tar.gz: 512.0 of 6,387.3 MB, 12.1 MB/s, 486 s left`; `rate` in bytes per second."""
    if total is None:
        return f"{what}: {done / 1e6:,.1f} MB, {rate / 1e6:.1f} MB/s"
    left = (total - done) / rate
    return f"{what}: {done / 1e6:,.1f} of {total / 1e6:,.1f} MB, {rate / 1e6:.1f} MB/s, {left:,.0f} s left"
