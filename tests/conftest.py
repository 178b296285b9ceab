"""Where the tests find what cannot live in the repository, and data that several of them share."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")  # on a busy machine, threads that wait for each other cost most

from simdist.config.load import CONFIGS, read_config
from simdist.config.schema import Config
from tests.support import ROOT, forked
from tests.support.forked import Zygote

JOBS_ON_SLURM = ("test_train_job", "test_launchers_on_slurm", "test_sbatch_scripts")  # half of the time of all on SLURM
SLOWEST = (  # files that take half a minute or more, the longest first
    *("test_chaos", "test_launchers", "test_examples", "test_train", "test_compare", "test_deepspeed", "test_page"),
    *("test_page_in_browser", "test_trainer", "test_processes", "test_stragglers", "test_probe", "test_watchdog"),
    *("test_damaged_records", "test_decode", "test_decode_processes", "test_wheel"),
)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with golden outputs and real speech: $SIMDIST_SHARED, else ../shared."""
    folder = Path(os.environ.get("SIMDIST_SHARED", ROOT.parent / "shared")).resolve()
    if not folder.is_dir():
        pytest.skip(f"no shared data at {folder}; set SIMDIST_SHARED")
    return folder


@pytest.fixture(scope="session")
def speech(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Packed synthetic speech of 4 speakers, 2 minutes: splits `train` and `test`, FLAC."""
    from simdist.pack.synthetic import ensure

    folder = tmp_path_factory.mktemp("speech")
    ensure(folder / "source", folder / "shards", speakers=4, minutes=2, seed=0, progress=False)
    return folder / "shards"


@pytest.fixture(scope="session")
def tiny(speech: Path) -> Config:
    """A SIM with every kind of module that trains in a second: 40 steps of 4 clips of a third of a second."""
    config = read_config(CONFIGS / "sim_librispeech.yaml", CONFIGS / "debug.yaml")
    data = replace(config.data, root=str(speech), crop=5120)
    loss = replace(config.loss, prediction_steps=4, num_negatives=5)
    train = replace(config.train, max_steps=40, checkpoint_every=100, validate_every=0.5, precision="no")
    return replace(config, data=data, loss=loss, train=train)


@pytest.fixture(scope="session")
def zygote() -> Iterator[Zygote]:
    """Starts real processes that have imported torch already; see `tests.support.forked`."""
    with forked.zygote() as made:
        yield made


@pytest.fixture
def fresh_process() -> Iterator[None]:
    """Accelerate's singletons as a new process has them, before (another file's test may have left some) and after."""
    from tests.support.training import reset_accelerate

    reset_accelerate()
    yield
    reset_accelerate()


def pytest_itemcollected(item: pytest.Item) -> None:
    """The tests of a file share a process; those on SLURM share two, each with a testbed of its own."""
    group = str(item.path)
    if item.path.parent.name == "slurm":
        group = "jobs on slurm" if item.path.stem in JOBS_ON_SLURM else "sweeps on slurm"
    item.add_marker(pytest.mark.xdist_group(group))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests on SLURM run first, because they take longest and mostly wait; then the slowest files.

    So the processes end together. pytest-xdist keeps this order only with `--no-loadscope-reorder`.
    """

    def place(item: pytest.Item) -> int:
        name = item.path.stem
        return -1 if item.path.parent.name == "slurm" else SLOWEST.index(name) if name in SLOWEST else len(SLOWEST)

    items.sort(key=place)
