"""Numbers gone wrong: a module skips its step, and is rolled back alone when it skips too many."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pytest
import torch

from simdist.config.schema import Config
from simdist.core.errors import FailedError
from simdist.core.files import read_json_lines
from simdist.data.loader import Batch
from simdist.runs.folder import open_run
from simdist.training.checkpoint import load_checkpoint
from simdist.training.step import StepOutcome
from simdist.training.trainer import Trainer
from tests.support.training import break_at, build_trainer, weights

pytestmark = pytest.mark.usefixtures("fresh_process")


@pytest.fixture
def careful(tiny: Config) -> Config:
    loop = replace(tiny.train, max_nonfinite_steps=3, checkpoint_every=10, keep_last=9, validate_every=0, max_steps=20)
    return replace(tiny, train=loop)


def begin(config: Config, folder: Path) -> Trainer:
    run = open_run(folder, config)
    trainer = build_trainer(run)
    trainer.resume()
    run.write()
    return trainer


def events(folder: Path, name: str) -> list[dict]:
    return [line for line in read_json_lines(folder / "events.jsonl") if line["event"] == name]


@pytest.mark.parametrize("at_once", [None, 1])
def test_a_bad_batch_changes_nothing_but_is_told(
    careful: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at_once: int | None
) -> None:
    config = replace(careful, data=replace(careful.data, group=2), train=replace(careful.train, groups_at_once=at_once))
    trainer = begin(config, tmp_path / "run")
    batches = trainer.task.batches

    def spoilt(*where: object) -> Iterator[Batch]:
        for number, batch in enumerate(batches(*where) or []):  # pyright: ignore[reportArgumentType]
            batch.inputs[-1, 5] = math.nan if number == 6 else batch.inputs[-1, 5]
            before = {name: t.clone() for name, t in trainer.task.model.state_dict().items()}
            yield batch
            after = trainer.task.model.state_dict()
            changed = any(not torch.equal(before[name], after[name]) for name in before if "tracked" not in name)
            assert changed == (number != 6)

    monkeypatch.setattr(trainer.task, "batches", spoilt)
    trainer.fit()
    assert all(tensor.isfinite().all() for tensor in weights(tmp_path / "run", 20).values())
    told = events(tmp_path / "run", "bad_step")
    assert [(line["step"], line["module"]) for line in told] == [(7, 0)]
    taken = load_checkpoint(tmp_path / "run" / "checkpoints" / "step_00000020").optimizer
    assert all(moment["step"] == 19 for state in taken for moment in state["optimizer"]["state"].values())


@pytest.mark.parametrize("change", ["lr", "seed"])
def test_a_diverged_module_alone_goes_back(
    careful: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: Literal["lr", "seed"]
) -> None:
    config = replace(careful, train=replace(careful.train, after_rollback=change))
    undisturbed = begin(config, tmp_path / "undisturbed")
    undisturbed.fit()
    trainer = begin(config, tmp_path / "run")
    break_at(trainer, 13)
    trainer.fit()
    back = events(tmp_path / "run", "rolled_back")
    assert [(line["module"], line["step"], line["to_step"]) for line in back] == [(1, 16, 10)]
    assert [line["module"] for line in events(tmp_path / "run", "bad_step")] == [1]  # those above are not to blame
    whole, mine = weights(tmp_path / "undisturbed", 20), weights(tmp_path / "run", 20)
    assert all(tensor.isfinite().all() for tensor in mine.values())
    equal = {name: torch.equal(whole[name], mine[name]) for name in whole}
    assert all(same for name, same in equal.items() if name.startswith("greedy.0."))
    assert not any(same for name, same in equal.items() if name.startswith("greedy.1.") and name.endswith("mu.weight"))
    saved = load_checkpoint(tmp_path / "run" / "checkpoints" / "step_00000020")
    assert saved.recovery[1]["rollbacks"] == 1
    assert (saved.recovery[1]["lr_scale"], saved.recovery[1]["reseed_count"]) == (
        (0.5, 0) if change == "lr" else (1.0, 1)
    )
    assert saved.recovery[0] == {"lr_scale": 1.0, "reseed_count": 0, "rollbacks": 0, "failed_rollbacks": 0}
    count = {number: next(iter(s["optimizer"]["state"].values()))["step"] for number, s in enumerate(saved.optimizer)}
    assert count == {0: 20, 1: 14, 2: 17, 3: 17}  # module 1: 10 steps of the checkpoint and the last 4


def test_resuming_remembers_what_went_wrong(careful: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = replace(careful, train=replace(careful.train, max_nonfinite_steps=30))
    trainer = begin(config, tmp_path / "run")
    break_at(trainer, 13)
    trainer.fit()
    assert load_checkpoint(tmp_path / "run" / "checkpoints" / "step_00000020").nonfinite_steps == [0, 7, 0, 0]
    longer = replace(config, train=replace(config.train, max_steps=24, max_nonfinite_steps=10))
    trainer = build_trainer(open_run(tmp_path / "run", longer, force=True))
    assert trainer.resume() == 20
    trainer.fit()
    back = events(tmp_path / "run", "rolled_back")
    assert [(line["module"], line["step"]) for line in back] == [(1, 23)]


def test_before_the_first_checkpoint_it_goes_back_to_the_beginning(
    careful: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = begin(careful, tmp_path / "run")
    first = {name: tensor.clone() for name, tensor in trainer.task.model.state_dict().items()}
    break_at(trainer, 2)
    load, seen = trainer.task.load_module, []

    def watched(number: int, *rest: object) -> None:
        load(number, *rest)  # pyright: ignore[reportArgumentType]
        now = trainer.task.model.state_dict()
        seen.append(all(torch.equal(first[name], now[name]) for name in first if name.startswith(f"greedy.{number}.")))

    monkeypatch.setattr(trainer.task, "load_module", watched)
    trainer.fit()
    assert seen == [True]


def test_a_module_that_diverges_again_and_again_ends_the_run(
    careful: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = begin(replace(careful, train=replace(careful.train, max_rollbacks=1)), tmp_path / "run")
    break_at(trainer, 3)
    monkeypatch.setattr(trainer.task, "load_module", lambda *where: None)  # what it goes back to is no better
    with pytest.raises(FailedError, match=r"module 1 had non-finite .* 3 consecutive steps .* after 1 rollbacks"):
        trainer.fit()
    assert not (tmp_path / "run" / "DONE").exists()


def test_a_checkpoint_of_the_broken_module_is_not_gone_back_to(
    careful: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One was written in the midst of the steps that it skipped."""
    config = replace(careful, train=replace(careful.train, checkpoint_every=5))
    trainer = begin(config, tmp_path / "run")
    break_at(trainer, 13)
    trainer.fit()
    assert load_checkpoint(tmp_path / "run" / "checkpoints" / "step_00000015").nonfinite_steps == [0, 2, 0, 0]
    back = events(tmp_path / "run", "rolled_back")
    assert [(line["module"], line["to_step"]) for line in back] == [(1, 10)]
    assert all(tensor.isfinite().all() for tensor in weights(tmp_path / "run", 20).values())


