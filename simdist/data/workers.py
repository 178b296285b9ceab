"""A dataset's answers to a range of requests, in order, from a DataLoader's processes; one that dies is replaced.

The answers depend on the requests alone, so a DataLoader that restarts at the first one still unanswered continues as
if nothing had happened. Without this a worker that the kernel kills when memory runs out would end the training.

The surprising decision: workers come from a fork server and are not forked from the training process. That one has many
threads, and a fork while one of them hands Python's lock back leaves a child that waits for ever (seen with DDP).
"""

from __future__ import annotations

import contextlib
import functools
import multiprocessing
import multiprocessing.connection
import os
import select
import shutil
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.context import BaseContext
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from torch.utils.data import DataLoader, Dataset

from simdist.core.errors import EXIT_FAILED, InputError
from simdist.core.output import write_error

PREFETCH = 4  # answers that each worker prepares
MOST_DEATHS = 3  # without an answer between them
SHARED_MEMORY = Path("/dev/shm")
"""Through which processes hand tensors to each other. Where it is full, an answer is lost without an error."""


def answers(dataset: Dataset[Any], requests: range, workers: int, pin_memory: bool) -> Iterator[Any]:
    """`dataset[request]` of each request.

    Args:
        workers: processes; 0 answers in this one.
        pin_memory: put tensors where a GPU fetches them faster.

    Raises:
        InputError: workers are killed again and again.
    """
    answered = deaths = 0
    while answered < len(requests):
        iterator, processes = _start(dataset, requests[answered:], workers, pin_memory)
        try:
            while answered < len(requests):
                try:
                    answer = next(iterator)
                except (RuntimeError, OSError, EOFError):  # the last two: while it hands over an answer
                    dead = _dead(processes)
                    if dead is None:
                        raise
                    deaths += 1
                    _report(dead, deaths, workers)
                    break
                yield answer
                answered, deaths = answered + 1, 0
        finally:
            del iterator  # the last reference: it tells its processes to end
            for process in processes:  # one may wait for a lock that a killed one took with it
                process.join(timeout=1)
                process.kill()


def usable_workers(wanted: int, num_bytes: int) -> int:
    """`wanted`, or 0 with a warning if shared memory has no room for what they prepare.

    Args:
        wanted: number of workers.
        num_bytes: size of an answer.
    """
    needed = 2 * wanted * PREFETCH * num_bytes
    try:
        free = shutil.disk_usage(SHARED_MEMORY).free
    except OSError:
        return wanted
    if wanted == 0 or free >= needed:
        return wanted
    write_error(
        f"warning: {SHARED_MEMORY} has {free:,} bytes free, and {wanted} loader workers need {needed:,}, so the "
        "training process reads the data. Give a container more (docker run --shm-size 8g), or set --data.num_workers 0"
    )
    return 0


def _start(
    dataset: Dataset[Any], requests: range, workers: int, pin_memory: bool
) -> tuple[Iterator[Any], set[BaseProcess]]:
    """A DataLoader's iterator, and its processes."""
    loader = DataLoader(
        dataset,
        batch_size=None,
        sampler=requests,
        num_workers=workers,
        prefetch_factor=PREFETCH if workers else None,
        pin_memory=pin_memory,
        multiprocessing_context=_fork_server() if workers else None,
        worker_init_fn=functools.partial(_end_with, os.getpid()) if workers else None,
    )
    others = set(multiprocessing.active_children())
    with _unchanged_child_handler():
        iterator = iter(loader)
    return iterator, set(multiprocessing.active_children()) - others if workers else set()


def _end_with(trainer: int, worker: int) -> None:
    """End this process when the training process ends, however it does.

    A worker's parent is the fork server, which lives as long as a worker does: after `kill -9` of the training both
    would stay for ever.
    """
    del worker

    def watch() -> None:
        try:
            select.select([os.pidfd_open(trainer)], [], [])
        except ProcessLookupError:
            pass  # it has ended already
        except OSError:  # a kernel without pidfd_open
            return
        os._exit(EXIT_FAILED)

    if hasattr(os, "pidfd_open"):  # Linux
        threading.Thread(target=watch, daemon=True, name="end with the training").start()


def _fork_server() -> BaseContext:
    """A process that has imported what workers need and is deaf to signals, as they are from their first moment on."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["simdist.data.worker_start"])
    return context


@contextmanager
def _unchanged_child_handler() -> Iterator[None]:
    """Torch's own handler of SIGCHLD would raise wherever the training is when a worker dies, even in a save.

    Without it the iterator notices within five seconds of waiting for the dead one.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGCHLD)
    yield
    signal.signal(signal.SIGCHLD, before)


def _dead(processes: set[BaseProcess]) -> BaseProcess | None:
    """A process that has ended; one that is just being killed is given a moment for it."""
    of_sentinel = {process.sentinel: process for process in processes}
    ending = multiprocessing.connection.wait(list(of_sentinel), timeout=1)
    for process in [process for sentinel, process in of_sentinel.items() if sentinel in ending]:
        process.join(timeout=10)  # its files are closed some time before it has ended
        if not process.is_alive():
            return process
    return None


def _report(dead: BaseProcess, deaths: int, workers: int) -> None:
    how = f"exit code {dead.exitcode}"
    with contextlib.suppress(ValueError, TypeError):
        how = signal.Signals(-(dead.exitcode or 0)).name
    if deaths >= MOST_DEATHS:
        raise InputError(
            f"loader workers died {deaths} times in a row ({how}), perhaps because memory is full; run the same "
            f"command again with fewer --data.num_workers (now {workers}; 0 reads in the training process)"
        )
    write_error(f"a loader worker died ({how}); others take over")
