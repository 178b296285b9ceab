"""All greedy modules in one DeepSpeed engine, ZeRO 1 or 2: summed losses, one backward, one step.

Modules are detached from each other, so the sum's gradients are those of each module's own loss. Each module is one
parameter group: ZeRO keeps groups apart and updates them one by one, so a group can be clipped by its own norm.

The surprising decision: weights stay float32, and bf16 is autocast, as under DDP. DeepSpeed's own bf16 would round
BatchNorm and the log-variance head, which are float32 everywhere else, and save 2 bytes a weight of models whose memory
goes to activations. So every rank's weights are the master weights, and a checkpoint needs no others.

Imported only where DeepSpeed runs: it takes seconds.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from accelerate import Accelerator
from deepspeed.utils import (  # pyright: ignore[reportMissingImports]
    lazy_init_hp_params_optimizer_state,
    safe_get_full_optimizer_state,
    safe_set_full_fp32_param,
    safe_set_full_optimizer_state,
)
from torch import Tensor, nn

from simdist.config.schema import Config
from simdist.models.encoder import GreedyEncoder
from simdist.models.module import GreedyModule, ModuleLoss, RandomInputs
from simdist.training.deepspeed_settings import fill
from simdist.training.distributed import resolve_precision
from simdist.training.random_streams import RandomStreams
from simdist.training.step import (
    NumberedModule,
    RunningStatistics,
    Step,
    StepOutcome,
    mean_of,
    metrics_of,
    own_settings,
)

MOMENTS = ("exp_avg", "exp_avg_sq")


class SummedLoss(nn.Module):
    """What DeepSpeed takes for its model: the greedy modules, each on the detached latent of the one below."""

    def __init__(self, stack: list[GreedyModule]) -> None:
        super().__init__()
        self.stack = nn.ModuleList(stack)

    def forward(self, x: Tensor, draws: list[RandomInputs], betas: list[float]) -> tuple[Tensor, list[ModuleLoss]]:
        """The sum of the modules' losses on (B, T, 1) audio, and what each made of it.

        A loss that is not finite makes all gradients of its module NaN, so that every rank learns of it from the sum.
        """
        outcomes: list[ModuleLoss] = []
        for module, drawn, beta in zip(self.stack, draws, betas, strict=True):
            outcomes.append(module(x, drawn, beta))
            x = outcomes[-1].latent
        losses = torch.stack([outcome.loss for outcome in outcomes])
        gates = torch.where(losses.detach().isfinite(), 1.0, torch.nan)
        return (losses * gates).sum(), outcomes


class GroupUpdates:
    """Clips each parameter group by its own norm just before it is updated, and skips it where that is not finite.

    Args:
        optimizer: the one that ZeRO steps, group by group; fused, so that the device decides what is skipped.
        limit: the largest norm; None does not clip.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, limit: float | None) -> None:
        self._limit = limit
        self.norms: list[Tensor] = []
        """Of the groups that came by since this was last cleared, over all ranks' partitions."""
        optimizer.register_step_pre_hook(self._prepare)

    def _prepare(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        del args, kwargs
        (group,) = optimizer.param_groups
        gradients = [p.grad for p in group["params"]]  # one: this rank's partition of the group
        square = torch.stack([torch.linalg.vector_norm(gradient).square() for gradient in gradients]).sum()
        dist.all_reduce(square)
        self.norms.append(square.sqrt())
        if self._limit is not None:
            scale = (self._limit / (self.norms[-1] + 1e-6)).clamp(max=1.0)
            for gradient in gradients:
                gradient.mul_(scale)
        optimizer.found_inf = (~self.norms[-1].isfinite()).float()  # pyright: ignore[reportAttributeAccessIssue]


class DeepSpeedEngine:
    """Trains all greedy modules together; the other one is `LocalEngine`.

    Raises:
        InputError: the config asks for what one engine cannot do.
    """

    def __init__(
        self, accelerator: Accelerator, encoder: GreedyEncoder, config: Config, streams: RandomStreams
    ) -> None:
        plugin = accelerator.deepspeed_plugin
        assert plugin is not None
        share = config.data.batch_size // accelerator.num_processes
        self._passes = streams.groups.passes(config.train.groups_at_once) if streams.groups is not None else 1
        fill(plugin.deepspeed_config, config, share, self._passes, sum(p.numel() for p in encoder.parameters()))
        accelerator.gradient_accumulation_steps = self._passes
        self._config, self._streams = config, streams
        self._frames = config.model.num_frames(config.data.crop)
        self.modules: Sequence[NumberedModule] = [
            NumberedModule(m, module, **own_settings(module.config, config.optim))
            for m, module in enumerate(encoder.stack)
        ]
        if resolve_precision(config.train.precision) == "bf16":
            for module in encoder.stack:
                autocast = torch.autocast(accelerator.device.type, dtype=torch.bfloat16)
                module.forward = autocast(module.forward)
        groups = [{"params": list(module.parameters())} for module in encoder.stack]
        self._optimizer = _adamw(groups, config)
        self._updates = GroupUpdates(self._optimizer, config.optim.clip_grad_norm)
        self._engine = accelerator.prepare(SummedLoss(encoder.stack), self._optimizer)[0]
        self._link_moments()
        self.name = f"DeepSpeed ZeRO {plugin.get_value('zero_optimization.stage')}"

    def step(self, modules: Sequence[NumberedModule], inputs: Tensor, step: Step) -> StepOutcome:
        """Train all modules on one batch; see `train_step`."""
        assert len(modules) == len(self.modules)
        for module, group in zip(self.modules, self._optimizer.param_groups, strict=True):
            group["lr"] = module.lr(step.lr)
        self._updates.norms = []
        statistics = [RunningStatistics(module.module) for module in self.modules]
        measured: list[list[dict[str, Tensor]]] = [[] for _ in self.modules]
        for number, x in enumerate(inputs.chunk(self._passes)):  # (B, T, 1) -> passes x (B / passes, T, 1)
            first = number * len(x)
            drawn = [
                self._streams.draw("train", step.number, module, len(x), self._frames, first) for module in self.modules
            ]
            for each in statistics:
                each.begin()
            loss, outcomes = self._engine(x, drawn, [module.beta(step) for module in self.modules])
            for each in statistics:
                each.add(number == self._passes - 1)
            self._engine.backward(loss)  # divides by the number of passes
            self._engine.step()  # updates after the last one
            for module, outcome, values in zip(self.modules, outcomes, measured, strict=True):
                if step.measure:
                    values.append(metrics_of(module.module, outcome, drawn[0].groups))
        norms = torch.stack(self._updates.norms)
        metrics = [mean_of(each) for each in measured if each]
        for values, norm in zip(metrics, norms, strict=step.measure):
            values["grad_norm"] = norm
        nonfinite = (~norms.isfinite()).float()
        for each, skipped in zip(statistics, nonfinite, strict=True):
            _average(each.mean)
            each.settle(skipped)
        return StepOutcome(metrics, nonfinite)

    def state(self) -> list[dict[str, Any]]:
        """Each module's optimizer state as `LocalEngine` saves it, gathered from all ranks' partitions."""
        return [
            {"optimizer": self._gather(group, list(module.module.parameters())), "scaler": {}}
            for module, group in zip(self.modules, self._optimizer.param_groups, strict=True)
        ]

    def load_state(self, states: list[dict[str, Any]]) -> None:
        """Make the encoder's weights the master weights, and take up what either engine's `state` returned."""
        for number in range(len(self.modules)):
            self.load_module(number, states[number] if states else None)

    def load_module(self, number: int, state: dict[str, Any] | None) -> None:
        """The same for one module."""
        parameters = list(self.modules[number].module.parameters())
        for parameter in parameters:
            safe_set_full_fp32_param(parameter, parameter.data)
        if state is not None:
            self._scatter(self._optimizer.param_groups[number], parameters, state["optimizer"]["state"])

    def _link_moments(self) -> None:
        """Make AdamW's state, and link it to the parameters; DeepSpeed does so after its update of the first group."""
        for module, group in zip(self.modules, self._optimizer.param_groups, strict=True):
            partition = group["params"][0]
            moments = {key: torch.zeros_like(partition, requires_grad=False) for key in MOMENTS}
            step = torch.zeros((), device=partition.device)
            self._optimizer.state[partition] = {"step": step, **moments}
            parameters = list(module.module.parameters())
            lazy_init_hp_params_optimizer_state(parameters, partition, self._optimizer.state)

    def _gather(self, group: dict[str, Any], parameters: list[nn.Parameter]) -> dict[str, Any]:
        whole = _adamw([{"params": parameters}], self._config).state_dict()
        whole["param_groups"][0]["lr"] = group["lr"]
        step = self._optimizer.state[group["params"][0]]["step"].cpu()
        whole["state"] = {
            number: {"step": step.clone()} | {key: _whole_moment(parameter, key) for key in MOMENTS}
            for number, parameter in enumerate(parameters)
        }
        return whole

    def _scatter(
        self, group: dict[str, Any], parameters: list[nn.Parameter], state: dict[int, dict[str, Tensor]]
    ) -> None:
        if not state:  # saved by `LocalEngine` before the first update
            return
        self._optimizer.state[group["params"][0]]["step"].copy_(state[0]["step"])
        for number, parameter in enumerate(parameters):
            for key in MOMENTS:
                safe_set_full_optimizer_state(parameter, state[number][key].to(parameter.device), key)


def _average(tensors: list[Tensor]) -> None:
    """Replace tensors by their mean over ranks."""
    if tensors and dist.get_world_size() > 1:
        together = torch.cat([tensor.flatten() for tensor in tensors]) / dist.get_world_size()
        dist.all_reduce(together)
        for tensor, mean in zip(tensors, together.split([tensor.numel() for tensor in tensors]), strict=True):
            tensor.copy_(mean.view_as(tensor))


def _whole_moment(parameter: nn.Parameter, key: str) -> Tensor:
    moment = safe_get_full_optimizer_state(parameter, key)
    assert moment is not None
    return moment.cpu()


def _adamw(groups: list[dict[str, Any]], config: Config) -> torch.optim.AdamW:
    return torch.optim.AdamW(groups, lr=config.optim.lr, weight_decay=config.optim.weight_decay, fused=True)
