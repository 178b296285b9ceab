"""What a sweep file may hold, and how its mistakes are named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from launch.sweep_file import read_sweep
from launch.variants import expand
from simdist.config.load import CONFIGS
from simdist.core.errors import InputError
from tests.support.sweeps import SMALL, sweep_file


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"grids": {}}, ["unknown key 'grids'", "did you mean 'grid'?", "seeds, stages"]),
        ({"name": "a/b"}, ["name is 'a/b'", "folder's name"]),
        ({"seeds": [0, "x"]}, ["seeds", "whole number", "x"]),
        ({"seeds": []}, ["seeds are []", "different numbers"]),
        ({"seeds": [1, 1]}, ["different numbers"]),
        ({"grid": {"loss.betta": [1]}}, ["unknown key 'loss.betta'", "did you mean 'loss.beta'?", "loss.window"]),
        ({"grid": {"loss.beta": 1}}, ["grid.loss.beta is 1", "a list of values"]),
        ({"grid": {"loss.beta": ["x"]}}, ["loss.beta must be a number, not x"]),
        ({"grid": {"loss.beta": [-1]}}, ["loss.beta is -1", "0 or more"]),
        ({"grid": {"loss": [1]}}, ["loss cannot be set as a whole"]),
        ({"grid": {"model.modules.1.gru": [True]}}, ["model.modules.1.gru", "give all of it"]),
        ({"grid": {"loss.beta.x": [1]}}, ["loss.beta.x"]),
        ({"grid": {"seed": [1]}}, ["grid has the key 'seed'", "`seeds`"]),
        ({"config": {"model.modules": [{"layers": [{"kernel": 0}]}]}}, ["model.modules", "layer.kernel is 0"]),
        ({"base": "nosuch"}, ["nosuch does not exist", "sim_librispeech.yaml"]),
        ({"variants": [{"nam": "x"}]}, ["variants: unknown key 'nam'", "did you mean 'name'?"]),
        ({"random": {"samples": 0, "draw": {}}}, ["random.samples is 0"]),
        ({"random": {"samples": 1, "draw": {"optim.lr": {"uniform": [2, 1]}}}}, ["first must be the smaller"]),
        ({"random": {"samples": 1, "draw": {"optim.lr": {"normal": [0, 1]}}}}, ["'normal'", "log_uniform"]),
        ({"random": {"samples": 1, "draw": {"optim.lr": 3}}}, ["random.draw.optim.lr is 3", "choice"]),
        ({"stages": {"prob": {}}}, ["stage prob", "kind is 'prob'", "probe"]),
        ({"stages": {"probe": {"label": ["speaker"]}}}, ["stage probe: unknown key 'label'", "'labels'"]),
        ({"stages": {"probe": 3}}, ["stage probe is 3"]),
        ({"stages": {"pack": {}}}, ["stage pack needs a `source`", "librispeech"]),
        ({"stages": {"analyze": {}}}, ["stage analyze needs `which`"]),
        ({"stages": {"a": {"kind": "report"}, "b": {"kind": "report"}}}, ["2 stages of kind report"]),
        ({"stages": {"probe": {"after": ["train"]}}}, ["after names 'train'", "none"]),
    ],
)
def test_mistakes_are_named_with_what_is_valid(changes: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(InputError) as error:
        expand(sweep_file(**changes))
    assert all(word in str(error.value) for word in words), error.value
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("content", "words"),
    [("name: [", "is not valid YAML"), ("- 1", "contains a list"), ("", "is empty")],
)
def test_files_that_hold_something_else(content: str, words: str, tmp_path: Path) -> None:
    file = tmp_path / "wrong.yaml"
    file.write_text(content)
    with pytest.raises(InputError, match=words):
        read_sweep(file)


def test_a_missing_file_is_answered_with_those_that_are_there(tmp_path: Path) -> None:
    for folder in (CONFIGS / "sweeps", tmp_path):  # where there are none, with those that come with simdist
        with pytest.raises(InputError, match=r"nosuch\.yaml does not exist; those in .*sweeps are .*smoke\.yaml"):
            read_sweep(folder / "nosuch.yaml")


def test_overrides_reach_the_configuration_and_the_sweep(tmp_path: Path) -> None:
    file = tmp_path / "sweep.yaml"
    file.write_text("name: a\nstages: {probe: {labels: [speaker]}}\n")
    words = ["seeds=[3, 4]", "train.max_steps=7", "grid.loss.beta=[0.5]", "stages.probe.options.epochs=2", "name=b"]
    sweep = read_sweep(file, words)
    assert (sweep.name, sweep.seeds, sweep.config) == ("b", (3, 4), {"train.max_steps": 7})
    assert sweep.grid == {"loss.beta": [0.5]}
    assert sweep.stages["probe"].options == {"epochs": 2}


@pytest.mark.parametrize("word", ["seeds", "=3", "seeds=[", "name.first=3"])
def test_overrides_that_are_none(word: str, tmp_path: Path) -> None:
    file = tmp_path / "sweep.yaml"
    file.write_text("name: a\n")
    with pytest.raises(InputError, match=r"override|YAML|no keys below"):
        read_sweep(file, [word])


def test_a_stage_that_is_false_is_left_out(tmp_path: Path) -> None:
    file = tmp_path / "sweep.yaml"
    file.write_text("name: a\nstages: {probe: {labels: [speaker]}, decode: null, report: null}\n")
    sweep = read_sweep(file, ["stages.probe=false", "stages.report=false"])
    assert list(sweep.stages) == ["train", "decode"]


def test_a_shipped_sweep_is_found_by_its_name_unless_a_file_is_called_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert read_sweep("smoke").name == "smoke"
    Path("smoke").write_text("name: mine\n")
    assert read_sweep("smoke").name == "mine"


def test_stages_stand_in_the_order_of_the_work_and_analyses_wait_for_what_they_read() -> None:
    sweep = sweep_file(stages={"report": None, "analyze": {"which": "weights"}, "probe": None, "decode": None})
    assert list(sweep.stages) == ["train", "probe", "decode", "analyze", "report"]
    assert sweep.stages["analyze"].after == ("probe", "decode")


@pytest.mark.parametrize("file", sorted((CONFIGS / "sweeps").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_sweep_that_ships_can_be_planned(file: Path) -> None:
    variants = expand(read_sweep(file))
    assert len({variant.run for variant in variants}) == len(variants) > 1


def test_the_small_sweep_of_these_tests_leaves_its_own_content_alone() -> None:
    before = repr(SMALL)
    sweep_file()
    assert repr(SMALL) == before
