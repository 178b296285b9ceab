"""Averaging of a module's gradients over ranks while the next module already runs.

DDP waits for its all-reduces at the end of backward. Its communication hook is given an answer at once instead, while
the all-reduce goes on in place, in DDP's own buckets (`gradient_as_bucket_view`); `wait` is called just before the
module's update, after the next module's forward. Nothing else may touch the gradients in between.

DDP wants to see the type of a hook's argument, so annotations are not postponed in this module.
"""

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel


class OverlappedReduction:
    """All-reduces of one module that are under way.

    Args:
        module: the greedy module under DDP, built with `gradient_as_bucket_view=True`.
        compress: send gradients in bf16.
    """

    def __init__(self, module: DistributedDataParallel, compress: bool) -> None:
        self._compress = compress
        self._pending: list[tuple[dist.Work, Tensor, Tensor]] = []
        module.register_comm_hook(None, self._start)

    def _start(self, state: None, bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:  # pyright: ignore
        del state
        gradients = bucket.buffer()
        gradients.div_(dist.get_world_size())
        sent = gradients.bfloat16() if self._compress else gradients
        work = dist.all_reduce(sent, async_op=True)
        assert work is not None
        self._pending.append((work, sent, gradients))
        done: torch.futures.Future[Tensor] = torch.futures.Future()
        done.set_result(gradients)
        return done

    def wait(self) -> None:
        """Return when the gradients are averaged; on a GPU, when its stream will wait for that."""
        for work, sent, gradients in self._pending:
            work.wait()
            if sent is not gradients:
                gradients.copy_(sent)
        self._pending.clear()
