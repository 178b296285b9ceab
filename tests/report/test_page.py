"""The page as text: its numbers are those of the runs, strangers' text is escaped, secrets and torn files stay out."""

from __future__ import annotations

import csv
import html
import json
import math
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml

from benchmarks.run_folders import thesis_config, write_analyses, write_decoder, write_metrics, write_probe, write_run
from simdist.analyze.registry import ANALYSES
from simdist.config.parser import Parser, add_fields, fields_from
from simdist.config.schema import to_dict
from simdist.core.console import run
from simdist.probe.settings import ProbeSettings, for_label
from simdist.report import __main__ as report_command

KEY = "0123456789abcdef0123456789abcdefdeadbeef"


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Charts are left empty, where a test is about something else: drawing takes nine tenths of the time."""
    monkeypatch.setattr("simdist.report.page.as_svg", lambda *_: "<svg></svg>")
    monkeypatch.setattr("simdist.report.page.as_json", lambda _: "{}")


def rows_of(page: str, name: str) -> list[list[str]]:
    """Cells of a table of the page."""
    table = re.search(rf'id="table-{name}">.*?<tbody>(.*?)</tbody>', page, re.DOTALL)
    assert table, name
    rows = re.findall(r"<tr>(.*?)</tr>", table[1], re.DOTALL)
    return [[html.unescape(cell) for cell in re.findall(r"<td[^>]*>(.*?)</td>", row, re.DOTALL)] for row in rows]


def commands(page: str) -> list[str]:
    """Every command that makes something missing."""
    return [
        line for block in re.findall(r"<pre>(.*?)</pre>", page, re.DOTALL) for line in html.unescape(block).splitlines()
    ]


def test_means_and_deviations_are_numpys(runs: Path, report: Path) -> None:
    page = (report / "report.html").read_text()
    for name in ("vgim_thesis", "gim_thesis"):
        expected = []
        for module in (0, 1):
            paths = [
                next((runs / f"{name}-{s}").glob(f"probes/syllable-module{module}-*/result.json")) for s in range(3)
            ]
            values = 100 * np.array([json.loads(path.read_text())["test"]["accuracy"]["value"] for path in paths])
            expected.append(f"{values.mean():.1f} ± {values.std(ddof=1):.1f}")
        (row,) = [row for row in rows_of(page, "probes-0") if row[0] == name]
        star = " *" * (name == "vgim_thesis")  # ten points above, with deviations of one
        assert row[-3:-1] == [value + star for value in expected]
    differences = rows_of(page, "differences")
    assert len(differences) == 4
    tex = (report / "report.tex").read_text()
    assert expected[0].replace("±", r"$\pm$") in tex


def test_the_summary_has_the_last_module_of_each_encoder(runs: Path, report: Path) -> None:
    page = (report / "report.html").read_text()
    for name in ("vgim_thesis", "gim_thesis"):
        losses, accuracies = [], []
        for seed in range(3):
            folder = runs / f"{name}-{seed}"
            losses.append(json.loads((folder / "metrics.jsonl").read_text().splitlines()[-1])["modules"][-1]["loss"])
            (result,) = folder.glob("probes/vowel-module1-*/result.json")
            accuracies.append(100 * json.loads(result.read_text())["test"]["accuracy"]["value"])
        (row,) = [row for row in rows_of(page, "overview") if row[0] == name]
        assert row[3] == "3"
        assert row[5] == f"{np.mean(losses):.3f} ± {np.std(losses, ddof=1):.3f}"
        assert row[-1] == f"{np.mean(accuracies):.1f} ± {np.std(accuracies, ddof=1):.1f}"


def test_the_summary_leads_to_what_is_missing(report: Path) -> None:
    page = (report / "report.html").read_text()
    summary = page[page.index('<h2 id="summary">') : page.index('<h2 id="runs">')]
    targets = re.findall(r'<a href="#([\w-]+)">', summary)
    assert "interpolation" in targets
    assert all(f'id="{target}"' in page for target in targets)


@pytest.mark.usefixtures("undrawn")
def test_a_registered_analysis_has_a_section_and_is_missed(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The registry is all that a new analysis edits."""
    another = replace(ANALYSES["scatter"], name="slowness", heading="How slow the latent is")
    monkeypatch.setitem(ANALYSES, "slowness", another)
    shutil.copytree(runs / "gim_thesis-0", tmp_path / "runs" / "one")
    report_command.report([tmp_path / "runs"], tmp_path / "out")
    page = (tmp_path / "out" / "report.html").read_text()
    assert '<h2 id="slowness">How slow the latent is</h2>' in page
    assert f"python -m simdist.analyze slowness --run-dir {tmp_path}/runs/one" in commands(page)


