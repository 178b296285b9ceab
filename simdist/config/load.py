"""Read configurations: defaults < `--config FILE` (several allowed, later wins) < `--key value`."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import jsonargparse
import yaml

from simdist.config import old_names
from simdist.config.parser import PRINT_CONFIG, Parser
from simdist.config.schema import Config, to_dict
from simdist.core.errors import InputError
from simdist.core.files import MOST_CONFIG_BYTES, AliasError, load_yaml, read_regular

Tree = TypeVar("Tree")  # Config, or another tree of frozen dataclasses


old_names.accept_in_yaml_files()
WHEEL_CONFIGS = Path(__file__).parent.parent / "configs"


CONFIGS = WHEEL_CONFIGS if WHEEL_CONFIGS.is_dir() else Path(__file__).parent.parent.parent / "configs"  # in a clone


def experiment_parser(prog: str, description: str, tree: type = Config) -> Parser:
    """A parser with `--config FILE` and one option per field of a tree of dataclasses."""
    parser = Parser(prog=prog, description=description)
    parser.add_argument(
        "--config", action="config", help="YAML file with settings. May be given several times; later files win."
    )
    parser.add_class_arguments(tree)
    for action in list(parser._actions):
        if action.dest == "model.modules":  # as in a YAML file: --print_config cannot write dataclasses in a tuple
            parser.set_defaults({action.dest: [to_dict(module) for module in action.default]})
        elif action.dest == PRINT_CONFIG:
            action.help = "Print the configuration of this command line as YAML, which --config reads, and exit."
    parser.unlist("model.modules.help")  # it lists options that do not exist
    parser.tree_keys = frozenset(item.name for item in dataclasses.fields(tree))
    return parser


def parse_experiment(
    parser: Parser, argv: Sequence[str] | None, default: Path | None = None
) -> tuple[Config, jsonargparse.Namespace]:
    """Parse a command line into its `Config` and all other options. Without `--config`, read the file `default`."""
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
    """Raise an `InputError` that names the file, which jsonargparse's errors do not."""
    if Path(file).is_dir():
        raise InputError(f"--config {file} is a folder. Give one of the YAML files in it")
    if not Path(file).is_file():
        preset = CONFIGS / f"{Path(file).name}.yaml"
        if preset.is_file():
            raise InputError(f"--config {file} does not exist. Did you mean {preset}?")
        presets = ", ".join(sorted(path.name for path in CONFIGS.glob("*.yaml")))
        raise InputError(f"--config {file} does not exist. Presets in {CONFIGS}: {presets}")
    read_yaml(Path(file))


def read_yaml(file: Path) -> dict[str, Any]:
    """The keys and values of a YAML file.

    Raises:
        InputError: it is empty, too large, not valid YAML, has aliases, or is not a mapping.
    """
    try:
        content = load_yaml(read_regular(file, MOST_CONFIG_BYTES).decode())
    except OSError as error:
        raise InputError(f"{file} cannot be read: {error.strerror or error}") from error
    except AliasError as error:
        raise InputError(f"{file} {error}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{file} is not valid YAML: {' '.join(str(error).split())}") from error
    if content is None:
        raise InputError(f"{file} is empty. A config needs at least one key, such as `name: mine`")
    if not isinstance(content, dict):
        raise InputError(
            f"{file} contains a {type(content).__name__}, not keys and values such as `optim: {{lr: 1e-4}}`"
        )
    return content


def config_from(parser: Parser, parsed: jsonargparse.Namespace) -> Config:
    """The `Config` of parsed options. Exits with one line if a value is impossible."""
    return tree_from(parser, parsed, Config)


def tree_from(parser: Parser, parsed: jsonargparse.Namespace, tree: type[Tree]) -> Tree:
    """Like `config_from`, for any tree of dataclasses."""
    keys = {item.name for item in dataclasses.fields(tree)}  # pyright: ignore[reportArgumentType]
    try:
        values = parser.instantiate(parsed)
        return tree(**{key: values[key] for key in keys})
    except ValueError as error:
        parser.error(str(error))


def read_config(*files: str | Path) -> Config:
    """The defaults, overridden by YAML files. Later files win.

    Raises:
        InputError: a file is missing or not YAML, or has an invalid key or value.
    """
    return read_tree(Config, *files)


def read_tree(tree: type[Tree], *files: str | Path) -> Tree:
    """Like `read_config`, for any tree of dataclasses."""
    for file in files:
        _check_yaml(str(file))
    parser = _file_parser(tree)
    names = ", ".join(str(file) for file in files)
    with parser.raising(prefix=f"{names}: "):
        return tree_from(parser, parser.parse_args([f"--config={file}" for file in files]), tree)


@functools.cache
def _file_parser(tree: type) -> Parser:
    """Made once, because making it takes four times longer than reading a file with it."""
    return experiment_parser("config", "", tree)
