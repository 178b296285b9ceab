"""Numbers out of run folders: each run's configuration, metrics, probes, decoders and analyses. Imports no torch.

Run folders are written to while they are read, by jobs of other versions and by people: what cannot be read is
listed and skipped, never an error.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from simdist.config.schema import Config, identity_keys
from simdist.core.errors import InputError
from simdist.core.secrets import redacted
from simdist.report.files import SHAPELESS, UnreadableFile, flat, reason_of
from simdist.report.measurements import Measurement, ModuleResult, Trajectory, read_findings, read_probes
from simdist.runs.collapsed_modules import MIN_STEPS, collapsed_modules
from simdist.runs.folder import CONFIG, DONE, EVENTS, METRICS
from simdist.runs.reader import config_tree, reported_step, saved_step

ENCODER_METRICS = ("loss", "nce", "kl", "accuracy", "active_units")
MOST_LINES = 400  # of a kind that are parsed
KIND, STAGE = re.compile(r'"kind": ?"(\w+)"'), re.compile(r'"module": ?(\d+)')


@dataclass(frozen=True)
class RunRecord:
    """A run: configuration, step, state."""

    folder: Path
    config: dict[str, Any]
    """Flat: every key that makes up its identity, and its name."""
    finished: bool
    step: int
    """The newest that is known; 0 before the first."""
    name: str
    """The folder's, with the one above where several runs are called alike."""
    idle: tuple[int, ...] = ()
    """Modules that have learnt nothing so far."""

    @property
    def seed(self) -> int:
        return self.config["seed"]


@dataclass(frozen=True)
class RunContent:
    """A run with all its results."""

    record: RunRecord
    measurements: list[Measurement]
    metrics: list[dict[str, Any]]
    """Lines of metrics.jsonl that hold modules, in order; of long files some of each kind, the last always."""
    findings: list[ModuleResult] = field(default_factory=list)
    """Newest analysis of each kind and module, and decoders."""
    trajectories: list[Trajectory] = field(default_factory=list)
    examples: dict[str, int] = field(default_factory=dict)
    """Training examples that the largest class of a label has, or more."""
    problems: list[UnreadableFile] = field(default_factory=list)
    """Files that could not be used."""


def find_runs(paths: Sequence[Path]) -> list[Path]:
    """Run folders among `paths` and directly below them.

    Raises:
        InputError: a path that neither is a run nor holds one.
    """
    found: dict[Path, None] = {}
    for path in paths:
        if not path.is_dir():
            raise InputError(f"{path} does not exist; name run folders, or a folder of runs")
        runs = [path] if (path / CONFIG).is_file() else sorted(child.parent for child in path.glob(f"*/{CONFIG}"))
        if not runs:
            raise InputError(f"{path} is no run and holds none (no {CONFIG}); name run folders, or a folder of runs")
        found |= dict.fromkeys(runs)
    return list(found)


def unique_names(folders: Sequence[Path]) -> dict[Path, str]:
    """Names of the runs: their folders, with parent folders where needed to tell them apart."""
    parts = {folder: folder.resolve().parts[1:] for folder in folders}
    alike: dict[str, list[tuple[str, ...]]] = {}
    for own in parts.values():
        alike.setdefault(own[-1], []).append(own)
    names = {}
    for folder, own in parts.items():
        count = 1
        while count < len(own) and sum(other[-count:] == own[-count:] for other in alike[own[-1]]) > 1:
            count += 1
        names[folder] = "/".join(own[-count:])
    return names


