"""The command as a user types it: what it finds out, what it refuses, how it stops and goes on."""

from __future__ import annotations

import io
import json
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file

from simdist.core.console import run
from simdist.data.splits import Index, open_split
from simdist.probe import __main__ as probe_command
from tests.support.forked import Ranks, Zygote

Probe = Callable[..., list[dict]]


def accuracy(result: dict) -> float:
    return result["test"]["accuracy"]["value"]


def fails(argv: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The one line that a wrong command line prints, having left with exit code 2."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as exit_code:
        run(probe_command.main, argv)
    assert exit_code.value.code == 2
    printed = capsys.readouterr().err.strip()
    assert printed.startswith("error: ")
    assert "\n" not in printed
    return printed


def test_a_trained_encoder_beats_an_untrained_one(probe: Probe, run_folder: Path) -> None:
    """Modules 1 and 3 on phones; all numbers of a result fit together."""
    options = ("--standardize=true", "--lr=1e-2", "--epochs=3", "--unseen=drop")
    results = probe("--label=phone", "--module=1,3", "--features=trained,untrained", *options)
    assert len(results) == 4
    found = {(r["source"]["kind"], r["source"]["module"]): r for r in results}
    for module in (1, 3):
        margin = accuracy(found["trained", module]) - accuracy(found["untrained", module])
        assert margin > 0.01, (module, margin)  # 120 steps against random weights with calibrated statistics
    result = found["trained", 3]
    assert accuracy(result) > result["majority"]["accuracy"] + 0.1
    low, high = result["test"]["accuracy"]["interval"]
    assert low < accuracy(result) < high
    confusion = np.array(result["test"]["confusion"])
    assert np.trace(confusion) / confusion.sum() == pytest.approx(accuracy(result))
    assert confusion.sum() == result["data"]["test"]["labels"]
    silence = result["classes"].index("SIL")
    loud = np.delete(confusion, silence, axis=0)
    hits = np.trace(confusion) - confusion[silence, silence]
    assert result["test"]["without_silence"]["accuracy"]["value"] == pytest.approx(hits / loud.sum())
    folder = run_folder / "probes" / result["name"]
    assert {"result.json", "probe.safetensors", "confusion.png", "per_class.tsv"} <= {p.name for p in folder.iterdir()}
    assert load_file(folder / "probe.safetensors")["output.weight"].shape == (41, 32)


@pytest.mark.parametrize("label", ["speaker", "phone"])
def test_cached_and_uncached_agree(probe: Probe, run_folder: Path, label: str) -> None:
    options = (f"--label={label}", "--module=2", "--epochs=2", "--crops=2", "--batch-size=4", "--unseen=drop")
    (cached,), (live,) = probe(*options), probe(*options, "--cached=false")
    assert accuracy(cached) == pytest.approx(accuracy(live), abs=0.005)
    assert cached["test"]["loss"] == pytest.approx(live["test"]["loss"], rel=1e-3)
    weights = [load_file(run_folder / "probes" / r["name"] / "probe.safetensors") for r in (cached, live)]
    assert torch.allclose(weights[0]["output.weight"], weights[1]["output.weight"], atol=2e-3)


def test_two_processes_are_one(probe: Probe, run_folder: Path, tmp_path: Path, zygote: Zygote) -> None:
    """Two ranks share encoding and probes; every number and weight is the same."""
    other = Path(shutil.copytree(run_folder, tmp_path / "other"))
    options = ("--all", "--epochs=1", "--unseen=drop")
    ranks = Ranks(zygote, "simdist.probe", 2, f"--run-dir={other}", *options)
    results = probe(*options)
    codes, printed = ranks.end()
    assert codes == [0, 0], printed
    assert "world size 2 on cpu" in printed
    assert len(results) == 8
    for result in results:
        folder = other / "probes" / result["name"]
        theirs = json.loads((folder / "result.json").read_text())
        assert theirs["test"] == result["test"]
        assert theirs["train"] == result["train"]
        ours = load_file(run_folder / "probes" / result["name"] / "probe.safetensors")
        assert all(torch.equal(tensor, ours[n]) for n, tensor in load_file(folder / "probe.safetensors").items())


def test_a_signal_saves_and_the_same_command_continues(probe: Probe, run_folder: Path, zygote: Zygote) -> None:
    options = ("--label=phone", "--module=3", "--epochs=24", "--unseen=drop")
    running = zygote.command("simdist.probe", f"--run-dir={run_folder}", *options)
    while not (locks := list(run_folder.glob("probes/phone-*/.lock"))):
        assert running.poll() is None, running.communicate()[0]
        time.sleep(0.05)
    time.sleep(0.1)
    running.send_signal(signal.SIGTERM)
    printed, _ = running.communicate(timeout=60)
    assert running.returncode == 75, printed
    assert "run the same command to resume" in printed
    saved = locks[0].parent / "progress.pt"
    state = torch.load(saved, weights_only=True)
    assert state["epoch"] < 24
    assert (state["epoch"], state["place"]) > (0, 0)
    (stopped,) = probe(*options)
    assert not saved.exists()
    assert probe(*options, "--force") == []  # the same folder
    whole = json.loads((locks[0].parent / "result.json").read_text())
    assert whole["finished"] > stopped["finished"]
    assert (whole["train"], whole["test"]) == (stopped["train"], stopped["test"])


def test_done_probes_are_not_done_again(probe: Probe, run_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert len(probe("--label=speaker", "--module=0", "--epochs=1")) == 1
    assert len(probe("--label=speaker", "--module=0,1", "--epochs=1")) == 1
    assert "1 of 2 probes of the encoder of step 120 are already done" in capsys.readouterr().out
    assert len(probe("--label=speaker", "--module=0", "--epochs=2")) == 1
    assert len(list((run_folder / "probes").glob("speaker-*"))) == 3


def test_the_supervised_baseline_trains_the_encoder_too(probe: Probe, run_folder: Path) -> None:
    options = ("--label=speaker", "--batch-size=8", "--epochs=10", "--lr=3e-3", "--crops=4")
    first, second, untrained = probe(*options, "--module=0,1", "--features=supervised")[:2] + probe(
        *options, "--module=1", "--features=untrained"
    )
    assert [r["source"]["kind"] for r in (first, second, untrained)] == ["supervised", "supervised", "untrained"]
    assert second["train"]["loss"] < untrained["train"]["loss"] - 0.1
    probe(*options, "--module=1", "--features=supervised", "--force")  # alone it is what it was beside module 0
    again = json.loads((run_folder / "probes" / second["name"] / "result.json").read_text())
    assert (again["train"], again["test"]) == (second["train"], second["test"])


def test_few_labels_and_trajectory(probe: Probe, run_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    few_options = ("--examples-per-class=1,8", "--repetitions=2", "--probe=lbfgs", "--tolerance=1e-2")
    (few,) = probe("--label=phone", "--module=3", "--unseen=drop", *few_options)
    one, eight = few["curve"]
    assert (one["examples_per_class"], len(one["accuracies"])) == (1, 2)
    assert eight["accuracy"]["value"] > one["accuracy"]["value"]
    assert np.mean(eight["accuracies"]) == pytest.approx(eight["accuracy"]["value"])
    assert list(run_folder.glob("probes/few-labels-phone-*/curve.png"))
    results = probe("--label=speaker", "--module=0,3", "--checkpoints=all", "--epochs=1")
    found = sorted((r["source"]["module"], r["source"]["step"]) for r in results)
    assert found == [(0, 60), (0, 120), (3, 60), (3, 120)]
    assert list(run_folder.glob("probes/trajectory-speaker-*/trajectory.png"))
    assert "plot: " in capsys.readouterr().out


def test_options_reach_the_probe(probe: Probe, run_folder: Path) -> None:
    first = ("--label=speaker", "--module=0", "--epochs=1")
    (result,) = probe(*first, "--pooling=flatten", "--clip=crop", "--crops=1", "--bias=false", "--latents=sampled")
    weights = load_file(run_folder / "probes" / result["name"] / "probe.safetensors")
    assert "output.bias" not in weights
    assert weights["output.weight"].shape == (4, 255 * 32)  # 5,120 samples give 255 frames
    assert result["view"]["sampled"]
    (mlp,) = probe(*first, "--probe=mlp", "--hidden=16", "--pooling=max")
    weights = load_file(run_folder / "probes" / mlp["name"] / "probe.safetensors")
    assert weights["hidden.weight"].shape == (16, 32)


def test_wandb_mirrors_where_the_run_says_so(
    probe: Probe, run_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = yaml.safe_load((run_folder / "config.yaml").read_text())
    config["wandb"]["mode"] = "offline"
    (run_folder / "config.yaml").write_text(yaml.safe_dump(config))
    probe("--label=speaker", "--module=0", "--epochs=1")
    assert "wandb sync" in capsys.readouterr().out
    assert list((run_folder / "wandb").glob("offline-run-*/run-*.wandb"))


# --- bad input --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--label=dialect"], ["no label 'dialect'; they have speaker, phone"]),
        (["--label=speaker,vowel"], ["no label 'vowel'"]),
        ([], ["no label to probe for; give --label, one or more of speaker, phone, or --all"]),
        (["--label=speaker", "--module=4"], ["module 4 does not exist; this encoder has modules 0 to 3"]),
        (["--label=speaker", "--module=last"], ["--module is 'last'; it must be module numbers"]),
        (["--label=speaker", "--features=raw"], ["--features is 'raw'; it must be among trained, untrained"]),
        (["--label=speaker", "--checkpoints=7"], ["has no checkpoint of step 7; it has 60, 120"]),
        (["--label=speaker", "--pooling=flatten", "--clip=utterance"], ["clips of one length", "use --clip crop"]),
        (["--label=phone", "--align=front", "--module=0", "--unseen=drop"], ["use --align center"]),
        (["--label=speaker", "--examples-per-class=1,x"], ["numbers of 1 or more such as 1,2,4,8"]),
        (["--label=speaker", "--examples-per-class=1,999"], ["the largest class of 'speaker' has"]),
        (["--all", "--module=1"], ["Remove --label and --module"]),
        (["--label=speaker", "--crop=20"], ["--crop: a clip of 20 samples is too short: module 0 outputs no frames"]),
        (["--label=speaker", "--crop=399", "--features=mfcc"], ["MFCC needs 400"]),
        (["--label=speaker", "--cached=false", "--probe=lbfgs"], ["Remove --cached false"]),
        (["--label=speaker", "--epochs=0"], ["--epochs is 0; it must be positive"]),
        (["--label=speaker", "--probe=svm"], ["linear", "lbfgs", "mlp", "svm"]),
        (["--label=speaker", "--modul=1"], ["unknown key 'modul': did you mean 'module'?"]),
        (["--label=speaker", "--data-root=nowhere"], ["nowhere does not exist"]),
        (["--label=speaker", "--train-split=train"], ["--train-split is given without the other split"]),
        (["--label=speaker", "--features=supervised", "--probe=lbfgs"], ["lbfgs needs frozen features"]),
        (["--label=speaker", "--cache-gb=1e-9"], ["the features need", "raise --cache-gb"]),
    ],
)
@pytest.mark.usefixtures("fresh_process")
def test_wrong_options(
    options: list[str], words: list[str], trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    printed = fails([f"--run-dir={trained}", f"--cache={tmp_path}", *options], capsys)
    assert all(word in printed for word in words), printed


def test_a_folder_that_is_no_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "is not a run folder (it has no config.yaml)" in fails([f"--run-dir={tmp_path}", "--label=speaker"], capsys)
    assert "missing: --run-dir (all options" in fails(["--label=speaker"], capsys)


@pytest.mark.usefixtures("fresh_process")
class TestWrongData:
    """Shards whose labels cannot be probed."""

    def copy(self, run_folder: Path, speech: Path, tmp_path: Path) -> Path:
        root = Path(shutil.copytree(speech, tmp_path / "shards"))
        config = yaml.safe_load((run_folder / "config.yaml").read_text())
        config["data"]["root"] = str(root)
        (run_folder / "config.yaml").write_text(yaml.safe_dump(config))
        return root

    def test_phones_that_do_not_fit_the_audio(
        self, run_folder: Path, speech: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        root = self.copy(run_folder, speech, tmp_path)
        split = open_split(root, "train")
        path = split.shard_path(0)
        with tarfile.open(path) as tar:
            name = f"{split.index.key[2]}.phones.npy"
            phones = np.load(io.BytesIO(tar.extractfile(name).read()))  # pyright: ignore[reportOptionalMemberAccess]
        buffer = io.BytesIO()
        np.save(buffer, phones[:-20])
        content = bytearray(path.read_bytes())
        begin = int(split.index.phones_offset[2])
        content[begin : begin + len(buffer.getvalue())] = buffer.getvalue()
        path.write_bytes(content)
        printed = fails([f"--run-dir={run_folder}", "--label=phone"], capsys)
        assert f"{split.index.key[2]} in" in printed
        assert f"has {len(phones) - 20:,} phones, but its audio has {len(phones):,} frames of 10 ms" in printed

    def test_a_speaker_that_training_never_shows(
        self, run_folder: Path, speech: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        path = self.copy(run_folder, speech, tmp_path) / "train" / "index.npz"
        index = Index.load(path)
        index.labels["speaker"][index.labels["speaker"] == 1] = 0
        index.save(path)
        printed = fails([f"--run-dir={run_folder}", "--label=speaker"], capsys)
        name = open_split(path.parent.parent, "train").manifest.labels["speaker"][1]
        assert f"test classes of 'speaker' that training never shows: {name};" in printed

    def test_one_speaker(
        self, run_folder: Path, speech: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        root = self.copy(run_folder, speech, tmp_path)
        for name in ("train", "test"):
            index = Index.load(root / name / "index.npz")
            index.labels["speaker"][:] = 0
            index.save(root / name / "index.npz")
        assert "there is nothing to tell apart" in fails([f"--run-dir={run_folder}", "--label=speaker"], capsys)

    def test_no_checkpoint(self, run_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        shutil.rmtree(run_folder / "checkpoints")
        assert "has no checkpoint. Train it first" in fails([f"--run-dir={run_folder}", "--label=speaker"], capsys)


def test_help_is_quick_and_imports_no_torch() -> None:
    code = "import sys, simdist.probe.__main__ as p\ntry: p.main(['--help'])\nexcept SystemExit: pass\n"
    code += "assert 'torch' not in sys.modules"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "accelerate launch -m simdist.probe --run-dir" in shown
    for field in ("--examples-per-class", "--pooling", "--checkpoints"):
        assert field in shown


def test_the_result_says_what_an_untrained_encoder_is_calibrated_with(probe: Probe, speech: Path) -> None:
    options = ("--label=speaker", "--module=0,3", "--epochs=1", "--crops=1", "--features=untrained,supervised")
    results = probe(*options, "--batch-size=8")
    split = open_split(speech, "train")
    for result in results:
        found = result["source"].get("calibration")
        if result["source"]["kind"] == "untrained":
            assert (found["split"], found["fingerprint"]) == ("train", split.manifest.fingerprint)
        else:
            assert found is None
    assert probe(*options, "--batch-size=8") == []
