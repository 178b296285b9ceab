"""What every command line of simdist shares: the parser, one-line errors, and exit codes. Imports no torch."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import difflib
import itertools
import os
import re
import sys
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

import docstring_parser
import jsonargparse
import yaml
from rich.console import Console
from rich.markup import escape

from simdist.config import Config
from simdist.durable import FULL
from simdist.errors import EXIT_BAD_INPUT, EXIT_FAILED, EXIT_INTERRUPTED, InputError
from simdist.redaction import redacted
from simdist.stopping import ignore_signals

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Tree = TypeVar("Tree")  # Config, or another tree of frozen dataclasses
Flat = TypeVar("Flat", bound="DataclassInstance")
HIDDEN = ("help", "print_config", "print_shtab")
jsonargparse.set_parsing_settings(
    docstring_parse_attribute_docstrings=True,
    import_path_denylist=["*"],  # a config that names a `class_path` would import, and so run, any module
    import_path_allowlist=["simdist.config"],  # jsonargparse's own way to name the classes of nested fields
    instantiate_subclass_spec_in_any=False,
)


class Parser(jsonargparse.ArgumentParser):
    """An argument parser whose errors are one line: what was wrong, what is valid, and where to read more."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        kwargs.setdefault("formatter_class", HelpFormatter)
        kwargs.setdefault("allow_abbrev", False)
        super().__init__(*args, **kwargs)
        self._prefix: str | None = None

    def parse_args(self, *args: Any, **kwargs: Any) -> jsonargparse.Namespace:  # pyright: ignore
        try:
            return super().parse_args(*args, **kwargs)
        except ImportError as error:  # a class_path: jsonargparse lets the refusal through in some places
            self.error(str(error), error)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        if self._prefix is not None:
            raise InputError(self._prefix + self._explain(message).removeprefix("--")) from ex
        of_subcommand = re.match(r"the following arguments are required: ([\w-]+)\.", message)
        command = f"{self.prog} {of_subcommand[1]}" if of_subcommand else self.prog
        fail(f"{self._explain(message)} (all options: {command} --help)")

    @contextlib.contextmanager
    def raising(self, prefix: str) -> Iterator[None]:
        """Within this block an error is an `InputError` that begins with `prefix`, not the end of the program."""
        self._prefix = prefix
        try:
            yield
        finally:
            self._prefix = None

    def _keys(self) -> list[str]:
        actions = [action for action in self._actions if action.dest not in HIDDEN]
        names = {_option(action).lstrip("-") for action in actions}
        return sorted(name for name in names if not name.endswith(".help"))

    def _explain(self, message: str) -> str:
        message = re.sub(r"\s*\n\s*", " ", message).strip()
        subcommands = [action for action in self._actions if isinstance(action, argparse._SubParsersAction)]
        if subcommands:
            choices = list(subcommands[0].choices)
            if re.match(r'expected "\w+" to be one of .* but it was not provided', message):
                return f"missing: {subcommands[0].metavar}, one of {', '.join(choices)}"
            chosen = re.match(r"argument \w+: invalid choice: '(.*?)' \(", message)
            if chosen:
                return f"unknown {subcommands[0].metavar} {chosen[1]!r}: {_did_you_mean(chosen[1], choices)}"
        unknown = re.search(
            r"unrecognized arguments: --(?P<flag>[\w.-]+)"
            r"|Group '(?P<group>[\w.]+)' does not accept option '(?P<option>[\w.-]+)'"
            r"|Option '(?P<key>[\w.-]+)' is not accepted",
            message,
        )
        if not unknown:
            return _readable(message, {a.dest: _option(a) for a in self._actions if a.option_strings})
        key = unknown["flag"] or unknown["key"] or f"{unknown['group']}.{unknown['option']}"
        keys = self._keys()
        section = key.rpartition(".")[0]
        siblings = [k for k in keys if k.startswith(section + ".")] if section else []
        siblings = siblings or [k for k in keys if "." not in k]
        return f"unknown key {key!r}: {_did_you_mean(key, keys, siblings)}"


TYPES = {"int": "a whole number", "float": "a number", "bool": "true or false", "tuple": "a list", "str": "text"}


def _did_you_mean(word: str, near: Sequence[str], valid: Sequence[str] | None = None) -> str:
    """The likeliest of `near`, if one is, and what is valid."""
    found = difflib.get_close_matches(word, near, n=1)
    hint = f"did you mean {found[0]!r}? " if found else ""
    return f"{hint}valid ones here are {', '.join(valid or near)}"


def _option(action: argparse.Action) -> str:
    """The option as it is documented, without aliases that are kept for old commands."""
    long = [name for name in action.option_strings if name.startswith("--")]
    return (long or action.option_strings or [action.dest])[0]


