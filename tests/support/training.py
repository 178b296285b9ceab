"""Train in this process, stop at a step, and read back what came out: for the tests beside this file."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from accelerate.state import AcceleratorState, GradientState
from torch import Tensor

from simdist.config.load import CONFIGS
from simdist.config.schema import Config
from simdist.core.files import read_json_lines
from simdist.core.signals import SignalHandler, StoppedError
from simdist.data.loader import Batch
from simdist.runs.checkpoints import latest_checkpoint
from simdist.runs.folder import Run, open_run
from simdist.train.encoder_task import EncoderTask
from simdist.training.checkpoint import load_checkpoint
from simdist.training.lifecycle import build_process
from simdist.training.step import Step, StepOutcome
from simdist.training.trainer import Trainer


class StopAt(SignalHandler):
    """A signal that arrives during one step, or during the validation after it."""

    def __init__(self, step: int, run: Run, question: int = 1) -> None:
        super().__init__()
        self._step, self._question, self._asked = step, question, 0
        self.trainer: Trainer | None = None

    @property
    def signal_number(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        at_step = self.trainer is not None and self.trainer.step == self._step
        self._asked += at_step
        return 15 if at_step and self._asked >= self._question else 0

    @signal_number.setter
    def signal_number(self, value: int) -> None:
        assert value == 0


def reset_accelerate() -> None:
    """Accelerate's singletons as a new process has them."""
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


def short_training(speech: Path, folder: Path, *more: str) -> list[str]:
    """Arguments of `simdist.train` for a small SIM whose steps take a twentieth of a second."""
    return [
        *("--config", str(CONFIGS / "sim_librispeech.yaml"), "--config", str(CONFIGS / "debug.yaml")),
        *("--data.crop=5120", "--loss.prediction_steps=4", "--data.num_workers=1", f"--data.root={speech}"),
        *("--train.log_every=1", "--train.validate_every=0.5", "--train.precision=no", f"--run-dir={folder}", *more),
    ]


def build_trainer(run: Run, stop: SignalHandler | None = None, stages_from: Path | None = None) -> Trainer:
    process = build_process(run, stop or SignalHandler())
    return Trainer(run, EncoderTask(run, process, stages_from), process)


def break_at(trainer: Trainer, step: int) -> None:
    """Before this step, a weight of module 1 becomes infinite: it has diverged."""
    take, load = trainer.task.step, trainer.task.load_module

    def step_on(stage: int, batch: Batch, given: Step) -> StepOutcome:
        if trainer.step == step:
            broken = {name: tensor.clone() for name, tensor in trainer.task.model.state_dict().items()}
            next(tensor for name, tensor in broken.items() if name.startswith("greedy.1.")).fill_(math.inf)
            load(1, broken, trainer.task.state()[1])
        return take(stage, batch, given)

    trainer.task.step = step_on  # pyright: ignore[reportAttributeAccessIssue]


def train(
    config: Config,
    folder: Path,
    stop_at: int | None = None,
    question: int = 1,
    broken_at: int | None = None,
    stages_from: Path | None = None,
) -> tuple[Trainer, int]:
    run = open_run(folder, config)
    stop = SignalHandler() if stop_at is None else StopAt(stop_at, run, question)
    trainer = build_trainer(run, stop, stages_from)
    if broken_at is not None:
        break_at(trainer, broken_at)
    if isinstance(stop, StopAt):
        stop.trainer = trainer
    trainer.resume()
    run.write()
    try:
        trainer.fit()
    except StoppedError as stopped:
        return trainer, stopped.signal_number
    return trainer, 0


def weights(folder: Path, step: int = 40) -> dict[str, Tensor]:
    found = latest_checkpoint(folder / "checkpoints", pytest.fail)
    assert found is not None
    assert found.name == f"step_{step:08d}"
    return {name: tensor.clone() for name, tensor in load_checkpoint(found).model.items()}  # not mapped from the file


def lines(folder: Path) -> list[dict]:
    timing = ("samples_per_s", "audio_s_per_s", "data_wait", "ranks")
    return [{k: v for k, v in line.items() if k not in timing} for line in read_json_lines(folder / "metrics.jsonl")]
