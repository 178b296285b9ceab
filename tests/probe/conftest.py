"""A small SIM that was trained once, for all tests that probe it."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from simdist.config.load import CONFIGS, read_config
from simdist.config.schema import Config


def small_sim(speech: Path) -> Config:
    """SIM of width 32 that learns something of synthetic speech in ten seconds."""
    config = read_config(CONFIGS / "sim_librispeech.yaml")
    return replace(
        config,
        data=replace(config.data, root=str(speech), crop=5120, batch_size=8, num_workers=0, cache="memory"),
        model=replace(config.model, width=32, context_width=32),
        loss=replace(config.loss, prediction_steps=4, beta=1e-4),
        optim=replace(config.optim, lr=3e-3),
        train=replace(config.train, max_steps=120, checkpoint_every=60, keep_last=3, validate_every=0, precision="no"),
    )


def reset_accelerate() -> None:
    """Accelerate's singletons as a new process has them."""
    from accelerate.state import AcceleratorState, GradientState

    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


@pytest.fixture(scope="session")
def trained(speech: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder with checkpoints of steps 60 and 120; not to be written to."""
    from simdist.train.__main__ import train

    folder = tmp_path_factory.mktemp("probed") / "run"
    assert train(small_sim(speech), folder) == 0
    reset_accelerate()
    return folder


@pytest.fixture
def run_folder(trained: Path, tmp_path: Path) -> Path:
    """A copy of the trained run, without probes."""
    return Path(shutil.copytree(trained, tmp_path / "run"))


@pytest.fixture
def probe(run_folder: Path) -> Callable[..., list[dict]]:
    """Calls the command on the run in this process; returns the results of all its probes."""
    from simdist.probe.__main__ import main
    from simdist.probe.results import read_result

    def call(*options: str) -> list[dict]:
        before = set(run_folder.glob("probes/*/result.json"))
        try:
            assert main([f"--run-dir={run_folder}", *options]) == 0
        finally:
            reset_accelerate()
        new = set(run_folder.glob("probes/*/result.json")) - before
        return sorted(map(read_result, (path.parent for path in new)), key=lambda result: result["name"])

    return call