def test_it_goes_further_back_from_a_checkpoint_that_is_broken_itself(
    careful: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last good step broke the weights: nobody could know when they were saved."""
    config = replace(careful, train=replace(careful.train, checkpoint_every=5))
    trainer = begin(config, tmp_path / "run")
    take, load = trainer.task.step, trainer.task.load_module

    def step_on(*given: Any) -> StepOutcome:
        outcome = take(*given)
        if trainer.step == 9:
            broken = {name: tensor.clone() for name, tensor in trainer.task.model.state_dict().items()}
            next(tensor for name, tensor in broken.items() if name.startswith("greedy.1.")).fill_(math.inf)
            load(1, broken, trainer.task.state()[1])
        return outcome

    monkeypatch.setattr(trainer.task, "step", step_on)
    trainer.fit()
    back = events(tmp_path / "run", "rolled_back")
    assert [(line["step"], line["to_step"]) for line in back] == [(13, 10), (16, 5)]
    assert [load_checkpoint(tmp_path / "run" / "checkpoints" / f"step_{s:08d}").nonfinite_steps for s in (10, 15)] == [
        [],
        [0, 2, 0, 0],
    ]
    last = load_checkpoint(tmp_path / "run" / "checkpoints" / "step_00000020")
    assert all(tensor.isfinite().all() for tensor in last.model.values())
    assert (last.recovery[1]["rollbacks"], last.recovery[1]["failed_rollbacks"]) == (2, 0)
