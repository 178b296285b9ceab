"""Engines that train the greedy modules of an encoder: `LocalEngine` or DeepSpeed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch import Tensor

from simdist.config.schema import Config
from simdist.models.encoder import GreedyEncoder
from simdist.models.groups import share_group
from simdist.training.random_streams import RandomStreams
from simdist.training.step import LocalEngine, NumberedModule, Step, StepOutcome


class Engine(Protocol):
    """Trains the greedy modules of an encoder."""

    @property
    def name(self) -> str:
        """For the terminal. Empty for a single process."""
        ...

    @property
    def modules(self) -> Sequence[NumberedModule]:
        """All greedy modules, starting at the audio."""
        ...

    def step(self, modules: Sequence[NumberedModule], inputs: Tensor, step: Step) -> StepOutcome:
        """Train `modules` on (B, T, 1) audio, or on the (B, L, C) latent of the module below the first one."""
        ...

    def state(self) -> list[dict[str, Any]]:
        """State of each module's optimizer and scaler, in the same format for all engines. Called on all ranks."""
        ...

    def load_state(self, states: list[dict[str, Any]]) -> None:
        """Use the encoder's weights, which were just loaded, and load what `state` returned; [] is a fresh start."""
        ...

    def load_module(self, number: int, state: dict[str, Any] | None) -> None:
        """Like `load_state` for one module, with its entry of `states` or None."""
        ...


def build_engine(accelerator: Accelerator, encoder: GreedyEncoder, config: Config, streams: RandomStreams) -> Engine:
    """DeepSpeed's engine under `accelerate launch --use_deepspeed`, otherwise `LocalEngine`. Called on all ranks."""
    if streams.groups is not None:
        share_group(encoder, streams.groups.peers(accelerator.num_processes))
    if accelerator.distributed_type != DistributedType.DEEPSPEED:
        return LocalEngine(accelerator, encoder, config, streams)
    from simdist.training.deepspeed_engine import DeepSpeedEngine

    return DeepSpeedEngine(accelerator, encoder, config, streams)
