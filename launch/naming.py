"""Names of the launcher: its commands as the user types them, the module of its jobs, its code folder.

The same files are the package `launch` of a clone and `simdist.launch` of an installed wheel.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

HERE = Path(__file__).resolve().parent
IN_WHEEL = (HERE.parent / "__init__.py").is_file()
"""Whether this is `simdist/launch` in site-packages; in a clone, `launch` is next to `simdist`."""
CODE = HERE.parent.parent if IN_WHEEL else HERE.parent
"""Folder from which Python imports both simdist and the launcher."""
PACKAGE = "simdist.launch" if IN_WHEEL else "launch"
JOB_MODULE = f"{PACKAGE}.job"
"""`python -m JOB_MODULE` runs a job."""
COMMANDS = ("sweep", "status", "logs", "cancel")
WITH_VALUE = ("-W", "-X", "--check-hash-based-pycs")  # options of Python's that take the next word


def command(name: str, *words: object) -> str:
    """How to type a command of the launcher, in the form that this process was started with.

    Args:
        name: `sweep`, `status`, `logs` or `cancel`.
        words: its arguments.
    """
    return " ".join([form_of(sys.orig_argv).format(name), *map(str, words)])


def as_typed(text: str) -> str:
    """A text for the user with every `python launch/NAME.py` in the form that this process was started with."""
    for name in COMMANDS:
        text = text.replace(f"python launch/{name}.py", command(name))
    return text


def form_of(words: Sequence[str]) -> str:
    """`python launch/{}.py`, `python -m launch.{}` or `simdist {}`, by how Python was started.

    Args:
        words: the process's command line, as `sys.orig_argv`.
    """
    program, is_module = _program(words)
    if is_module and program.rpartition(".")[0] == PACKAGE:
        return f"python -m {PACKAGE}.{{}}"
    if is_module:
        is_simdist = program in ("simdist", "simdist.__main__")
    else:
        path = Path(program)
        if path.suffix == ".py" and path.stem in COMMANDS and path.resolve().parent == HERE:
            return f"python {path.with_name('{}.py')}"
        is_simdist = path.stem == "simdist"
    return "simdist {}" if is_simdist or IN_WHEEL else "python launch/{}.py"


def _program(words: Sequence[str]) -> tuple[str, bool]:
    """The script or module that Python runs, and whether it is a module; an empty text for neither."""
    rest = iter(words[1:])
    for word in rest:
        if word == "-m":
            return next(rest, ""), True
        if not word.startswith("-"):
            return word, False
        if word == "-c":
            break
        if word in WITH_VALUE:
            next(rest, None)
    return "", False
