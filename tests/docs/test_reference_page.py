"""The table for people who come from the authors' code: its right column names things that exist."""

from __future__ import annotations

import re

import pytest

from simdist.analyze import __main__ as analyze
from simdist.analyze.registry import ANALYSES
from simdist.config.parser import Parser
from simdist.decode.__main__ import main as decode
from simdist.probe import __main__ as probe
from simdist.train.__main__ import main as train
from tests.docs.test_commands import UnderstoodError, parsing_only
from tests.support import ROOT
from tests.support.pages import PAGES

PAGE = (ROOT / "docs" / "tasks" / "reference_implementation.md").read_text()
ROWS = [line.strip("|").rsplit(" | ", 1) for line in PAGE.splitlines() if re.match(r"\| [`a-zA-Z…]", line)]


def options_of(parser: Parser) -> set[str]:
    return {option for action in parser._actions for option in action.option_strings}


@pytest.fixture(scope="module")
def options() -> set[str]:
    """Of every command that the table names options of."""
    found = options_of(probe._parser())
    for sub in analyze._parser()[1].values():
        found |= options_of(sub)
    for main in (train, decode):
        with parsing_only(), pytest.raises(UnderstoodError) as understood:
            main(["--run-dir=runs/sim"])
        found |= options_of(understood.value.parser)  # pyright: ignore[reportArgumentType]
    return found | {"--train-split", "--test-split"}  # of simdist.pack, whose subcommands test_pack.py looks at


def test_the_table_is_read() -> None:
    assert len(ROWS) > 60
    assert all(len(row) == 2 for row in ROWS)


def test_every_option_on_the_right_exists(options: set[str]) -> None:
    named = {option for _, ours in ROWS for option in re.findall(r"(?<![\w-])--[a-z][\w.-]*", ours)}
    commands = {"--cluster", "--config"}
    assert named - options - commands == set()
    assert len(named) > 35


def test_every_preset_and_analysis_on_the_right_exists() -> None:
    for _, ours in ROWS:
        for preset in re.findall(r"(\w+)\.yaml", ours):
            assert (ROOT / "configs" / f"{preset}.yaml").is_file() or (
                ROOT / "configs" / "sweeps" / f"{preset}.yaml"
            ).is_file(), preset
    for name in ("distributions", "scatter", "traversal"):
        assert name in ANALYSES
        assert f"`{name}`" in PAGE


def test_every_loss_of_a_decoder_exists() -> None:
    from simdist.models.waveform_losses import LOSSES

    (row,) = (ours for theirs, ours in ROWS if "decoder_loss" in theirs)
    named = re.findall(r"`(?:--loss )?([\w+]+)`", row)
    assert named == ["mse", "spectral", "mse+spectral", "fft", "mse+fft", "mel", "mse+mel"]
    assert set(named) <= set(LOSSES)


def test_pages_that_are_named_exist() -> None:
    for page in [*PAGES, ROOT / "CONTRIBUTING.md"]:
        text = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
        for path in re.findall(r"(?<![\w/])docs/[\w/]+\.\w+", text):
            assert (ROOT / path).is_file(), f"{page.name} names {path}"
        for path in re.findall(r"\]\((?!https?:)([^)#]+)[^)]*\)", text):
            assert (page.parent / path).exists(), f"{page.name} links to {path}"
