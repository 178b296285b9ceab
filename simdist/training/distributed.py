"""Processes that train together: the Accelerator, DDP with overlapping all-reduces, and agreement between ranks.

Annotations are not postponed in this module, because DDP inspects the type of a communication hook's argument.
"""

import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from simdist.core.errors import InputError
from simdist.core.signals import SignalHandler, StoppedError
from simdist.models.span_timer import COLLECTIVES
from simdist.training.deepspeed_settings import check_started, is_wanted, read_plugin
from simdist.training.hardware import SLOW_BF16, emulates_bf16, uses_cpu
from simdist.training.watchdog import Watchdog
from simdist.training.world import enter

ONE_BUCKET = 1_000_000  # MB, more than any module has


def resolve_precision(wanted: str, saved: str | None = None) -> str:
    """`no`, `bf16` or `fp16` for a `train.precision` that may be `auto`: then `accelerate launch --mixed_precision`.

    `auto` avoids bf16 on CPUs that emulate it. A run that resumes on another CPU keeps its precision.

    Args:
        wanted: `train.precision` of the config.
        saved: precision of the run that resumes, if there is one.

    Raises:
        InputError: the launcher asks for another precision.
    """
    launched = os.environ.get("ACCELERATE_MIXED_PRECISION", "no").lower()
    precision = launched if wanted == "auto" else wanted
    if wanted == "auto" and launched == "bf16" and not _on_gpu():
        precision = saved if saved in ("no", "bf16") else "no" if emulates_bf16() else "bf16"
    if precision not in ("no", "bf16", "fp16"):
        raise InputError(f"accelerate launch --mixed_precision={precision} is not supported. Use no, bf16 or fp16")
    if precision == "fp16" and not torch.cuda.is_available():
        raise InputError("train.precision=fp16 needs a GPU. Use bf16 or no on a CPU")
    return precision


def _on_gpu() -> bool:
    return torch.cuda.is_available() and not uses_cpu(os.environ)


def slow_precision(precision: str, wanted: str = "auto") -> str | None:
    """A warning if the CPU emulates bf16 and the run uses it, or trains in float32 for that reason.

    Args:
        precision: the run's precision.
        wanted: `train.precision` of the config. There is no warning about float32 if it was requested.
    """
    if _on_gpu() or not emulates_bf16():
        return None
    if precision == "bf16":
        return f"{SLOW_BF16}. Use --train.precision no"
    if wanted == "auto" and precision == "no" and os.environ.get("ACCELERATE_MIXED_PRECISION", "no").lower() == "bf16":
        return f"{SLOW_BF16}, so this trains in float32. --train.precision bf16 insists"
    return None


def build_accelerator(precision: str) -> Accelerator:
    """An Accelerator on the available GPUs, or on the CPU with gloo.

    DDP does not search for unused parameters, as every parameter of a greedy module contributes to its loss. It does
    not broadcast BatchNorm's running statistics before each forward, which would prevent overlapping: training does not
    read them, and rank 0's are broadcast before a validation does.

    Under `accelerate launch --use_deepspeed` it is for DeepSpeed with float32 weights, and `DeepSpeedEngine` is
    responsible for autocast.

    Raises:
        InputError: DeepSpeed is not available as requested, or the launcher's variables contradict each other.
    """
    enter(os.environ)  # bare `srun` starts a world of processes, too
    if is_wanted(os.environ):
        accelerator = Accelerator(mixed_precision="no", deepspeed_plugin=read_plugin(precision))
        check_started(accelerator)
        return accelerator
    return Accelerator(
        mixed_precision=precision,
        cpu=not torch.cuda.is_available(),
        kwargs_handlers=[
            DistributedDataParallelKwargs(
                gradient_as_bucket_view=True, broadcast_buffers=False, bucket_cap_mb=ONE_BUCKET
            )
        ],
    )


def under_ddp(accelerator: Accelerator, module: nn.Module) -> nn.Module:
    """The module with autocast, wrapped in DDP if there are several processes."""
    # DDP warns about the first convolution, whose only input channel may have any stride
    warnings.filterwarnings("ignore", message="Grad strides do not match bucket view strides")
    with warnings.catch_warnings():  # renamed in torch 2.13, but not yet in Accelerate
        warnings.filterwarnings("ignore", message=".*broadcast_buffers", category=FutureWarning)
        return accelerator.prepare_model(module)


