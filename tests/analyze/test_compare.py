"""Two runs side by side: the numbers are those of each run by itself."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from simdist.analyze.result_writer import read_result
from simdist.analyze.settings import numbers
from tests.support.decoders import make_decoder

Analyze = Callable[..., list[dict]]


def test_the_overlay_holds_both_runs(analyze: Analyze, sim: Path, gim: Path) -> None:
    results = analyze("compare", sim, str(gim), "--module=0", "--clips=2", "--label=speaker")
    (result,) = [result for result in results if result["analysis"] == "compare"]
    found = result["values"]["modules"]["0"]
    for which in ("contribution", "total-correlation"):
        (own,) = analyze(which, gim, "--module=0", "--clips=2", "--force")
        key = "curve" if which == "contribution" else "gaussian"
        ours, theirs = (found[which][run] if key == "curve" else found[which][run][key] for run in ("gim", "sim"))
        assert ours == own["values"][key]
        assert theirs != own["values"][key]
    assert set(found["weights"]["speaker"]) == {"sim", "gim"}
    assert result["values"]["left_out"] == []
    names = {path.name for path in result["folder"].iterdir()}
    for figure in ("weights-speaker-module0", "contribution-module0", "total-correlation-module0"):
        assert {f"{figure}.png", f"{figure}.svg"} <= names


@pytest.fixture
def no_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """They take most of the time, and another test draws them all."""
    monkeypatch.setattr("simdist.analyze.style.save", lambda figure, path: [])


@pytest.mark.usefixtures("no_figures")
def test_what_cannot_be_compared_is_named(analyze: Analyze, sim: Path, gim: Path) -> None:
    results = analyze("compare", sim, str(gim), "--module=1", "--clips=2")
    (result,) = [result for result in results if result["analysis"] == "compare"]
    assert set(result["values"]["modules"]["1"]) == {"total-correlation"}
    weights, contribution = result["values"]["left_out"]
    assert "simdist.probe" in weights
    assert "simdist.decode" in contribution


@pytest.mark.usefixtures("no_figures")
def test_decoders_of_one_loss_are_compared(analyze: Analyze, sim: Path, gim: Path, tmp_path: Path) -> None:
    """The first run's own would be `mse`, of which the second has none."""
    runs = [tmp_path / "sim", tmp_path / "gim"]
    for run, folder in zip((sim, gim), runs, strict=True):
        shutil.copytree(run, folder, ignore=shutil.ignore_patterns("analysis"))
        make_decoder(folder, 0, "mse+mel")
    shutil.rmtree(runs[1] / "decoders" / "0-mse")
    results = analyze("compare", runs[0], str(runs[1]), "--module=0", "--clips=2")
    (result,) = [result for result in results if result["analysis"] == "compare"]
    folders = [run / "analysis" / name for run in runs for name in result["inputs"] if "contribution" in name]
    assert [read_result(folder)["settings"]["loss"] for folder in folders if folder.is_dir()] == ["mse+mel"] * 2
    shutil.rmtree(runs[1] / "decoders" / "0-mse+mel")
    results = analyze("compare", runs[0], str(runs[1]), "--module=0", "--clips=2")
    (result,) = [result for result in results if result["analysis"] == "compare"]
    assert "no decoder of module 0 with loss mse" in result["values"]["left_out"][0]


def test_two_runs_are_wanted(fails: Callable[..., str], sim: Path, tmp_path: Path) -> None:
    assert "are one run; name two" in fails("compare", str(sim), f"{sim}/")
    assert "is not a run folder (it has no config.yaml)" in fails("compare", str(sim), str(tmp_path))
    assert "missing: RUN_B" in fails("compare", str(sim))


def test_numbers() -> None:
    assert numbers("--sizes", " [1, 2,3] ") == [1, 2, 3]
    assert numbers("--snr", "", float) == []
