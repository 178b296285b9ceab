"""A plan on disk, `sweeps/NAME/plan.json`, which `status`, `logs` and `cancel` read."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from simdist.config.load import read_yaml
from simdist.config.schema import Config, to_dict
from simdist.core.errors import InputError
from simdist.core.files import temporary_path, write_json

from .naming import command
from .plan import Job, Length, Plan, PlannedRun

FILE = "plan.json"
DUMPER = getattr(yaml, "CSafeDumper", yaml.SafeDumper)


def write_plan(plan: Plan, configs: Mapping[str, Config]) -> None:
    """The graph, and the runs' configurations, which their jobs read."""
    (plan.folder / "configs").mkdir(parents=True, exist_ok=True)
    for run, config in configs.items():
        text = yaml.dump(to_dict(config), Dumper=DUMPER, sort_keys=False)
        file = plan.config_file(run)
        if not file.exists() or file.read_text() != text:  # not synced: made again by the next command if it is lost
            temporary = temporary_path(file)
            temporary.write_text(text)
            temporary.replace(file)
    write_json(plan.folder / FILE, json.loads(json.dumps(dataclasses.asdict(plan), default=str)))


def read_plan(folder: Path) -> Plan:
    """The plan that a sweep's folder holds.

    Raises:
        InputError: there is none; named with those that there are.
    """
    file = folder / FILE
    if not file.is_file():
        found = ", ".join(sorted(path.parent.name for path in folder.parent.glob(f"*/{FILE}"))) or "none"
        raise InputError(f"there is no sweep {folder.name!r} in {folder.parent}; there are {found}")
    try:
        content = json.loads(file.read_text())
        runs = {run: _run(entry) for run, entry in content["runs"].items()}
        jobs = {name: _job(entry) for name, entry in content["jobs"].items()}
        return Plan(content["name"], folder, runs, jobs, content["varied"])
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{file} was written by another version ({error}); run `{command('sweep')}` again") from error


def find_sweeps(sweeps: Path, name: str | None) -> list[Path]:
    """The folder of one sweep, named by its name, its folder or its YAML file, or of all.

    Raises:
        InputError: there is no such sweep, or none at all.
    """
    if name is not None:
        path = Path(name)
        if path.suffix == ".yaml" and path.is_file():
            name = str(read_yaml(path).get("name", path.stem))
        elif (path / FILE).is_file():
            return [path]
        folder = sweeps / name
        read_plan(folder)
        return [folder]
    found = sorted(path.parent for path in sweeps.glob(f"*/{FILE}"))
    if not found:
        raise InputError(
            f"there is no sweep in {sweeps}; `{command('sweep')}` starts one, --sweeps names another folder"
        )
    return found


def _run(entry: dict[str, Any]) -> PlannedRun:
    length = Length(**{**entry["length"], "data": Path(entry["length"]["data"])})
    return PlannedRun(Path(entry["folder"]), entry["varied"], length)


def _job(entry: dict[str, Any]) -> Job:
    done = tuple(Path(path) for path in entry["done"])
    paths = {"folder": Path(entry["folder"]), "done": done}
    return Job(**{**entry, **paths, "command": tuple(entry["command"]), "parents": tuple(entry["parents"])})