def test_a_legend_names_the_encoders_of_its_section(runs: Path, tmp_path: Path) -> None:
    for name in ("vgim_thesis-0", "gim_thesis-1"):
        shutil.copytree(runs / name, tmp_path / "runs" / name)
    report_command.report([tmp_path / "runs"], tmp_path / "out")
    page = (tmp_path / "out" / "report.html").read_text()
    sections = re.split(r'<h2 id="([\w-]+)">', page)
    named = zip(sections[1::2], sections[2::2], strict=True)
    legends = {name: re.findall(r"</svg>(\w+)</li>", text) for name, text in named}
    assert legends["losses"] == legends["probes"] == ["gim_thesis", "vgim_thesis"]
    assert legends["distributions"] == ["vgim_thesis"]


def test_settings_that_differ_are_shown_and_others_once(report: Path) -> None:
    page = (report / "report.html").read_text()
    settings = {row[0]: row[1:] for row in rows_of(page, "settings")}
    assert settings["model.head"] == ["mu", "variational"]
    assert "optim.lr" not in settings
    assert re.search(r"<th scope=\"row\">optim.lr</th><td[^>]*>0.01</td>", page)


def test_missing_pieces_are_named_with_commands_that_parse(runs: Path, report: Path) -> None:
    page = (report / "report.html").read_text()
    found = commands(page)
    assert f"accelerate launch -m simdist.decode --run-dir {runs}/vgim_thesis-1 --module 1 --loss mse" in found
    assert f"python -m simdist.analyze distributions --run-dir {runs}/vgim_thesis-2" in found
    assert not any("analyze distributions" in line and "/gim_thesis" in line for line in found), "GIM has no prior"
    assert not any("simdist.train" in line for line in found)
    for line in found:
        for command in line.split(" && "):
            module, _, words = command.partition("simdist.")[2].partition(" ")
            if module == "analyze":
                which, *options = shlex.split(words)
                assert which in ANALYSES
                assert options[0] == "--run-dir"
            assert (runs / Path(shlex.split(words)[shlex.split(words).index("--run-dir") + 1]).name).is_dir()


@pytest.mark.usefixtures("undrawn")
def test_the_command_of_a_missing_probe_gives_its_settings(tmp_path: Path) -> None:
    first = write_run(tmp_path / "runs" / "a b", thesis_config(), 0.5, lines=3)
    write_run(tmp_path / "runs" / "c d", replace(thesis_config(), seed=1), 0.5, lines=3)
    write_probe(first, "vowel", 1, 0.7, 3, bias=False, epochs=7, lr=0.5)
    report_command.report([tmp_path / "runs"], tmp_path / "out")
    found = commands((tmp_path / "out" / "report.html").read_text())
    (command,) = [line for line in found if "simdist.probe" in line and "&&" not in line]
    words = shlex.split(command.partition("simdist.probe ")[2])
    parser = Parser()
    add_fields(parser, ProbeSettings)
    asked = for_label(fields_from(ProbeSettings, parser, parser.parse_args(words)), "vowel")
    assert asked.run == tmp_path / "runs" / "c d"
    assert (asked.label, asked.module, asked.pooling) == ("vowel", "1", "flatten")
    assert (asked.bias, asked.epochs, asked.lr, asked.batch_size) == (False, 7, 0.5, 64)


@pytest.mark.usefixtures("undrawn")
def test_the_command_of_a_missing_probe_follows_its_protocol(tmp_path: Path) -> None:
    first = write_run(tmp_path / "runs" / "first", thesis_config(), 0.5, lines=3)
    write_run(tmp_path / "runs" / "second", replace(thesis_config(), seed=1), 0.5, lines=3)
    thesis = {"bias": False, "batch_size": 171, "drop_last": True, "weight_decay": 1e-5, "epochs": 50}
    path = write_probe(first, "vowel", 1, 0.7, 3, **thesis)
    result = json.loads(path.read_text())
    result["view"] |= {"pooling": "max", "sampled": True, "resampled": True}
    path.write_text(json.dumps(result | {"protocol": "thesis, but epochs 50"}))
    report_command.report([tmp_path / "runs"], tmp_path / "out")
    found = commands((tmp_path / "out" / "report.html").read_text())
    (command,) = [line for line in found if "--protocol" in line]
    assert command.endswith("--label vowel --module 1 --protocol thesis --epochs 50")


