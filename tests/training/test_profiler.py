"""The profile adds up to the step, finds where time is spent, leaves nothing behind, and changes no number."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from simdist.config.schema import Config
from simdist.data.loader import Batch
from simdist.models.encoder import GreedyEncoder
from simdist.training.distributed import build_accelerator
from simdist.training.engines import build_engine
from simdist.training.profiler import TIMED, TRACED, WARM_UP, StepProfile
from simdist.training.random_streams import RandomStreams
from simdist.training.step import ModuleTrainer, Step
from tests.support.training import lines, train, weights

pytestmark = pytest.mark.usefixtures("fresh_process")
STEPS = WARM_UP + TIMED + TRACED
SLOW = 0.2  # seconds


def batches(config: Config) -> Any:
    """Batches of which each takes a while to come."""
    for number in range(100):
        time.sleep(SLOW / 2)
        yield Batch(torch.randn(4, config.data.crop, 1), torch.arange(4), number)


@pytest.fixture
def profiled(tiny: Config, tmp_path: Path) -> tuple[StepProfile, list[str], list[ModuleTrainer]]:
    """A profile of a training whose second module is slow in its loss."""
    encoder, accelerator = GreedyEncoder(tiny.model, tiny.loss), build_accelerator("no")
    engine = build_engine(accelerator, encoder, tiny, RandomStreams(0, 0, accelerator.device))
    slow, score = encoder.stack[1], encoder.stack[1].score

    def slow_score(*args: Any) -> tuple[Tensor, Tensor]:
        time.sleep(SLOW)
        return score(*args)

    slow.score = slow_score  # pyright: ignore[reportAttributeAccessIssue]
    said: list[str] = []
    profile = StepProfile(tmp_path / "profile", engine.modules, torch.device("cpu"), said.append)
    watched = profile.watched(batches(tiny))
    for number in range(STEPS + 2):
        engine.step(engine.modules, next(watched).inputs, Step(number, 1e-3, 0.1))
        profile.step_taken()
    return profile, said, list(engine.modules)  # pyright: ignore[reportReturnType]


def test_parts_add_up_to_the_step_and_the_slow_one_is_found(profiled: tuple) -> None:
    times = profiled[0].times
    assert times.steps == TIMED
    parts = dict(times.parts)
    assert TIMED * SLOW <= parts["loss", 1] <= times.whole
    assert TIMED * SLOW / 2 <= parts["data", None] <= times.whole
    assert parts["forward", 1] < parts["loss", 1]  # what is within a part is not counted twice
    assert {(part, m) for part in ("draws", "forward", "loss", "backward", "optimizer") for m in range(4)} < set(parts)
    assert 0.7 * times.whole <= sum(parts.values()) <= times.whole


def test_it_prints_a_row_a_module_and_writes_the_trace(profiled: tuple) -> None:
    profile, said, _ = profiled
    text = "\n".join(said)
    assert (profile._folder / "table.txt").read_text().splitlines() == said[:-1]
    rows = [[cell.strip() for cell in line.strip("│┃ ").split("│")] for line in said if line.startswith("│")]
    assert [row[0] for row in rows] == ["0", "1", "2", "3", "data", "other", "step"]
    whole = float(rows[-1][-2])
    assert sum(float(row[-2]) for row in rows[:-1]) == pytest.approx(whole, abs=0.5)
    assert whole == pytest.approx(1e3 * profile.times.whole / TIMED, abs=0.1)
    assert "trace.json" in text
    names = {event.get("name") for event in json.loads((profile._folder / "trace.json").read_text())["traceEvents"]}
    assert {"data", "loss of module 1", "backward of module 3", "aten::mm"} <= names


def test_nothing_is_left_behind(profiled: tuple) -> None:
    _, _, trainers = profiled
    for trainer in trainers:
        assert "backward" not in vars(trainer)
        assert "update" not in vars(trainer)
        assert "draw" not in vars(trainer.module)


def test_a_profiled_run_trains_the_same_weights(tiny: Config, tmp_path: Path) -> None:
    from simdist.train.__main__ import train as command

    config = replace(tiny, train=replace(tiny.train, max_steps=STEPS + 3, validate_every=0))
    train(config, tmp_path / "plain")
    assert command(config, tmp_path / "profiled", profile=True) == 0
    plain, profiled = (weights(tmp_path / name, STEPS + 3) for name in ("plain", "profiled"))
    assert all(torch.equal(plain[name], profiled[name]) for name in plain)
    assert lines(tmp_path / "plain") == lines(tmp_path / "profiled")
    assert (tmp_path / "profiled" / "profile" / "trace.json").is_file()
    assert not (tmp_path / "plain" / "profile").exists()


def test_a_run_that_is_too_short_says_so(tiny: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from simdist.train.__main__ import train as command

    config = replace(tiny, train=replace(tiny.train, max_steps=4, validate_every=0))
    assert command(config, tmp_path / "run", profile=True) == 0
    assert f"no profile: it needs {STEPS} steps, and the run had 4" in capsys.readouterr().out
