"""The one place that builds an Accelerator."""

from __future__ import annotations

import os
import warnings
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs
from torch import nn

from simdist.core.errors import InputError
from simdist.core.signals import SignalHandler
from simdist.training.deepspeed_settings import check_started, is_wanted, read_plugin
from simdist.training.hardware import SLOW_BF16, emulates_bf16, uses_cpu
from simdist.training.watchdog import Watchdog
from simdist.training.world import enter


def resolve_precision(wanted: str, saved: str | None = None) -> str:
    """`no`, `bf16` or `fp16`: what the config says, and for `auto` what `accelerate launch --mixed_precision` said.

    `auto` does not take bf16 on a CPU that emulates it. A run on CPUs that was begun keeps its precision on other CPUs.

    Args:
        wanted: `train.precision` of the config.
        saved: that of the run to be resumed, if there is one.

    Raises:
        InputError: the launcher asks for a precision that simdist does not train in.
    """
    launched = os.environ.get("ACCELERATE_MIXED_PRECISION", "no").lower()
    precision = launched if wanted == "auto" else wanted
    if wanted == "auto" and launched == "bf16" and not _on_gpu():
        precision = saved if saved in ("no", "bf16") else "no" if emulates_bf16() else "bf16"
    if precision not in ("no", "bf16", "fp16"):
        raise InputError(f"accelerate was launched with mixed precision {precision!r}; simdist has no, bf16 and fp16")
    if precision == "fp16" and not torch.cuda.is_available():
        raise InputError("train.precision is 'fp16', which needs a GPU; on a CPU take bf16 or no")
    return precision


def _on_gpu() -> bool:
    return torch.cuda.is_available() and not uses_cpu(os.environ)


def slow_precision(precision: str, wanted: str = "auto") -> str | None:
    """A warning where bf16 is emulated, or was left out for that reason.

    Args:
        precision: what the run trains in.
        wanted: `train.precision` of the config; float32 that was asked for is no replacement of bf16.
    """
    if _on_gpu() or not emulates_bf16():
        return None
    if precision == "bf16":
        return f"{SLOW_BF16}. Use --train.precision no"
    if wanted == "auto" and precision == "no" and os.environ.get("ACCELERATE_MIXED_PRECISION", "no").lower() == "bf16":
        return f"{SLOW_BF16}, so this trains in float32. --train.precision bf16 insists"
    return None


def build_accelerator(precision: str) -> Accelerator:
    """An Accelerator on the GPUs there are, or on the CPU with gloo between processes.

    DDP does not look for unused parameters: every parameter of a greedy module takes part in its loss. It does not
    broadcast BatchNorm's running statistics before each forward either, which would stand in the way of overlapping;
    nothing reads them in training, and rank 0's are sent out before they are read.

    Under `accelerate launch --use_deepspeed` it is one for DeepSpeed, with float32 weights; autocast is then up to
    `DeepSpeedEngine`.

    Raises:
        InputError: DeepSpeed cannot be had as asked, or the launcher's variables contradict each other.
    """
    enter(os.environ)  # srun alone becomes a world of processes, for every command that builds one
    if is_wanted(os.environ):
        accelerator = Accelerator(mixed_precision="no", deepspeed_plugin=read_plugin(precision))
        check_started(accelerator)
        return accelerator
    return Accelerator(
        mixed_precision=precision,
        cpu=not torch.cuda.is_available(),
        kwargs_handlers=[DistributedDataParallelKwargs(gradient_as_bucket_view=True, broadcast_buffers=False)],
    )


def under_ddp(accelerator: Accelerator, module: nn.Module) -> nn.Module:
    """The module with autocast, and under DDP where there are several processes."""
    # the first convolution's weights have one input channel, whose stride may be anything: DDP warns of it
    warnings.filterwarnings("ignore", message="Grad strides do not match bucket view strides")
    with warnings.catch_warnings():  # torch 2.13 renames broadcast_buffers, which Accelerate does not know yet
        warnings.filterwarnings("ignore", message=".*broadcast_buffers", category=FutureWarning)
        return accelerator.prepare_model(module)


class CpuGroup:
    """Agreement between ranks over host memory (gloo), so that no step waits for the GPU to hear of a signal."""

    def __init__(self) -> None:
        several = dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
        self._group = dist.new_group(backend="gloo") if several else None

    def maximum(self, *values: int) -> list[int]:
        """The largest of all ranks' values, each for itself, on every rank."""
        if self._group is None:
            return list(values)
        tensor = torch.tensor(values)
        dist.all_reduce(tensor, dist.ReduceOp.MAX, group=self._group)
        return tensor.tolist()

    def gather(self, value: Any) -> list[Any]:
        """Every rank's value, on every rank; for what is rare."""
        if self._group is None:
            return [value]
        values = [None] * dist.get_world_size()
        dist.all_gather_object(values, value, group=self._group)
        return values


@dataclass(frozen=True)
class Process:
    """This process among the others, and how it is asked to end."""

    accelerator: Accelerator
    hosts: CpuGroup
    stop: SignalHandler
    watchdog: Watchdog
    no_gpu: str | None = None
    """Why it runs on the CPU although it could have a GPU; None if all is well."""
    slow_precision: str | None = None
    """That bf16 is emulated, or was left out for that reason; None if neither."""

    def stopped(self) -> int:
        """The signal by which any rank was asked to stop, the same on all; 0 for none. Also tells of progress."""
        self.watchdog.progress()
        return self.hosts.maximum(self.stop.signal_number)[0]
