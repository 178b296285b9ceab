"""Names that configurations had in earlier versions, so that their run folders and YAML files still load."""

from __future__ import annotations

from typing import Any

import jsonargparse
import yaml

RENAMED_KEYS = {("train", "max_bad_steps"): "max_nonfinite_steps"}
RENAMED_VALUES = {("loss", "kl_reduction"): {"upstream": "sum"}}
REPLACED = {("model", "sync_batch_norm"): False, ("train", "accumulate"): 1}
"""Keys that `data.group` replaced, with the only value that means the same as leaving them out."""


REPLACEMENT = (
    "is no setting any more: data.group is the number of clips that see each other (data.batch_size for all of them), "
    "train.groups_at_once how many groups are computed together"
)


def with_current_names(tree: dict[str, Any]) -> dict[str, Any]:
    """Replace old keys and values of a configuration, in place.

    Raises:
        ValueError: it asks for something that has no equivalent any more.
    """
    for (section, key), default in REPLACED.items():
        fields = tree.get(section)
        if isinstance(fields, dict) and fields.pop(key, default) != default:
            raise ValueError(f"{section}.{key} {REPLACEMENT}")
    if isinstance(tree.get("loss"), dict) and tree["loss"].get("negatives") == "global":
        raise ValueError(f"loss.negatives=global {REPLACEMENT}")
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
    """Undo renamed and replaced keys in dotted ones, so that a run keeps its identity and its default folder."""
    firsts = {
        f"{section}.{key}": {new: old for old, new in values.items()}
        for (section, key), values in RENAMED_VALUES.items()
    }
    sections = {key.split(".")[0] for key in items}
    replaced = {f"{section}.{key}": value for (section, key), value in REPLACED.items() if section in sections}
    current = {key: firsts[key].get(value, value) if key in firsts else value for key, value in items.items()}
    return replaced | current


def accept_in_yaml_files() -> None:
    """Make jsonargparse read old names in the files of `--config`."""
    load = jsonargparse.get_loader("yaml")

    def load_current(text: str) -> Any:
        value = load(text)
        return with_current_names(value) if isinstance(value, dict) else value

    jsonargparse.set_loader("yaml", load_current, exceptions=(yaml.YAMLError,))
