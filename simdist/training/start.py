"""A start that fails on one node: the other nodes are told, and end, too, instead of waiting for ranks that never come.

Imports no torch until then.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from simdist.core.console import fail, has_group
from simdist.core.errors import EXIT_OK, InputError
from simdist.training.world import read


@contextmanager
def telling_other_nodes() -> Iterator[None]:
    """Within this context, which contains the creation of the process group, a failure before it reaches all ranks.

    The ranks of one node read the same files and fail alike, so nothing is told among them.
    """
    try:
        yield
    except InputError as error:
        if not _others_wait():
            raise
        try:
            fail(str(error), error.exit_code)  # printed first: who knows whether the others come
        finally:
            _tell(error)
    except SystemExit as left:  # an option; its error is printed already
        if left.code not in (EXIT_OK, None) and _others_wait():
            _tell(InputError("an option is wrong; the rank's own output says which"))
        raise


def _others_wait() -> bool:
    """Whether ranks of other nodes wait for this one, as before the process group is there."""
    with suppress(InputError):
        return read(os.environ).num_nodes > 1 and not has_group()
    return False


def _tell(failure: InputError) -> None:
    """Meet the other ranks at their start, and fail there with them."""
    with suppress(Exception):  # a start that failed need not be able to do that
        from simdist.training.agreement import together
        from simdist.training.distributed import CpuGroup, build_accelerator

        build_accelerator("no")
        with together(CpuGroup()):
            raise failure
