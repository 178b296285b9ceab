"""Names that configurations had in earlier versions, so that their run folders and YAML files still load."""

from __future__ import annotations

from typing import Any

import jsonargparse
import yaml

RENAMED_KEYS = {("train", "max_bad_steps"): "max_nonfinite_steps"}
RENAMED_VALUES = {("loss", "kl_reduction"): {"upstream": "sum"}}


def with_current_names(tree: dict[str, Any]) -> dict[str, Any]:
    """Replace old keys and values of a configuration, in place."""
    for (section, old), new in RENAMED_KEYS.items():
        fields = tree.get(section)
        if isinstance(fields, dict) and old in fields:
            fields.setdefault(new, fields.pop(old))
    for (section, key), values in RENAMED_VALUES.items():
        fields = tree.get(section)
        if isinstance(fields, dict) and fields.get(key) in values:
            fields[key] = values[fields[key]]
    return tree


def with_old_values(items: dict[str, Any]) -> dict[str, Any]:
    """Undo renamed values in dotted keys, so that a run keeps its identity and its default folder."""
    firsts = {
        f"{section}.{key}": {new: old for old, new in values.items()}
        for (section, key), values in RENAMED_VALUES.items()
    }
    return {key: firsts[key].get(value, value) if key in firsts else value for key, value in items.items()}


def accept_in_yaml_files() -> None:
    """Make jsonargparse read old names in the files of `--config`."""
    load = jsonargparse.get_loader("yaml")

    def load_current(text: str) -> Any:
        value = load(text)
        return with_current_names(value) if isinstance(value, dict) else value

    jsonargparse.set_loader("yaml", load_current, exceptions=(yaml.YAMLError,))
