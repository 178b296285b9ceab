"""`--print_config` writes what `--config` reads."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import yaml

from simdist.config.decoder import DecodingConfig, defaults_for
from simdist.config.load import CONFIGS, read_config, read_tree
from simdist.config.schema import Config, DataConfig, LayerConfig, ModuleConfig, identity, to_dict
from simdist.core.errors import InputError
from simdist.core.files import MOST_CONFIG_BYTES
from simdist.decode.__main__ import main as decode
from simdist.import_reference.__main__ import main as import_reference
from simdist.train.__main__ import main as train

CPC = str(CONFIGS / "cpc_librispeech.yaml")


def printed(main: Callable[[list[str]], int], argv: list[str], capsys: pytest.CaptureFixture[str], to: Path) -> Path:
    with pytest.raises(SystemExit) as left:
        main([*argv, "--print_config"])
    assert left.value.code == 0
    to.write_text(capsys.readouterr().out)
    return to


@pytest.mark.parametrize(
    ("argv", "config"),
    [
        ([], read_config(CONFIGS / "demo.yaml")),
        (["--config", CPC, "--run-dir=runs/cpc"], read_config(CPC)),
        (["--config", str(CONFIGS / "sim_librispeech.yaml")], Config(data=DataConfig(group=8))),
    ],
)
def test_a_printed_configuration_reads_back_equal(
    argv: list[str], config: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert read_config(printed(train, argv, capsys, tmp_path / "printed.yaml")) == config


def test_modules_of_a_command_line_read_back_equal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["--model.modules", "[{layers: [{kernel: 10, stride: 5, padding: 2}]}, {gru: true}]"]
    config = read_config(printed(train, argv, capsys, tmp_path / "printed.yaml"))
    assert config.model.modules == (ModuleConfig((LayerConfig(10, 5, 2),)), ModuleConfig(gru=True))


def test_layers_without_norm_and_relu_are_written_where_they_are(tmp_path: Path) -> None:
    """Files of other layers are as they were before layers could lack either, so older versions read them."""
    file = tmp_path / "config.yaml"
    layers = "[{kernel: 10, stride: 5, padding: 2}, {kernel: 1, norm: false, relu: false}]"
    file.write_text(f"model: {{modules: [{{layers: {layers}}}]}}")
    config = read_config(file)
    plain, linear = to_dict(config)["model"]["modules"][0]["layers"]
    assert plain == {"kernel": 10, "stride": 5, "padding": 2, "kind": "conv"}
    assert linear == {"kernel": 1, "stride": 1, "padding": 0, "kind": "conv", "norm": False, "relu": False}
    file.write_text(yaml.safe_dump(to_dict(config)))
    assert read_config(file) == config
    modules = (ModuleConfig((LayerConfig(10, 5, 2), LayerConfig(1))),)
    assert identity(config) != identity(replace(config, model=replace(config.model, modules=modules)))
    file.write_text("model: {modules: [{layers: [{kernel: 4, kind: maxpool, relu: false}]}]}")
    with pytest.raises(InputError, match=r"layer\.norm and layer\.relu belong to convolutions; a maxpool has neither"):
        read_config(file)


def test_an_imports_configuration_has_the_keys_that_its_help_leaves_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["model.ckpt", "--config", CPC, "--run-dir=runs/cpc", "--optim.lr=0.5"]
    config = read_config(printed(import_reference, argv, capsys, tmp_path / "printed.yaml"))
    assert config.optim.lr == 0.5
    assert config.model == read_config(CPC).model


def test_a_decoders_configuration_is_the_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    encoder = read_config(CONFIGS / "demo.yaml")
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(to_dict(encoder)))
    file = printed(decode, [f"--run-dir={tmp_path}"], capsys, tmp_path / "printed.yaml")
    assert read_tree(DecodingConfig, file) == defaults_for(encoder)


def test_aliases_are_refused(tmp_path: Path) -> None:
    """A file of a kilobyte can hold billions of values with them."""
    file = tmp_path / "config.yaml"
    file.write_text("\n".join(["a: &a [1, 1]", *(f"{b}: &{b} [*{a}, *{a}]" for a, b in pairwise("abcdefghij"))]))
    with pytest.raises(InputError, match=re.escape(f"{file} has YAML aliases (*name); write their values out")):
        read_config(file)


def test_a_file_that_is_no_config_is_not_read_as_one(tmp_path: Path) -> None:
    large = tmp_path / "large.yaml"
    large.write_bytes(b"#" * (MOST_CONFIG_BYTES + 1))
    with pytest.raises(InputError, match=r"large\.yaml cannot be read: it has 1,048,577 bytes, at most 1,048,576"):
        read_config(large)
