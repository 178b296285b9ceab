"""A damaged line in the files of a run: training starts, names the line, and loses nothing else."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from simdist.config.schema import Config
from simdist.core.files import append_json
from simdist.runs.folder import Run
from simdist.runs.metrics import MetricsLog


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """A run with four records and three events."""
    run = Run(tmp_path, Config())
    for step in (1, 2, 3, 4):
        modules = [{"module": 0, "loss": 1.0 / step, "accuracy": 0.5}]
        append_json(run.metrics, {"kind": "train", "step": step, "epoch": 0.1, "modules": modules})
    for name in ("start", "requeued", "stopped"):
        run.event(name, step=4)
    return run


def damage(path: Path, old: bytes, new: bytes) -> bytes:
    content = path.read_bytes()
    assert old in content
    path.write_bytes(content.replace(old, new))
    return path.read_bytes()


@pytest.mark.parametrize("new", [b'"\xfftep": 2', b'"stip": 2', b'"step": "2"'])
def test_rewinding_names_a_damaged_line_and_keeps_a_copy(
    run: Run, new: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    original = damage(run.metrics, b'"step": 2', new)
    log = MetricsLog(run, 10, is_main=True)
    log.rewind(3)
    said = capsys.readouterr().out
    assert f"warning: {run.metrics} is damaged and read without line 2: " in said
    assert f"{run.metrics}.damaged-1 has them" in said
    assert Path(f"{run.metrics}.damaged-1").read_bytes() == original
    assert run.metrics.read_bytes() == b"".join(original.splitlines(keepends=True)[::2])
    assert [record.step for record in log.records("train")] == [1, 3]
    damage(run.metrics, b'"kind"', b'"k\xffnd"')
    log.rewind(3)
    assert len(list(run.folder.glob("metrics.jsonl.damaged-*"))) == 2


def test_rewinding_keeps_no_copy_of_a_whole_file_or_a_torn_last_line(
    run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = run.metrics.read_bytes()
    with run.metrics.open("a") as file:
        file.write('{"kind": "train", "st')
    MetricsLog(run, 10, is_main=True).rewind(4)
    assert run.metrics.read_bytes() == whole
    assert not list(run.folder.glob("*.damaged-*"))
    assert capsys.readouterr().out == ""


def test_a_damaged_event_is_named_and_the_others_count(run: Run) -> None:
    damage(run.folder / "events.jsonl", b'"requeued"', b'"re\xffueued"')
    assert run.has_begun
    assert (run.count("start"), run.count("requeued")) == (1, 0)
    (said,) = run.damaged_events()
    assert said.startswith(f"warning: {run.folder / 'events.jsonl'} is damaged and read without line 2: ")
    assert json.loads((run.folder / "events.jsonl").read_bytes().splitlines()[0])["event"] == "start"
