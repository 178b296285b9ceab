"""The command as a user types it: what it accepts, what it says, how it ends."""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from simdist.config.load import CONFIGS, read_config
from simdist.config.schema import differences
from simdist.core.console import run
from simdist.core.files import read_json_lines
from simdist.runs.checkpoints import finish_saving
from simdist.train import __main__ as train_command
from tests.support.forked import Ranks, Zygote

DEBUG = ["--config", str(CONFIGS / "sim_librispeech.yaml"), "--config", str(CONFIGS / "debug.yaml"), "--data.crop=8000"]


def command(speech: Path, folder: Path, *more: str) -> list[str]:
    return [*DEBUG, f"--data.root={speech}", f"--run-dir={folder}", *more]


def fails(argv: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The one line that a wrong command line prints, having left with exit code 2."""
    with pytest.raises(SystemExit) as exit_code:
        run(train_command.main, argv)
    assert exit_code.value.code == 2
    printed = capsys.readouterr().err.strip()
    assert printed.startswith("error: ")
    assert "\n" not in printed
    return printed


def test_only_the_demos_own_corpus_is_made_up(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    printed = fails([f"--data.root={tmp_path / 'mistyped'}", f"--run-dir={tmp_path / 'run'}"], capsys)
    assert "mistyped" in printed
    assert "simdist.pack" in printed
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ("--optim.lrr=3", ["'optim.lrr'", "did you mean 'optim.lr'?", "optim.schedule"]),
        ("--optim.lr=fast", ["--optim.lr must be a number, not fast"]),
        ("--optim.schedule=linear", ["optim.schedule must be one of 'constant', 'exponential', 'cosine', not linear"]),
        ("--model.width=0", ["model.width is 0", "at least 1"]),
        ("--data.crop=300", ["module 1", "longer data.crop"]),
        ("--optim.clip_grad_norm=much", ["--optim.clip_grad_norm must be a number or null, not much"]),
        ("--opt.lr=1", ["unknown key 'opt.lr'", "did you mean 'optim.lr'?"]),
        ("--data.test_split=", ["data.test_split is ''", "the name of a split"]),
        ("--config=sim_librispeech", ["does not exist. Did you mean", "configs/sim_librispeech.yaml?"]),
        ("--config=configs/sim_librispeech", ["does not exist. Did you mean", "configs/sim_librispeech.yaml?"]),
        ("--config=configs", ["--config configs is a folder. Give one of the YAML files"]),
        ("--train.cache_latents=true", ["train.cache_latents=True requires train.schedule=stagewise"]),
        ("--config=missing.yaml", ["missing.yaml does not exist", "sim_librispeech.yaml"]),
        ("--train.precision=fp16", ["fp16", "needs a GPU", "bf16"]),
    ],
)
def test_wrong_options(option: str, words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    printed = fails([*DEBUG, f"--run-dir={tmp_path / 'run'}", option], capsys)
    assert all(word in printed for word in words), printed
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("optim: {lrr: 1}", ["optim.lrr", "did you mean 'optim.lr'?"]),
        ("optimizer: {lr: 1}", ["optimizer", "optim"]),
        ("optim: {lr: [", ["wrong.yaml is not valid YAML"]),
        ("- 1", ["wrong.yaml contains a list"]),
        ("", ["wrong.yaml is empty. A config needs at least one key"]),
        ("model: {modules: [{layers: [{kernel: 0}]}]}", ["layer.kernel is 0"]),
    ],
)
def test_wrong_files(content: str, words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "wrong.yaml").write_text(content)
    printed = fails([f"--config={tmp_path / 'wrong.yaml'}"], capsys)
    assert all(word in printed for word in words), printed


@pytest.mark.usefixtures("fresh_process")
class TestWrongData:
    """Data folders that cannot be trained on."""

    def copy(self, speech: Path, tmp_path: Path) -> Path:
        return Path(shutil.copytree(speech, tmp_path / "shards"))

    def fails(self, root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], *more: str) -> str:
        printed = fails(command(root, tmp_path / "run", *more), capsys)
        assert not (tmp_path / "run").exists()
        return printed

    def test_missing(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert "nowhere does not exist; pack a corpus" in self.fails(tmp_path / "nowhere", tmp_path, capsys)

    def test_a_file_or_one_split(self, speech: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        (tmp_path / "file").write_text("x")
        assert "is a file; name the folder" in self.fails(tmp_path / "file", tmp_path, capsys)
        printed = self.fails(speech / "train", tmp_path, capsys)
        assert f"is one split; name the folder above it: {speech}" in printed

    def test_empty(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        (tmp_path / "empty").mkdir()
        assert "no packed split at all; pack a corpus" in self.fails(tmp_path / "empty", tmp_path, capsys)

    def test_no_such_split(self, speech: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert "no split 'dev': it has test, train" in self.fails(speech, tmp_path, capsys, "--data.train_split=dev")

    def test_unfinished(self, speech: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        root = self.copy(speech, tmp_path)
        (root / "train" / "manifest.json").unlink()
        assert "packing was not finished" in self.fails(root, tmp_path, capsys)

    @pytest.mark.parametrize(
        ("key", "value", "words"),
        [
            ("format_version", 99, "has format version 99, this simdist reads 1"),
            ("sample_rate", 8000, "packed at 8,000 Hz"),
        ],
    )
    def test_other_format(
        self, speech: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], key: str, value: int, words: str
    ) -> None:
        root = self.copy(speech, tmp_path)
        path = root / "train" / "manifest.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {key: value}))
        assert words in self.fails(root, tmp_path, capsys)

    def test_too_few(self, speech: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert "fewer than one global batch of 512" in self.fails(speech, tmp_path, capsys, "--data.batch_size=512")

    def test_too_short(self, speech: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert "shorter than a crop" in self.fails(speech, tmp_path, capsys, "--data.crop=9999999")


@pytest.mark.usefixtures("fresh_process")
class TestRunFolder:
    """What is in a run's folder, and what happens when it is used again."""

    def test_again_is_finished_and_other_configs_are_refused(
        self, speech: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        argv = command(speech, tmp_path / "run", "--train.max_steps=6")
        assert train_command.main(argv) == 0
        assert "finished: 6 steps" in capsys.readouterr().out
        metrics = (tmp_path / "run" / "metrics.jsonl").read_text()
        assert train_command.main(argv) == 0
        assert "is finished after 6 steps; nothing to do" in capsys.readouterr().out
        assert (tmp_path / "run" / "metrics.jsonl").read_text() == metrics
        printed = fails([*argv, "--optim.lr=0.5", "--train.max_steps=9"], capsys)
        assert "optim.lr: 0.0002 -> 0.5" in printed
        assert "train.max_steps: 6 -> 9" in printed
        assert "--run-dir" in printed
        assert "--force" in printed
        assert train_command.main([*argv, "--train.max_steps=9", "--force"]) == 0
        assert "resuming at step 6" in capsys.readouterr().out
        steps = [
            line["step"] for line in read_json_lines(tmp_path / "run" / "metrics.jsonl") if line["kind"] == "train"
        ]
        assert steps == [1, 5, 6, 9]

    def test_data_may_move_but_not_change(
        self, speech: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        moved = Path(shutil.copytree(speech, tmp_path / "moved"))
        assert train_command.main(command(speech, tmp_path / "run", "--train.max_steps=6")) == 0
        assert train_command.main(command(moved, tmp_path / "run", "--train.max_steps=6")) == 0
        (tmp_path / "run" / "DONE").unlink()
        manifest = moved / "train" / "manifest.json"
        manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"fingerprint": "0" * 64}))
        capsys.readouterr()
        assert "training data differs" in fails(command(moved, tmp_path / "run", "--train.max_steps=6"), capsys)

    def test_a_run_that_lost_its_checkpoints_does_not_begin_anew(
        self, speech: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        argv = command(speech, tmp_path / "run", "--train.max_steps=6")
        assert train_command.main(argv) == 0
        (tmp_path / "run" / "DONE").unlink()
        (tmp_path / "run" / "checkpoints" / "step_00000006" / "optimizer.pt").write_bytes(b"")
        assert "no complete checkpoint to resume from. Restore one" in fails(argv, capsys)

    def test_config_reads_back_equal_and_environment_names_versions(self, speech: Path, tmp_path: Path) -> None:
        assert train_command.main(command(speech, tmp_path / "run", "--train.max_steps=2", "--data.num_workers=1")) == 0
        saved = read_config(tmp_path / "run" / "config.yaml")
        assert saved.data.num_workers == 1
        assert saved.train.precision == "no"  # auto, resolved
        again = train_command.main(["--config", str(tmp_path / "run" / "config.yaml"), f"--run-dir={tmp_path / 'run'}"])
        assert again == 0
        assert not differences(saved, read_config(tmp_path / "run" / "config.yaml"))
        environment = json.loads((tmp_path / "run" / "environment.json").read_text())
        assert environment["packages"]["torch"].startswith("2.")
        events = [line["event"] for line in read_json_lines(tmp_path / "run" / "events.jsonl")]
        assert events == ["start", "finished"]

    def test_a_folder_that_is_no_run(self, speech: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        (tmp_path / "thesis").mkdir()
        (tmp_path / "thesis" / "chapter1.tex").write_text("precious")
        assert "is not a run folder" in fails(command(speech, tmp_path / "thesis"), capsys)

    def test_a_folder_of_a_run_that_was_killed_at_once(self, speech: Path, tmp_path: Path) -> None:
        (tmp_path / "run" / "lease").mkdir(parents=True)
        (tmp_path / "run" / "lease" / ".tmp-7-token").write_text("{")
        (tmp_path / "run" / ".tmp-7-config.yaml").write_text("na")
        assert train_command.main(command(speech, tmp_path / "run", "--train.max_steps=2")) == 0

    def test_wandb_offline_mirrors_below_the_run(
        self, speech: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert train_command.main(command(speech, tmp_path / "run", "--train.max_steps=2", "--wandb.mode=offline")) == 0
        assert list((tmp_path / "run" / "wandb").glob("offline-run-*/run-*.wandb"))
        assert "wandb sync" in capsys.readouterr().out


def test_help_is_quick_and_imports_no_torch() -> None:
    code = "import sys, simdist.train.__main__ as t\ntry: t.main(['--help'])\nexcept SystemExit: pass\n"
    code += "assert 'torch' not in sys.modules"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "accelerate launch -m simdist.train --config" in shown
    for field in ("--data.crop", "--loss.beta_warmup_epochs", "--train.precision"):
        assert field in shown


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 75), (signal.SIGUSR2, 75)])
def test_a_signal_saves_and_the_same_command_continues(
    speech: Path, tmp_path: Path, zygote: Zygote, number: signal.Signals, code: int
) -> None:
    argv = command(speech, tmp_path / "run", "--train.max_steps=3000", "--data.num_workers=1", "--train.log_every=1")
    running = zygote.command("simdist.train", *argv)
    metrics = tmp_path / "run" / "metrics.jsonl"
    while len(read_json_lines(metrics)) < 10:
        assert running.poll() is None, running.communicate()[0]
        time.sleep(0.1)
    running.send_signal(number)
    printed, _ = running.communicate(timeout=60)
    assert running.returncode == code, printed
    found = re.search(r"stopped at step (\d+), everything is saved; the same command resumes", printed)
    assert found, printed
    step = int(found[1])
    again = zygote.command("simdist.train", *argv, f"--train.max_steps={step + 2}", "--force")
    printed, _ = again.communicate(timeout=60)
    assert again.returncode == 0, printed
    assert f"resuming at step {step} in" in printed
    steps = [line["step"] for line in read_json_lines(metrics) if line["kind"] == "train"]
    assert steps == list(range(1, step + 3))


