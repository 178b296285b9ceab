"""Tables of runs: the numbers are those of an independent computation, and the rows those that a reader expects."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from simdist.config.schema import Config, to_dict
from simdist.core.console import run
from simdist.core.files import append_json
from simdist.report import __main__ as report_command


def make_run(
    root: Path, name: str, seed: int, beta: float, accuracy: float, step: int = 100, done: bool = True, **more: Any
) -> Path:
    """A run with two modules' losses and one probe."""
    folder = root / f"{name}-{seed}-{beta}"
    config = to_dict(Config())
    config |= {"name": name, "seed": seed}
    config["loss"]["beta"] = beta
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    for at in (step // 2, step):
        modules = [{"module": m, "loss": seed + m + at / 1000, "accuracy": 0.5} for m in range(2)]
        append_json(folder / "metrics.jsonl", {"kind": "validation", "step": at, "modules": modules})
    probe(folder, "a", accuracy, step, **more)
    if done:
        (folder / "DONE").touch()
    return folder


def probe(folder: Path, name: str, accuracy: float, step: int, **settings: Any) -> None:
    """The result of a probe of module 1 for phones."""
    score = {"value": accuracy, "interval": [0, 1]}
    result = {
        "label": "phone",
        "source": {"kind": "trained", "module": 1, "step": step},
        "view": {"pooling": "mean", "seed": 0},
        "probe": {"probe": "linear", "epochs": 5, "seed": 0} | settings,
        "chance": 0.025,
        "test": {"accuracy": score, "balanced_accuracy": score},
    }
    path = folder / "probes" / name / "result.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(result))


def report(*words: str | Path, capsys: pytest.CaptureFixture[str]) -> str:
    assert report_command.main([str(word) for word in words]) == 0
    return capsys.readouterr().out


def rows(path: Path, **wanted: str) -> list[dict[str, str]]:
    with path.open() as file:
        return [row for row in csv.DictReader(file) if all(row[key] == value for key, value in wanted.items())]


def test_means_and_deviations_are_over_the_seeds_of_each_group(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    accuracies = {0.1: [0.50, 0.56, 0.61], 0.2: [0.31, 0.30, 0.35]}
    for beta, values in accuracies.items():
        for seed, accuracy in enumerate(values):
            make_run(tmp_path / "runs", "sim", seed, beta, accuracy)
    text = report(tmp_path / "runs", "--out", tmp_path / "out", capsys=capsys)
    assert "Probes: test accuracy in %, mean ± standard deviation over seeds" in text
    for beta, values in accuracies.items():
        (row,) = rows(
            tmp_path / "out" / "summary.csv", **{"loss.beta": str(beta), "family": "probe", "metric": "accuracy"}
        )
        assert float(row["mean"]) == pytest.approx(np.mean(values))
        assert float(row["standard_deviation"]) == pytest.approx(np.std(values, ddof=1))
        assert row["seeds"] == "3"
        assert f"{100 * np.mean(values):.1f} ± {100 * np.std(values, ddof=1):.1f}" in text
    single = rows(tmp_path / "out" / "results.csv", run="sim-1-0.1", family="probe", metric="accuracy")
    assert [(row["seed"], float(row["value"])) for row in single] == [("1", 0.56)]
    encoder = rows(tmp_path / "out" / "summary.csv", **{"loss.beta": "0.1", "metric": "loss", "module": "1"})
    assert float(encoder[0]["mean"]) == pytest.approx(1 + 1 + 0.1)  # the last line's
    headings = [line for line in (tmp_path / "out" / "report.md").read_text().splitlines() if line.startswith("## ")]
    assert [heading.split()[1] for heading in headings] == ["Encoders:", "Probes:", "Differences"]
    assert (
        "| beta | label | features | probe | seeds | module 1 | chance |"
        in (tmp_path / "out" / "report.md").read_text()
    )


def test_rows_are_told_apart_by_the_presets_name_and_else_by_what_differs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, beta in (("sim", 0.1), ("gim", 0.0)):  # beta follows from the name, so it needs no column
        for seed in (0, 1):
            make_run(tmp_path, name, seed, beta, 0.5)
    assert "beta" not in report(tmp_path, capsys=capsys)
    make_run(tmp_path, "sim", 0, 0.2, 0.5)
    text = report(tmp_path, capsys=capsys)
    assert "encoder" in text
    assert "beta" in text


def test_fewer_seeds_and_unfinished_and_missing_runs_are_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for seed in range(3):
        make_run(tmp_path / "runs", "sim", seed, 0.1, 0.5)
    make_run(tmp_path / "runs", "sim", 0, 0.2, 0.4, done=False)
    text = report(tmp_path / "runs", tmp_path / "gone", capsys=capsys)
    assert "40.0 [0.0, 100.0] │" in text
    assert "behind a single seed, its 95 % bootstrap interval over test utterances" in text
    assert "50.0 ± 0.0 │" in text
    assert "sim-0-0.2 is not finished: step 100" in text
    assert "gone is missing" in text


def test_an_unfinished_run_is_at_the_newest_step_known(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It logged step 100; then it stopped, or a checkpoint is all that a kill left."""
    stopped, killed = (make_run(tmp_path, "sim", seed, 0.1, 0.5, done=False) for seed in (0, 1))
    for event, step in (("start", 0), ("stopped", 109), ("probed", None)):
        append_json(stopped / "events.jsonl", {"event": event} | ({"step": step} if step is not None else {}))
    for name in ("step_00000105", ".step_00000106.tmp", "step_of_mine"):
        (killed / "checkpoints" / name).mkdir(parents=True)
    (killed / "events.jsonl").write_text('[1]\n{"event": ')
    text = report(tmp_path, capsys=capsys)
    assert "sim-0-0.1 is not finished: step 109" in text
    assert "sim-1-0.1 is not finished: step 105" in text
    assert "events.jsonl is not what a run writes" in text


def test_headings_are_words_and_counts_are_whole(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = make_run(tmp_path / "runs", "sim", 0, 0.1, 0.5)
    modules = [{"module": m, "loss": 2.0, "nce": 1.5, "kl": 3.0, "active_units": n} for m, n in enumerate((64.0, 7.5))]
    append_json(folder / "metrics.jsonl", {"kind": "validation", "step": 200, "modules": modules})
    point = {"dimensions": 2, "total_correlation": 0.5, "shuffled": 0.1, "excess": 0.4}
    values = {name: [point] for name in ("kde", "kde_standardized", "gaussian")}
    result = {"analysis": "total-correlation", "module": 0, "step": 200, "finished": 1.0, "values": values}
    path = folder / "analysis" / "one" / "result.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(result | {"summary": []}))
    report(tmp_path / "runs", "--out", tmp_path / "out", capsys=capsys)
    for name in ("report.md", "report.txt", "report.tex", "report.html"):
        text = (tmp_path / "out" / name).read_text()
        for heading in ("InfoNCE", "KL", "active dimensions", "estimator", "dimensions", "nats"):
            assert heading in text, (name, heading)
        assert "active units" not in text
    lines = [re.sub(r"[│ ]+", " ", line) for line in (tmp_path / "out" / "report.txt").read_text().splitlines()]
    assert " 0 1 2.000 1.500 3.000 64 " in lines
    assert " 1 1 2.000 1.500 3.000 7.5 " in lines
    assert " gaussian 2 0 1 0.50 0.10 0.400 " in lines
    assert rows(tmp_path / "out" / "results.csv", metric="active_units")


def test_probes_of_one_kind_with_other_settings_are_rows_of_their_own_and_the_last_step_counts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = make_run(tmp_path, "sim", 0, 0.1, 0.5)
    probe(folder, "early", 0.1, 50)
    probe(folder, "longer", 0.7, 100, epochs=50)
    (folder / "probes" / "torn").mkdir()
    (folder / "probes" / "torn" / "result.json").write_text('{"label": ')
    lines = [line for line in report(tmp_path, capsys=capsys).splitlines() if "│ phone" in line]
    assert [line.split("│")[4].strip() for line in lines] == ["5", "50"]
    assert [line.split("│")[6].strip() for line in lines] == ["50.0 [0.0, 100.0]", "70.0 [0.0, 100.0]"]


def test_repeated_probes_give_two_spreads(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Means over encoders of the mean over probes; the spread of those means, and the mean spread over probes."""
    accuracies = np.array([[0.50, 0.54, 0.52], [0.60, 0.61, 0.59], [0.40, 0.44, 0.42]])  # (encoders, probes)
    for seed, values in enumerate(accuracies):
        folder = make_run(tmp_path / "runs", "sim", seed, 0.1, values[0])
        for number, value in enumerate(values[1:], 1):
            probe(folder, f"b{number}", value, 100, seed=number)
        probe(folder, "earlier", 0.1, 50, seed=7)
    text = report(tmp_path / "runs", "--out", tmp_path / "out", capsys=capsys)
    (row,) = rows(tmp_path / "out" / "summary.csv", family="probe", metric="accuracy")
    assert float(row["mean"]) == pytest.approx(accuracies.mean())
    assert float(row["standard_deviation"]) == pytest.approx(accuracies.mean(1).std(ddof=1))
    assert float(row["standard_deviation_of_probes"]) == pytest.approx(accuracies.std(1, ddof=1).mean())
    assert row["seeds"] == "3"
    assert "51.3 ± 9.0, probes ± 1.7" in text
    assert "probes ± is their standard deviation, averaged over seeds" in " ".join(text.split())


def test_mfcc_are_one_row_where_encoders_have_the_very_same(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for beta, accuracy in ((0.1, 0.31), (0.2, 0.31), (0.3, 0.3101)):
        folder = make_run(tmp_path, "sim", 0, beta, 0.5)
        probe(folder, "mfcc", accuracy, 100)
        path = folder / "probes" / "mfcc" / "result.json"
        result = json.loads(path.read_text()) | {"source": {"kind": "mfcc", "module": None, "step": None}}
        path.write_text(json.dumps(result))
    said = report(tmp_path, capsys=capsys)
    assert "Probes: test accuracy in %, one seed\n" in said
    assert "over seeds" not in said.replace("Welch's t-test over seeds", "")
    assert "whole: features that have no modules, such as MFCC" in said
    lines = [line for line in said.splitlines() if "│ phone" in line]
    begin = [[cell.strip() for cell in line.split("│")[1:4]] for line in lines]
    assert [row for row in begin if row[2] == "mfcc"] == [["–", "phone", "mfcc"], ["0.3", "phone", "mfcc"]]
    assert len([row for row in begin if row[2] == "trained"]) == 3


def test_few_labels_are_a_column_for_each_number_of_examples(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for seed in (0, 1):
        folder = make_run(tmp_path, "sim", seed, 0.1, 0.5)
        path = folder / "probes" / "a" / "result.json"
        result = json.loads(path.read_text())
        del result["test"]
        result["curve"] = [{"examples_per_class": n, "accuracy": {"value": 0.1 * n + seed / 100}} for n in (1, 4)]
        path.write_text(json.dumps(result))
    text = report(tmp_path, capsys=capsys)
    (line,) = [line for line in text.splitlines() if "│ phone" in line]
    assert [cell.strip() for cell in line.strip("│ ").split("│")][-2:] == ["10.5 ± 0.7", "40.5 ± 0.7"]


def test_what_is_no_run_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words, said in (
        (["missing"], "does not exist; name run folders"),
        ([str(tmp_path)], "is no run and holds none"),
    ):
        with pytest.raises(SystemExit) as code:
            run(report_command.main, words)
        assert code.value.code == 2
        assert said in capsys.readouterr().err


def test_probes_of_layers_have_a_column(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Next to those of modules, or alone; without any there is none."""
    folder = make_run(tmp_path / "runs", "cpc", 0, 0.1, 0.5)
    out = tmp_path / "out"
    report(tmp_path / "runs", "--out", out, capsys=capsys)
    assert "layer" not in (out / "report.md").read_text()
    (whole,) = folder.glob("probes/*/result.json")
    result = json.loads(whole.read_text())
    for layer, accuracy in ((0, 0.3), (3, 0.4)):
        result["source"]["layer"], result["view"]["layer"] = layer, [1, layer]
        result["test"]["accuracy"]["value"] = accuracy
        path = folder / "probes" / f"layer{layer}" / "result.json"
        path.parent.mkdir()
        path.write_text(json.dumps(result))
    text = report(tmp_path / "runs", "--out", out, capsys=capsys)
    table = (out / "report.md").read_text()
    assert "| label | features | probe | layer | seeds | module 1 | chance |" in table
    found = re.findall(r"\| phone \| trained \| linear \| (\S+) \| 1 \| ([\d.]+) ", table)
    assert sorted(found) == [("0", "30.0"), ("3", "40.0"), ("–", "50.0")]
    overview = (out / "report.md").read_text().partition("## Probes")[0]
    assert "40.0" not in overview
    assert "phone" in text
    whats = [json.loads(row["what"]) for row in rows(out / "results.csv", family="probe", metric="accuracy")]
    assert sorted(str(what.get("layer")) for what in whats) == ["0", "3", "None"]
    whole.unlink()
    (folder / "probes" / "layer0" / "result.json").unlink()
    report(tmp_path / "runs", "--out", out, capsys=capsys)
    assert "| probe | layer | seeds |" in (out / "report.md").read_text()
