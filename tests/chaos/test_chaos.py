"""The short run of the faults: each kind once, on real processes and real files. `make chaos` is the long one.

Of the faults at operations that write, each command meets one kind, and each kind meets a command.
"""

from __future__ import annotations

import random

import pytest

from tests.chaos.__main__ import is_good
from tests.chaos.faults import FAULTS
from tests.chaos.lab import Lab
from tests.chaos.write_sites import CASES, KINDS, SITES
from tests.support.forked import Zygote

pytestmark = pytest.mark.chaos
SEED = 20261121
ONCE = {(name, KINDS[number % len(KINDS)]) for number, name in enumerate(CASES)}
SHORT = [name for name in FAULTS if name not in SITES or SITES[name] in ONCE]


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory, zygote: Zygote) -> Lab:
    return Lab(tmp_path_factory.mktemp("chaos"), zygote)


@pytest.mark.parametrize("name", SHORT)
def test_nothing_is_lost_and_the_result_is_that_of_an_undisturbed_run(lab: Lab, name: str) -> None:
    row = FAULTS[name](lab, random.Random(f"{SEED}/{name}"), 1)
    assert is_good(row), f"{row}\nagain alone: make chaos CHAOS='--only \"{name}\" --seed {SEED} --times 1'"
    assert row.injected >= 1
