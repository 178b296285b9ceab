"""A run that takes over the lowest modules of another run, its trunk: trained there, frozen here."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor

from simdist.config.schema import Config, TrainConfig, identity, to_dict
from simdist.core.errors import InputError
from simdist.models.encoder import GreedyEncoder, check_fit
from simdist.runs.checkpoints import CheckpointId, choose_checkpoint
from simdist.runs.folder import Run, existing_run
from simdist.training import shared_checkpoints
from simdist.training.agreement import together
from simdist.training.distributed import Process

MODEL_KEYS = ("head", "head_kernel")
"""Keys of `model` in which a run and its trunk must agree."""


@dataclass(frozen=True)
class Trunk:
    """The modules that were taken over."""

    folder: Path
    """The trunk's run."""
    step: int
    """Of its checkpoint."""
    weights: dict[str, Tensor]
    """State of its lowest modules, as in the encoder's."""


def with_trunk_name(config: Config, folder: Path | None) -> Config:
    """`config` with `train.trunk_name` filled in, if it has a trunk.

    Args:
        config: the experiment.
        folder: of the run, which may exist already; it goes on without its trunk.

    Raises:
        InputError: the trunk is not a run folder.
    """
    if config.train.trunk is None:
        return config
    trunk = Path(config.train.trunk)
    if not trunk.exists() and folder is not None and (folder / "config.yaml").is_file():
        name = existing_run(folder).config.train.trunk_name
    else:
        found = _run(trunk).config
        name = f"{found.name}-{identity(replace(found, seed=0))[:8]}"
    return replace(config, train=replace(config.train, trunk_name=name))


def read_trunk(config: Config, process: Process) -> Trunk:
    """The lowest `train.trunk_modules` of the run in `train.trunk`. Called on all ranks, which read one checkpoint.

    Raises:
        InputError: on all ranks; the trunk is not finished, has no checkpoint, or is of another architecture.
    """
    assert config.train.trunk is not None
    count = config.train.trunk_modules
    with together(process.cpu_group):
        run = _run(Path(config.train.trunk))
        _check(run, config)
    checkpoint = shared_checkpoints.load_chosen(
        process, run.checkpoints, lambda: CheckpointId.of(choose_checkpoint(run.folder))
    )
    assert checkpoint is not None
    prefixes = tuple(f"greedy.{number}." for number in range(count))
    weights = {name: tensor for name, tensor in checkpoint.model.items() if name.startswith(prefixes)}
    modules = GreedyEncoder.from_config(
        replace(config, model=replace(config.model, modules=config.model.modules[:count]), train=TrainConfig())
    )
    with together(process.cpu_group):
        check_fit(modules, weights, f"the trunk {run.folder}")
    return Trunk(run.folder, checkpoint.step, weights)


def _run(folder: Path) -> Run:
    try:
        return existing_run(folder)
    except InputError as error:
        raise InputError(f"train.trunk: {error}") from error


def _check(run: Run, config: Config) -> None:
    """Raise an `InputError` unless `config` may continue from a trunk."""
    count, trunk = config.train.trunk_modules, run.config
    if not (run.is_finished or run.count("imported")):
        raise InputError(
            f"train.trunk: {run.folder} is not finished, and its modules would change. Train it to its end first: "
            f"accelerate launch -m simdist.train --config {run.folder}/config.yaml --run-dir {run.folder}"
        )
    if count > len(trunk.model.modules):
        raise InputError(
            f"train.trunk_modules={count}, but {run.folder} has {len(trunk.model.modules)} modules. Take fewer"
        )
    ours, theirs = (_architecture(each, count) for each in (config, trunk))
    for key, value in ours.items():
        if value != theirs[key]:
            raise InputError(
                f"train.trunk: {key} is {theirs[key]} in {run.folder} and {value} here. Set it as it is there, or "
                "take fewer modules with train.trunk_modules"
            )


def _architecture(config: Config, count: int) -> dict[str, object]:
    """What decides the shapes and the input of the lowest modules, by key."""
    found: dict[str, object] = {f"model.{key}": getattr(config.model, key) for key in MODEL_KEYS}
    found["data.normalize"] = config.data.normalize
    for m, module in enumerate(config.model.modules[:count]):
        norms = [config.model.batch_norm and layer.norm for layer in module.layers if layer.kind == "conv"]
        found |= {
            f"model.modules[{m}].layers": to_dict([replace(layer, norm=True) for layer in module.layers]),
            f"BatchNorm after the convolutions of module {m}": norms,
            f"model.modules[{m}].gru": module.gru,
            f"the width of module {m}": config.model.of(module).width,
            f"the context width of module {m}": config.model.context_width if module.gru else None,
            f"the number of prediction steps of module {m}": config.loss.of(module).prediction_steps,
        }
    return found
