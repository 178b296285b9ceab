"""What DeepSpeed is told: the user's JSON, with everything that simdist's own configuration decides filled in.

A JSON that decides such a thing itself is refused: the run's identity is its configuration, and a learning rate or a
clipping from elsewhere would change numbers behind its back. Imports no deepspeed, which takes seconds.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any

import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.utils import DeepSpeedPlugin, DistributedType

from simdist.config.schema import Config
from simdist.core.errors import InputError

# key of DeepSpeed's JSON -> values that leave the decision to simdist, and what decides it there
DECIDED: dict[str, tuple[tuple[Any, ...], str]] = {
    "optimizer": ((), "--optim.lr and its neighbors; leave it out"),
    "scheduler": ((), "--optim.schedule; leave it out"),
    "gradient_clipping": (("auto", 0, 0.0), '--optim.clip_grad_norm, which clips each module by itself; write "auto"'),
    "gradient_accumulation_steps": (("auto", 1), '--train.groups_at_once; write "auto"'),
    "train_batch_size": (("auto",), '--data.batch_size; write "auto"'),
    "train_micro_batch_size_per_gpu": (("auto",), '--data.batch_size; write "auto"'),
    "bf16.enabled": (("auto", False), '--train.precision, with weights in float32; write "auto"'),
    "fp16.enabled": (("auto", False), '--train.precision, with weights in float32; write "auto"'),
    "torch_autocast.enabled": ((False,), "--train.precision; leave it out"),
    "communication_data_type": ((), "--train.compress_gradients; leave it out"),
    "zero_optimization.offload_optimizer.device": (("none",), "nothing: the optimizer stays on the GPU; leave it out"),
    "zero_optimization.offload_param.device": (("none",), "nothing: weights stay on the GPU; leave it out"),
}


def is_wanted(environ: Mapping[str, str]) -> bool:
    """Whether `accelerate launch --use_deepspeed` started this process."""
    return environ.get("ACCELERATE_USE_DEEPSPEED", "false").lower() == "true"


def read_plugin(precision: str) -> DeepSpeedPlugin:
    """The settings that accelerate's launcher passed on, checked.

    Raises:
        InputError: DeepSpeed is missing, or is asked for something that simdist does not do or decides itself.
    """
    missing = [name for name in ("deepspeed", "transformers") if find_spec(name) is None]
    if missing:
        raise InputError(f"--use_deepspeed needs {' and '.join(missing)}: pip install 'simdist[deepspeed]'")
    if precision == "fp16":
        raise InputError(
            "train.precision is 'fp16'; a DeepSpeed engine has one loss scale for all modules: take bf16 or no, or DDP"
        )
    source = os.environ.get("ACCELERATE_DEEPSPEED_CONFIG_FILE", "accelerate launch")
    try:
        plugin = DeepSpeedPlugin()
    except (OSError, ValueError) as error:
        raise InputError(f"DeepSpeed's settings in {source} cannot be used: {' '.join(str(error).split())}") from error
    _check(plugin, source)
    if not torch.cuda.is_available():
        _prepare_for_cpu()
    return plugin


def check_started(accelerator: Accelerator) -> None:
    """Raise an InputError unless DeepSpeed really runs, with all processes: accelerate silently does without."""
    if accelerator.distributed_type != DistributedType.DEEPSPEED:
        raise InputError(
            "--use_deepspeed was given, but accelerate would train without DeepSpeed "
            f"({accelerator.distributed_type.value}): unset ACCELERATE_USE_CPU; DS_ACCELERATOR=cpu tries it on a CPU"
        )
    if not dist.is_initialized():
        raise InputError("DeepSpeed needs a launcher: accelerate launch --use_deepspeed -m simdist.train")
    if dist.get_world_size() != accelerator.num_processes:
        raise InputError(
            f"accelerate sees {accelerator.num_processes} of {dist.get_world_size()} processes: on a CPU it runs "
            "DeepSpeed with --num_processes 1 only; several train with DDP, without --use_deepspeed"
        )


def fill(settings: dict[str, Any], config: Config, share: int, passes: int, num_parameters: int) -> None:
    """Complete DeepSpeed's settings, in place.

    Args:
        settings: checked by `read_plugin`.
        config: the experiment.
        share: clips of a rank in one step.
        passes: forward passes per step, which share them.
        num_parameters: of all greedy modules.

    Raises:
        InputError: the config asks for what one engine cannot do.
    """
    if config.train.schedule != "joint":
        raise InputError(
            f"train.schedule is {config.train.schedule!r}; a DeepSpeed engine trains all modules in every step: "
            "take joint, or leave --use_deepspeed out"
        )
    if config.train.trunk is not None:
        raise InputError(
            f"train.trunk is {config.train.trunk}; a DeepSpeed engine trains all modules: leave --use_deepspeed out"
        )
    settings["gradient_accumulation_steps"] = passes
    settings["train_micro_batch_size_per_gpu"] = share // passes
    settings["gradient_clipping"] = 0.0  # accelerate would take 1.0, over all modules together
    if config.train.compress_gradients:
        settings["communication_data_type"] = "bf16"
    zero = settings["zero_optimization"]
    zero["compute_grad_norm"] = False  # of all modules together: one that is not finite would skip all of them
    if zero.get("reduce_bucket_size", "auto") == "auto":  # ZeRO allocates it in full; its default takes 2 GB
        zero["reduce_bucket_size"] = num_parameters


def _prepare_for_cpu() -> None:
    """Keep DeepSpeed from compiling its all-reduce over shared memory, which takes minutes; gloo has one."""
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
    import deepspeed.ops  # pyright: ignore[reportMissingImports]

    deepspeed.ops.__compatible_ops__ = {}  # pyright: ignore[reportAttributeAccessIssue]


def _check(plugin: DeepSpeedPlugin, source: str) -> None:
    stage = plugin.get_value("zero_optimization.stage")
    if stage not in (1, 2):
        raise InputError(
            f"{source} asks for ZeRO stage {stage}; simdist has 1 and 2 (configs/deepspeed/zero1.json, zero2.json), "
            "and plain DDP without --use_deepspeed"
        )
    for key, (neutral, ours) in DECIDED.items():
        value = plugin.get_value(key)
        if value is not None and value not in neutral:
            raise InputError(f"{source} sets {key} to {value!r}, which is decided by {ours}")