class OverlappedReduction:
    """Averages a module's gradients over ranks while the next module runs.

    DDP waits for its all-reduces at the end of backward. This hook returns immediately, and the all-reduces continue.
    `wait` must be called before anything reads the gradients.

    After the first step DDP sorts the parameters of its buckets by the order in which their gradients arrived. A
    ring all-reduce adds the ranks in an order that depends on an element's place, so with more than two ranks the steps
    after a restart would differ in the last bit. Therefore a module is one bucket, and it is sent in the order of its
    parameters.

    Args:
        module: the greedy module under DDP, built with `gradient_as_bucket_view=True`.
        compress: send gradients in bf16.
    """

    def __init__(self, module: DistributedDataParallel, compress: bool) -> None:
        self._compress = compress
        self._others: list[Tensor] = []
        self._pending: list[tuple[dist.Work, Tensor, list[Tensor]]] = []
        self._places = {id(parameter): place for place, parameter in enumerate(module.parameters())}
        module.register_comm_hook(None, self._start)

    def _start(self, state: None, bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:  # pyright: ignore
        del state
        pairs = zip(bucket.parameters(), bucket.gradients(), strict=True)
        gradients = [gradient for _, gradient in sorted(pairs, key=lambda pair: self._places[id(pair[0])])]
        sent = torch.cat([gradient.flatten() for gradient in gradients]).div_(dist.get_world_size())
        sent = sent.bfloat16() if self._compress else sent
        work = dist.all_reduce(sent, async_op=True)
        assert work is not None
        self._pending.append((work, sent, gradients))
        if self._others:
            others, self._others = self._others, []
            together = torch.cat([tensor.flatten() for tensor in others]).div_(dist.get_world_size())
            work = dist.all_reduce(together, async_op=True)
            assert work is not None
            self._pending.append((work, together, others))
        done: torch.futures.Future[Tensor] = torch.futures.Future()
        done.set_result(bucket.buffer())
        return done

    def add(self, tensors: list[Tensor]) -> None:
        """Average these over ranks as well, in their own type, once the next gradients are sent."""
        self._others = tensors

    def wait(self) -> None:
        """Wait until the gradients are averaged; on a GPU, make its stream wait."""
        for work, sent, gradients in self._pending:
            with COLLECTIVES.span(sent.device):
                work.wait()
            for gradient, mean in zip(gradients, sent.split([each.numel() for each in gradients]), strict=True):
                gradient.copy_(mean.view_as(gradient))
        self._pending.clear()


def mean_metrics(outcomes: list[list[dict[str, Tensor]]], accelerator: Accelerator) -> list[dict[str, float]]:
    """Each module's metrics, averaged over batches and ranks.

    Args:
        outcomes: per batch and module, scalar tensors; the same names in all batches.
        accelerator: reduces over the ranks.
    """
    values = torch.stack([torch.cat([torch.stack(list(module.values())) for module in batch]) for batch in outcomes])
    means = iter(cast(Tensor, accelerator.reduce(values.mean(dim=0), "mean")).tolist())
    return [{name: next(means) for name in module} for module in outcomes[0]]


class CpuGroup:
    """Collectives over host memory (gloo), so that no step waits for the GPU to learn about a signal."""

    def __init__(self) -> None:
        several = dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
        self._group = dist.new_group(backend="gloo") if several else None

    def all_reduce_max(self, *values: int) -> list[int]:
        """The elementwise maximum over all ranks."""
        if self._group is None:
            return list(values)
        tensor = torch.tensor(values)
        dist.all_reduce(tensor, dist.ReduceOp.MAX, group=self._group)
        return tensor.tolist()

    def gather_numbers(self, values: Sequence[float]) -> list[list[float]]:
        """Equally many numbers of each rank, in the order of ranks."""
        mine = torch.tensor(values, dtype=torch.float64)
        if self._group is None:
            return [mine.tolist()]
        gathered = [torch.empty_like(mine) for _ in range(dist.get_world_size())]
        dist.all_gather(gathered, mine, group=self._group)
        return [each.tolist() for each in gathered]

    def gather(self, value: Any) -> list[Any]:
        """Values of all ranks, in their order. Slow."""
        if self._group is None:
            return [value]
        values = [None] * dist.get_world_size()
        dist.all_gather_object(values, value, group=self._group)
        return values


@dataclass(frozen=True)
class Process:
    """This process in its world."""

    accelerator: Accelerator
    cpu_group: CpuGroup
    stop: SignalHandler
    watchdog: Watchdog
    no_gpu: str | None = None
    """Why it runs on the CPU although there is a GPU, or None."""
    slow_precision: str | None = None
    """A warning about emulated bf16, or None."""

    def check_stop(self) -> None:
        """Report progress to the watchdog. Raises `StoppedError` on all ranks if any rank was asked to stop."""
        self.watchdog.progress()
        (signal_number,) = self.cpu_group.all_reduce_max(self.stop.signal_number)
        if signal_number:
            raise StoppedError(signal_number)