def test_a_finished_run_that_is_trained_longer_and_killed_is_not_finished(
    speech: Path, tmp_path: Path, zygote: Zygote
) -> None:
    argv = [*command(speech, tmp_path / "run", "--train.log_every=1"), "--force"]
    assert zygote.command("simdist.train", *argv, "--train.max_steps=2").wait(60) == 0
    assert (tmp_path / "run" / "DONE").exists()
    running = zygote.command("simdist.train", *argv, "--train.max_steps=3000")
    while len(read_json_lines(tmp_path / "run" / "metrics.jsonl")) < 5:
        assert running.poll() is None, running.communicate()[0]
        time.sleep(0.1)
    running.kill()
    assert running.wait(60) == -9
    assert not (tmp_path / "run" / "DONE").exists()


def test_two_copies_of_a_run_and_a_killed_one(speech: Path, tmp_path: Path, zygote: Zygote) -> None:
    argv = command(speech, tmp_path / "run", "--train.max_steps=3000", "--train.checkpoint_every=5")
    argv = [*argv, "--train.log_every=1"]
    running = zygote.command("simdist.train", *argv)
    metrics, checkpoints = tmp_path / "run" / "metrics.jsonl", tmp_path / "run" / "checkpoints"
    while len(read_json_lines(metrics)) < 8:
        assert running.poll() is None, running.communicate()[0]
        time.sleep(0.1)
    second = zygote.command("simdist.train", *argv)
    printed, _ = second.communicate(timeout=60)
    assert second.returncode == 2
    assert f"is being trained by process {running.pid} on" in printed
    assert "Traceback" not in printed
    running.kill()
    running.communicate()
    finish_saving(checkpoints)  # as the next start does: the kill may have come before the last rename
    kept = max(int(path.name.removeprefix("step_")) for path in checkpoints.glob("step_*"))
    third = zygote.command("simdist.train", *argv, f"--train.max_steps={kept + 3}", "--force")
    printed, _ = third.communicate(timeout=60)
    assert third.returncode == 0, printed
    assert f"resuming at step {kept} in" in printed
    steps = [line["step"] for line in read_json_lines(metrics) if line["kind"] == "train"]
    assert steps == list(range(1, kept + 4))


