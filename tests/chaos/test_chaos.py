"""The short run of the faults: each kind twice, on real processes and real files. `make chaos` is the long one."""

from __future__ import annotations

import random

import pytest

from tests.chaos.__main__ import is_good
from tests.chaos.faults import FAULTS
from tests.chaos.lab import Lab
from tests.support.forked import Zygote

pytestmark = pytest.mark.chaos
SEED = 20261121


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory, zygote: Zygote) -> Lab:
    return Lab(tmp_path_factory.mktemp("chaos"), zygote)


@pytest.mark.parametrize("name", FAULTS)
def test_nothing_is_lost_and_the_result_is_that_of_an_undisturbed_run(lab: Lab, name: str) -> None:
    row = FAULTS[name](lab, random.Random(f"{SEED}/{name}"), 2)
    assert is_good(row), f"{row}\nagain alone: make chaos CHAOS='--only \"{name}\" --seed {SEED} --times 2'"
    assert row.injected >= 2
