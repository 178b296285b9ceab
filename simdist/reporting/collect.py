"""Numbers out of run folders: each run's configuration, last losses and probes, as flat measurements."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml

from simdist.config import Config, identity_keys
from simdist.durable import read_json_lines
from simdist.engine.run import CONFIG, DONE, METRICS
from simdist.errors import InputError

Family = Literal["encoder", "probe", "few-labels"]
ENCODER_METRICS = ("loss", "nce", "kl", "accuracy", "active_units")
PROBES, RESULT = "probes", "result.json"
SEEDS = ("seed", "view.seed", "probe.seed")
LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # ten times as fast where libyaml is there


@dataclass(frozen=True)
class RunRecord:
    """What is known of a run."""

    folder: Path
    config: dict[str, Any]
    """Flat: every key that makes up its identity, and its name."""
    finished: bool
    step: int
    """Of the last line of metrics; 0 without any."""

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def seed(self) -> int:
        return self.config["seed"]


@dataclass(frozen=True)
class Measurement:
    """One number of one module of one run."""

    run: str
    family: Family
    what: dict[str, Any]
    """What was measured: the split of a loss; a probe's label, features, settings; the examples a class."""
    module: int | None
    """None for what has no module, such as MFCC."""
    metric: str
    value: float


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


def read_run(folder: Path) -> tuple[RunRecord, list[Measurement]]:
    """A run and all its measurements."""
    config = _flat(LOADER((folder / CONFIG).read_text()).get_single_data())
    kept = {key: config[key] for key in ("name", *identity_keys(Config())) if key in config}
    lines = read_json_lines(folder / METRICS)
    record = RunRecord(folder, kept, (folder / DONE).exists(), lines[-1]["step"] if lines else 0)
    return record, [*_of_encoder(folder.name, lines), *_of_probes(folder)]


def _of_encoder(run: str, lines: list[dict[str, Any]]) -> Iterator[Measurement]:
    """The last line of each kind in which a module appears; a stagewise run's lines hold one module each."""
    for kind in ("train", "validation"):
        last: dict[int, dict[str, Any]] = {}
        for line in lines:
            if line["kind"] == kind:
                last |= {module.get("module", m): module for m, module in enumerate(line["modules"])}
        for m, values in sorted(last.items()):
            for metric in ENCODER_METRICS:
                if isinstance(values.get(metric), int | float):
                    yield Measurement(run, "encoder", {"split": kind}, m, metric, float(values[metric]))


def _of_probes(folder: Path) -> Iterator[Measurement]:
    """Every probe's test accuracy; of several checkpoints of one run, the last."""
    results = [result for path in sorted(folder.glob(f"{PROBES}/*/{RESULT}")) if (result := _read(path))]
    newest: dict[str, dict[str, Any]] = {}
    for result in results:
        key = json.dumps([_what(result), result["source"]["module"], "curve" in result], sort_keys=True)
        if key not in newest or (result["source"]["step"] or 0) > (newest[key]["source"]["step"] or 0):
            newest[key] = result
    for result in newest.values():
        yield from _of_result(folder.name, result)


def _of_result(run: str, result: dict[str, Any]) -> Iterator[Measurement]:
    what, module = _what(result), result["source"]["module"]
    if "curve" in result:
        for point in result["curve"]:
            examples = {**what, "examples": point["examples_per_class"]}
            yield Measurement(run, "few-labels", examples, module, "accuracy", point["accuracy"]["value"])
        return
    tested = result["test"]
    for metric in ("accuracy", "balanced_accuracy"):
        yield Measurement(run, "probe", what, module, metric, tested[metric]["value"])
    if "without_silence" in tested:
        value = tested["without_silence"]["accuracy"]["value"]
        yield Measurement(run, "probe", what, module, "accuracy_without_silence", value)


def _what(result: dict[str, Any]) -> dict[str, Any]:
    """A probe without what differs from seed to seed: label, features, and every setting."""
    flat = {"label": result["label"], "features": result["source"]["kind"]}
    settings = {**_flat({"view": result["view"]}), **_flat({"probe": result["probe"]})}
    flat |= {key: value for key, value in settings.items() if key not in SEEDS}
    return flat | {"chance": result["chance"]}


def _read(path: Path) -> dict[str, Any] | None:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):  # being written by a job of another version, or torn
        return None


def _flat(content: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested keys joined by dots."""
    found: dict[str, Any] = {}
    for key, value in content.items():
        found |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return found
