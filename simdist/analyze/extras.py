"""Packages that only analyses need, and what to type where one is missing."""

from __future__ import annotations

import importlib
from typing import Any

from simdist.core.errors import InputError

PIP = {"umap": "umap-learn"}  # where the package's name is not that of the module


def optional(module: str) -> Any:
    """Import a module of an optional package.

    Raises:
        InputError: it is not installed; says how to.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = PIP.get(module.partition(".")[0])
        command = f"pip install {package}" if package else "pip install 'simdist[analysis]'"
        raise InputError(
            f"this analysis needs {module.partition('.')[0]}, which is not installed: {command}"
        ) from error