def _readable(message: str, options: Mapping[str, str]) -> str:
    """jsonargparse's own sentences about keys and types, in the words of a user."""
    denied = re.search(r"Importing '(.*?)' is not allowed", message)
    if denied:
        return f"a config may not import anything, and {denied[1]!r} was given as a class; give plain keys and values"
    message = re.sub(r"<class '(\w+)'>", lambda m: TYPES.get(m[1], m[1]), message)
    message = re.sub(r"typing\.Literal\[(.*?)\]", r"one of \1", message)
    message = re.sub(
        r'Parser key "([\w.]+)": Expected an? (.*)\. Got value: (.*)$', r"--\1 must be \2, not \3", message
    )
    union = re.match(
        r'Parser key "([\w.]+)": Does not validate .* Subtypes: \[(.*?)\] Errors: .*Given value: (.*)$', message
    )
    if union:
        return f"--{union[1]} must be {union[2].replace(', NoneType', ' or null')}, not {union[3]}"
    required = re.match(r"the following arguments are required: (.*)$", message)
    if required:
        names = [options.get(name, name.rpartition(".")[2]) for name in required[1].split(", ")]
        return f"missing: {', '.join(names)}"  # of a subcommand's `librispeech.OUT`, OUT
    return re.sub(r'Parser key "([\w.]+)": ', r"\1: ", message)


class HelpFormatter(jsonargparse.DefaultHelpFormatter):
    """Help as wide as the terminal, up to 120 columns, that keeps the line breaks of examples."""

    def __init__(self, prog: str, **kwargs: Any) -> None:
        super().__init__(prog, max_help_position=34, width=min(int(os.environ.get("COLUMNS", 120)), 120))

    def add_usage(self, usage: str | None, actions: Any, groups: Any, prefix: str | None = None) -> None:
        """A line: the options of an experiment are too many to list twice."""
        listed = list(actions)
        if sum(bool(action.option_strings) for action in listed) > 20 and usage is None:
            positional = " ".join(a.metavar or a.dest for a in listed if not a.option_strings)
            files = "[--config FILE ...] " if any(action.dest == "config" for action in listed) else ""
            usage = f"%(prog)s {files}[--KEY VALUE ...] {positional}".rstrip()
        super().add_usage(usage, listed, groups, prefix)

    def _expand_help(self, action: Any) -> str:
        if action.dest == "model.modules":
            return f"{action.help} (a list of layers, gru, prediction_steps; default: the four of SIM)"
        text = super()._expand_help(action)
        text = re.sub(r"<class 'Path'>|Path", "path", text) if "type: " in text else text
        return re.sub(r"type: Literal\[[^]]*\], ", "", text)

    def add_argument(self, action: Any) -> None:
        if action.help != "Path to a configuration file.":  # `--data FILE` and the like: `--config` does it
            super().add_argument(action)

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return "\n".join(indent + line for line in text.splitlines())


def add_fields(parser: Parser, settings: type[DataclassInstance]) -> None:
    """One option for each field of a flat dataclass, with the sentence under it; fields may be inherited.

    A field whose metadata has `options` takes these names, the documented one first, instead of its own.
    """
    hints, texts = typing.get_type_hints(settings), {}
    for base in reversed(settings.__mro__[:-1]):
        texts |= {item.arg_name: item.description for item in docstring_parser.parse_from_object(base).params}
    for item in dataclasses.fields(settings):
        names = item.metadata.get("options") or ("--" + item.name.replace("_", "-"),)
        if hints[item.name] is bool and item.default is False:
            parser.add_argument(*names, action="store_true", help=texts[item.name])
        else:
            kind, text = hints[item.name], texts[item.name]
            parser.add_argument(*names, dest=item.name, type=kind, default=item.default, help=text)


def fields_from(settings: type[Flat], parser: Parser, parsed: jsonargparse.Namespace) -> Flat:
    """The dataclass in what `parser` parsed; an impossible value ends the program with one line."""
    try:
        return settings(**{item.name: parsed[item.name] for item in dataclasses.fields(settings)})
    except ValueError as error:
        parser.error(str(error))


def fail(message: str, code: int = EXIT_BAD_INPUT) -> NoReturn:
    """Print `error: message` to stderr and exit with `code`; of several ranks that all fail alike, the first speaks."""
    if os.environ.get("RANK", "0") != "0":
        sys.exit(code)
    text = escape(redacted(message))
    Console(stderr=True, soft_wrap=True, highlight=False).print(f"[bold red]error:[/] {text}")
    sys.exit(code)


def run(main: Callable[[Sequence[str] | None], int], argv: Sequence[str] | None = None) -> NoReturn:
    """Call a command's `main` and exit with its code; an `InputError` is printed as one line, without a traceback."""
    try:
        code = main(argv)
    except InputError as error:
        fail(str(error), error.exit_code)
    except KeyboardInterrupt:
        fail("interrupted", EXIT_INTERRUPTED)
    except OSError as error:
        if error.errno not in FULL:
            raise
        fail(f"{error.filename or 'a disk'}: {error.strerror}; make room and run the same command again", EXIT_FAILED)
    ignore_signals()  # the work is done: a preemption that comes while Python ends must not turn it into a failure
    sys.exit(code)


WHEEL_CONFIGS = Path(__file__).parent / "configs"
CONFIGS = WHEEL_CONFIGS if WHEEL_CONFIGS.is_dir() else Path(__file__).parent.parent / "configs"  # the latter in a clone


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
