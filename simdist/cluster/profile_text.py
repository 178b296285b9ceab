"""A profile as a YAML file with a comment on each line."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import docstring_parser
import yaml

from simdist.cluster.profile import SECTIONS, Profile

COLUMN = 40  # where comments begin


def profile_text(profile: Profile, reasons: Mapping[str, str], head: list[str]) -> str:
    """YAML that `load_profile` reads back as `profile`; fields at their default follow as comments.

    Args:
        profile: the profile.
        reasons: why a field has its value, by field; `cpu.mem` for one of a section. Others are explained in general.
        head: lines of comment at the top.
    """
    values, defaults = _values(vars(profile)), _values(vars(Profile()))
    plain = [name for name in defaults if name not in SECTIONS]
    lines = [f"# {line}" for line in head]
    for name in plain:
        if values[name] != defaults[name]:
            lines.append(_line(name, values[name], reasons.get(name) or _explained()[name]))
    for section in (name for name in SECTIONS if values[name]):
        lines.append(_commented(f"{section}:", _explained()[section]))
        for name, value in _values(values[section]).items():
            lines.append(_line(f"  {name}", value, reasons.get(f"{section}.{name}") or _explained()[name]))
    lines += ["", "# At their defaults:"]
    lines += [
        "# " + _line(name, defaults[name], _explained()[name]) for name in plain if values[name] == defaults[name]
    ]
    return "\n".join(lines) + "\n"


def write_profile(path: Path, text: str) -> None:
    """Write the text to a new file.

    Raises:
        FileExistsError: there is one already.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("x") as file:
        file.write(text)


def _values(fields: Mapping[str, Any]) -> dict[str, Any]:
    """The fields as a file has them: the type of the GPUs stands before their number."""
    values = dict(fields)
    gpu_type = values.pop("gpu_type", None)
    if gpu_type and values.get("gpus_per_node"):
        values["gpus_per_node"] = f"{gpu_type}:{values['gpus_per_node']}"
    elif gpu_type:
        values["gpu_type"] = gpu_type
    return values


def _line(name: str, value: Any, comment: str) -> str:
    plain = list(value) if isinstance(value, tuple) else value
    text = yaml.safe_dump([plain], default_flow_style=True, allow_unicode=True, width=10_000).strip()
    return _commented(f"{name}: {text[1:-1]}", comment)


def _commented(text: str, comment: str) -> str:
    return f"{text:{COLUMN}}# {comment}" if comment else text


@functools.cache
def _explained() -> dict[str, str]:
    """The sentence under each field of a profile."""
    return {item.arg_name: item.description or "" for item in docstring_parser.parse_from_object(Profile).params}
