"""The GPU's benchmark runs whole, at toy size, where there is no GPU; its numbers agree with each other."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks.gpu import Peaks, batches_of, measure, outcomes, roofline
from simdist.config.schema import Config
from simdist.models.costs import module_costs

CPU = torch.device("cpu")


@pytest.fixture
def toy(tiny: Config, tmp_path: Path) -> Config:
    """No shards: made-up audio."""
    return replace(tiny, data=replace(tiny.data, root=str(tmp_path / "none"), crop=5_120))


def test_every_row_is_there_and_adds_up(toy: Config, capsys: pytest.CaptureFixture[str]) -> None:
    rows = outcomes(toy, [2, 4], CPU, rounds=1)
    names = [row.what for row in rows]
    assert [name for name in names if name.startswith("4 clips")] == [
        "4 clips: samples/s",
        "4 clips: share of peak FLOP/s",
        "4 clips: share of the bound",
    ]
    values = {row.what: row.value for row in rows}
    assert all(value > 0 for value in values.values())
    assert values["4 clips: share of peak FLOP/s"] < 1
    assert values["4 clips: share of peak FLOP/s"] <= values["4 clips: share of the bound"] * 1.001
    assert "TFLOP/s of bf16 products" in capsys.readouterr().out


def test_the_roofline_is_bound_by_the_slower_of_products_and_memory(toy: Config) -> None:
    measured = measure(toy, 2, CPU, rounds=1)
    assert measured.step > 0
    assert all(parts["backward"] > 0 for parts in measured.modules)
    flops = [cost.total.flops for cost in module_costs(toy, 2)]
    slow_products = roofline(toy, measured, Peaks(1e3, 1e30))[1]
    assert slow_products == pytest.approx([count / 1e3 for count in flops])
    slow_memory = roofline(toy, measured, Peaks(1e30, 1e3))[1]
    assert min(slow_memory) > 0
    assert slow_memory != pytest.approx(slow_products)


def test_batches_come_out_of_the_device_cache(tiny: Config) -> None:
    batches = batches_of(tiny, CPU)
    first, second = next(batches), next(batches)
    assert first.inputs.shape == (tiny.data.batch_size, tiny.data.crop, 1)
    assert first.consumed == tiny.data.batch_size
    assert not torch.equal(first.inputs, second.inputs)
