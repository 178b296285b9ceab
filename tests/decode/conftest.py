"""A small encoder that was trained once, for all tests that decode it."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from simdist.config.decoder import DecodingConfig, defaults_for
from simdist.config.load import CONFIGS, read_config
from simdist.config.schema import Config
from simdist.core.signals import SignalHandler


def reset_accelerate() -> None:
    """Accelerate's singletons as a new process has them."""
    from accelerate.state import AcceleratorState, GradientState

    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


@pytest.fixture(scope="session")
def encoded(speech: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run folder of a SIM with one frame each 20, 80 and 160 samples; not to be written to."""
    from simdist.train.__main__ import train

    config = read_config(CONFIGS / "sim_librispeech.yaml")
    config = replace(
        config,
        data=replace(config.data, root=str(speech), crop=2560, batch_size=8, num_workers=0, cache="memory"),
        model=replace(config.model, width=16, context_width=8),
        loss=replace(config.loss, prediction_steps=2, beta=1e-4),
        optim=replace(config.optim, lr=3e-3),
        train=replace(config.train, max_steps=30, checkpoint_every=15, validate_every=0, precision="no"),
    )
    folder = tmp_path_factory.mktemp("encoded") / "run"
    assert train(config, folder) == 0
    reset_accelerate()
    return folder


@pytest.fixture
def run_folder(encoded: Path, tmp_path: Path) -> Path:
    """A copy of the run, without decoders."""
    return Path(shutil.copytree(encoded, tmp_path / "run"))


@pytest.fixture
def settings(encoded: Path) -> Callable[..., DecodingConfig]:
    """A decoder's configuration that trains in a second; `steps` and other fields as given."""
    config: Config = read_config(encoded / "config.yaml")
    wanted = defaults_for(config)

    def build(steps: int = 12, lr: float = 3e-3, **fields: object) -> DecodingConfig:
        train = replace(wanted.train, max_steps=steps, validate_every=1.0, checkpoint_every=5, precision="no")
        train = replace(train, validate_batches=1, log_every=2)
        changed = replace(wanted, train=train, optim=replace(wanted.optim, lr=lr), examples=1)
        return replace(changed, **fields)  # pyright: ignore[reportArgumentType]

    return build


@pytest.fixture
def train() -> Iterator[Callable[..., Path]]:
    """Calls the command in this process: (run, config, stop, force) -> the decoder's folder."""
    from simdist.decode.__main__ import decode
    from simdist.runs.folder import existing_run

    def call(run: Path, config: DecodingConfig, stop: SignalHandler | None = None, force: bool = False) -> Path:
        try:
            assert decode(existing_run(run), config, stop or SignalHandler(), force) == (0 if stop is None else 75)
        finally:
            reset_accelerate()
        return run / "decoders" / config.folder_name

    yield call
    reset_accelerate()
