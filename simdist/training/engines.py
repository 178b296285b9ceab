"""What trains the greedy modules: local backward, with a DDP wrapper and an optimizer each, or DeepSpeed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from simdist.config.schema import Config, OptimConfig
from simdist.models.encoder import GreedyEncoder
from simdist.training.accelerator import under_ddp
from simdist.training.reduction import OverlappedReduction
from simdist.training.step import ModuleT, ModuleTrainer, NumberedModule, RandomStreams, Step, StepOutcome, train_step


class Engine(Protocol):
    """What trains the greedy modules of an encoder."""

    @property
    def name(self) -> str:
        """For the terminal; empty for one process that has nothing to say."""
        ...

    @property
    def modules(self) -> Sequence[NumberedModule]:
        """All greedy modules, from the audio upwards."""
        ...

    def step(
        self,
        learning: Sequence[NumberedModule],
        inputs: Tensor,
        frames: list[int],
        step: Step,
        draws: RandomStreams,
    ) -> StepOutcome:
        """Train `learning` on one batch; see `train_step`."""
        ...

    def state(self) -> list[dict[str, Any]]:
        """Each module's optimizer and scaler state, in one format whatever the engine; called on all ranks."""
        ...

    def load_state(self, states: list[dict[str, Any]]) -> None:
        """Take up the encoder's weights, which were just loaded, and what `state` returned; [] is a fresh start."""
        ...

    def load_module(self, number: int, state: dict[str, Any] | None) -> None:
        """The same for one module: its entry of `states`, or None."""
        ...


def build_engine(accelerator: Accelerator, encoder: GreedyEncoder, config: Config) -> Engine:
    """What trains the modules: DeepSpeed's engine if accelerate launched it, else one DDP and optimizer a module."""
    if accelerator.distributed_type != DistributedType.DEEPSPEED:
        return LocalEngine(accelerator, encoder, config)
    from simdist.training.deepspeed_engine import DeepSpeedEngine

    return DeepSpeedEngine(accelerator, encoder, config)


class LocalEngine:
    """Trains greedy modules one after the other within a step, each with its own DDP wrapper, optimizer and scaler."""

    def __init__(self, accelerator: Accelerator, encoder: GreedyEncoder, config: Config) -> None:
        self._config, self._accelerator = config, accelerator
        compress = config.train.compress_gradients
        self._trainers = [
            prepare_module(accelerator, number, module, config.optim, compress)
            for number, module in enumerate(encoder.stack)
        ]

    @property
    def name(self) -> str:
        return self._accelerator.distributed_type.value if self._accelerator.num_processes > 1 else ""

    @property
    def modules(self) -> Sequence[NumberedModule]:
        return self._trainers

    def step(
        self,
        learning: Sequence[NumberedModule],
        inputs: Tensor,
        frames: list[int],
        step: Step,
        draws: RandomStreams,
    ) -> StepOutcome:
        trainers = [self._trainers[module.number] for module in learning]
        return train_step(trainers, inputs, frames, step, draws, self._config.train.accumulate)

    def state(self) -> list[dict[str, Any]]:
        return [trainer.state() for trainer in self._trainers]

    def load_state(self, states: list[dict[str, Any]]) -> None:
        if states:  # none in a run that began with weights from elsewhere
            for trainer, state in zip(self._trainers, states, strict=True):
                trainer.load_state(state)

    def load_module(self, number: int, state: dict[str, Any] | None) -> None:
        trainer = self._trainers[number]
        if state is None:
            trainer.optimizer.state.clear()
        else:
            trainer.load_state(state)


def prepare_module(
    accelerator: Accelerator, number: int, module: ModuleT, optim: OptimConfig, compress: bool
) -> ModuleTrainer[ModuleT]:
    """A module with its DDP wrapper, optimizer and scaler; `compress` sends its gradients in bf16."""
    wrapped = under_ddp(accelerator, module)
    optimizer = torch.optim.AdamW(module.parameters(), lr=optim.lr, weight_decay=optim.weight_decay, fused=True)
    scaler = torch.amp.GradScaler(  # pyright: ignore[reportPrivateImportUsage]
        accelerator.device.type, enabled=accelerator.mixed_precision == "fp16"
    )
    reduction = OverlappedReduction(wrapped, compress) if isinstance(wrapped, DistributedDataParallel) else None
    return ModuleTrainer(number, module, wrapped, optimizer, scaler, optim.clip_grad_norm, reduction)
