"""What `--help` says of an option: its type and default, where they say something."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import pytest

from simdist.config.parser import Parser, add_fields
from simdist.config.schema import RUN_DIR


@dataclass(frozen=True)
class Settings:
    """Options of a made-up command."""

    run: Path | None = field(default=None, metadata={"options": RUN_DIR, "required": True})
    """Run folder."""
    label: str = ""
    """Labels. Default: all."""
    crop: int | None = None
    """Length of a crop. Default: the run's."""
    limit: int | None = None
    """Maximum number. null disables it."""
    bias: bool = True
    """Whether there is a bias."""
    force: bool = False
    """Repeat it."""
    folder: str = ""
    """Name of a folder."""
    hidden: int = 3
    """Has no effect here."""


@pytest.fixture
def parser(monkeypatch: pytest.MonkeyPatch) -> Parser:
    monkeypatch.setenv("COLUMNS", "100")
    made = Parser(prog="made-up")
    add_fields(made, Settings)
    made.unlist("hid*")
    return made


def test_help_leaves_out_what_says_nothing(parser: Parser) -> None:
    lines = [" ".join(line.split()) for line in parser.format_help().splitlines() if line.startswith("  --")]
    assert lines == [
        "--run-dir RUN Run folder. (required, type: path)",
        "--label LABEL Labels. (default: all)",
        "--crop CROP Length of a crop. (type: int, default: the run's)",
        "--limit LIMIT Maximum number. null disables it. (type: int, default: null)",
        "--bias {true,false} Whether there is a bias. (default: true)",
        "--force Repeat it.",
        "--folder FOLDER Name of a folder.",
    ]


def test_what_help_leaves_out_still_works(parser: Parser) -> None:
    parsed = parser.parse_args(["--run", "runs/a", "--hidden", "4"])
    assert (str(parsed.run), parsed.hidden) == ("runs/a", 4)


def test_a_missing_run_is_an_error(parser: Parser, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parser.parse_args([])
    assert "missing: --run-dir (all options: made-up --help)" in capsys.readouterr().err


def test_defaults_can_be_said_in_words(parser: Parser) -> None:
    parser.say_defaults("as many as there are", "limit")
    assert "(type: int, default: as many as there are)" in " ".join(parser.format_help().split())
