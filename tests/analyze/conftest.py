"""Tiny trained runs, one of SIM and one of GIM, with probes and decoders, made once for all tests of analyses."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from simdist.config.load import CONFIGS, read_config
from simdist.config.schema import Config
from simdist.core.console import run
from tests.support.decoders import make_decoder

WIDTH = 8
DECODED = (0, 2)  # modules with a decoder


def tiny_encoder(speech: Path, head: str) -> Config:
    """Four modules of eight channels, trained for ten steps."""
    config = read_config(CONFIGS / "sim_librispeech.yaml")
    model = replace(config.model, width=WIDTH, context_width=WIDTH, head=head)  # pyright: ignore[reportArgumentType]
    return replace(
        config,
        data=replace(config.data, root=str(speech), crop=5120, batch_size=4, num_workers=0),
        model=model,
        loss=replace(config.loss, prediction_steps=4),
        optim=replace(config.optim, lr=3e-3),
        train=replace(config.train, max_steps=10, checkpoint_every=100, validate_every=0, precision="no"),
    )


def reset_accelerate() -> None:
    """Accelerate's singletons as a new process has them."""
    from accelerate.state import AcceleratorState, GradientState

    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


def _make(config: Config, folder: Path) -> Path:
    from simdist.probe.__main__ import main as probe
    from simdist.train.__main__ import train

    assert train(config, folder) == 0
    reset_accelerate()
    for options in (["--bias=false", "--module=0,3"], ["--module=0"]):
        assert probe([f"--run-dir={folder}", "--label=speaker,phone", "--epochs=1", "--crops=1", *options]) == 0
        reset_accelerate()
    for module in DECODED:
        make_decoder(folder, module)
    return folder


@pytest.fixture(scope="session")
def sim(speech: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A SIM run; tests may add to its `analysis`, nothing else."""
    return _make(tiny_encoder(speech, "variational"), tmp_path_factory.mktemp("analyzed") / "sim")


@pytest.fixture(scope="session")
def gim(speech: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A GIM run of the same size."""
    return _make(tiny_encoder(speech, "mu"), tmp_path_factory.mktemp("analyzed") / "gim")


@pytest.fixture
def analyze() -> Callable[..., list[dict]]:
    """Calls the command in this process; returns the results that it wrote, in order of their modules."""
    from simdist.analyze.__main__ import main

    def call(which: str, folder: Path, *options: str) -> list[dict]:
        before = {path: path.stat().st_mtime_ns for path in folder.glob("analysis/*/result.json")}
        words = [which, str(folder), *options] if which == "compare" else [which, f"--run-dir={folder}", *options]
        assert main(words) == 0
        after = folder.glob("analysis/*/result.json")
        new = [path for path in after if before.get(path) != path.stat().st_mtime_ns]
        results = [json.loads(path.read_text()) | {"folder": path.parent} for path in new]
        return sorted(results, key=lambda result: str(result["module"]))

    return call


@pytest.fixture
def fails(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Calls a command line that is wrong; returns the one line that it prints, having left with exit code 2."""
    from simdist.analyze.__main__ import main

    def call(*argv: str) -> str:
        capsys.readouterr()
        with pytest.raises(SystemExit) as left:
            run(main, list(argv))
        assert left.value.code == 2
        printed = capsys.readouterr().err.strip()
        assert printed.startswith("error: ")
        assert "\n" not in printed
        return printed

    return call


@pytest.fixture
def copied(sim: Path, tmp_path: Path) -> Path:
    """A copy of the SIM run to change."""
    return Path(shutil.copytree(sim, tmp_path / "copied", ignore=shutil.ignore_patterns("analysis")))
