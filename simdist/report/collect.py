"""Numbers out of run folders: each run's configuration, metrics, probes, decoders and analyses. Imports no torch.

Run folders are written to while they are read, by jobs of other versions and by people: what cannot be read is
listed and skipped, never an error.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from simdist.config.schema import Config, identity_keys
from simdist.core.errors import InputError, counted
from simdist.core.files import NumberedLine, numbered_lines
from simdist.core.secrets import redacted
from simdist.report.files import UnreadableFile, flat, reason_of
from simdist.report.measurements import Measurement, ModuleResult, Trajectory, read_findings, read_probes
from simdist.runs.collapsed_modules import MIN_STEPS, collapsed_modules
from simdist.runs.folder import CONFIG, DONE, EVENTS, METRICS
from simdist.runs.reader import reported_step, saved_step
from simdist.runs.records import (
    EventRecord,
    MetricsRecord,
    RecordError,
    is_finite,
    parse_lines,
    read_config,
    read_lines,
)

ENCODER_METRICS = ("loss", "nce", "kl", "accuracy", "active_units")
MOST_LINES = 400  # of a kind that are parsed
KIND, STAGE = re.compile(rb'"kind": ?"(\w+)"'), re.compile(rb'"module": ?(\d+)')
NONFINITE = re.compile(rb"NaN|Infinity")


@dataclass(frozen=True)
class Divergence:
    """A module whose last records are not finite."""

    module: int
    step: int
    """The first step of these."""
    finite_step: int | None
    """The last step before; None if there is none."""


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
    """Modules that have learned nothing so far."""
    diverged: tuple[Divergence, ...] = ()

    @property
    def seed(self) -> int:
        return self.config["seed"]


@dataclass(frozen=True)
class RunContent:
    """A run with all its results."""

    record: RunRecord
    measurements: list[Measurement]
    metrics: list[MetricsRecord]
    """Records of metrics.jsonl in order; of long files some of each kind, the last always."""
    findings: list[ModuleResult] = field(default_factory=list)
    """Newest analysis of each kind and module, and decoders."""
    trajectories: list[Trajectory] = field(default_factory=list)
    examples: dict[str, int] = field(default_factory=dict)
    """Training examples that the largest class of a label has, or more."""
    problems: list[UnreadableFile] = field(default_factory=list)
    """Files that could not be used."""
    warnings: list[str] = field(default_factory=list)
    """What makes results doubtful."""


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
        config = flat(read_config(folder / CONFIG)[0])
    except (OSError, RecordError) as error:
        return UnreadableFile(folder / CONFIG, f"is not the configuration of a run ({reason_of(error)})")
    kept = {key: _shown(config[key]) for key in ("name", *identity_keys(Config())) if key in config}
    problems: list[UnreadableFile] = []
    metrics = _metrics(folder / METRICS, problems)
    # a run logs only some steps, and stops in between
    step = max(
        metrics[-1].step if metrics else 0, saved_step(folder), reported_step(_events(folder / EVENTS, problems))
    )
    idle, diverged = tuple(_idle(metrics, kept)), tuple(_diverged(metrics))
    record = RunRecord(folder, kept, (folder / DONE).exists(), step, name, idle, diverged)
    probed = read_probes(folder, name, problems)
    findings = read_findings(folder, name, problems)
    analyzed = [item for finding in findings for item in finding.measurements]
    measured = [*_of_encoder(name, metrics), *probed.measurements, *analyzed]
    return RunContent(
        record, measured, metrics, findings, probed.trajectories, probed.examples, problems, [*probed.warnings]
    )


def _shown(value: Any) -> Any:
    """A value without secrets: a page is sent to others."""
    return redacted(value, keep_hashes=False) if isinstance(value, str) else value


def _events(path: Path, problems: list[UnreadableFile]) -> list[EventRecord]:
    try:
        events, wrong = read_lines(path, EventRecord)
    except OSError as error:
        events, wrong = [], [reason_of(error)]
    if wrong:
        problems.append(UnreadableFile(path, f"is not what a run writes: {_first(wrong)}"))
    return events


def _metrics(path: Path, problems: list[UnreadableFile]) -> list[MetricsRecord]:
    """Records of metrics, of long files some (`_chosen`); lines that are none are a problem."""
    try:
        lines = numbered_lines(path)
    except OSError as error:
        problems.append(UnreadableFile(path, f"cannot be read ({reason_of(error)})"))
        return []
    records, wrong = parse_lines(_chosen(lines), MetricsRecord)
    if wrong:
        text = f"is read without {counted(len(wrong), 'line')}, torn or without metrics: {_first(wrong)}"
        problems.append(UnreadableFile(path, text))
    return records


def _first(reasons: list[str]) -> str:
    return reasons[0] + f", and {len(reasons) - 1} more" * (len(reasons) > 1)


def _chosen(lines: list[NumberedLine]) -> list[NumberedLine]:
    """At most `MOST_LINES` of each kind and stage, evenly, the last always: a long run has 10,000 of them.

    Where a run diverges or recovers, the lines before and after are among them.
    """
    places: dict[tuple[bytes, bytes], list[int]] = {}
    kept: set[int] = set()
    for place, line in enumerate(lines):
        kind, stage = KIND.search(line.raw), STAGE.search(line.raw)
        own = places.setdefault((kind[1] if kind else b"", stage[1] if stage else b""), [])
        if own and bool(NONFINITE.search(line.raw)) != bool(NONFINITE.search(lines[own[-1]].raw)):
            kept.update((own[-1], place))
        own.append(place)
    for own in places.values():
        step = max(1, -(-len(own) // MOST_LINES))
        kept.update(own[::-step])
    return [lines[place] for place in sorted(kept)]


def _last_values(records: Sequence[MetricsRecord], kind: str) -> dict[int, dict[str, float]]:
    """Metrics of each module in the last record of a kind that holds it, or the last finite value before."""
    last: dict[int, dict[str, float]] = {}
    for record in records:
        if record.kind == kind:
            for m, module in record.by_module().items():
                values = {metric: getattr(module, metric) for metric in ENCODER_METRICS}
                known = {**last.get(m, {}), **{key: value for key, value in values.items() if is_finite(value)}}
                last[m] = {key: known[key] for key, value in values.items() if value is not None and key in known}
    return last


def _diverged(records: Sequence[MetricsRecord]) -> Iterator[Divergence]:
    """Modules whose last record of some kind is not finite."""
    is_well: dict[tuple[int, str], list[tuple[int, bool]]] = {}
    for record in records:
        for m, module in record.by_module().items():
            values = [getattr(module, metric) for metric in ENCODER_METRICS]
            well = all(is_finite(value) for value in values if value is not None)
            is_well.setdefault((m, record.kind), []).append((record.step, well))
    for m in sorted({m for m, kind in is_well}):
        steps = [_last_stretch(found) for (own, _), found in is_well.items() if own == m]
        begun = [Divergence(m, *found) for found in steps if found is not None]
        yield from sorted(begun, key=lambda item: item.step)[:1]


def _last_stretch(found: list[tuple[int, bool]]) -> tuple[int, int | None] | None:
    """The first step of the last values that are not finite, and the step before; None if the last one is."""
    before = [place for place, (_, well) in enumerate(found) if well]
    start = before[-1] + 1 if before else 0
    if start == len(found):
        return None
    return found[start][0], found[start - 1][0] if start else None


def _idle(records: Sequence[MetricsRecord], config: dict[str, Any]) -> list[int]:
    """Collapsed modules, by the last record of each."""
    common, found = config.get("loss.num_negatives"), config.get("model.modules")
    if not records or records[-1].step < MIN_STEPS or not isinstance(common, int) or not isinstance(found, list):
        return []
    own = [module.get("num_negatives") if isinstance(module, dict) else None for module in found]
    modules = [{**values, "module": m} for m, values in _last_values(records, "train").items()]
    return collapsed_modules(
        {"modules": modules}, [each if isinstance(each, int) and each > 0 else common for each in own]
    )


def _of_encoder(run: str, records: Sequence[MetricsRecord]) -> Iterator[Measurement]:
    """The last values of each kind and module; a stagewise run's records hold one module each."""
    for kind in ("train", "validation"):
        for m, values in sorted(_last_values(records, kind).items()):
            for metric, value in values.items():
                yield Measurement(run, "encoder", {"split": kind}, m, metric, value)
