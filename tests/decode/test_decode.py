"""The command in this process: what a decoder learns, what it leaves behind, how it goes on, what it refuses."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest
import soundfile
import torch
from accelerate.utils import DistributedType
from torch import Tensor

import simdist
from simdist.config.decoder import LOSS_NAMES, DecodingConfig
from simdist.config.load import read_tree
from simdist.core.errors import InputError
from simdist.core.files import read_json_lines
from simdist.core.signals import SignalHandler
from simdist.data.crops import CorruptSampleError, CropReader
from simdist.data.loader import open_clips
from simdist.data.splits import open_split
from simdist.decode.__main__ import main
from simdist.decode.frozen import open_encoder
from simdist.decode.measuring import Crops
from simdist.decode.quality import UNITS
from simdist.decode.task import DecoderTask
from simdist.models.encoder import GreedyEncoder, hash_weights
from simdist.models.waveform_losses import LOSSES
from simdist.runs.checkpoints import latest_checkpoint
from simdist.runs.folder import existing_run, open_run
from simdist.training.calibration import calibrated
from simdist.training.checkpoint import load_checkpoint
from simdist.training.distributed import Process

Settings = Callable[..., DecodingConfig]
Train = Callable[..., Path]
TIMING = ("samples_per_s", "audio_s_per_s", "data_wait", "ranks")


def weights(folder: Path) -> dict[str, Tensor]:
    found = latest_checkpoint(folder / "checkpoints", pytest.fail)
    assert found is not None
    return load_checkpoint(found).model


def metrics(folder: Path, kind: str = "train") -> list[dict]:
    lines = [line for line in read_json_lines(folder / "metrics.jsonl") if line["kind"] == kind]
    return [{key: value for key, value in line.items() if key not in TIMING} for line in lines]


def training_clips(run: Path) -> Tensor:
    """(N, 1, T) the crops of epoch 0."""
    data = existing_run(run).config.data
    crops = Crops(open_clips(data, data.train_split), data.crop, 0)
    reader = CropReader(crops.clips.split)
    clips = [crops.read(reader, number) for number in range(len(crops))]
    return torch.stack([clip[0] for clip in clips if clip is not None])[:, None]


def test_it_learns_more_than_the_mean_signal(run_folder: Path, settings: Settings, train: Train) -> None:
    """Against an independent computation: encode, decode and compare with nothing of the command."""
    folder = train(run_folder, settings(steps=150, latents="deterministic"))
    audio = training_clips(run_folder)
    latent = simdist.load_encoder(run_folder).encode(audio, module=0)
    decoded = simdist.load_decoder(run_folder, 0).decode(latent)
    assert decoded.shape == audio.shape
    error, around_mean = ((other - audio).square().mean().item() for other in (decoded, audio.mean(0)))
    assert error < 0.5 * around_mean
    result = json.loads((folder / "result.json").read_text())
    assert result["quality"]["decoder"]["mse"]["value"] < 0.5 * result["quality"]["mean_signal"]["mse"]["value"]
    assert result["against"]["mean_signal"]["mse"]["better"] is True
    assert result["against"]["mean_signal"]["si_sdr"]["better"] is True
    assert result["against"]["untrained"] is None


def test_the_folder_is_a_run(run_folder: Path, settings: Settings, train: Train) -> None:
    config = settings(steps=6, module=1, loss="mse+mel", examples=2)
    folder = train(run_folder, config)
    assert {path.name for path in folder.iterdir()} == {
        *("config.yaml", "environment.json", "events.jsonl", "metrics.jsonl", "checkpoints", "lease"),
        *("DONE", "result.json", "figures.csv", "audio", "examples.png"),
    }
    saved = read_tree(DecodingConfig, folder / "config.yaml")
    assert saved.checkpoint == 30
    assert replace(saved, checkpoint=None, encoder_weights="") == config
    assert [line["event"] for line in read_json_lines(folder / "events.jsonl")] == ["start", "finished"]
    (module,) = metrics(folder)[-1]["modules"]
    assert module["loss"] == pytest.approx(module["mse"] + module["mel"])
    validations = metrics(folder, "validation")
    assert validations
    result = json.loads((folder / "result.json").read_text())
    assert set(result["quality"]["decoder"]) == set(result["quality"]["mean_signal"]) == set(UNITS)
    assert result["data"]["test"]["clips"] == result["quality"]["decoder"]["mse"]["clips"]


def test_validations_leave_audio_to_listen_to(run_folder: Path, settings: Settings, train: Train) -> None:
    folder = train(run_folder, settings(steps=6, examples=2))
    steps = {line["step"] for line in metrics(folder, "validation")}
    clips = sorted((folder / "audio").iterdir())
    assert len(clips) == 2
    for clip in clips:
        assert {path.name for path in clip.iterdir()} == {"original.wav", *(f"step_{step:08d}.wav" for step in steps)}
        original, rate = soundfile.read(clip / "original.wav")
        decoded, _ = soundfile.read(clip / f"step_{max(steps):08d}.wav")
        assert rate == 16_000
        assert original.shape == decoded.shape
        assert np.abs(original).max() > 0.01
        assert np.abs(decoded - original).mean() > 1e-4


@pytest.mark.parametrize("loss", LOSS_NAMES)
def test_every_loss_goes_down(run_folder: Path, settings: Settings, train: Train, loss: str) -> None:
    folder = train(run_folder, settings(steps=20, module=2, loss=loss, examples=0))
    (measured,) = metrics(folder)[-1]["modules"]
    assert set(measured) == {"module", "loss", "grad_norm", *loss.split("+")}
    first, last = (metrics(folder, "validation")[place]["modules"][0]["loss"] for place in (0, -1))
    assert last < first
    assert not (folder / "audio").exists()


def test_the_losses_in_the_options_are_those_that_exist() -> None:
    assert tuple(LOSSES) == LOSS_NAMES


class StopAfter(SignalHandler):
    """A SIGTERM that arrives when the loop has asked for it so many times."""

    def __init__(self, questions: int) -> None:
        super().__init__()
        self._questions = questions

    @property
    def signal_number(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        self._questions -= 1
        return 15 if self._questions < 0 else 0

    @signal_number.setter
    def signal_number(self, value: int) -> None:
        assert value == 0


def test_a_stopped_decoder_continues_bit_for_bit(
    run_folder: Path, settings: Settings, train: Train, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = settings(module=1, loss="mse+mel")
    undisturbed = train(Path(shutil.copytree(run_folder, tmp_path / "undisturbed")), config)
    folder = run_folder / "decoders" / config.folder_name
    for questions in (4, 9, 5, 6):  # within training, within a validation, ..., and at last within measuring
        train(run_folder, config, StopAfter(questions))
        assert not (folder / "DONE").exists()
    assert "everything is saved; the same command resumes" in capsys.readouterr().out
    assert train(run_folder, config) == folder
    ours, theirs = weights(folder), weights(undisturbed)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert metrics(folder) == metrics(undisturbed)
    assert metrics(folder, "validation") == metrics(undisturbed, "validation")
    results = [json.loads((each / "result.json").read_text())["quality"] for each in (folder, undisturbed)]
    assert results[0] == results[1]


def test_a_stop_while_measuring_measures_later(run_folder: Path, settings: Settings, train: Train) -> None:
    folder = train(run_folder, settings(steps=2, examples=0))
    for name in ("DONE", "result.json"):
        (folder / name).unlink()
    train(run_folder, settings(steps=2, examples=0), StopAfter(4))
    assert not (folder / "result.json").exists()
    train(run_folder, settings(steps=2, examples=0))
    assert (folder / "result.json").exists()


def test_another_test_split_is_refused(run_folder: Path, settings: Settings, train: Train, tmp_path: Path) -> None:
    """Also when only the measuring is left: its results would be of other clips than the validations."""
    root = shutil.copytree(settings().data.root, tmp_path / "shards")
    config = settings(steps=2, examples=0, data=replace(settings().data, root=str(root)))
    folder = train(run_folder, config)
    for name in ("DONE", "result.json"):
        (folder / name).unlink()
    (root / "test").rename(root / "before")
    shutil.copytree(root / "train", root / "test")
    with pytest.raises(InputError, match=r"^the test data differs from that of the run in .*0-mse \(fingerprint"):
        train(run_folder, config)
    assert not (folder / "result.json").exists()


def test_finished_says_so_and_more_steps_need_force(
    run_folder: Path, settings: Settings, train: Train, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = train(run_folder, settings(steps=4))
    capsys.readouterr()
    train(run_folder, settings(steps=4))
    printed = capsys.readouterr().out
    assert "is finished after 4 steps" in printed
    assert "mean signal" in printed
    with pytest.raises(
        InputError, match=r"train.max_steps: 4 -> 6\); remove .*0-mse to start from scratch, or .* --force"
    ):
        train(run_folder, settings(steps=6))
    train(run_folder, settings(steps=6), force=True)
    assert [line["step"] for line in metrics(folder)] == [1, 2, 4, 6]


def test_trained_against_untrained(
    run_folder: Path, settings: Settings, train: Train, capsys: pytest.CaptureFixture[str]
) -> None:
    trained = train(run_folder, settings(steps=4))
    assert f"--run-dir {run_folder} --module 0 --loss mse --untrained" in capsys.readouterr().out
    untrained = train(run_folder, settings(steps=4, untrained=True))
    assert untrained.name == "0-mse-untrained"
    ours, theirs = (json.loads((each / "result.json").read_text()) for each in (trained, untrained))
    assert ours["encoder"]["step"] == 30
    assert theirs["encoder"]["step"] is None
    assert ours["encoder"]["weights"] != theirs["encoder"]["weights"]
    for name, comparison in ours["against"]["untrained"].items():
        values = [each["quality"]["decoder"][name]["value"] for each in (ours, theirs)]
        assert comparison["difference"] == pytest.approx(values[0] - values[1], rel=1e-6, abs=1e-9)
    assert "mse, untrained encoder" in capsys.readouterr().out
    assert simdist.load_decoder(run_folder, 0, untrained=True).module == 0


def test_an_untrained_encoder_is_calibrated(run_folder: Path, settings: Settings, train: Train) -> None:
    """Like that of the probes: with statistics of no data, its latents are small, and a decoder would read rounding."""
    run, cpu, wanted = existing_run(run_folder), torch.device("cpu"), settings(steps=1, module=2, untrained=True)
    frozen, opened = open_encoder(run_folder, run.config, replace(wanted, latents="deterministic"))
    frozen.prepare(cpu)
    audio, plain = training_clips(run_folder)[:8], GreedyEncoder.from_config(run.config).eval()
    raw = plain.encode(audio, 2)
    split = open_split(run.config.data.root, "train")
    found = calibrated(plain, run.config, split, cpu)
    assert found is not None
    latent = frozen.latent(audio.transpose(1, 2), torch.Generator())
    assert torch.equal(latent, plain.encode(audio, 2))
    spread, before = (x.flatten(0, 1).std(0).mean() for x in (latent, raw))  # over clips and frames
    assert spread > 10 * before
    folder = train(run_folder, wanted)
    encoder = json.loads((folder / "result.json").read_text())["encoder"]
    assert encoder["calibration"] == found.as_dict()
    assert encoder["weights"] == opened.encoder_weights != hash_weights(GreedyEncoder.from_config(run.config))[:16]
    train(run_folder, settings(steps=1, module=2))
    trained = json.loads((run_folder / "decoders" / "2-mse" / "result.json").read_text())["encoder"]
    assert "calibration" not in trained


def test_a_decoder_stays_with_its_encoder(run_folder: Path, settings: Settings, train: Train) -> None:
    """More checkpoints of the encoder change nothing; when its own is gone, or another, that is said."""
    config = settings(steps=4, checkpoint=15)
    train(run_folder, config)
    assert read_tree(DecodingConfig, run_folder / "decoders" / "0-mse" / "config.yaml").checkpoint == 15
    train(run_folder, settings(steps=4))
    old, new = (run_folder / "checkpoints" / f"step_{step:08d}" for step in (15, 30))
    shutil.rmtree(old)
    with pytest.raises(InputError, match=r"no checkpoint of step 15; it has 30"):
        train(run_folder, settings(steps=4))
    shutil.copytree(new, old)
    with pytest.raises(InputError, match=r"other weights than those its decoder 0-mse was trained on. Remove .*0-mse"):
        train(run_folder, settings(steps=4))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--module=3"], "module 3 is a GRU alone, whose context no convolution mirrors; decode one of 0, 1, 2"),
        (["--module=9"], "module 9 does not exist; this encoder has modules 0 to 3"),
        (["--loss=mel"], "data.crop is 2000; the loss mel needs crops of more than 2048 samples"),
        (["--checkpoint=7"], "no checkpoint of step 7; it has 15, 30"),
        (["--data.batch_size=8", "--train.groups_at_once=3"], "train.groups_at_once=3 does not divide the 1 group"),
        (["--data.test_split=dev"], "has no split 'dev'"),
    ],
)
def test_what_cannot_be_decoded(run_folder: Path, options: list[str], words: str) -> None:
    with pytest.raises(InputError) as error:
        main([f"--run-dir={run_folder}", "--data.crop=2000", *options])
    assert words in str(error.value)
    assert not list(run_folder.glob("decoders/*"))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--loss=l1"], "--loss must be one of 'mse', 'spectral'"),
        (["--width=0"], "width is 0; it must be 1 or more"),
        (["--train.schedule=stagewise"], "a decoder has one stage: it must be 'joint'"),
        (["--optim.lrr=1"], "did you mean 'optim.lr'?"),
    ],
)
def test_wrong_options(run_folder: Path, options: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main([f"--run-dir={run_folder}", *options])
    printed = capsys.readouterr().err
    assert words in printed
    assert printed.count("\n") == 1


def test_no_such_run(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nowhere is not a run folder"):
        main([f"--run-dir={tmp_path / 'nowhere'}"])


def test_the_run_is_required(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main([])
    assert "missing: --run-dir (all options" in capsys.readouterr().err


def test_defaults_are_those_of_the_run(run_folder: Path) -> None:
    assert main([f"--run-dir={run_folder}", "--untrained", "--module=2", "--train.max_steps=1", "--loss=mse"]) == 0
    saved = read_tree(DecodingConfig, run_folder / "decoders" / "2-mse-untrained" / "config.yaml")
    assert saved.data == existing_run(run_folder).config.data
    assert saved.untrained
    assert saved.optim.lr == 2e-4
    assert saved.train.epochs == 200


def test_a_test_clip_that_does_not_decode_is_left_out(
    run_folder: Path, settings: Settings, train: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = settings(steps=2)
    split, read = open_split(config.data.root, "test"), CropReader.read

    def damaged(self: CropReader, row: int, start: int, count: int) -> np.ndarray:
        if row == 0 and self._split.manifest.split == "test":
            raise CorruptSampleError("does not decode")
        return read(self, row, start, count)

    monkeypatch.setattr(CropReader, "read", damaged)
    folder = train(run_folder, replace(config, train=replace(config.train, validate_every=0)))
    result = json.loads((folder / "result.json").read_text())
    assert result["data"]["test"]["clips"] == result["quality"]["decoder"]["mse"]["clips"] == len(split.index) - 1
    assert str(split.index.key[0]) not in (folder / "figures.csv").read_text()


def test_deepspeed_is_refused(run_folder: Path, settings: Settings) -> None:
    run = existing_run(run_folder)
    frozen, config = open_encoder(run_folder, run.config, settings())
    accelerator = SimpleNamespace(distributed_type=DistributedType.DEEPSPEED)
    process = cast("Process", SimpleNamespace(accelerator=accelerator))
    with pytest.raises(InputError, match="launch it without --use_deepspeed"):
        DecoderTask(open_run(run_folder / "decoders" / "0-mse", config), frozen, run.config, process)


def test_wandb_offline_gets_audio(
    run_folder: Path, settings: Settings, train: Train, capsys: pytest.CaptureFixture[str]
) -> None:
    config = settings(steps=2)
    folder = train(run_folder, replace(config, wandb=replace(config.wandb, mode="offline")))
    assert list((folder / "wandb").glob("offline-run-*/files/media/audio/*/*.wav"))
    assert "wandb sync" in capsys.readouterr().out
