"""Agreement between ranks: what happens to one of them between two steps, all of them act on together."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager

from simdist.core.errors import EXIT_FAILED, FailedError, InputError
from simdist.training.distributed import Process


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
            failure = None if self.failure is None else (str(self.failure), self.failure.exit_code)
            message, code = next(each for each in self._process.cpu_group.gather(failure) if each is not None)
            raise (FailedError if code == EXIT_FAILED else InputError)(message) from self.failure
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
