"""simdist as a wheel in a virtual environment of its own, with all other packages from the one that runs the tests."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
from pathlib import Path

from tests.support import ROOT


def install_wheel(folder: Path) -> Path:
    """Build the wheel of this checkout and install it below `folder`; returns the environment's `bin`."""
    run(sys.executable, "-m", "pip", "wheel", str(ROOT), "--no-deps", "--quiet", "--wheel-dir", str(folder))
    (wheel,) = folder.glob("simdist-*.whl")
    environment = folder / "venv"
    run(sys.executable, "-m", "venv", "--without-pip", str(environment))
    python = environment / "bin" / "python"
    run(sys.executable, "-m", "pip", "--python", str(python), "install", "--no-deps", "--quiet", str(wheel))
    packages = Path(run(str(python), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip())
    (packages / "others.pth").write_text(sysconfig.get_path("purelib") + "\n")  # later on sys.path than the wheel
    return environment / "bin"


def environment_of(bin: Path) -> dict[str, str]:
    """A user's environment with that virtual environment in front, and no way to this checkout."""
    without = ("PYTHONPATH", "VIRTUAL_ENV")
    environment = {name: value for name, value in os.environ.items() if name not in without}
    return environment | {"PATH": f"{bin}{os.pathsep}{environment['PATH']}", "COLUMNS": "160"}


def run(*words: str, **options: object) -> str:
    """What a command prints on both streams; a failure shows it."""
    done = subprocess.run(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **options)  # pyright: ignore
    assert done.returncode == 0, f"{' '.join(words)}\n{done.stdout}"
    return done.stdout
