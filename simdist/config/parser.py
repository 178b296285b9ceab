"""The argument parser of all commands: options from dataclasses, errors in one line, readable help."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import difflib
import fnmatch
import os
import re
import typing
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

import docstring_parser
import jsonargparse

from simdist.core.console import fail
from simdist.core.errors import InputError

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Flat = TypeVar("Flat", bound="DataclassInstance")
PRINT_CONFIG = "print_config"
UNLISTED = "simdist_unlisted"  # an attribute of argparse actions
HIDDEN = ("help", PRINT_CONFIG, "print_shtab")
jsonargparse.set_parsing_settings(
    docstring_parse_attribute_docstrings=True,
    import_path_denylist=["*"],  # a `class_path` in a config would import, and thereby run, any module
    import_path_allowlist=["simdist.config.schema"],  # jsonargparse's own way to name the classes of nested fields
    instantiate_subclass_spec_in_any=False,
)


class Parser(jsonargparse.ArgumentParser):
    """An argument parser with one-line errors: what is wrong, what is valid, and where to read more."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        kwargs.setdefault("formatter_class", HelpFormatter)
        kwargs.setdefault("allow_abbrev", False)
        super().__init__(*args, **kwargs)
        self._prefix: str | None = None
        self.tree_keys: frozenset[str] | None = None
        """Keys of a configuration's YAML file; None if the parser has none. All others are options of the command."""

    def parse_args(self, *args: Any, **kwargs: Any) -> jsonargparse.Namespace:  # pyright: ignore
        try:
            return super().parse_args(*args, **kwargs)
        except ImportError as error:  # a refused class_path, which jsonargparse does not always catch
            self.error(str(error), error)

    def dump(self, namespace: jsonargparse.Namespace, *args: Any, **kwargs: Any) -> str:
        """YAML of the configuration, without options of the command such as --run-dir."""
        if self.tree_keys is not None:
            own = {key: value for key, value in vars(namespace).items() if key in self.tree_keys}
            namespace = jsonargparse.Namespace(own)
        return super().dump(namespace, *args, **kwargs)

    def unlist(self, *patterns: str) -> None:
        """Leave the options whose keys match a shell pattern, such as `data.*`, out of the help; they still work."""
        for action in self._actions:
            if any(fnmatch.fnmatchcase(action.dest, pattern) for pattern in patterns):
                setattr(action, UNLISTED, True)

    def say_defaults(self, default: str, *patterns: str) -> None:
        """Show `default` as the default of options whose keys match a pattern."""
        for action in self._actions:
            if any(fnmatch.fnmatchcase(action.dest, pattern) for pattern in patterns):
                action.help = f"{action.help} Default: {default}."

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        if self._prefix is not None:
            raise InputError(self._prefix + self._explain(message).removeprefix("--")) from ex
        of_subcommand = re.match(r"the following arguments are required: ([\w-]+)\.", message)
        command = f"{self.prog} {of_subcommand[1]}" if of_subcommand else self.prog
        fail(f"{self._explain(message)} (all options: {command} --help)")

    @contextlib.contextmanager
    def raising(self, prefix: str) -> Iterator[None]:
        """Within this context, errors are raised as `InputError`s that start with `prefix`, instead of exiting."""
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
                return f"unknown {subcommands[0].metavar} {chosen[1]!r}: {did_you_mean(chosen[1], choices)}"
        unknown = re.search(
            r"unrecognized arguments: --(?P<flag>[\w.-]+)"
            r"|Group '(?P<group>[\w.]+)' does not accept option '(?P<option>[\w.-]+)'"
            r"|Option '(?P<key>[\w.-]+)' is not accepted",
            message,
        )
        if not unknown:
            parsers = {"": self, **{f"{name}.": sub for action in subcommands for name, sub in action.choices.items()}}
            options = ((prefix, a) for prefix, parser in parsers.items() for a in parser._actions if a.option_strings)
            return _readable(message, {prefix + action.dest: _option(action) for prefix, action in options})
        key = unknown["flag"] or unknown["key"] or f"{unknown['group']}.{unknown['option']}"
        keys = self._keys()
        section = key.rpartition(".")[0]
        siblings = [k for k in keys if k.startswith(section + ".")] if section else []
        siblings = siblings or [k for k in keys if "." not in k]
        return f"unknown key {key!r}: {did_you_mean(key, keys, siblings)}"


TYPES = {"int": "a whole number", "float": "a number", "bool": "true or false", "tuple": "a list", "str": "text"}