@pytest.mark.usefixtures("undrawn")
def test_the_command_of_a_missing_probe_names_its_splits(tmp_path: Path) -> None:
    first = write_run(tmp_path / "runs" / "first", thesis_config(), 0.5, lines=3)
    write_run(tmp_path / "runs" / "second", replace(thesis_config(), seed=1), 0.5, lines=3)
    path = write_probe(first, "vowel", 1, 0.7, 3, epochs=7)
    result = json.loads(path.read_text())
    reshuffled = "syllables_reshuffled_"
    options = {
        "test": "",
        f"{reshuffled}test": f" --train-split {reshuffled}train --test-split {reshuffled}test",
        f"{reshuffled}validation": f" --train-split {reshuffled}fit --test-split {reshuffled}validation",
    }
    for test, named in options.items():
        result["data"] = {"train": {"labels": 9}, "test": {"split": f"data/{test}"}}
        path.write_text(json.dumps(result))
        report_command.report([tmp_path / "runs"], tmp_path / "out")
        found = commands((tmp_path / "out" / "report.html").read_text())
        (command,) = [line for line in found if "simdist.probe" in line and "&&" not in line]
        assert f"--module 1{named} --" in command
        assert ("--train-split" in command) == bool(named)


@pytest.mark.usefixtures("undrawn")
def test_the_command_of_a_missing_probe_names_its_layer(tmp_path: Path) -> None:
    first = write_run(tmp_path / "runs" / "first", thesis_config(), 0.5, lines=3)
    write_run(tmp_path / "runs" / "second", replace(thesis_config(), seed=1), 0.5, lines=3)
    for layer in (0, 9):  # the second is of a run that had more layers: no command can make it
        path = write_probe(first, "vowel", 1, 0.7, 3, bias=True, epochs=100)
        result = json.loads(path.read_text())
        result["source"]["layer"], result["view"]["layer"] = layer, [1, layer]
        path.parent.rename(path.parent.parent / f"layer{layer}")
        (path.parent.parent / f"layer{layer}" / path.name).write_text(json.dumps(result))
    report_command.report([tmp_path / "runs"], tmp_path / "out")
    found = commands((tmp_path / "out" / "report.html").read_text())
    (command,) = [line for line in found if "--layer" in line]
    assert "runs/second --label vowel --module 1 --layer 0" in command


@pytest.mark.usefixtures("undrawn")
def test_decoders_and_analyses_of_a_layer_are_told_from_the_modules(tmp_path: Path) -> None:
    folder = bare_run(tmp_path / "runs" / "one")
    write_analyses(folder)
    report_command.report([tmp_path / "runs"], tmp_path / "before")
    assert not re.search(r"layer 1|<th[^>]*>layer<", text_of(tmp_path / "before"))
    kinds = ("decoders/0-mse", *(f"analysis/{kind}-" for kind in ("weights", "contribution", "traversal")))
    for kind in kinds:
        (whole,) = (path for path in folder.glob("*/*") if str(path.relative_to(folder)).startswith(kind))
        inside = Path(shutil.copytree(whole, whole.with_name(f"{whole.name}-layer1")))
        result = json.loads((inside / "result.json").read_text())
        (inside / "result.json").write_text(json.dumps(result | {"layer": 1}))
    report_command.report([tmp_path / "runs"], tmp_path / "out")
    page = text_of(tmp_path / "out")
    assert sorted(row[2] for row in rows_of(page, "decoders") if row[0] == "mse") == ["1", "–"]
    for name, place in (("weights", 1), ("contribution", 0)):
        assert sorted(row[place] for row in rows_of(page, name)) == ["1", "–"], name
    assert page.count("<h3>one, module 0, layer 1</h3>") == page.count("<h3>one, module 0</h3>") == 1
    assert "<h4>one, module 0, layer 1</h4>" in page
    assert "Figures of one, module 0, layer 1: weights" in page


def text_of(out: Path) -> str:
    return (out / "report.html").read_text()


def bare_run(folder: Path, seed: int = 0) -> Path:
    """A run that was just begun."""
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(to_dict(replace(thesis_config(), seed=seed))))
    return folder


def only_trained(folder: Path) -> None:
    bare_run(folder)
    write_metrics(folder, np.random.default_rng(0), lines=5)


def only_probed(folder: Path) -> None:
    write_probe(bare_run(folder), "vowel", 0, 0.5, 3)


