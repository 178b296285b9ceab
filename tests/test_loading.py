"""Encoders from runs, checkpoints and upstream's files; and training on from upstream's."""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import simdist
from simdist.config.load import CONFIGS, read_config
from simdist.config.schema import Config
from simdist.core.console import run
from simdist.core.errors import InputError
from simdist.import_reference import __main__ as import_reference_command
from simdist.models.encoder import GreedyEncoder
from simdist.runs.folder import Run
from simdist.train import __main__ as train_command
from simdist.training.checkpoint import Checkpoint, Retention, load_checkpoint, save_checkpoint

DEBUG = ["--config", str(CONFIGS / "sim_librispeech.yaml"), "--config", str(CONFIGS / "debug.yaml"), "--data.crop=8000"]
AUDIO = torch.randn(2, 1, 8000, generator=torch.Generator().manual_seed(0)) * 0.1


@pytest.fixture
def upstream(shared: Path) -> Path:
    return shared / "golden" / "sim_reference.ckpt"


@pytest.mark.usefixtures("fresh_process")
def test_from_a_run_and_from_its_checkpoint(speech: Path, tmp_path: Path) -> None:
    train_command.main([*DEBUG, f"--data.root={speech}", f"--run-dir={tmp_path / 'run'}", "--train.max_steps=4"])
    encoder = simdist.load_encoder(tmp_path / "run")
    assert not encoder.training
    assert encoder.encode(AUDIO).shape == (2, 50, 16)
    assert encoder.encode(AUDIO, module=0).shape == (2, 399, 16)
    again = simdist.load_encoder(str(tmp_path / "run" / "checkpoints" / "step_00000004"))
    assert torch.equal(encoder.encode(AUDIO), again.encode(AUDIO))
    with pytest.raises(InputError, match=r"another architecture: greedy\.0\.layers\.0\.conv\.weight is \(16, 1, 10\)"):
        simdist.load_encoder(tmp_path / "run", config="sim_librispeech")
    (tmp_path / "run" / "checkpoints" / "step_00000004" / "optimizer.pt").write_bytes(b"")
    with pytest.raises(InputError, match=r"no complete checkpoint.*optimizer\.pt differs"):
        simdist.load_encoder(tmp_path / "run")
    with pytest.raises(InputError, match=r"step_00000004 is damaged"):
        simdist.load_encoder(tmp_path / "run" / "checkpoints" / "step_00000004")


def test_while_a_training_saves_and_removes_checkpoints(tiny: Config, tmp_path: Path) -> None:
    """Each load finds a whole checkpoint, however often the one that it reads is removed."""
    run, ended, saved = Run(tmp_path / "run", tiny), threading.Event(), 0
    run.write()
    state = GreedyEncoder(tiny.model, tiny.loss).state_dict()

    def save() -> None:
        nonlocal saved
        while not ended.wait(0.01):
            saved += 1
            save_checkpoint(run.checkpoints, Checkpoint(saved, 4, "", state, []), Retention(1))

    save_checkpoint(run.checkpoints, Checkpoint(0, 4, "", state, []), Retention(1))
    training = threading.Thread(target=save)
    training.start()
    try:
        for _ in range(15):
            simdist.load_encoder(run.folder)
    finally:
        ended.set()
        training.join()
    assert saved > 3


def test_a_checkpoint_that_was_removed(tiny: Config, tmp_path: Path) -> None:
    run = Run(tmp_path / "run", tiny)
    run.write()
    checkpoint = Checkpoint(1, 4, "", GreedyEncoder(tiny.model, tiny.loss).state_dict(), [])
    removed = save_checkpoint(run.checkpoints, checkpoint, Retention(1))
    save_checkpoint(run.checkpoints, replace(checkpoint, step=2), Retention(1))
    words = rf"^checkpoint {removed} does not exist, or was removed while it was read. Choose another one"
    with pytest.raises(InputError, match=words):
        load_checkpoint(removed)
    with pytest.raises(InputError, match=words):
        simdist.load_encoder(removed)


def test_from_upstream_widths_are_read_off_the_tensors(upstream: Path) -> None:
    encoder = simdist.load_encoder(upstream, config="sim_librispeech")
    assert encoder.encode(AUDIO).shape == (2, 50, 16)
    assert encoder.encode(AUDIO, module=-2).shape == (2, 50, 32)


@pytest.mark.parametrize(
    ("preset", "words"),
    [
        (
            "cpc_librispeech",
            r"no tensor fullmodel\.0\.encoder\.encoder\.2\.0\.weight.*4 module\(s\), a GRU and BatchNorm",
        ),
        (
            "sim_artificial_speech",
            r"a tensor fullmodel\.0\.encoder\.encoder\.0\.1\.bias, which this config has no place",
        ),
        ("vgim_thesis", r"tensor fullmodel\.0\.encoder\.encoder_mu\.weight has the shape \(32, 32, 1\).*\(32, 32, 3\)"),
        (None, r"does not say its architecture; name a preset: .*sim_librispeech"),
        ("nonsense", r"nonsense is neither a file nor a preset"),
    ],
)
def test_an_upstream_checkpoint_that_does_not_fit(upstream: Path, preset: str | None, words: str) -> None:
    with pytest.raises(InputError, match=words):
        simdist.load_encoder(upstream, config=preset)


