"""The words of every `--help`."""

from __future__ import annotations

import importlib
import re
import subprocess

import pytest

from simdist.__main__ import COMMANDS, LAUNCHER
from simdist.analyze.registry import ANALYSES
from tests.support import ROOT

CORPORA = ("librispeech", "artificial-speech", "synthetic")
CALLS = [
    *(f"simdist.{name}.__main__" for name in COMMANDS),
    *(f"launch.{name}" for name in LAUNCHER),
    *(f"simdist.pack.__main__ {name}" for name in CORPORA),
    *(f"simdist.analyze.__main__ {name}" for name in (*ANALYSES, "compare")),
]
WITHOUT_CODES = ("simdist.pack.__main__ ", "simdist.analyze.__main__ ")  # subcommands; the command above lists them
UNWANTED = r"default: \)|default: None|type: str|\| null|null takes|empty takes|[Cc]ontinue|\x08"
BRITISH = r"\w*(?:colour|centre|labelled|neighbour|behaviour|normalis|initialis|recognis|standardis|synthesis)\w*"


@pytest.mark.parametrize("call", CALLS)
def test_help_is_plain(call: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    module, *words = call.split()
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.chdir(ROOT)
    with pytest.raises(SystemExit) as left:
        importlib.import_module(module).main([*words, "--help"])
    assert left.value.code == 0
    text = capsys.readouterr().out
    assert not re.findall(UNWANTED, text)
    assert not re.findall(BRITISH, text)
    assert "Exit codes: 0 " in text or call.startswith(WITHOUT_CODES)


@pytest.mark.parametrize("name", ["install", "demo", "up", "down"])
def test_scripts_of_the_testbed_print_their_usage_and_refuse_unknown_options(name: str) -> None:
    script = ROOT / "slurm" / "testbed" / name
    helped = subprocess.run([script, "--help"], capture_output=True, text=True, timeout=60, check=True)
    assert helped.stdout.startswith(f"usage: slurm/testbed/{name}")
    assert "Exit codes: 0 " in helped.stdout
    refused = subprocess.run([script, "--gone"], capture_output=True, text=True, timeout=60, check=False)
    assert refused.returncode == 2
    assert "--gone" in refused.stderr or "required" in refused.stderr
