"""Training in this process: it learns, it stops anywhere, and goes on bit for bit as if it never had."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from simdist.config.schema import Config
from simdist.core.errors import InputError
from simdist.core.files import read_json_lines
from simdist.models.encoder import GreedyEncoder
from simdist.runs.folder import open_run
from simdist.training.checkpoint import load_checkpoint
from simdist.training.task import restore
from tests.support.training import build_trainer, lines, train, weights

pytestmark = pytest.mark.usefixtures("fresh_process")


def test_every_module_learns(tiny: Config, tmp_path: Path) -> None:
    loop = replace(tiny.train, max_steps=160, validate_every=0)
    optim, model = replace(tiny.optim, lr=2e-3), replace(tiny.model, width=32)
    train(replace(tiny, train=loop, optim=optim, model=model), tmp_path / "run")
    recorded = [line["modules"] for line in lines(tmp_path / "run")][-5:]
    for m in range(4):
        assert sum(modules[m]["nce"] for modules in recorded) / 5 < math.log(6) - 0.1, m  # ln 6: a guess among 6
        assert sum(modules[m]["accuracy"] for modules in recorded) / 5 > 1.5 / 6, m


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("during_validation", [False, True])
def test_stopped_and_resumed_equals_undisturbed(
    tiny: Config, tmp_path: Path, during_validation: bool, workers: int
) -> None:
    config = replace(tiny, data=replace(tiny.data, num_workers=workers))
    trainer, _ = train(config, tmp_path / "whole")
    due = trainer.schedule.validates
    step = next(s for s in range(17, 40) if due(s) == during_validation)
    _, signal_number = train(config, tmp_path / "parts", stop_at=step, question=2 if during_validation else 1)
    assert signal_number == 15
    assert list(weights(tmp_path / "parts", step))
    resumed, signal_number = train(config, tmp_path / "parts")
    assert (resumed.step, signal_number) == (40, 0)
    whole, parts = weights(tmp_path / "whole", 40), weights(tmp_path / "parts", 40)
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
    assert lines(tmp_path / "whole") == lines(tmp_path / "parts")


@pytest.mark.parametrize("cache", ["memory", "device"])
def test_caches_change_nothing(tiny: Config, tmp_path: Path, cache: str) -> None:
    train(tiny, tmp_path / "none")
    train(replace(tiny, data=replace(tiny.data, cache=cache)), tmp_path / cache)
    plain, cached = weights(tmp_path / "none"), weights(tmp_path / cache)
    assert all(torch.equal(plain[name], cached[name]) for name in plain)


def test_another_seed_is_another_run(tiny: Config, tmp_path: Path) -> None:
    train(tiny, tmp_path / "a")
    train(replace(tiny, seed=1), tmp_path / "b")
    assert not torch.equal(weights(tmp_path / "a")["greedy.0.mu.weight"], weights(tmp_path / "b")["greedy.0.mu.weight"])


def test_a_damaged_checkpoint_is_named_and_passed_over(
    tiny: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = replace(tiny, train=replace(tiny.train, checkpoint_every=10, keep_last=3))
    train(config, tmp_path / "run")
    kept = sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir())
    assert kept == ["step_00000020", "step_00000030", "step_00000040"]
    whole = weights(tmp_path / "run")
    model = tmp_path / "run" / "checkpoints" / "step_00000040" / "model.safetensors"
    content = bytearray(model.read_bytes())
    content[-5] ^= 1
    model.write_bytes(content)
    (tmp_path / "run" / "checkpoints" / "step_00000030" / "manifest.json").unlink()
    trainer = build_trainer(open_run(tmp_path / "run", config))
    assert trainer.resume() == 20
    printed = capsys.readouterr().out
    assert "step_00000040 is damaged (model.safetensors differs from its sha256)" in printed
    assert "step_00000030 is damaged (manifest.json cannot be read" in printed
    trainer.fit()
    again = weights(tmp_path / "run")
    assert all(torch.equal(whole[name], again[name]) for name in whole)


def test_other_data_is_refused(tiny: Config, tmp_path: Path) -> None:
    train(tiny, tmp_path / "run", stop_at=5)
    state = tmp_path / "run" / "checkpoints" / "step_00000005" / "state.json"
    checkpoint = load_checkpoint(state.parent)
    trainer = build_trainer(open_run(tmp_path / "run", tiny))
    with pytest.raises(
        InputError, match=r"training data differs .* Restore it, or move the folder away to start from scratch"
    ):
        restore(trainer.task, replace(checkpoint, fingerprint="0" * 64), trainer.run.folder)


def test_another_test_split_is_refused(tiny: Config, tmp_path: Path) -> None:
    """Its validations would be compared with those of the first one."""
    root = shutil.copytree(tiny.data.root, tmp_path / "shards")
    config = replace(tiny, data=replace(tiny.data, root=str(root)))
    train(config, tmp_path / "run", stop_at=5)
    (root / "test").rename(root / "before")
    shutil.copytree(root / "train", root / "test")
    with pytest.raises(
        InputError, match=r"^the test data differs from that of the run in .*, was .* Restore it, or move"
    ):
        train(config, tmp_path / "run")
    unvalidated = replace(config, train=replace(config.train, validate_every=0, max_steps=7))
    run = open_run(tmp_path / "run", unvalidated, force=True)
    assert build_trainer(run).resume() == 5


def test_another_architecture_is_refused_by_its_first_tensor(tiny: Config, tmp_path: Path) -> None:
    train(tiny, tmp_path / "run", stop_at=5)
    wider = replace(tiny, model=replace(tiny.model, width=24))
    run = open_run(tmp_path / "run", wider, force=True)
    trainer = build_trainer(run)
    with pytest.raises(
        InputError, match=r"greedy\.0\.layers\.0\.conv\.weight is \(16, 1, 10\) there and \(24, 1, 10\)"
    ):
        trainer.resume()


def test_metrics_hold_what_a_paper_needs(tiny: Config, tmp_path: Path) -> None:
    train(tiny, tmp_path / "run")
    recorded = read_json_lines(tmp_path / "run" / "metrics.jsonl")
    first = recorded[0]
    assert first["step"] == 1
    assert {"lr", "beta", "samples_per_s", "audio_s_per_s", "data_wait", "epoch"} <= first.keys()
    for module in first["modules"]:
        assert {"loss", "nce", "kl", "accuracy", "grad_norm", "active_units"} <= module.keys()
    sim = first["modules"][0]
    assert sim["loss"] == pytest.approx(sim["nce"] + tiny.loss.beta * sim["kl"], rel=1e-5)
    assert json.loads(json.dumps(first)) == first
    assert [line["step"] for line in recorded if line["kind"] == "train"] == [1, 5, 10, 15, 20, 25, 30, 35, 40]


def test_gradients_are_clipped_to_the_norm(tiny: Config, tmp_path: Path) -> None:
    """One Adam step does not show it, so look at the gradients themselves."""
    from simdist.training.step import ModuleTrainer

    encoder = GreedyEncoder(tiny.model, tiny.loss)
    module = encoder.stack[0]
    scaler = torch.amp.GradScaler("cpu", enabled=False)  # pyright: ignore[reportPrivateImportUsage]
    seen: list[Tensor] = []

    class Spy(torch.optim.SGD):
        def step(self, closure: None = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
            seen.append(
                torch.stack(
                    [p.grad.norm() for g in self.param_groups for p in g["params"] if p.grad is not None]
                ).norm()
            )

    trainer = ModuleTrainer(0, module, module, Spy(module.parameters(), lr=1.0), scaler, clip_grad_norm=0.5)
    loss = sum((p * 100).sum() for p in module.parameters())
    assert isinstance(loss, Tensor)
    trainer.backward(loss)
    norm, bad = trainer.update(1.0)
    assert norm > 100
    assert bad == 0
    assert seen[0].item() == pytest.approx(0.5, rel=1e-4)