TRANSLATED = ["gim_librispeech", "cpc_librispeech", "gim_artificial_speech", "vgim_thesis"]


@pytest.mark.parametrize("preset", [*TRANSLATED, "cpc_extra_layers_artificial_speech"])
def test_names_of_every_preset_translate_there_and_back(preset: str, tmp_path: Path) -> None:
    """Files as upstream writes them: DataParallel's prefix, and an `encoder_var` that GIM and CPC never use."""
    from simdist.models.reference_checkpoints import reference_names

    config = read_config(CONFIGS / f"{preset}.yaml", CONFIGS / "debug.yaml")
    encoder = GreedyEncoder(config.model, config.loss, seed=7).eval()
    names = reference_names(encoder)
    state = {f"module.{names[name]}": tensor for name, tensor in encoder.state_dict().items()}
    state.setdefault("module.fullmodel.0.encoder.encoder_var.bias", torch.zeros(16))
    torch.save(state, tmp_path / "model_3.ckpt")
    loaded = simdist.load_encoder(tmp_path / "model_3.ckpt", config=CONFIGS / f"{preset}.yaml")
    audio = torch.randn(2, 1, config.data.crop)
    assert torch.equal(loaded.encode(audio), encoder.encode(audio))
    if preset == "cpc_extra_layers_artificial_speech":  # upstream puts a layer in a Sequential with what follows it
        layers = [
            name.removeprefix("module.fullmodel.0.encoder.encoder.") for name in state if "encoder.encoder." in name
        ]
        ends = {
            "0.0.weight",
            "1.0.weight",
            "2.weight",
            "3.0.weight",
            "4.0.weight",
            "5.weight",
            "6.0.weight",
            "7.weight",
        }
        assert {name for name in layers if name.endswith("weight")} == ends


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"no pickle", "not a checkpoint of tensors"),
        (b"", "not a checkpoint of tensors"),
        (None, "it has no tensor fullmodel"),
    ],
)
def test_files_that_are_no_checkpoint(tmp_path: Path, content: bytes | None, words: str) -> None:
    path = tmp_path / "model_1.ckpt"
    path.write_bytes(content) if content is not None else torch.save({"weight": torch.zeros(1)}, path)
    with pytest.raises(InputError, match=words):
        simdist.load_encoder(path, config="sim_librispeech")


def test_sources_that_are_nothing(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="neither a run folder, nor a checkpoint of one, nor a reference checkpoint"):
        simdist.load_encoder(tmp_path)
    with pytest.raises(InputError, match="does not exist; name a run folder"):
        simdist.load_encoder(tmp_path / "nothing")
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(InputError, match="is a part of a run; name the run folder"):
        simdist.load_encoder(tmp_path / "model.safetensors")


@pytest.mark.usefixtures("fresh_process")
def test_a_run_begins_from_upstreams_weights(upstream: Path, speech: Path, tmp_path: Path) -> None:
    folder = tmp_path / "imported"
    argv = [str(upstream), *DEBUG, f"--data.root={speech}", f"--run-dir={folder}", "--optim.lr=1e-9"]
    assert import_reference_command.main(argv) == 0
    direct = simdist.load_encoder(upstream, config="sim_librispeech")
    assert torch.equal(simdist.load_encoder(folder).encode(AUDIO), direct.encode(AUDIO))
    assert train_command.main(["--config", f"{folder}/config.yaml", f"--run-dir={folder}"]) == 0
    trained = simdist.load_encoder(folder)
    for name, tensor in trained.state_dict().items():
        if "running" not in name and "num_batches" not in name:
            torch.testing.assert_close(tensor, direct.state_dict()[name], atol=1e-6, rtol=1e-4)


def test_an_import_that_is_interrupted_leaves_no_run(
    upstream: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Training would start it from random weights."""

    def interrupted(*args: object) -> None:
        raise KeyboardInterrupt

    argv = [str(upstream), *DEBUG, f"--run-dir={tmp_path / 'imported'}"]
    with monkeypatch.context() as patch:
        patch.setattr("simdist.training.checkpoint.save_checkpoint", interrupted)
        with pytest.raises(KeyboardInterrupt):
            import_reference_command.main(argv)
    assert not list(tmp_path.iterdir())
    assert import_reference_command.main(argv) == 0


def test_import_does_not_overwrite_a_run(upstream: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "imported").mkdir()
    with pytest.raises(SystemExit, match="2"):
        run(import_reference_command.main, [str(upstream), *DEBUG, f"--run-dir={tmp_path / 'imported'}"])
    assert "already exists. Choose a new folder" in capsys.readouterr().err
