"""A function over many jobs in processes that end at once when told to, and never outlive the one that started them.

Processes are spawned, not forked, since the caller may hold threads and a GPU. They never see the signals that reach a
whole process group: the parent decides, and kills them. Should the parent itself be killed, a thread ends them.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import TypeVar

from simdist.core.signals import SIGNALS, SignalHandler, ignore_signals
from simdist.pack.shards import PackingError

Job = TypeVar("Job")
Result = TypeVar("Result")


def results(
    function: Callable[[Job, Callable[[], None]], Result], jobs: Sequence[Job], workers: int, stop: SignalHandler
) -> Iterator[Result]:
    """`function(job, check_stop)` of each job, as they are done; in this process where one worker is enough.

    Raises:
        StoppedError: `stop` was set; what was being worked on is given up.
        PackingError: a process died.
    """
    workers = min(workers, len(jobs))
    if workers <= 1:
        for job in jobs:
            stop.check()
            yield function(job, stop.check)
    else:
        yield from _spawned(function, jobs, workers, stop)


def _spawned(
    function: Callable[[Job, Callable[[], None]], Result], jobs: Sequence[Job], workers: int, stop: SignalHandler
) -> Iterator[Result]:
    others = set(multiprocessing.active_children())
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_start)
    try:
        with _held_back():
            pending = {pool.submit(function, job, _never) for job in jobs}
        while pending:
            stop.check()
            done, pending = wait(pending, timeout=0.2, return_when=FIRST_COMPLETED)
            for future in done:
                yield future.result()
    except BaseException as error:
        for child in set(multiprocessing.active_children()) - others:
            child.kill()
        pool.shutdown(cancel_futures=True)
        stop.check()
        if isinstance(error, BrokenProcessPool):
            raise PackingError(
                "a packing process was killed, perhaps because memory is full. Finished shards are kept: "
                "run the same command with fewer --workers"
            ) from error
        raise
    pool.shutdown()


@contextmanager
def _held_back() -> Iterator[None]:
    """Signals wait until the end of the block. Processes started inside never get them, not even while they import."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _never() -> None:
    """Kill the workers."""


def _start() -> None:
    ignore_signals()
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