def record_keys() -> None:
    """Each rank appends the keys that it trains on to $KEYS.RANK."""
    from simdist.data.loader import Batch
    from simdist.train.encoder_task import EncoderTask
    from simdist.training.step import Step, StepOutcome

    original = EncoderTask.step

    def recorded(self: EncoderTask, stage: int, batch: Batch, step: Step) -> StepOutcome:
        keys = self._source.loader._dataset._clips.split.index.key[batch.rows]
        with Path(f"{os.environ['KEYS']}.{os.environ['RANK']}").open("a") as file:
            file.writelines(f"{key}\n" for key in keys)
        return original(self, stage, batch, step)

    EncoderTask.step = recorded


def test_two_processes_share_the_epoch(speech: Path, tmp_path: Path, zygote: Zygote) -> None:
    argv = command(speech, tmp_path / "run", "--train.epochs=1", "--train.max_steps=null", "--data.num_workers=2")
    keys = tmp_path / "keys"
    ranks = Ranks(zygote, "simdist.train", 2, *argv, before=f"{__name__}:record_keys", KEYS=str(keys))
    codes, printed = ranks.end()
    assert codes == [0, 0], printed
    assert "world size 2 on cpu" in printed
    seen = [Path(f"{keys}.{rank}").read_text().split() for rank in range(2)]
    assert len(seen[0]) == len(seen[1]) > 0
    from simdist.data.splits import open_split

    everything = sorted(map(str, open_split(speech, "train").index.key))
    assert sorted(set(seen[0] + seen[1])) == everything
    overlap = len(seen[0] + seen[1]) - len(everything)
    assert 0 <= overlap < 4  # the last batch reaches into the next epoch
    recorded = read_json_lines(tmp_path / "run" / "metrics.jsonl")
    assert all(math.isfinite(module["loss"]) for line in recorded for module in line["modules"])
