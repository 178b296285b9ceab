"""Imports go one way between the rooms of the house, never in a circle, and some rooms import no torch."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from tests.support import ROOT

PACKAGE, LAUNCH = ROOT / "simdist", ROOT / "launch"
BASE = {"core", "config"}
LIBRARY = BASE | {"runs", "data", "models", "training", "loading"}
ALLOWED = {  # room: the rooms that it may import
    "core": set(),
    "config": {"core"},
    "cluster": BASE,
    "runs": BASE,
    "data": BASE,
    "models": BASE,
    "training": BASE | {"runs", "data", "models"},
    "loading": BASE | {"runs", "models", "training"},
    "download": BASE,
    "pack": BASE | {"data", "download"},
    "train": LIBRARY | {"pack"},  # the demo's corpus
    "probe": LIBRARY,
    "decode": LIBRARY,
    "analyze": LIBRARY | {"probe", "decode"},
    "report": BASE | {"runs", "probe", "analyze"},
    "doctor": BASE | {"cluster", "runs", "data", "training"},
    "import_reference": LIBRARY,
    "__init__": {"loading"},
    "__main__": BASE,
    "launch": BASE | {"cluster", "runs"},
}
NO_TORCH = ("core", "config", "cluster", "runs", "launch")
HEAVY = ("torch", "torchaudio", "accelerate", "matplotlib", "deepspeed", "bokeh", "scipy", "jinja2")


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def room(module: str) -> str:
    """`simdist.data.loader` is in `data`, everything of the launcher in `launch`, `simdist` itself in `__init__`."""
    first, *rest = module.split(".")
    return "launch" if first == "launch" else rest[0] if rest else "__init__"


@cache
def modules() -> dict[str, Path]:
    return {module_name(path): path for folder in (PACKAGE, LAUNCH) for path in sorted(folder.rglob("*.py"))}


def imported(path: Path, nodes: Iterator[ast.AST]) -> Iterator[str]:
    """Dotted names that these nodes import; of `from a import b` it is `a.b`."""
    parents = module_name(path).split(".")[: None if path.name == "__init__.py" else -1]
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = parents[: len(parents) - node.level + 1] if node.level else []
            yield from (".".join([*base, *filter(None, [node.module]), alias.name]) for alias in node.names)


def ours(name: str) -> str | None:
    """The module of this repository that an imported name is, or lies in."""
    parts = name.split(".")
    candidates = (".".join(parts[:length]) for length in range(len(parts), 0, -1))
    return next((candidate for candidate in candidates if candidate in modules()), None)


def imports(path: Path, at_start_only: bool = False) -> set[str]:
    """Modules of this repository that a file imports: anywhere in it, or when it is imported itself."""
    tree = ast.parse(path.read_text())
    nodes = _at_start(tree) if at_start_only else ast.walk(tree)
    return {found for name in imported(path, nodes) if (found := ours(name)) is not None} - {module_name(path)}


def _at_start(tree: ast.AST) -> Iterator[ast.AST]:
    """Nodes outside functions and `if TYPE_CHECKING`."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        yield node
        yield from _at_start(node)


@pytest.mark.parametrize("name", ALLOWED)
def test_a_room_imports_only_the_rooms_below(name: str) -> None:
    wrong = [
        f"{module} imports {other}"
        for module, path in modules().items()
        if room(module) == name
        for other in sorted(imports(path))
        if room(other) not in ALLOWED[name] | {name, "__init__"}
    ]
    assert not wrong, "\n".join(wrong)


def test_every_room_has_a_rule() -> None:
    assert {room(module) for module in modules()} == set(ALLOWED)


def test_no_module_imports_in_a_circle() -> None:
    graph = {module: imports(path, at_start_only=True) for module, path in modules().items()}
    done: set[str] = set()

    def visit(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, " imports ".join([*path[path.index(module) :], module])
        if module not in done:
            for other in sorted(graph[module] - {"simdist", "launch"}):
                visit(other, (*path, module))
            done.add(module)

    for module in graph:
        visit(module, ())


def test_data_never_speaks_to_other_ranks() -> None:
    for path in (PACKAGE / "data").glob("*.py"):
        found = set(imported(path, ast.walk(ast.parse(path.read_text()))))
        assert not any("distributed" in name or name.startswith("accelerate") for name in found), path


def test_light_rooms_and_command_lines_import_nothing_heavy() -> None:
    """`--help`, wrong options and the launcher answer at once, the launcher also on a login node without torch."""
    light = [
        name for name in modules() if room(name) in NO_TORCH and not name.endswith(("__main__", "torchaudio_import"))
    ]
    commands = [f"{name}.__main__" for name in modules() if f"{name}.__main__" in modules()]
    settings = ["simdist.probe.settings", "simdist.analyze.registry"]
    program = f"import sys, {', '.join(light + commands + settings)}; "
    program += f"print([name for name in {HEAVY} if name in sys.modules])"
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment, check=True)
    assert done.stdout.strip() == "[]"


def test_the_accelerator_is_built_in_one_place() -> None:
    builders = [p.name for p in PACKAGE.rglob("*.py") if "Accelerator(" in p.read_text()]
    assert builders == ["distributed.py"]
