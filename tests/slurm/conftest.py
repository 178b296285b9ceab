"""One SLURM cluster for all tests here, and the undisturbed runs that they compare with."""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from slurm.testbed import cluster
from tests.support import ROOT
from tests.support.slurm_jobs import Slurm, Training, user_environment

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.slurm)


@pytest.fixture(scope="session")
def slurm_installed() -> None:
    """Debian's packages, and root; or these tests are skipped."""
    missing = [program for program in cluster.PROGRAMS if shutil.which(program) is None]
    if missing:
        pytest.skip(f"no {', '.join(missing)}; apt-get install --no-install-recommends {cluster.PACKAGES}")
    if os.geteuid() != 0:
        pytest.skip("a testbed needs root")


@pytest.fixture(scope="session")
def testbed(slurm_installed: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Slurm]:
    """A cluster of four nodes; all its processes are gone afterwards, whatever happened."""
    folder = tmp_path_factory.mktemp("slurm") / "testbed"
    try:
        subprocess.run([ROOT / "slurm/testbed/up", folder, "--grace", "30"], check=True)
        layout = cluster.running_layout(folder)
        assert layout is not None
        yield Slurm(layout, user_environment(str(layout.conf)))
    finally:
        subprocess.run([ROOT / "slurm/testbed/down", folder], check=True)


@pytest.fixture
def training(speech: Path, tmp_path: Path) -> Training:
    """A run that rests from its twelfth step on."""
    return Training(tmp_path / "run", speech)


@pytest.fixture(scope="session")
def undisturbed(testbed: Slurm, speech: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], Training]:
    """The same run on so many ranks of one node, never stopped."""

    @functools.cache
    def finished(ranks: int) -> Training:
        run = Training(tmp_path_factory.mktemp("undisturbed") / f"ranks_{ranks}", speech)
        testbed.ask("srun", f"--ntasks={ranks}", "--nodes=1", "python", "-m", "simdist.train", *run.arguments)
        return run

    return finished
