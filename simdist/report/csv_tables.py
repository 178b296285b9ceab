"""Numbers for other programs: CSV with one row per measurement, and with one row per mean."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from typing import Any

from simdist.report.collect import RunRecord
from simdist.report.measurement import Measurement
from simdist.report.summary import Cell, Statistic


def measurements_csv(runs: Sequence[RunRecord], measurements: Sequence[Measurement], keys: Sequence[str]) -> str:
    """A row for every number of every run."""
    configs = {run.name: run for run in runs}
    columns = ["run", *keys, "seed", "family", "label", "features", "what", "module", "metric", "value"]
    rows = []
    for item in measurements:
        run = configs[item.run]
        config = [run.config.get(key) for key in keys]
        what = [item.what.get("label", ""), item.what.get("features", ""), json.dumps(item.what, sort_keys=True)]
        rows.append([item.run, *config, run.seed, item.family, *what, item.module, item.metric, repr(item.value)])
    return _csv(columns, rows)


def summary_csv(cells: Mapping[Cell, Statistic], keys: Sequence[str]) -> str:
    """A row for every mean."""
    columns = [*keys, "family", "label", "features", "what", "module", "metric", "seeds", "mean", "standard_deviation"]
    rows = []
    for cell, value in cells.items():
        said = json.loads(cell.what)
        what = [said.get("label", ""), said.get("features", ""), cell.what]
        numbers = [value.count, repr(value.mean), "" if value.deviation is None else repr(value.deviation)]
        rows.append([*cell.group, cell.family, *what, cell.module, cell.metric, *numbers])
    return _csv(columns, rows)


def _csv(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(["" if value is None else value for value in row] for row in rows)
    return text.getvalue()
