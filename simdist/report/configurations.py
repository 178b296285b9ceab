"""Which runs there are, and in what their configurations differ."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from simdist.report.collect import RunContent
from simdist.report.selection import Selection
from simdist.report.summary import key_of
from simdist.report.tables import Section, headings, plain

MOST_COLUMNS = 6  # encoders side by side; more are rows


def configuration_sections(runs: Sequence[RunContent], selection: Selection) -> list[Section]:
    """A table of the runs, and one of the settings that differ, if any do."""
    made = [_runs(runs, selection)]
    keys = differing_keys(runs)
    if keys:
        made.append(_differences(runs, selection, keys))
    return made


def differing_keys(runs: Sequence[RunContent]) -> list[str]:
    """Configuration keys that do not have the same value in all runs, without seed and name."""
    every = dict.fromkeys(key for run in runs for key in run.record.config if key not in ("seed", "name"))
    return [key for key in every if len({key_of(run.record.config, [key]) for run in runs}) > 1]


def common_settings(runs: Sequence[RunContent]) -> list[tuple[str, str]]:
    """Key and value of every setting that all runs share."""
    differing = {*differing_keys(runs), "seed", "name"}
    return [(key, _text(value)) for key, value in runs[0].record.config.items() if key not in differing]


def _runs(runs: Sequence[RunContent], selection: Selection) -> Section:
    rows = []
    for run in runs:
        record = run.record
        group = [plain(value) for value in selection.groups[record.name]]
        state = "finished" if record.finished else "unfinished"
        rows.append([record.name, *group, str(record.folder), state, str(record.seed), str(record.step)])
    columns = ["run", *headings(selection.keys), "folder", "state", "seed", "steps"]
    return Section("runs", "Runs", columns, rows, len(columns) - 2)


def _differences(runs: Sequence[RunContent], selection: Selection, keys: list[str]) -> Section:
    """Settings by encoders where these are few, else encoders by settings."""
    first = {group: own[0].record.config for group, own in _in_order(runs, selection).items()}
    names = [selection.label(group) for group in first]
    values = [[_text(config.get(key)) for config in first.values()] for key in keys]
    title = "Settings in which they differ"
    if len(names) <= MOST_COLUMNS:
        rows = [[key, *row] for key, row in zip(keys, values, strict=True)]
        return Section("settings", title, ["setting", *names], rows, 1 + len(names))
    rows = [[name, *(row[place] for row in values)] for place, name in enumerate(names)]
    return Section("settings", title, ["encoder", *keys], rows, 1 + len(keys))


def _in_order(runs: Sequence[RunContent], selection: Selection) -> dict[Any, list[RunContent]]:
    found: dict[Any, list[RunContent]] = {}
    for run in runs:
        found.setdefault(selection.groups[run.record.name], []).append(run)
    return found


def _text(value: Any) -> str:
    """A value on one line; modules and other lists as JSON."""
    return json.dumps(value) if isinstance(value, list | dict) else plain(value)
