"""What charts show are the numbers of the runs."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import scipy.stats

from benchmarks.run_folders import SIZES
from simdist.report.charts import OTHER, Line, Panel, lines_of, over_seeds, thinned
from simdist.report.collect import RunContent, find_runs, read_run
from simdist.report.curves import few_label_charts, loss_charts, module_charts, weight_charts
from simdist.report.drawing import as_json, as_svg
from simdist.report.selection import Selection, select
from simdist.report.summary import group_keys, summarize


@pytest.fixture(scope="module")
def read(runs: Path) -> tuple[list[RunContent], Selection, dict]:
    return read_all(runs)


def read_all(runs: Path) -> tuple[list[RunContent], Selection, dict]:
    found = [run for folder in find_runs([runs]) if isinstance(run := read_run(folder), RunContent)]
    keys = group_keys([run.record for run in found])
    cells = summarize([run.record for run in found], [item for run in found for item in run.measurements], keys)
    return found, select(found, cells, keys), cells


def accuracy_of(run: Path, module: int) -> float:
    """Of the probe for syllables, in %."""
    (path,) = run.glob(f"probes/syllable-module{module}-*/result.json")
    return 100 * json.loads(path.read_text())["test"]["accuracy"]["value"]


def test_a_loss_is_the_mean_over_seeds_of_what_was_logged(runs: Path, read: tuple) -> None:
    found, selection, _ = read
    (chart,) = [chart for chart in loss_charts(found, selection) if chart.name == "curve-nce"]
    assert [panel.title for panel in chart.panels] == ["module 0", "module 1"]
    place = selection.colored.index(("vgim_thesis",))
    (mean,) = [line for line in chart.panels[1].lines if line.place == place and not line.is_faint]
    logged, lines = [], []
    for seed in range(3):
        lines = [json.loads(line) for line in (runs / f"vgim_thesis-{seed}" / "metrics.jsonl").read_text().splitlines()]
        logged.append([line["modules"][1]["nce"] for line in lines])
    np.testing.assert_allclose(mean.x, [line["step"] for line in lines])
    np.testing.assert_allclose(mean.y, np.mean(logged, axis=0))
    assert mean.low is not None
    np.testing.assert_allclose(mean.y - mean.low, np.std(logged, axis=0, ddof=1))


def test_training_and_validation_share_a_panel(runs: Path, tmp_path: Path) -> None:
    shutil.copytree(runs / "gim_thesis-0", tmp_path / "one")
    path = tmp_path / "one" / "metrics.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    path.write_text(
        "".join(json.dumps(line) + "\n" for line in lines + [{**line, "kind": "validation"} for line in lines])
    )
    found, selection, _ = read_all(tmp_path)
    (chart,) = [chart for chart in loss_charts(found, selection) if chart.name == "curve-loss"]
    assert [panel.title for panel in chart.panels] == ["module 0", "module 1"]
    for panel in chart.panels:
        assert [(line.name, line.is_thin) for line in panel.lines] == [("one, train", True), ("one, validation", False)]
        assert as_svg(panel, "name").count("<path") > 2
        assert len(json.loads(as_json(panel))["doc"]["roots"]) == 1


def test_a_panel_without_any_kl_is_left_out(runs: Path, tmp_path: Path) -> None:
    shutil.copytree(runs / "gim_thesis-0", tmp_path / "one")
    path = tmp_path / "one" / "metrics.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    for line in lines:
        line["modules"][0]["kl"] = line["modules"][1]["active_units"] = 0.0
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    found, selection, _ = read_all(tmp_path)
    titles = {chart.name: [panel.title for panel in chart.panels] for chart in loss_charts(found, selection)}
    assert titles["curve-kl"] == ["module 1"]
    assert titles["curve-active_units"] == ["module 0", "module 1"]


def test_accuracy_by_module_is_that_of_the_probes(runs: Path, tmp_path: Path, read: tuple) -> None:
    found, selection, _ = read
    (chart,) = module_charts(found, selection)
    assert [panel.title for panel in chart.panels] == ["syllable", "vowel"]
    panel = chart.panels[0]
    assert panel.reference == (pytest.approx(100 / 9), "chance")
    place = selection.colored.index(("gim_thesis",))
    (mean,) = [line for line in panel.lines if line.place == place and not line.is_faint]
    values = [[accuracy_of(runs / f"gim_thesis-{seed}", module) for module in (0, 1)] for seed in range(3)]
    np.testing.assert_array_equal(mean.x, [0, 1])
    np.testing.assert_allclose(mean.y, np.mean(values, axis=0))
    assert mean.low is not None
    np.testing.assert_allclose(mean.y - mean.low, np.std(values, axis=0, ddof=1))
    assert len([line for line in panel.lines if line.place == place and line.is_faint]) == 3
    assert chart.note == ""


def test_untrained_encoders_are_grey(runs: Path, tmp_path: Path) -> None:
    shutil.copytree(runs / "gim_thesis-0", tmp_path / "one")
    for path in (tmp_path / "one" / "probes").glob("vowel-module*"):
        shutil.copytree(path, path.with_name(f"untrained-{path.name}"))
        result = json.loads((path / "result.json").read_text())
        result["source"] |= {"kind": "untrained", "step": None}
        (path.with_name(f"untrained-{path.name}") / "result.json").write_text(json.dumps(result))
    (chart,) = module_charts(*read_all(tmp_path)[:2])
    drawn = [[(line.name, line.place) for line in panel.lines] for panel in chart.panels]
    assert drawn == [[("one, trained", 0)], [("one, untrained", OTHER), ("one, trained", 0)]]
    assert "Grey" in chart.note


def test_few_labels_are_percent_over_examples(runs: Path, read: tuple) -> None:
    _, selection, cells = read
    (chart,) = few_label_charts(cells, selection)
    values = []
    for seed in range(3):
        (path,) = (runs / f"gim_thesis-{seed}").glob("probes/few-labels-syllable-module0-*/result.json")
        values.append([100 * point["accuracy"]["value"] for point in json.loads(path.read_text())["curve"]])
    line = next(line for line in chart.panels[0].lines if line.place == selection.colored.index(("gim_thesis",)))
    np.testing.assert_allclose(line.x, SIZES)
    np.testing.assert_allclose(line.y, np.mean(values, axis=0))
    assert line.high is not None
    np.testing.assert_allclose(line.high - line.y, np.std(values, axis=0, ddof=1))
    assert chart.panels[0].reference == (pytest.approx(100 / 9), "chance")


def test_a_density_is_that_of_the_table_of_weights(runs: Path, read: tuple) -> None:
    found, selection, _ = read
    (chart,) = weight_charts(found, selection, [])
    line = next(line for line in chart.panels[0].lines if line.name == "gim_thesis-0")
    (table,) = (runs / "gim_thesis-0").glob("analysis/weights-*/weights-vowel.csv")
    weights = np.loadtxt(table, delimiter=",", skiprows=1)[:, 1:]
    np.testing.assert_allclose(line.y, scipy.stats.gaussian_kde(weights.ravel())(line.x))


def test_thinning_keeps_values_and_both_ends() -> None:
    x = np.arange(10_001)
    few, values = thinned(x.tolist(), (x**2).tolist(), 200)
    assert len(few) == 200
    assert (few[0], few[-1]) == (0, 10_000)
    np.testing.assert_array_equal(values, few**2)


def test_seeds_that_logged_at_other_steps_are_interpolated() -> None:
    first = np.array([0.0, 10, 20]), np.array([0.0, 1, 2])
    second = np.array([0.0, 5, 15]), np.array([2.0, 2, 4])
    x, mean, deviation = over_seeds([first, second])
    np.testing.assert_allclose(x, [0, 10])
    np.testing.assert_allclose(mean, [1, 2])
    assert deviation is not None
    np.testing.assert_allclose(deviation, [np.sqrt(2), np.sqrt(2)])


def test_encoders_not_in_color_have_no_mean() -> None:
    gray = lines_of(OTHER, "x", [("a", [0, 1], [1, 2]), ("b", [0, 1], [2, 3])])
    assert [line.name for line in gray] == ["a", "b"]


def test_both_drawings_hold_the_same_points() -> None:
    x = np.linspace(0, 1, 20)
    panel = Panel("module 0", [Line(0, "a <run>", x, x**2)], "step", "loss (nats)")
    svg, drawn = as_svg(panel, "one"), as_json(panel)
    assert "#0072b2" in svg.lower()
    assert "<run>" not in drawn
    assert "</script" not in drawn
    assert "\\u003c" in drawn
    path = max(re.findall(r' d="(M[^"]*)"', svg), key=len)
    points = np.array([[float(n) for n in pair.split()[:2]] for pair in re.split("[ML]", path)[1:]])
    assert np.corrcoef(points[:, 0], x)[0, 1] == pytest.approx(1)
    assert np.corrcoef(-points[:, 1], x**2)[0, 1] == pytest.approx(1)
    assert as_svg(panel, "one") == svg, "the same panel gives the same bytes"