def only_analyzed(folder: Path) -> None:
    write_analyses(bare_run(folder))


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize("make", [bare_run, only_trained, only_probed, only_analyzed])
def test_a_page_of_a_run_that_lacks_everything_else(tmp_path: Path, make: Callable[[Path], object]) -> None:
    make(tmp_path / "runs" / "one")
    report_command.report([tmp_path / "runs"], tmp_path / "out")
    page = (tmp_path / "out" / "report.html").read_text()
    assert ('id="table-encoders"' in page) == (make is only_trained)
    assert ('id="table-probes"' in page) == (make is only_probed)
    assert ('id="table-decoders"' in page) == (make is only_analyzed)


@pytest.mark.usefixtures("undrawn")
def test_few_labels_are_offered_in_sizes_that_the_corpus_has(tmp_path: Path) -> None:
    """Of 38 examples of 6 classes, the largest class has 7 or more."""
    for name in ("probed", "unprobed"):
        bare_run(tmp_path / "runs" / name)
    for label, classes, labels in (("speaker", 6, 38), ("phone", 41, 19405), ("vowel", 3, 3)):
        path = write_probe(tmp_path / "runs" / "probed", label, 0, 0.5, classes)
        data = {"classes": [str(number) for number in range(classes)], "data": {"train": {"labels": labels}}}
        path.write_text(json.dumps(json.loads(path.read_text()) | data))
    report_command.report([tmp_path / "runs"], tmp_path / "out")
    offered = [
        line for line in commands((tmp_path / "out" / "report.html").read_text()) if "--examples-per-class" in line
    ]
    start = f"accelerate launch -m simdist.probe --run-dir {tmp_path}/runs/probed --label"  # --all forbids a label
    assert offered == [
        f"{start} phone --examples-per-class 1,2,4,8,16,32,64,128",
        f"{start} speaker --examples-per-class 1,2,4",
    ]


