"""What a run takes over from another: its trunk, modules that are frozen here, or stages that it need not repeat."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from simdist.config.schema import Config, differences, identity, to_dict
from simdist.core.errors import InputError
from simdist.core.files import read_json_lines
from simdist.models.encoder import GreedyEncoder, check_fit
from simdist.runs.checkpoints import CheckpointId, choose_checkpoint
from simdist.runs.folder import Run, existing_run
from simdist.training import shared_checkpoints
from simdist.training.agreement import together
from simdist.training.checkpoint import Checkpoint
from simdist.training.distributed import Process
from simdist.training.recovery import RecoveryState
from simdist.training.task import Beginning, TrainingTask

MODEL_KEYS = ("head", "head_kernel")
"""Keys of `model` in which a run and its trunk must agree."""


def with_trunk_name(config: Config, folder: Path | None) -> Config:
    """`config` with `train.trunk_name` filled in, if it has a trunk.

    Args:
        config: the experiment.
        folder: of the run, which may exist already; then it needs its trunk no more.

    Raises:
        InputError: the trunk is not a run folder.
    """
    if config.train.trunk is None:
        return config
    trunk = Path(config.train.trunk)
    if not trunk.exists() and folder is not None and (folder / "config.yaml").is_file():
        name = existing_run(folder).config.train.trunk_name
    else:
        found = _run("train.trunk", trunk).config
        name = f"{found.name}-{identity(replace(found, seed=0))[:8]}"
    return replace(config, train=replace(config.train, trunk_name=name))


def read_trunk(config: Config, task: TrainingTask, process: Process) -> Beginning:
    """The lowest `train.trunk_modules` of the run in `train.trunk`, for step 0. All ranks read one checkpoint.

    Raises:
        InputError: on all ranks; the trunk is not finished, has no checkpoint, or is of another architecture.
    """
    assert config.train.trunk is not None
    count = config.train.trunk_modules
    with together(process.cpu_group):
        run = _run("train.trunk", Path(config.train.trunk))
        _check(run, config)
    prefixes = tuple(f"greedy.{number}." for number in range(count))
    weights = {name: each for name, each in _newest(run, process).model.items() if name.startswith(prefixes)}
    with together(process.cpu_group):
        check_fit(GreedyEncoder.from_config(_lowest(config, count)), weights, f"the trunk {run.folder}")
    model = task.model.state_dict() | weights
    return Beginning(Checkpoint(0, 0, task.fingerprint, model, [], test_fingerprint=task.test_fingerprint))


def read_stages(config: Config, folder: Path, task: TrainingTask, process: Process) -> Beginning:
    """The first stages of a stagewise run, which another run has taken that has only the lower modules.

    A stage depends on its module and on those below it, so this is what the run would have come to by itself.

    Raises:
        InputError: on all ranks; the other run is not finished or is not equal to this one so far.
    """
    with together(process.cpu_group):
        run = _run("--stages-from", folder)
        _check_stages(run, config)
    checkpoint, count = _newest(run, process), len(run.config.model.modules)
    optimizer = [*checkpoint.optimizer, *task.state()[count:]]
    others = [asdict(RecoveryState())] * (len(optimizer) - count)
    checkpoint = replace(
        checkpoint,
        consumed=0,
        model=task.model.state_dict() | checkpoint.model,
        optimizer=optimizer,
        recovery=[*checkpoint.recovery, *others] if checkpoint.recovery else [],
        nonfinite_steps=[],
    )
    return Beginning(checkpoint, [_with_stage(line) for line in read_json_lines(run.metrics)])


def shared_source(config: Config, stages_from: Path | None, count: int) -> Path | None:
    """The folder of the run that the lowest `count` modules are from; None if this run has trained any of them."""
    if config.train.trunk is not None:
        return Path(config.train.trunk) if count == config.train.trunk_modules else None
    with suppress(InputError):  # it is gone, and no longer needed
        if stages_from is not None and len(existing_run(stages_from).config.model.modules) == count:
            return stages_from
    return None


def _lowest(config: Config, count: int) -> Config:
    """An experiment with the lowest modules alone."""
    model, train = config.model, replace(config.train, trunk=None, trunk_modules=0, trunk_name="", cache_latents=False)
    return replace(config, model=replace(model, modules=model.modules[:count]), train=train)


def _newest(run: Run, process: Process) -> Checkpoint:
    checkpoint = shared_checkpoints.load_chosen(
        process, run.checkpoints, lambda: CheckpointId.of(choose_checkpoint(run.folder))
    )
    assert checkpoint is not None
    return checkpoint


def _with_stage(line: dict[str, Any]) -> dict[str, Any]:
    """A record as a run of several stages writes it."""
    first = {key: line[key] for key in ("kind", "step", "epoch")}
    return {**first, "stage": line.get("stage", 0), **line}


def _check_stages(run: Run, config: Config) -> None:
    """Raise an `InputError` unless `run` is what `config` would come to with its lower modules alone."""
    count = len(run.config.model.modules)
    if config.train.trunk is not None:
        raise InputError("--stages-from and train.trunk exclude each other. Leave one out")
    if config.train.schedule != "stagewise":
        raise InputError(
            f"--stages-from: train.schedule is {config.train.schedule}, which has no stages to take over. Leave the "
            "option out, or set train.schedule to stagewise"
        )
    if not run.is_finished:
        raise InputError(f"--stages-from: {run.folder} is not finished. Train it to its end first")
    if count >= len(config.model.modules):
        raise InputError(
            f"--stages-from: {run.folder} has {count} modules and this run {len(config.model.modules)}. Name a run "
            "with fewer"
        )
    changed = differences(run.config, replace(_lowest(config, count), train=config.train))
    if changed:
        raise InputError(
            f"--stages-from: {run.folder} is not what this run's lower modules would come to ({'; '.join(changed)}). "
            "Leave the option out, or name a run with the same settings"
        )


def _run(option: str, folder: Path) -> Run:
    try:
        return existing_run(folder)
    except InputError as error:
        raise InputError(f"{option}: {error}") from error


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
