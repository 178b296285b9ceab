"""How the launcher spells its own commands."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from launch.naming import HERE, JOB_MODULE, as_typed, command, form_of

ROOT = HERE.parent


@pytest.mark.parametrize(
    ("words", "form"),
    [
        (["python", "launch/sweep.py", "--dry-run"], "python launch/{}.py"),
        (["python", "-u", "-X", "dev", "launch/status.py"], "python launch/{}.py"),
        (["python", str(ROOT / "launch/sweep.py")], f"python {ROOT}/launch/{{}}.py"),
        (["python", "-m", "launch.sweep", "smoke"], "python -m launch.{}"),
        (["/venv/bin/python", "/venv/bin/simdist", "sweep"], "simdist {}"),
        (["python", "-m", "simdist", "sweep"], "simdist {}"),
        (["python", "-c", "pass", "launch/sweep.py"], "python launch/{}.py"),
        (["python", "-m", "pytest", "tests"], "python launch/{}.py"),
        (["python", "other/sweep.py"], "python launch/{}.py"),
        (["python"], "python launch/{}.py"),
    ],
)
def test_the_form_is_that_of_the_command_line(words: list[str], form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    assert form_of(words) == form


def test_texts_and_hints_follow_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "orig_argv", ["python", "/venv/bin/simdist", "sweep"])
    assert command("status", "smoke", "--watch") == "simdist status smoke --watch"
    assert (
        as_typed("see python launch/logs.py RUN, then launch/cancel.py")
        == "see simdist logs RUN, then launch/cancel.py"
    )


def test_in_a_clone_jobs_are_started_from_launch() -> None:
    assert JOB_MODULE == "launch.job"


@pytest.mark.parametrize("name", ["sweep", "status", "logs", "cancel"])
def test_every_command_has_three_ways_in(name: str, tmp_path: Path) -> None:
    ways = {
        f"python launch/{name}.py": [f"launch/{name}.py"],
        f"python -m launch.{name}": ["-m", f"launch.{name}"],
        f"simdist {name}": ["-m", "simdist", name],
    }
    for usage, words in ways.items():
        done = subprocess.run([sys.executable, *words, "--help"], capture_output=True, text=True, cwd=ROOT, check=True)
        assert done.stdout.startswith(f"usage: {usage} "), done.stdout
        assert f"\n  {usage}" in done.stdout  # in the examples


def test_simdist_finds_the_launcher_beside_it_although_another_package_has_its_name(tmp_path: Path) -> None:
    (tmp_path / "launch.py").write_text("raise SystemExit('another package')\n")
    program = f"import sys; sys.path.insert(0, {str(ROOT)!r}); sys.path.insert(0, {str(tmp_path)!r}); "
    program += "sys.argv = ['simdist', 'sweep', '--help']; from simdist.__main__ import main; main()"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "Expand a sweep into jobs" in done.stdout
