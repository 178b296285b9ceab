"""`load_decoder`: which of a run's decoders is meant, and what is said where there is none."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import simdist
from simdist.core.errors import InputError


def test_which_decoder_is_meant(run_folder: Path, settings: Callable, train: Callable) -> None:
    def load(**which: object) -> simdist.loading.Decoder:
        return simdist.load_decoder(run_folder, 1, **which)  # pyright: ignore[reportArgumentType]

    with pytest.raises(InputError, match=f"no decoder of module 1; make it with .*--run-dir {run_folder} --module 1"):
        load()
    train(run_folder, settings(steps=1, module=1, loss="mel"))
    train(run_folder, settings(steps=1, module=1, loss="fft", untrained=True))
    only = load()
    assert not only.training
    frames = 33  # of the crop of 2,560 samples
    latent = torch.randn(2, frames, 16)
    waveform = only.decode(latent)
    assert waveform.shape == (2, 1, 2560)
    assert waveform.dtype == torch.float32
    assert not waveform.requires_grad
    assert torch.equal(load(loss="mel").decode(latent), waveform)
    with pytest.raises(InputError, match=r"with loss mse \(it has one with mel\); make it with .* --loss mse`"):
        load(loss="mse")
    train(run_folder, settings(steps=1, module=1, loss="stft"))
    with pytest.raises(InputError, match="several decoders of module 1; name the loss of one: mel, stft"):
        load()
    train(run_folder, settings(steps=1, module=1, loss="mse"))
    assert torch.equal(load().decode(latent), load(loss="mse").decode(latent))
    assert torch.equal(load(untrained=True).decode(latent), load(loss="fft", untrained=True).decode(latent))
    with pytest.raises(InputError, match=r"with loss mel on the untrained encoder .*--loss mel --untrained`"):
        load(loss="mel", untrained=True)


@pytest.mark.parametrize(
    ("module", "loss", "words"),
    [
        (3, None, "module 3 is a GRU alone"),
        (4, None, "module 4 does not exist; this encoder has modules 0 to 3"),
        (0, "l2", "no decoder loss 'l2'; the losses are mse, spectral"),
    ],
)
def test_what_cannot_be_loaded(run_folder: Path, module: int, loss: str | None, words: str) -> None:
    with pytest.raises(InputError, match=words):
        simdist.load_decoder(run_folder, module, loss)


def test_a_folder_that_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is not a run folder"):
        simdist.load_decoder(tmp_path, 0)


def test_damaged_checkpoints_are_named(run_folder: Path, settings: Callable, train: Callable) -> None:
    folder = train(run_folder, settings(steps=1))
    (checkpoint,) = (folder / "checkpoints").iterdir()
    (checkpoint / "model.safetensors").write_bytes(b"")
    with pytest.raises(InputError, match=r"0-mse has no complete checkpoint. Train it first; .*is damaged"):
        simdist.load_decoder(run_folder, 0)


def test_mixed_precision_trains_the_same_decoder(run_folder: Path, settings: Callable, train: Callable) -> None:
    """bf16 autocast over float32 weights: close to float32, and not equal to it."""
    from dataclasses import replace

    from simdist.runs.checkpoints import latest_checkpoint
    from simdist.training.checkpoint import load_checkpoint

    plain = settings(steps=6, latents="deterministic")
    weights = []
    for precision in ("no", "bf16"):
        config = replace(plain, train=replace(plain.train, precision=precision))
        folder = train(run_folder, config)
        found = latest_checkpoint(folder / "checkpoints", pytest.fail)
        assert found is not None
        weights.append({name: tensor.clone() for name, tensor in load_checkpoint(found).model.items()})
        folder.rename(run_folder / precision)
    assert all(tensor.dtype == torch.float32 for tensor in weights[1].values())
    distance = sum((weights[0][name] - weights[1][name]).square().sum() for name in weights[0])
    moved = sum(tensor.square().sum() for tensor in weights[0].values())
    assert 0 < float(distance / moved) < 0.01
