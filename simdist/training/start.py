"""A start that fails on one node: the other nodes are told, and end, too, instead of waiting for ranks that never come.

Imports no torch until then.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress

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
        error.is_shared |= _tell(error)
        raise
    except SystemExit as left:  # an option; its error is printed already
        if left.code not in (EXIT_OK, None):
            _tell(InputError("an option is wrong; the rank's own output says which"))
        raise


def _tell(failure: InputError) -> bool:
    """Meet the other ranks at their start, and fail there with them; returns whether rank 0 failed alike."""
    with suppress(Exception):  # a start that failed need not be able to do that
        if read(os.environ).num_nodes == 1:
            return False
        import torch.distributed as dist

        from simdist.training.agreement import together
        from simdist.training.distributed import CpuGroup, build_accelerator

        if dist.is_initialized():
            return False  # all have met, and know
        build_accelerator("no")
        try:
            with together(CpuGroup()):
                raise failure
        except InputError as error:
            return str(error) == str(failure)
    return False
