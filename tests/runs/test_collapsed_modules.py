"""A module that learns nothing is spoken of, once, while there is time to stop."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest

from simdist.config.schema import Config
from simdist.core.files import read_json_lines
from simdist.runs.collapsed_modules import collapsed_modules, is_patience_over
from tests.support.training import train

GUESS = math.log(11)


def module(number: int, nce: float, active: float) -> dict[str, float]:
    return {"module": number, "loss": nce, "nce": nce, "active_units": active}


def test_idle_is_a_guess_without_an_active_dimension() -> None:
    modules = [module(0, GUESS, 0.0), module(1, GUESS, 3.0), module(2, 1.9, 0.0), module(3, GUESS * 1.005, 0.0)]
    assert collapsed_modules({"modules": modules}, [10] * 4) == [0, 3]
    assert collapsed_modules({"modules": modules}, [5] * 4) == []
    assert collapsed_modules({"modules": modules}, [5, 5, 5, 10]) == [3]
    assert collapsed_modules({"modules": [{"module": 0, "loss": 0.01}]}, [10]) == []  # a decoder


@pytest.mark.parametrize(("step", "total", "over"), [(99, 200, False), (100, 200, True), (400, 10_000, False)])
def test_patience(step: int, total: int, over: bool) -> None:
    assert is_patience_over(step, total) == over
    assert is_patience_over(500, 10_000)
    assert is_patience_over(1000, 10**6)


@pytest.mark.usefixtures("fresh_process")
def test_dead_relus_are_told_once(tiny: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Adam's first step at a learning rate of 1 leaves every ReLU of module 0 dead, as 0.01 does to some seeds."""
    model = replace(tiny.model, head="mu", batch_norm=False)
    loop = replace(tiny.train, max_steps=130, validate_every=0, log_every=10)
    train(replace(tiny, model=model, train=loop, optim=replace(tiny.optim, lr=1.0)), tmp_path / "run")
    told = [line for line in capsys.readouterr().out.splitlines() if line.startswith("warning: module 0 ")]
    assert len(told) == 1, told
    assert "has not learned anything in 100 steps" in told[0]
    assert "--optim.lr" in told[0]
    assert "--optim.warmup_epochs" in told[0]
    events = [event for event in read_json_lines(tmp_path / "run" / "events.jsonl") if event["event"] == "idle_module"]
    assert [event["step"] for event in events if event["module"] == 0] == [100]


@pytest.mark.usefixtures("fresh_process")
def test_modules_that_learn_are_left_alone(tiny: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    loop = replace(tiny.train, max_steps=110, validate_every=0, log_every=10)
    train(replace(tiny, train=loop, optim=replace(tiny.optim, lr=2e-3)), tmp_path / "run")
    assert "learnt nothing" not in capsys.readouterr().out
    assert "idle_module" not in json.dumps(list(read_json_lines(tmp_path / "run" / "events.jsonl")))
