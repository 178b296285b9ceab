"""The command line: what it refuses, what it says, and that its figures are the same bytes each time."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from simdist.analyze import style
from simdist.analyze.registry import ANALYSES


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["distributions"], ["missing: --run-dir (all options: python -m simdist.analyze distributions --help)"]),
        (["distributions", "--run-dir={none}"], ["is not a run folder (it has no config.yaml)"]),
        (["distributions", "--run-dir={sim}", "--module=4"], ["module 4 does not exist", "modules 0 to 3"]),
        (["distributions", "--run-dir={sim}", "--module=top"], ["--module is 'top'; it must be module numbers"]),
        (["distributions", "--run-dir={sim}", "--checkpoint=7"], ["has no checkpoint of step 7; it has 10"]),
        (["distributions", "--run-dir={sim}", "--checkpoint=all"], ["it must be latest, or one step such as 200"]),
        (["distributions", "--run-dir={sim}", "--split=dev"], ["has no split 'dev'", "test, train"]),
        (["distributions", "--run-dir={sim}", "--clips=0"], ["--clips is 0; it must be at least 1"]),
        (["distributions", "--run-dir={sim}", "--clip=3"], ["unknown key 'clip': did you mean 'clips'?"]),
        (["embedding", "--run-dir={sim}", "--label=vowel"], ["have no label 'vowel'; they have"]),
        (["total-correlation", "--run-dir={sim}", "--sizes=1"], ["--sizes is '1'; it must be numbers of 2 or more"]),
        (["total-correlation", "--run-dir={sim}", "--clips=1", "--frames=2"], ["2 frames are too few"]),
        (["magic", "--run-dir={sim}"], ["unknown WHICH 'magic': valid: distributions", "compare"]),
        (["distribution", "--run-dir={sim}"], ["did you mean 'distributions'?"]),
        ([], ["missing: WHICH, one of distributions, weights", "compare"]),
    ],
)
def test_wrong_input(argv: list[str], words: list[str], fails: Callable[..., str], sim: Path, tmp_path: Path) -> None:
    printed = fails(*(word.format(sim=sim, none=tmp_path) for word in argv))
    assert all(word in printed for word in words), printed


@pytest.mark.parametrize("which", [*ANALYSES, "compare"])
def test_help_has_an_example(which: str, capsys: pytest.CaptureFixture[str]) -> None:
    from simdist.analyze.__main__ import main

    with pytest.raises(SystemExit) as left:
        main([which, "--help"])
    assert left.value.code == 0
    printed = capsys.readouterr().out
    assert f"python -m simdist.analyze {which} " in printed
    assert "--module MODULE" in printed


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch, fails: Callable[..., str], sim: Path) -> None:
    monkeypatch.setitem(sys.modules, "scipy", None)  # importing it fails from now on
    printed = fails("distributions", f"--run-dir={sim}")
    assert "needs scipy, which is not installed: pip install 'simdist[analysis]'" in printed


def test_help_needs_no_torch() -> None:
    code = "import sys; from simdist.analyze.__main__ import main\n"
    code += "try: main(['--help'])\nfinally: print('torch' in sys.modules)"
    printed = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=os.environ | {"COLUMNS": "120"}, check=False
    ).stdout
    assert printed.strip().endswith("False")


def test_a_figure_is_the_same_bytes_each_time(tmp_path: Path) -> None:
    for name in ("first", "second"):
        figure = style.new_figure(3, 2)
        axes = figure.subplots()
        style.line(axes, 1, np.arange(3), np.arange(3), "three points")
        style.finish(axes, "x (s)", "y (m)", "title")
        written = style.save(figure, tmp_path / name)
        assert [path.suffix for path in written] == [".png", ".svg"]
    for kind in ("png", "svg"):
        assert (tmp_path / f"first.{kind}").read_bytes() == (tmp_path / f"second.{kind}").read_bytes()


def test_every_class_looks_different() -> None:
    looks = {(style.class_color(n), style.marker(n)) for n in range(style.MAX_CLASSES)}
    assert len(looks) == style.MAX_CLASSES


def test_several_ranks_are_refused(fails: Callable[..., str], sim: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert "runs in one process. Start it with `python -m simdist.analyze`" in fails("weights", f"--run-dir={sim}")