def did_you_mean(word: str, near: Sequence[str], valid: Sequence[str] | None = None) -> str:
    """The closest match in `near`, if there is one, and the valid choices."""
    found = difflib.get_close_matches(word, near, n=1)
    hint = f"did you mean {found[0]!r}? " if found else ""
    return f"{hint}valid: {', '.join(valid or near)}"


def _option(action: argparse.Action) -> str:
    """The documented name of an option, without aliases for old commands."""
    long = [name for name in action.option_strings if name.startswith("--")]
    return (long or action.option_strings or [action.dest])[0]


def _readable(message: str, options: Mapping[str, str]) -> str:
    """Rephrase jsonargparse's messages about keys and types for users."""
    denied = re.search(r"Importing '(.*?)' is not allowed", message)
    if denied:
        return f"a config cannot import the class {denied[1]!r}. Use plain keys and values"
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
    """Help of up to 120 columns that keeps the line breaks of examples.

    Each option ends with its type and default, where they say something. A text that ends with `Default: ….` says its
    own, for defaults that are no constant, such as the number of CPUs.
    """

    def __init__(self, prog: str, **kwargs: Any) -> None:
        super().__init__(prog, max_help_position=34, width=min(int(os.environ.get("COLUMNS", 120)), 120))

    def add_usage(self, usage: str | None, actions: Any, groups: Any, prefix: str | None = None) -> None:
        """Keep the usage to one line: an experiment has too many options to list twice."""
        listed = list(actions)
        if sum(bool(action.option_strings) for action in listed) > 20 and usage is None:
            words = [f"{_option(a)} {a.metavar or a.dest.upper()}" for a in listed if a.option_strings and a.required]
            words += ["[--config FILE ...]"] * any(action.dest == "config" for action in listed)
            words += ["[--KEY VALUE ...]", *(a.metavar or a.dest for a in listed if not a.option_strings)]
            usage = f"%(prog)s {' '.join(words)}"
        super().add_usage(usage, listed, groups, prefix)

    def _get_help_string(self, action: argparse.Action) -> str:
        if action.dest == "help":
            return super()._get_help_string(action)
        own = re.fullmatch(r"(?P<text>.*?)\s*Default: (?P<default>.*)\.", action.help or "", re.DOTALL)
        facts = ["required"] if action.option_strings and action.required else []
        kind = self._get_type_str(action) or ""
        kind = re.sub(r" \| null$", "", kind).replace("Path", "path").removeprefix("<class '").removesuffix("'>")
        facts += [f"type: {kind}"] if kind in ("int", "float", "path") else []
        default = own["default"] if own else "" if action.nargs == 0 else _shown(action.default)
        if action.default is None and "null" in (action.help or "") and not own:
            default = "null"
        facts += [f"default: {default}"] if default else []
        return (own["text"] if own else action.help or "") + (f" ({', '.join(facts)})" if facts else "")

    def _format_action_invocation(self, action: argparse.Action) -> str:
        """Without the aliases for old commands."""
        names = action.option_strings
        if action.dest == PRINT_CONFIG:
            return names[0]
        try:
            action.option_strings = names if action.dest == "help" else names[:1]
            return super()._format_action_invocation(action)
        finally:
            action.option_strings = names

    def add_argument(self, action: Any) -> None:
        is_file = action.help == "Path to a configuration file."  # `--data FILE` etc., which `--config` covers
        if not is_file and not getattr(action, UNLISTED, False):
            super().add_argument(action)

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return "\n".join(indent + line for line in text.splitlines())


def _shown(default: object) -> str:
    """A default as one would type it; nothing where there is none."""
    if isinstance(default, bool):
        return str(default).lower()
    if isinstance(default, (list, tuple)):
        return f"[{', '.join(map(str, default))}]" if default else ""
    return "" if default in (None, argparse.SUPPRESS) else str(default)


def add_fields(parser: Parser, settings: type[DataclassInstance]) -> None:
    """Add one option per field of a flat dataclass, with its docstring as help. Fields may be inherited.

    The names of an option are in the field's metadata `options`, the documented one first, or else made from its name.
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
            required = item.metadata.get("required", False)
            parser.add_argument(*names, dest=item.name, type=kind, default=item.default, required=required, help=text)


def fields_from(settings: type[Flat], parser: Parser, parsed: jsonargparse.Namespace) -> Flat:
    """The dataclass of parsed options. Exits with one line if a value is impossible."""
    try:
        return settings(**{item.name: parsed[item.name] for item in dataclasses.fields(settings)})
    except ValueError as error:
        parser.error(str(error))
