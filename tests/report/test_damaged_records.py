"""One record of a run folder that is wrong, diverged or endless: the report of all runs stays whole and says so."""

from __future__ import annotations

import copy
import functools
import html
import json
import math
import os
import pickle
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from benchmarks.run_folders import thesis_config, write_analyses, write_few_labels, write_metrics, write_probe
from launch.estimate import measure
from launch.overview import loose_runs
from launch.status import as_renderable
from simdist.config.schema import to_dict
from simdist.core.files import append_json, write_json
from simdist.report import __main__ as report_command
from simdist.report import media, page
from simdist.report.collect import Divergence, RunContent, read_run
from tests.report.test_report import rows

WRONG = (None, "text", -1, math.nan, 1e308, [], {}, "x" * 100_000, True, [[1, [2]]])
STRIDE, PAGES = 4, 3  # of the mutations one in four is read, and 3 pages are built; EVERY_MUTATION=1 takes all


def write_whole_run(folder: Path, seed: int = 0) -> Path:
    """A small run with every kind of record."""
    config = replace(thesis_config(), seed=seed)
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(to_dict(config)))
    write_metrics(folder, np.random.default_rng(seed), lines=4)
    validated = json.loads((folder / "metrics.jsonl").read_text().splitlines()[-1]) | {"kind": "validation"}
    append_json(folder / "metrics.jsonl", validated)
    for name in ("start", "resumed", "no_gpu", "finished"):
        event = {"event": name, "time": 1.0, "host": "n1", "step": 1000, "world_size": 2, "text": "no GPU"}
        append_json(folder / "events.jsonl", event)
    write_json(folder / "environment.json", {"host": "n1", "slurm": {"SLURM_JOB_PARTITION": "gpu"}})
    (folder / "jobs").mkdir()
    write_json(folder / "jobs" / "probe.json", {"command": ["probe", "--all"], "seconds": 60.0, "partition": "gpu"})
    data = {"classes": ["a", "i", "u"], "data": {"train": {"labels": 90}}}
    path = write_probe(folder, "vowel", 0, 0.6 + seed / 100, 3)
    write_json(path, json.loads(path.read_text()) | data)
    write_probe(folder, "vowel", 1, 0.5 + seed / 100, 3, bias=False)
    write_few_labels(folder, 0, [0.2, 0.3, 0.4, 0.5])
    write_analyses(folder, seed)
    (folder / "DONE").touch()
    return folder


def records(folder: Path) -> Iterator[tuple[Path, Any, Callable[[Any], str]]]:
    """Every JSON, YAML and line of JSON: its file, its content, and how the file is written with another content."""
    for path in sorted(folder.rglob("*.json")):
        yield path, json.loads(path.read_text()), json.dumps
    for path in sorted(folder.glob("*.jsonl")):
        lines = path.read_text().splitlines()
        for number, line in enumerate(lines):
            before, after = lines[:number], lines[number + 1 :]
            yield path, json.loads(line), lambda new, b=before, a=after: "\n".join([*b, json.dumps(new), *a, ""])
    path = folder / "config.yaml"
    yield path, yaml.safe_load(path.read_text()), lambda new: json.dumps(new).replace("NaN", ".nan")


def changed(content: Any) -> Iterator[Any]:
    """The content with each of its values, itself among them, replaced by each wrong one."""
    yield from WRONG
    for key, value in content.items() if isinstance(content, dict) else enumerate(content):
        inner = changed(value) if isinstance(value, dict | list) else WRONG
        for wrong in inner:
            new = copy.copy(content)
            new[key] = wrong
            yield new


def mutations(folder: Path) -> Iterator[tuple[Path, str]]:
    """A file and its text, for every single value that is replaced."""
    for path, content, written in records(folder):
        yield from ((path, written(new)) for new in changed(content))