@pytest.mark.usefixtures("undrawn")
def test_a_decoder_is_offered_with_the_losses_that_others_have(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    for name, losses in (("a", ["mse+mel", "mse"]), ("b", ["mse"]), ("c", [])):
        folder = bare_run(tmp_path / "runs" / name)
        for loss in losses:
            path = write_decoder(folder, generator).rename(folder / "decoders" / f"0_{loss}") / "result.json"
            path.write_text(json.dumps(json.loads(path.read_text()) | {"loss": loss}))
    report_command.report([tmp_path / "runs"], tmp_path / "out")
    found = commands((tmp_path / "out" / "report.html").read_text())
    start = f"accelerate launch -m simdist.decode --run-dir {tmp_path}/runs/"
    assert [line for line in found if "--module 0" in line and line.startswith(start) and "&&" not in line] == [
        f"{start}b --module 0 --loss mse+mel",
        f"{start}c --module 0 --loss mse",
        f"{start}c --module 0 --loss mse+mel",
    ]


def test_the_kl_says_over_what_it_was_summed(tmp_path: Path) -> None:
    for reduction in ("sum", "mean"):
        config = thesis_config()
        config = replace(config, loss=replace(config.loss, kl_reduction=reduction))
        write_run(tmp_path / "runs" / reduction, config, 0.5, lines=3)
        report_command.report([tmp_path / "runs" / reduction], tmp_path / reduction)
    report_command.report([tmp_path / "runs"], tmp_path / "both")
    summed, mean, both = ((tmp_path / name / "report.html").read_text() for name in ("sum", "mean", "both"))
    assert "KL in nats, summed over the frames of a crop, averaged over channels and crops (loss." in summed
    assert "KL in nats, averaged over frames, channels and crops (loss.kl_reduction mean)" in mean
    assert ", or averaged over frames" in both
    assert summed.count("KL (nats per crop and channel)") == mean.count("KL (nats per frame and channel)") > 0
    assert "KL (nats)" in both


@pytest.mark.usefixtures("undrawn")
def test_unfinished_runs_and_stagewise_lines(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "runs" / "half", thesis_config(), 0.5, lines=5, is_done=False)
    report_command.report([tmp_path / "runs"], tmp_path / "out")
    page = (tmp_path / "out" / "report.html").read_text()
    assert "half is not finished: step 1000" in page
    assert f"accelerate launch -m simdist.train --config {folder}/config.yaml --run-dir {folder}" in commands(page)


@pytest.mark.usefixtures("undrawn")
def test_probes_are_expected_of_runs_on_the_same_corpus(tmp_path: Path) -> None:
    speech = thesis_config()
    for name, root in (("a", "data/words"), ("b", "data/words"), ("c", "data/other")):
        config = replace(speech, data=replace(speech.data, root=root))
        write_run(tmp_path / "runs" / name, config, 0.5, lines=3)
    for name in ("b", "c"):
        shutil.rmtree(tmp_path / "runs" / name / "probes")
    report_command.report([tmp_path / "runs"], tmp_path / "out")
    page = (tmp_path / "out" / "report.html").read_text()
    asked = [line for line in commands(page) if "simdist.probe --run-dir" in line]
    assert any("--label syllable" in line and "/b " in line for line in asked)
    assert not any("--label syllable" in line and "/c " in line for line in asked)


@pytest.mark.usefixtures("undrawn")
def test_a_module_that_learnt_nothing_is_named(tmp_path: Path) -> None:
    for name in ("well", "dead"):
        write_run(tmp_path / "runs" / name, thesis_config(), 0.5, lines=5)
    metrics = tmp_path / "runs" / "dead" / "metrics.jsonl"
    lines = [json.loads(line) for line in metrics.read_text().splitlines()]
    lines[-1]["modules"][1] |= {"nce": math.log(11), "active_units": 0.0}
    metrics.write_text("".join(json.dumps(line) + "\n" for line in lines))
    report_command.report([tmp_path / "runs"], tmp_path / "out")
    page = (tmp_path / "out" / "report.html").read_text()
    assert "dead: module 1 has collapsed (InfoNCE at chance, no active dimension)" in page
    assert page.count("has collapsed") == 1


def test_text_of_strangers_is_escaped_everywhere(tmp_path: Path) -> None:
    evil = "<script>alert(1)</script>"
    folder = write_run(tmp_path / "runs" / "a<b>", thesis_config(), 0.5, lines=3)
    config = yaml.safe_load((folder / "config.yaml").read_text()) | {"name": evil}
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    write_probe(folder, "<img src=x onerror=alert(2)>", 0, 0.5, 2)
    write_analyses(folder)
    result = next(folder.glob("analysis/traversal-*/result.json"))
    result.write_text(json.dumps(json.loads(result.read_text()) | {"summary": ["<b>bold</b>"]}))
    report_command.report([tmp_path / "runs"], tmp_path / "out", title=evil)
    page = (tmp_path / "out" / "report.html").read_text()
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert page.count("<script") == page.count("</script>")
    for text in ("<script>alert", "<img src=x", "<b>bold", "a<b>"):
        assert text not in page
    text = (tmp_path / "out" / "report.tex").read_text()
    assert "<script>" not in text


def test_secrets_never_reach_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "a-value-without-shape")
    folder = write_run(tmp_path / "runs" / "one", thesis_config(), 0.5, lines=3)
    config = yaml.safe_load((folder / "config.yaml").read_text())
    config["data"]["root"] = "https://me:hunter2hunter2@example.org/data"
    config["name"], config["data"]["train_split"] = f"sim {KEY}", "a-value-without-shape"
    config["wandb"]["api_key"] = "hunter3hunter3"
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    write_analyses(folder)
    result = next(folder.glob("analysis/samples-*/result.json"))
    result.write_text(json.dumps(json.loads(result.read_text()) | {"summary": [f"api_key={KEY}"]}))
    report_command.report([tmp_path / "runs"], tmp_path / "out")
    for path in (tmp_path / "out").iterdir():
        text = path.read_text()
        for secret in (KEY, "hunter2", "hunter3", "a-value-without-shape"):
            assert secret not in text, path.name


