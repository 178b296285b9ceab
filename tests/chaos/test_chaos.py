"""The short run of the faults: each kind twice, on real processes and real files. `make chaos` is the long one."""

from __future__ import annotations

import random

import pytest

from chaos.__main__ import is_good
from chaos.faults import FAULTS
from chaos.lab import Lab

SEED = 20261121


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Lab:
    return Lab(tmp_path_factory.mktemp("chaos"))


@pytest.mark.parametrize("name", FAULTS)
def test_nothing_is_lost_and_the_result_is_that_of_an_undisturbed_run(lab: Lab, name: str) -> None:
    row = FAULTS[name](lab, random.Random(f"{SEED}/{name}"), 2)
    assert is_good(row), f"{row}\nagain alone: make chaos, with --only '{name}' --seed {SEED} --times 2"
    assert row.injected >= 2