def remembered(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, called once for equal arguments: what a mutation leaves as it was is drawn once."""
    known: dict[bytes, Any] = {}

    @functools.wraps(function)
    def call(*words: Any) -> Any:
        key = pickle.dumps(words)
        if key not in known:
            known[key] = function(*words)
        return known[key]

    return call


def test_any_single_wrong_value_leaves_a_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the runs that a mutation changes, some are built into tables and a page together with two others."""
    is_complete = bool(os.environ.get("EVERY_MUTATION"))
    folder = write_whole_run(tmp_path / "runs" / "one")
    for seed in (1, 2):
        write_whole_run(tmp_path / "others" / str(seed), seed)
    for module, name in ((page, "as_svg"), (page, "as_json"), (media, "make_sound"), (media, "outline")):
        monkeypatch.setattr(module, name, remembered(getattr(module, name)))
    seen: set[bytes] = set()
    pages, slowest = 0, 0.0
    chosen = list(mutations(folder))[:: 1 if is_complete else STRIDE]
    for number, (path, text) in enumerate(chosen):
        before, started = path.read_text(), time.process_time()
        path.write_text(text)
        found = read_run(folder)
        key = pickle.dumps(replace(found, problems=[]) if isinstance(found, RunContent) else None)
        if key not in seen and (is_complete or number >= pages * len(chosen) / PAGES):
            report_command.report([tmp_path / "runs", tmp_path / "others"], tmp_path / "out")
            pages += 1
            assert {"1", "2"} <= {row["run"] for row in rows(tmp_path / "out" / "results.csv")}
        seen.add(key)
        slowest = max(slowest, time.process_time() - started)
        path.write_text(before)
    print(f"\n{len(chosen)} mutations, {len(seen)} different runs, {pages} pages; at most {slowest:.1f} s for one")
    assert len(chosen) > 1500
    assert slowest < 20


def test_any_single_wrong_value_leaves_status_and_estimates(tmp_path: Path) -> None:
    folder = write_whole_run(tmp_path / "one")
    read = [(path, text) for path, text in mutations(folder) if path.parent.name in ("one", "jobs")]
    for path, text in read[:: 1 if os.environ.get("EVERY_MUTATION") else STRIDE]:
        before = path.read_text()
        path.write_text(text)
        as_renderable(loose_runs(tmp_path, set()))
        measure(tmp_path)
        path.write_text(before)


def test_a_diverged_run_is_named_with_its_last_finite_values_and_others_are_as_usual(tmp_path: Path) -> None:
    for seed in range(2):
        write_whole_run(tmp_path / "runs" / f"{seed}", seed)
    report_command.report([tmp_path / "runs" / "1"], tmp_path / "alone")
    metrics = tmp_path / "runs" / "0" / "metrics.jsonl"
    lines = [json.loads(line) for line in metrics.read_text().splitlines()][:-1]
    assert [line["step"] for line in lines] == [1, 334, 667, 1000]
    for line in lines[2:]:
        line["modules"][1] |= {"loss": math.nan, "nce": math.inf}
    metrics.write_text("".join(json.dumps(line) + "\n" for line in lines))
    report_command.report([tmp_path / "runs"], tmp_path / "out")
    text = html.unescape((tmp_path / "out" / "report.html").read_text())
    assert "0: module 1 diverged at step 667: its metrics are not finite since then; means include" in text
    assert "its last finite values, of step 334" in text
    assert text.count("diverged at step") == 1
    assert "finished, diverged" in text
    found = rows(tmp_path / "out" / "results.csv")
    (loss,) = (row for row in found if (row["run"], row["metric"], row["module"]) == ("0", "loss", "1"))
    assert float(loss["value"]) == lines[1]["modules"][1]["loss"]
    assert [row for row in found if row["run"] == "1"] == rows(tmp_path / "alone" / "results.csv")


def test_the_step_of_divergence_is_exact_in_a_long_run(tmp_path: Path) -> None:
    folder = write_whole_run(tmp_path / "long")
    modules = [{"module": 0, "loss": 1.0}]
    broken = [{"module": 0, "loss": math.nan}]
    lines = [{"kind": "train", "step": s, "modules": broken if s >= 2345 else modules} for s in range(1, 5001)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = read_run(folder)
    assert isinstance(found, RunContent)
    assert found.record.diverged == (Divergence(0, 2345, 2344),)
    assert len(found.metrics) < 500


def test_a_record_that_does_not_fit_is_named_with_the_place_that_is_wrong(tmp_path: Path) -> None:
    folder = write_whole_run(tmp_path / "one")
    (probe,) = folder.glob("probes/vowel-module1-*/result.json")
    probe.write_text(probe.read_text().replace('"module": 1', '"module": "one"'))
    (analysis,) = folder.glob("analysis/distributions-*/result.json")
    analysis.write_text(analysis.read_text().replace('"active_units": 14', '"active_units": null'))
    (decoder,) = folder.glob("decoders/*/result.json")
    decoder.write_text(decoder.read_text().replace('"untrained": false', '"untrained": 0'))
    metrics = folder / "metrics.jsonl"
    metrics.write_text(metrics.read_text().replace('"step": 334', '"step": -1'))
    events = folder / "events.jsonl"
    events.write_text(events.read_text() + '{"event": 7}\n')
    found = read_run(folder)
    assert isinstance(found, RunContent)
    assert {str(problem) for problem in found.problems} == {
        f"{probe} is not the result of a probe (source.module: Expected int | null, got str)",
        f"{analysis} is not the result of an analysis (active_units: Expected float, got null)",
        f"{decoder} is not the result of a decoder (encoder.untrained: Expected bool, got int)",
        f"{metrics} is read without 1 line, torn or without metrics: line 2: step: Expected int >= 0",
        f"{events} is not what a run writes: line 5: event: Expected str, got int",
    }
    assert len({item.metric for item in found.measurements if item.family == "encoder"}) == 5


ALIASES = "\n".join(["a0: &a0 [x, x]", *(f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]" for n in range(1, 60))])


def test_files_without_an_end_are_named_and_not_read(tmp_path: Path) -> None:
    good, bad = (write_whole_run(tmp_path / name) for name in ("good", "bad"))
    (bad / "metrics.jsonl").unlink()
    os.mkfifo(bad / "metrics.jsonl")
    endless = [next(bad.glob("probes/vowel-module0-*/result.json")), next(bad.glob("analysis/*/*.wav"))]
    endless += [next(bad.glob("analysis/samples-*/samples.png")), next(bad.glob("analysis/*/dimensions.csv"))]
    for path in endless:
        path.unlink()
        path.symlink_to("/dev/zero")
    (tmp_path / "bombed").mkdir()
    config = tmp_path / "bombed" / "config.yaml"
    config.write_text(f"{ALIASES}\n{(good / 'config.yaml').read_text()}")
    report_command.report([tmp_path], tmp_path / "out", detail="good,bad")
    page = html.unescape((tmp_path / "out" / "report.html").read_text())
    assert f"{config} is not the configuration of a run (it has YAML aliases (*name); write their values out)" in page
    assert f"{bad / 'metrics.jsonl'} cannot be read (it is not a regular file)" in page
    assert page.count("it is not a regular file)") == 5
    (row,) = (row for row in loose_runs(tmp_path, set()).rows if row.run == "bombed")
    assert row.reason.startswith("config.yaml cannot be read: it has YAML aliases")
    assert measure(tmp_path).seconds


def test_a_record_of_many_gigabytes_is_named_and_not_read(tmp_path: Path) -> None:
    folder = write_whole_run(tmp_path / "one")
    (result,) = folder.glob("decoders/*/result.json")
    os.truncate(result, 2**40)
    found = read_run(folder)
    assert isinstance(found, RunContent)
    assert [str(problem) for problem in found.problems] == [
        f"{result} cannot be read (it has 1,099,511,627,776 bytes, at most 67,108,864 are read)"
    ]
