"""Agreement between ranks: what one of them meets, all act on, and what rank 0 reads from a shared folder, all use.

Every rank sees the file system for itself: another node's cache may be a minute old, its configuration another file,
its copy of the corpus another corpus. So rank 0 decides, and the others verify what they see or all stop.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NoReturn

from simdist.core.errors import EXIT_FAILED, FailedError, InputError
from simdist.training.distributed import CpuGroup, Process


@contextmanager
def together(group: CpuGroup) -> Iterator[None]:
    """Raise a failure of any rank inside the context on all ranks. The context contains no collectives."""
    failure = None
    try:
        yield
    except InputError as error:
        failure = error
    if group.all_reduce_max(int(failure is not None))[0]:
        _raise_first(group, failure)


def check_equal(group: CpuGroup, what: str, mine: Mapping[str, Any]) -> None:
    """Raise an `InputError` on all ranks if any value differs from rank 0's.

    Args:
        group: of all ranks.
        what: plural noun for the message, such as `configurations`.
        mine: values of this rank, by name.
    """
    every = group.gather((socket.gethostname(), dict(mine)))
    host, expected = every[0]
    for rank, (other, values) in enumerate(every):
        for name, value in values.items():
            if value != expected.get(name):
                error = InputError(
                    f"ranks have different {what}: {name} is {expected.get(name)!r} on rank 0 ({host}) and {value!r} "
                    f"on rank {rank} ({other}). Start all ranks with the same files and options"
                )
                error.is_shared = True
                raise error


def _raise_first(group: CpuGroup, mine: InputError | None) -> NoReturn:
    """Raise the first failure of any rank, on all ranks."""
    failure = None if mine is None else (str(mine), mine.exit_code, socket.gethostname())
    failures = group.gather(failure)
    rank, (message, code, host) = next((rank, each) for rank, each in enumerate(failures) if each is not None)
    where = f" (on rank {rank}, {host})" if rank and len({each and each[0] for each in failures}) > 1 else ""
    error = (FailedError if code == EXIT_FAILED else InputError)(message + where)
    error.is_shared = True
    raise error from mine


class Agreement:
    """Holds a rank's failures and corrupt samples until the ranks next agree.

    All ranks then raise the failure, so that none waits in a collective for a rank that has left.

    Args:
        process: this process in its world.
        max_corrupt: number of corrupt samples above which training fails (`data.max_bad_samples`).
        record: called on all ranks for each new corrupt sample.
    """

    def __init__(self, process: Process, max_corrupt: int, record: Callable[[str], None]) -> None:
        self._process, self._max_corrupt, self._record = process, max_corrupt, record
        self.failure: InputError | None = None
        """This rank's failure."""
        self.corrupt: set[str] = set()
        """Why samples were skipped, on all ranks."""
        self._new_corrupt: set[str] = set()

    @contextmanager
    def held(self) -> Iterator[None]:
        """Hold a failure until `reach`."""
        try:
            yield
        except InputError as error:
            self.failure = self.failure or error

    def skip(self, reasons: Iterable[str]) -> None:
        """Note corrupt samples of this rank."""
        self._new_corrupt.update(set(reasons) - self.corrupt)

    def reach(self, flags: Sequence[int]) -> tuple[int, list[int]]:
        """The largest stop signal and the largest of each flag over all ranks; 0 for none.

        Raises:
            InputError: any rank has failed.
        """
        mine = self._process.stop.signal_number, int(self.failure is not None), int(bool(self._new_corrupt))
        signal_number, failed, corrupt, *flags = self._process.cpu_group.all_reduce_max(*mine, *flags)
        if corrupt:
            self._share_corrupt()
        if failed:
            _raise_first(self._process.cpu_group, self.failure)
        return signal_number, flags

    def _share_corrupt(self) -> None:
        new = set().union(*self._process.cpu_group.gather(self._new_corrupt)) - self.corrupt
        self.corrupt |= new
        self._new_corrupt = set()
        for reason in sorted(new):
            self._record(reason)
        if len(self.corrupt) > self._max_corrupt:
            raise FailedError(
                f"{len(self.corrupt)} samples are corrupt, more than data.max_bad_samples={self._max_corrupt}. "
                f"The first is {min(self.corrupt)}; events.jsonl in the run folder lists all"
            )