def read_run(folder: Path, name: str | None = None) -> RunContent | UnreadableFile:
    """Read a run and its measurements, or why its configuration cannot be read.

    Args:
        folder: the run's.
        name: what it is called; null takes the folder's name.
    """
    name = name or folder.name
    try:
        config = flat(config_tree(folder))
        kept = {key: _shown(config[key]) for key in ("name", *identity_keys(Config())) if key in config}
        kept["name"], kept["seed"] = str(kept["name"]), int(kept["seed"])
    except (OSError, yaml.YAMLError, *SHAPELESS) as error:
        return UnreadableFile(folder / CONFIG, f"is not the configuration of a run ({reason_of(error)})")
    problems: list[UnreadableFile] = []
    lines = _metrics(folder / METRICS, problems)
    step = max([line["step"] for line in lines[-1:]] + [saved_step(folder)])
    try:
        step = max(step, reported_step(folder))  # a run logs only some steps, and stops in between
    except (OSError, *SHAPELESS) as error:
        problems.append(UnreadableFile(folder / EVENTS, f"is not what a run writes ({reason_of(error)})"))
    record = RunRecord(folder, kept, (folder / DONE).exists(), step, name, tuple(_idle(lines, kept)))
    probed = read_probes(folder, name, problems)
    findings = read_findings(folder, name, problems)
    analysed = [item for finding in findings for item in finding.measurements]
    measured = [*_of_encoder(name, lines), *probed.measurements, *analysed]
    return RunContent(record, measured, lines, findings, probed.trajectories, probed.examples, problems)


def _shown(value: Any) -> Any:
    """A value without secrets: a page is sent to others."""
    return redacted(value, keep_hashes=False) if isinstance(value, str) else value


def _metrics(path: Path, problems: list[UnreadableFile]) -> list[dict[str, Any]]:
    """Lines with modules, of long files some (`_chosen`); how many are torn or of another kind is a problem."""
    lines, foreign = [], 0
    try:
        text = path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
    except OSError as error:
        problems.append(UnreadableFile(path, f"cannot be read ({reason_of(error)})"))
        return []
    whole = [line for line in text.split("\n") if line.startswith("{") and line.endswith("}")]
    foreign += sum(1 for line in text.split("\n") if line.strip()) - len(whole)
    for line in _chosen(whole):
        try:
            found = json.loads(line)
            fits = isinstance(found["step"], int) and all(isinstance(module, dict) for module in found["modules"])
            lines += [found] if fits and isinstance(found["kind"], str) else []
            foreign += not fits
        except SHAPELESS:
            foreign += 1
    if foreign:
        problems.append(UnreadableFile(path, f"has {foreign} lines that are torn or no metrics; they are left out"))
    return lines


def _chosen(lines: list[str]) -> list[str]:
    """At most `MOST_LINES` of each kind and stage, evenly, the last always: a long run has 10,000 of them."""
    places: dict[tuple[str, str], list[int]] = {}
    for place, line in enumerate(lines):
        kind, stage = KIND.search(line), STAGE.search(line)
        places.setdefault((kind[1] if kind else "", stage[1] if stage else ""), []).append(place)
    kept: set[int] = set()
    for own in places.values():
        step = max(1, -(-len(own) // MOST_LINES))
        kept.update(own[::-step])
    return [lines[place] for place in sorted(kept)]


def _last_values(lines: list[dict[str, Any]], kind: str) -> dict[int, dict[str, Any]]:
    """Metrics of each module in the last line of a kind that holds it."""
    last: dict[int, dict[str, Any]] = {}
    for line in lines:
        if line["kind"] == kind:
            last |= {module.get("module", m): module for m, module in enumerate(line["modules"])}
    return last


def _idle(lines: list[dict[str, Any]], config: dict[str, Any]) -> list[int]:
    """Collapsed modules, by the last record of each."""
    num_negatives = config.get("loss.num_negatives")
    if not lines or lines[-1]["step"] < MIN_STEPS or not isinstance(num_negatives, int):
        return []
    last = _last_values(lines, "train")
    numbers = {m: {k: v for k, v in values.items() if isinstance(v, int | float)} for m, values in last.items()}
    return collapsed_modules({"modules": [{**values, "module": m} for m, values in numbers.items()]}, num_negatives)


def _of_encoder(run: str, lines: list[dict[str, Any]]) -> Iterator[Measurement]:
    """The last line of each kind in which a module appears; a stagewise run's lines hold one module each."""
    for kind in ("train", "validation"):
        for m, values in sorted(_last_values(lines, kind).items()):
            for metric in ENCODER_METRICS:
                if isinstance(values.get(metric), int | float):
                    yield Measurement(run, "encoder", {"split": kind}, m, metric, float(values[metric]))
