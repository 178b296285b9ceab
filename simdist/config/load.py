"""Configurations from YAML files and the command line: defaults < `--config FILE` < `--key value`."""

from __future__ import annotations

import dataclasses
import itertools
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import jsonargparse
import yaml

from simdist.config.parser import Parser
from simdist.config.schema import Config
from simdist.core.errors import InputError

Tree = TypeVar("Tree")  # Config, or another tree of frozen dataclasses


WHEEL_CONFIGS = Path(__file__).parent.parent / "configs"


CONFIGS = WHEEL_CONFIGS if WHEEL_CONFIGS.is_dir() else Path(__file__).parent.parent.parent / "configs"  # in a clone


def experiment_parser(prog: str, description: str, tree: type = Config) -> Parser:
    """A parser with `--config FILE…` and one option for every field of `Config`, or of another tree of dataclasses."""
    parser = Parser(prog=prog, description=description)
    parser.add_argument("--config", action="config", help="YAML file with what differs; several allowed, later wins.")
    parser.add_class_arguments(tree)
    return parser


def parse_experiment(
    parser: Parser, argv: Sequence[str] | None, default: Path | None = None
) -> tuple[Config, jsonargparse.Namespace]:
    """Parse a command line into its `Config` and everything else; without `--config` it reads `default`."""
    argv = list(sys.argv[1:] if argv is None else argv)
    named = [word.partition("=")[2] for word in argv if word.startswith("--config=")]
    named += [file for word, file in itertools.pairwise(argv) if word == "--config"]
    for file in named:
        _check_yaml(file)
    if default is not None and not named:
        argv = [f"--config={default}", *argv]
    parsed = parser.parse_args(argv)
    return config_from(parser, parsed), parsed


def _check_yaml(file: str) -> None:
    """jsonargparse does not say which of several files is broken."""
    if Path(file).is_dir():
        raise InputError(f"config {file} is a folder; name one of the YAML files in it")
    if not Path(file).is_file():
        preset = CONFIGS / f"{file}.yaml"
        if preset.is_file():
            raise InputError(f"config file {file} does not exist; did you mean {preset}?")
        presets = ", ".join(sorted(path.name for path in CONFIGS.glob("*.yaml")))
        raise InputError(f"config file {file} does not exist; the presets in {CONFIGS} are {presets}")
    read_yaml(Path(file))


def read_yaml(file: Path) -> dict[str, Any]:
    """The keys and values in a YAML file.

    Raises:
        InputError: it is not YAML, is empty, or holds something else.
    """
    try:
        content = yaml.safe_load(file.read_text())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{file} is not valid YAML: {' '.join(str(error).split())}") from error
    if content is None:
        raise InputError(f"{file} is empty; a config holds at least one key, such as `name: mine`")
    if not isinstance(content, dict):
        raise InputError(f"{file} holds {type(content).__name__}, not keys and values such as `optim: {{lr: 1e-4}}`")
    return content


def config_from(parser: Parser, parsed: jsonargparse.Namespace) -> Config:
    """The `Config` in what `parser` parsed; an impossible value ends the program with one line."""
    return tree_from(parser, parsed, Config)


def tree_from(parser: Parser, parsed: jsonargparse.Namespace, tree: type[Tree]) -> Tree:
    """The same for any tree of dataclasses."""
    keys = {item.name for item in dataclasses.fields(tree)}  # pyright: ignore[reportArgumentType]
    try:
        values = parser.instantiate(parsed)
        return tree(**{key: values[key] for key in keys})
    except ValueError as error:
        parser.error(str(error))


def read_config(*files: str | Path) -> Config:
    """The defaults with these YAML files on top, later wins.

    Raises:
        InputError: a file is missing, is not YAML, or has a wrong key or value; named with the valid ones.
    """
    return read_tree(Config, *files)


def read_tree(tree: type[Tree], *files: str | Path) -> Tree:
    """The same for any tree of dataclasses."""
    for file in files:
        _check_yaml(str(file))
    parser = experiment_parser("config", "", tree)
    names = ", ".join(str(file) for file in files)
    with parser.raising(prefix=f"{names}: "):
        return tree_from(parser, parser.parse_args([f"--config={file}" for file in files]), tree)
