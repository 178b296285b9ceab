"""The table for people who come from the authors' code: what it names on our side exists, or says why it does not."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import cast

import pytest
import yaml

from simdist.analyze import __main__ as analyze
from simdist.analyze.registry import ANALYSES
from simdist.config.decoder import DecodingConfig
from simdist.config.load import tree_from
from simdist.config.parser import Parser
from simdist.decode.__main__ import main as decode
from simdist.probe import __main__ as probe
from simdist.runs.schedule import Schedule
from simdist.train.__main__ import main as train
from tests.docs.test_commands import UnderstoodError, parsing_only, understand
from tests.support import ROOT
from tests.support.pages import PAGES, inline_commands_in

FILE = ROOT / "docs" / "reference_implementation.yaml"
TABLE = yaml.safe_load(FILE.read_text())
ROWS = [row for rows in TABLE["tables"].values() for row in rows]
OURS = [ours for _, _, ours in ROWS]
MISSING = "not here: "


def options_of(parser: Parser) -> set[str]:
    return {option for action in parser._actions for option in action.option_strings}


@pytest.fixture(scope="module")
def options() -> set[str]:
    """Of every command that the table names options of without naming the command."""
    found = options_of(probe._parser()) | {"--config"}
    for sub in analyze._parser()[1].values():
        found |= options_of(sub)
    for main in (train, decode):
        with parsing_only(), pytest.raises(UnderstoodError) as understood:
            main(["--run-dir=runs/sim"])
        found |= options_of(understood.value.parser)  # pyright: ignore[reportArgumentType]
    return found


def test_the_table_is_read() -> None:
    assert len(ROWS) > 90
    assert all(len(row) == 3 and all(row) for row in ROWS)
    assert len({(code, theirs) for code, theirs, _ in ROWS}) == len(ROWS)
    assert {code for code, _, _ in ROWS} == set(TABLE["codes"])
    assert all(re.fullmatch(r"[0-9a-f]{7}", code["commit"]) for code in TABLE["codes"].values())


def test_a_row_names_ours_or_says_why_it_is_not_here() -> None:
    missing = [ours.removeprefix(MISSING) for ours in OURS if ours.startswith(MISSING)]
    assert len(missing) >= 3
    assert all(len(why.split()) > 2 for why in missing)
    assert not [
        ours for ours in OURS if re.search("not (here|available|needed)", ours) and not ours.startswith(MISSING)
    ]
    named = [ours for ours in OURS if not ours.startswith(MISSING)]
    assert not [ours for ours in named if re.search("not (here|available|needed)", ours)]
    assert [ours for ours in named if "`" not in ours] == ["as in SIM's code"]


@pytest.mark.parametrize("ours", OURS)
def test_every_command_on_the_right_is_understood(ours: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.syspath_prepend(str(ROOT))
    commands = [command.words for command in inline_commands_in(ours, FILE.name)]
    commands += [("python", "-m", "simdist.train", *span.split()) for span in re.findall("`(--config [^`]+)`", ours)]
    assert bool(commands) == bool(re.search(r"`(python|accelerate|--config) ", ours.replace("import_reference`", "")))
    for words in commands:
        if words[-1] != "simdist.import_reference":  # named without its arguments
            understand(words)


def test_every_option_on_the_right_exists(options: set[str]) -> None:
    spans = [span for ours in OURS for span in re.findall("`([^`]+)`", ours)]
    named = {
        option
        for span in spans
        if not span.startswith(("python", "accelerate"))  # whole commands, which their own parsers read above
        for option in re.findall(r"(?<![\w-])--[a-z][\w.-]*", span)
    }
    assert named - options == set()
    assert len(named) > 35


def test_every_preset_on_the_right_exists() -> None:
    presets = {path.stem for path in (ROOT / "configs").rglob("*.yaml")}
    named = {name for ours in OURS for name in re.findall(r"(\w+)\.yaml", ours)}
    named |= {name for ours in OURS for name in re.findall(r"`((?:sim|gim|cpc|vgim)_\w+)`", ours)}
    assert named - presets == set()
    assert len(named) > 7


def test_every_analysis_on_the_right_exists() -> None:
    named = {name for ours in OURS for name in re.findall(r"simdist\.analyze ([\w-]+)", ours)}
    assert named - set(ANALYSES) == set()
    assert len(named) > 8


def test_every_loss_of_a_decoder_exists() -> None:
    from simdist.models.waveform_losses import LOSSES

    (row,) = (ours for _, theirs, ours in ROWS if "decoder_loss" in theirs)
    named = re.findall(r"`(?:--loss )?([\w+]+)`", row)
    assert named == ["mse", "spectral", "mse+spectral", "fft", "mse+fft", "mel", "mse+mel"]
    assert set(named) <= set(LOSSES)


def test_the_thesis_decoders_learn_as_their_row_says(monkeypatch: pytest.MonkeyPatch) -> None:
    """The learning rate that the command on the right trains with, epoch after epoch, is the one on the left."""
    ((theirs, ours),) = ((theirs, ours) for code, theirs, ours in ROWS if code == "thesis" and "train_auto" in theirs)
    first, factor = map(float, re.findall(r"\d+\.\d+", theirs))
    (command,) = inline_commands_in(ours, FILE.name)
    monkeypatch.chdir(ROOT)
    with parsing_only(), pytest.raises(UnderstoodError) as understood:
        decode(command.words[3:])
    config = tree_from(cast(Parser, understood.value.parser), understood.value.parsed, DecodingConfig)
    config = replace(config, data=replace(config.data, batch_size=8, epoch="all"))
    rates = Schedule(config, 80)  # ten steps an epoch
    assert [rates.lr(step) for step in (0, 9, 10, 20)] == pytest.approx(
        [first, first, first * factor, first * factor**2]
    )
    assert config.loss == "mel"


def test_pages_that_are_named_exist() -> None:
    for page in [*PAGES, ROOT / "CONTRIBUTING.md", FILE]:
        text = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
        for path in re.findall(r"(?<![\w/])docs/[\w/]+\.\w+", text):
            assert (ROOT / path).is_file(), f"{page.name} names {path}"
        for path in re.findall(r"\]\((?!https?:)([^)#]+)[^)]*\)", text):
            assert (page.parent / path).exists(), f"{page.name} links to {path}"