def test_torn_and_foreign_files_are_named_and_passed_over(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = tmp_path / "runs"
    folder = write_run(root / "one", thesis_config(), 0.5, lines=5)
    write_analyses(folder)
    torn = write_run(root / "torn", replace(thesis_config(), seed=1), 0.5, lines=5)
    (torn / "config.yaml").write_text("name: [")
    (root / "foreign").mkdir()
    (root / "foreign" / "config.yaml").write_text("- 1\n")
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('[1, 2]\n{"kind": "train", "step": 7}\n{"kind": "tra')
    damaged = {
        next(folder.glob("probes/vowel-module0-*/result.json")): "[]",
        next(folder.glob("probes/vowel-module1-*/result.json")): '{"label": "vowel"}',
        next(folder.glob("analysis/distributions-*/dimensions.csv")): "dimension,kl\n0,much\n",
        next(folder.glob("analysis/weights-*/result.json")): '{"analysis": "weights"',
        next(folder.glob("analysis/traversal-*/dimension-003-01.wav")): "RIFF",
        next(folder.glob("analysis/samples-*/samples.png")): "PNG",
        next(folder.glob("decoders/*/result.json")): '{"module": 0}',
    }
    for path, text in damaged.items():
        path.write_text(text)
    report_command.report([root], tmp_path / "out")
    page = html.unescape((tmp_path / "out" / "report.html").read_text())
    for path in damaged:
        assert str(path) in page or str(path.parent) + " has a table" in page, path
    assert f"{folder}/metrics.jsonl is read without 3 lines, torn or without metrics" in page
    assert f"{torn}/config.yaml is not the configuration of a run" in page
    assert f"{root}/foreign/config.yaml is not the configuration of a run" in page
    assert "skipped: " in capsys.readouterr().out
    assert "dimension 3 = +1.34" in page, "the other sounds of a set with a torn one are there"


def test_runs_that_cannot_be_read_at_all_are_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "config.yaml").write_text("{")
    with pytest.raises(SystemExit) as ended:
        run(report_command.main, [str(tmp_path)])
    assert ended.value.code == 2
    assert "none of the runs can be read" in capsys.readouterr().err


@pytest.mark.usefixtures("undrawn")
def test_detail_chooses_runs_and_names_a_wrong_one(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report_command.report([runs], tmp_path / "out", detail="gim_thesis-0")
    page = (tmp_path / "out" / "report.html").read_text()
    assert re.findall(r"<h4>(.*?), module", page) == ["gim_thesis-0"] * 3
    with pytest.raises(SystemExit) as ended:
        run(report_command.main, [str(runs), "--detail", "nobody"])
    assert ended.value.code == 2
    assert "--detail names 'nobody', which is not among the runs (gim_thesis-0, " in capsys.readouterr().err


@pytest.mark.usefixtures("undrawn")
def test_runs_of_one_name_in_two_folders_stay_apart(tmp_path: Path) -> None:
    for place, level in (("x", 0.3), ("y", 0.6)):
        write_run(tmp_path / place / "sim", thesis_config(), level, lines=3)
    report_command.report([tmp_path / "x", tmp_path / "y"], tmp_path / "out")
    with (tmp_path / "out" / "results.csv").open() as file:
        assert {row["run"] for row in csv.DictReader(file)} == {"x/sim", "y/sim"}


def test_a_long_run_keeps_its_last_step(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "long", thesis_config(), 0.5, lines=3)
    write_metrics(folder, np.random.default_rng(0), lines=1000)
    report_command.report([folder], tmp_path / "out")
    last = json.loads((folder / "metrics.jsonl").read_text().splitlines()[-1])
    with (tmp_path / "out" / "results.csv").open() as file:
        found = [row for row in csv.DictReader(file) if (row["metric"], row["module"]) == ("nce", "1")]
    assert [float(row["value"]) for row in found] == [last["modules"][1]["nce"]]


def test_interrupting_leaves_the_old_page(runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    report_command.report([runs], tmp_path)
    before = (tmp_path / "report.html").read_bytes()

    def interrupted(*_: object) -> str:
        raise KeyboardInterrupt

    monkeypatch.setattr("simdist.report.page.as_svg", interrupted)
    with pytest.raises(KeyboardInterrupt):
        report_command.report([runs], tmp_path)
    assert (tmp_path / "report.html").read_bytes() == before
    assert not list(tmp_path.glob(".tmp-*"))


def test_without_bokeh_tables_are_written_and_the_command_is_named(runs: Path, tmp_path: Path) -> None:
    program = (
        "import sys; sys.modules['bokeh'] = None; import simdist.report.__main__ as r; "
        f"r.main([{str(runs)!r}, '--out', {str(tmp_path / 'out')!r}])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "report.html is missing because a package is not installed: pip install 'simdist[report]'" in done.stdout
    assert {path.name for path in (tmp_path / "out").iterdir()} >= {"report.md", "report.tex", "summary.csv"}
    assert not (tmp_path / "out" / "report.html").exists()


def test_the_page_needs_no_torch(runs: Path, tmp_path: Path) -> None:
    program = (
        f"import sys; import simdist.report.__main__ as r; r.main([{str(runs)!r}, '--out', {str(tmp_path)!r}]); "
        "sys.exit('torch' in sys.modules)"
    )
    shutil.rmtree(tmp_path)
    assert subprocess.run([sys.executable, "-c", program], capture_output=True).returncode == 0
    assert (tmp_path / "report.html").exists()
