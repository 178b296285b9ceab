"""Imports go one way: entry modules, then engine, data and models, then config."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "simdist"
LAUNCH = Path(__file__).parent.parent / "launch"
TORCHLESS = {  # what the launcher may use; none of it imports torch
    "simdist.cli",
    "simdist.cluster",
    "simdist.config",
    "simdist.durable",
    "simdist.engine.run",
    "simdist.errors",
    "simdist.engine.hosts",
    "simdist.profiles",
    "simdist.redaction",
    "simdist.requeue",
    "simdist.stopping",
}
LOW = {
    "simdist.config",
    "simdist.errors",
    "simdist.torchaudio_import",
    "simdist.durable",
    "simdist.redaction",
    "simdist.requeue",
    "simdist.stopping",
}
ALLOWED = {
    "data": {*LOW, "simdist.data"},
    "models": {*LOW, "simdist.models"},
    "probing": {
        *LOW,
        "simdist.probing",
        "simdist.engine",
        "simdist.models",
        "simdist.data",
        "simdist.cli",
        "simdist.loading",
    },
    "decoding": {
        *LOW,
        "simdist.decoding",
        "simdist.engine",
        "simdist.models",
        "simdist.data",
        "simdist.cli",
        "simdist.loading",
    },
    "analysis": {
        *LOW,
        "simdist.analysis",
        "simdist.probing",
        "simdist.decoding",
        "simdist.engine",
        "simdist.models",
        "simdist.data",
        "simdist.cli",
        "simdist.loading",
    },
    "engine": {*LOW, "simdist.engine", "simdist.models", "simdist.data", "simdist.cli", "simdist.requeue"},
    "cluster": {*LOW, "simdist.cluster", "simdist.profiles", "simdist.engine.hosts"},
    "doctoring": {*LOW, "simdist.doctoring", "simdist.cluster", "simdist.profiles", "simdist.data", "simdist.engine"},
    "reporting": {
        *LOW,
        "simdist.reporting",
        "simdist.engine.idle",
        "simdist.engine.run",
        "simdist.probing.settings",
        "simdist.decoding.settings",
    },
}


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return {name for name in found if name.split(".")[0] in ("simdist", "torch", "accelerate")}


@pytest.mark.parametrize("layer", ALLOWED)
def test_a_layer_imports_only_what_lies_below(layer: str) -> None:
    for path in (PACKAGE / layer).glob("*.py"):
        ours = {name for name in imports(path) if name.startswith("simdist")}
        wrong = {name for name in ours if not any(name == a or name.startswith(a + ".") for a in ALLOWED[layer])}
        assert not wrong, f"{path.name} imports {wrong}"


def test_data_never_speaks_to_other_ranks() -> None:
    for path in (PACKAGE / "data").glob("*.py"):
        assert not any("distributed" in name or name.startswith("accelerate") for name in imports(path)), path


def test_configuration_and_command_lines_import_no_torch() -> None:
    for name in (
        "config",
        "cli",
        "errors",
        "redaction",
        "__init__",
        "__main__",
        "train",
        "probe",
        "decode",
        "analyze",
        "probing/settings",
        "analysis/settings",
        "decoding/settings",
        "pack",
        "download",
        "import_upstream",
        "doctor",
        "profiles",
        "report",
    ):
        tree = ast.parse((PACKAGE / f"{name}.py").read_text())
        top = ast.Module([node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)], [])
        names = {alias.name for node in top.body if isinstance(node, ast.Import) for alias in node.names}
        names |= {node.module or "" for node in top.body if isinstance(node, ast.ImportFrom)}
        assert not any(n.startswith(("torch", "simdist.engine", "simdist.models")) for n in names), name


def test_the_launcher_uses_only_what_knows_no_torch() -> None:
    for path in LAUNCH.glob("*.py"):
        found = imports(path)
        wrong = {name for name in found if name.startswith("simdist")}
        wrong = {name for name in wrong if not any(name == a or name.startswith(a + ".") for a in TORCHLESS)}
        assert not wrong, f"{path.name} imports {wrong}"


def test_no_command_of_the_launcher_brings_torch_along() -> None:
    modules = ", ".join(f"launch.{path.stem}" for path in sorted(LAUNCH.glob("*.py")) if path.stem != "__init__")
    heavy = "torch", "torchaudio", "accelerate", "matplotlib", "deepspeed", "bokeh", "scipy", "jinja2"
    program = f"import sys, {modules}, simdist.report; print([name for name in {heavy} if name in sys.modules])"
    environment = os.environ | {"PYTHONPATH": str(LAUNCH.parent)}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment, check=True)
    assert done.stdout.strip() == "[]"


def test_the_accelerator_is_built_in_one_place() -> None:
    builders = [p.name for p in PACKAGE.rglob("*.py") if "Accelerator(" in p.read_text()]
    assert builders == ["accelerator.py"]
