"""Decoders of layers inside a module: the encoder's mirror up to the layer, in a folder that names it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import simdist
from simdist.config.decoder import DecodingConfig, defaults_for
from simdist.core.errors import InputError
from simdist.core.files import read_json_lines
from simdist.decode.__main__ import main
from simdist.decode.frozen import open_encoder
from simdist.runs.folder import existing_run
from tests.decode.conftest import reset_accelerate
from tests.support.cpc import small_cpc

Train = Callable[..., Path]


@pytest.fixture
def cpc(speech: Path, tmp_path: Path) -> Path:
    """A CPC of width 8 after three steps."""
    from simdist.train.__main__ import train

    assert train(small_cpc(speech, width=8, steps=3), tmp_path / "cpc") == 0
    reset_accelerate()
    return tmp_path / "cpc"


def settings(run: Path, layer: int | None, untrained: bool = False, steps: int = 12) -> DecodingConfig:
    wanted = defaults_for(existing_run(run).config)
    train = replace(wanted.train, max_steps=steps, validate_every=0, precision="no")
    optim = replace(wanted.optim, lr=3e-3)
    return replace(wanted, train=train, optim=optim, examples=1, layer=layer, untrained=untrained)


def test_a_decoder_of_a_layer(cpc: Path, train: Train, capsys: pytest.CaptureFixture[str]) -> None:
    config = settings(cpc, 2)
    folder = train(cpc, config)
    assert folder == cpc / "decoders" / "0-layer2-mse"
    printed = capsys.readouterr().out
    assert "sampled latents of module 0, layer 2" in printed
    assert "module 0, layer 2: decoded test clips" in printed
    assert f'load_decoder("{cpc}", 0, layer=2)' in printed
    assert f"--run-dir {cpc} --module 0 --layer 2 --loss mse --untrained" in printed
    decoder = simdist.load_decoder(cpc, 0, layer=2)
    assert [(each.kernel_size[0], each.stride[0]) for each in decoder.stack] == [(4, 2), (8, 4), (10, 5)]
    audio = 0.1 * torch.randn(2, 1, 5120, generator=torch.Generator().manual_seed(0))
    latent = simdist.load_encoder(cpc).encode(audio, module=0, layer=2)
    assert decoder.decode(latent).shape == (2, 1, 5120)
    frozen, _ = open_encoder(cpc, existing_run(cpc).config, config)
    assert torch.equal(frozen.latent(audio.transpose(1, 2), torch.Generator()), latent)
    result = json.loads((folder / "result.json").read_text())
    assert (result["module"], result["layer"], result["name"]) == (0, 2, "0-layer2-mse")
    losses = [
        each["modules"][0]["loss"] for each in read_json_lines(folder / "metrics.jsonl") if each["kind"] == "train"
    ]
    assert losses[-1] < 0.9 * losses[0]


def test_a_layer_is_compared_with_the_same_layer_of_the_untrained_encoder(cpc: Path, train: Train) -> None:
    folders = [train(cpc, settings(cpc, layer, untrained, steps=1)) for layer in (0, 1) for untrained in (False, True)]
    assert [folder.name for folder in folders] == [
        *("0-layer0-mse", "0-layer0-mse-untrained", "0-layer1-mse", "0-layer1-mse-untrained")
    ]
    results = [json.loads((folder / "result.json").read_text()) for folder in folders]
    for trained, untrained in (results[:2], results[2:]):
        values = [each["quality"]["decoder"]["mse"]["value"] for each in (trained, untrained)]
        assert trained["against"]["untrained"]["mse"]["difference"] == pytest.approx(values[0] - values[1], rel=1e-5)
    first, second = (simdist.load_decoder(cpc, 0, layer=layer, untrained=True) for layer in (0, 1))
    assert (len(first.stack), len(second.stack)) == (3, 6)  # of one and of two layers, each with two that smooth


def test_a_modules_decoder_is_another(cpc: Path, train: Train) -> None:
    train(cpc, settings(cpc, 1, steps=1))
    with pytest.raises(InputError, match=r"has no decoder of module 0; make it with `.* --module 0 --loss mse`"):
        simdist.load_decoder(cpc, 0)
    with pytest.raises(InputError, match=r"no decoder of module 0, layer 3; .* --module 0 --layer 3 --loss mse`"):
        simdist.load_decoder(cpc, 0, layer=3)
    folder = train(cpc, settings(cpc, None, steps=1))
    assert folder.name == "0-mse"
    assert "layer" not in json.loads((folder / "result.json").read_text())
    assert len(simdist.load_decoder(cpc, 0).stack) == 5


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--layer=5"], "module 0 has no layer 5; its layers are 0 to 4"),
        (["--module=1", "--layer=0"], "module 1 does not exist; this encoder has modules 0 to 0"),
    ],
)
def test_layers_that_do_not_exist(cpc: Path, options: list[str], words: str) -> None:
    with pytest.raises(InputError, match=words):
        main([f"--run-dir={cpc}", *options])
    with pytest.raises(InputError, match="module 0 has no layer 5; its layers are 0 to 4"):
        simdist.load_decoder(cpc, 0, layer=5)
    assert not list(cpc.glob("decoders/*"))


def test_layers_count_from_0(cpc: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main([f"--run-dir={cpc}", "--layer=-1"])
    assert "layer is -1; it must be 0 or more" in capsys.readouterr().err
