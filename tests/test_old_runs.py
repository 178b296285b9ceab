"""A run written by version 0.1.0 of November 2026, before its configuration and checkpoint keys were renamed.

It is a SIM of width 8 at step 8 of 10, whose module 1 was rolled back at step 5.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import pytest
import torch

from simdist.config.load import read_config
from simdist.config.schema import identity
from simdist.core.files import read_json_lines
from simdist.data.splits import open_split
from simdist.loading import load_encoder
from simdist.probe.__main__ import main as probe
from simdist.report.__main__ import main as report
from simdist.train.__main__ import main as train
from tests.support import ROOT

OLD_RUN = ROOT / "tests" / "support" / "old_run"
IDENTITY = "f4932c8132317333"
FIRST_FRAMES = (  # channels 0 to 3 of the first frame of each module's latent, computed by the old code
    [0.005781, 0.24029, 0.237804, -0.000974],
    [0.140622, 0.054957, -0.129254, 0.273911],
    [0.014769, 0.31294, -0.245572, -0.039981],
    [-0.110026, 0.068776, 0.214757, -0.112029],
)


@pytest.fixture
def run(speech: Path, tmp_path: Path) -> Path:
    """A copy whose checkpoint names this machine's corpus as its training data."""
    folder = Path(shutil.copytree(OLD_RUN, tmp_path / "runs" / "old"))
    config = folder / "config.yaml"
    config.write_text(config.read_text().replace("data/speech", str(speech)))
    checkpoint = folder / "checkpoints" / "step_00000008"
    state = json.loads((checkpoint / "state.json").read_text())
    state["fingerprint"] = open_split(speech, "train").manifest.fingerprint
    text = json.dumps(state).encode()
    (checkpoint / "state.json").write_bytes(text)
    manifest = json.loads((checkpoint / "manifest.json").read_text())
    manifest["files"]["state.json"] = {"bytes": len(text), "sha256": hashlib.sha256(text).hexdigest()}
    (checkpoint / "manifest.json").write_text(json.dumps(manifest))
    return folder


def test_its_configuration_and_weights_load() -> None:
    config = read_config(OLD_RUN / "config.yaml")
    assert (config.loss.kl_reduction, config.train.max_nonfinite_steps) == ("sum", 2)
    assert identity(config) == IDENTITY  # the same command still finds the run in its default folder
    audio = torch.linspace(-1, 1, 2560)[None, None].sin()
    encoder = load_encoder(OLD_RUN)
    with torch.no_grad():
        for module, expected in enumerate(FIRST_FRAMES):
            assert encoder.encode(audio, module=module)[0, 0, :4].tolist() == pytest.approx(expected, abs=2e-5)


@pytest.mark.usefixtures("fresh_process")
def test_it_resumes_with_what_its_rollback_changed(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train([f"--config={run / 'config.yaml'}", f"--run-dir={run}"]) == 0
    assert f"resuming at step 8 in {run}" in capsys.readouterr().out
    steps = [line["step"] for line in read_json_lines(run / "metrics.jsonl")]
    assert steps == list(range(1, 11))
    state = json.loads((run / "checkpoints" / "step_00000010" / "state.json").read_text())
    scales = [value for key, value in _items(state) if key == "lr_scale"]
    assert scales == [1.0, 0.5, 1.0, 1.0]


@pytest.mark.usefixtures("fresh_process")
def test_it_is_probed_and_reported(run: Path, tmp_path: Path) -> None:
    words = ["--module=0", "--label=speaker", "--epochs=2"]
    assert probe([f"--run-dir={run}", *words]) == 0
    assert report([str(run.parent), f"--out={tmp_path / 'report'}"]) == 0
    assert "old" in (tmp_path / "report" / "report.md").read_text()
    assert "speaker" in (tmp_path / "report" / "results.csv").read_text()


def _items(tree: object) -> list[tuple[str, object]]:
    """All keys and values in a tree of dicts and lists."""
    if isinstance(tree, dict):
        return [item for key, value in tree.items() for item in [(key, value), *_items(value)]]
    return [item for value in tree for item in _items(value)] if isinstance(tree, list) else []
