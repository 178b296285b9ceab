"""The runs of a sweep: one configuration per combination of variants, grids, draws and seeds."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
import random
import typing
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from simdist.config.load import CONFIGS, experiment_parser, read_config
from simdist.config.parser import Parser
from simdist.config.schema import Config, identity, to_dict
from simdist.core.errors import InputError

from .sweep_file import Random, SweepFile, check_keys

PLAIN_TYPES = (int, float, bool, str)
DRAWS = ("uniform", "log_uniform", "integer", "choice")


@dataclass(frozen=True)
class Variant:
    """One run: its configuration, and the keys in which it differs from the others."""

    config: Config
    varied: dict[str, Any]
    """Every key of variants, grid, random and seeds with this run's value; a variant's own name as `variant`."""

    @functools.cached_property
    def run(self) -> str:
        """The run folder's name, as `simdist.train` would choose it."""
        return f"{self.config.name}-{identity(self.config)[:8]}"


def expand(sweep: SweepFile) -> list[Variant]:
    """Every run once; combinations with the same identity are one run.

    Raises:
        InputError: a key or value that the configuration does not have, or that is impossible with the others.
    """
    _refuse_seeds_elsewhere(sweep)
    found: dict[str, Variant] = {}
    for entry in sweep.variants or ({},):
        base = entry.get("base", sweep.base)
        config = _base(tuple([base] if isinstance(base, str) else base))
        named = {"variant": str(entry["name"])} if "name" in entry else {}
        own = entry.get("config") or {}
        for point in _points(sweep):
            for seed in sweep.seeds:
                settings = {**sweep.config, **own, **point, "seed": seed}
                varied = {**named, **({} if named else own), **point, "seed": seed}
                variant = Variant(_configure(config, settings), varied)
                found.setdefault(variant.run, variant)
    return list(found.values())


def _refuse_seeds_elsewhere(sweep: SweepFile) -> None:
    places = {"config": sweep.config, "grid": sweep.grid, "random.draw": sweep.random.draw if sweep.random else {}}
    places |= {"variants": {key: None for entry in sweep.variants for key in entry.get("config") or {}}}
    for place, keys in places.items():
        if "seed" in keys:
            raise InputError(f"{place} has the key 'seed'; seeds go to `seeds`, a list, such as [0, 1, 2]")


def _points(sweep: SweepFile) -> Iterator[dict[str, Any]]:
    """Every combination of the grid's values with every random draw."""
    for key, values in sweep.grid.items():
        if not isinstance(values, list) or not values:
            raise InputError(f"grid.{key} is {values!r}; it must be a list of values, such as [0.001, 0.01]")
    draws = list(_draws(sweep.random)) if sweep.random else [{}]
    for values in itertools.product(*sweep.grid.values()):
        for draw in draws:
            yield {**dict(zip(sweep.grid, values, strict=True)), **draw}


def _draws(search: Random) -> Iterator[dict[str, Any]]:
    for number in range(search.samples):
        yield {key: _draw(key, spec, f"{search.seed}/{number}/{key}") for key, spec in search.draw.items()}


def _draw(key: str, spec: Any, seed: str) -> Any:
    """One value; a string seeds Python's generator through sha512, the same on every machine."""
    where = f"random.draw.{key}"
    if not isinstance(spec, dict) or len(spec) != 1:
        raise InputError(f"{where} is {spec!r}; it must be one of {', '.join(DRAWS)}, such as {{uniform: [0, 1]}}")
    check_keys(spec, DRAWS, where)
    ((kind, values),) = spec.items()
    chance = random.Random(seed)
    if kind == "choice":
        if not isinstance(values, list) or not values:
            raise InputError(f"{where}: choice is {values!r}; it must be a list of values")
        return chance.choice(values)
    low, high = _bounds(where, kind, values)
    if kind == "integer":
        return chance.randint(int(low), int(high))
    if kind == "uniform":
        return float(f"{chance.uniform(low, high):.6g}")
    return float(f"{math.exp(chance.uniform(math.log(low), math.log(high))):.6g}")


def _bounds(where: str, kind: str, values: Any) -> tuple[float, float]:
    try:
        low, high = (float(value) for value in values)
    except (TypeError, ValueError):
        raise InputError(f"{where}: {kind} is {values!r}; it must be two numbers, [lowest, highest]") from None
    if low > high or (kind == "log_uniform" and low <= 0):
        raise InputError(f"{where}: {kind} is {values!r}; the first must be the smaller, and positive for log_uniform")
    return low, high


# --- configurations ---------------------------------------------------------------------------------------------------


@functools.cache
def _base(names: tuple[str, ...]) -> Config:
    """Presets by name or path, later wins."""
    return read_config(*(_find(name) for name in names))


def _find(name: str) -> Path:
    preset = CONFIGS / f"{name}.yaml"
    return preset if preset.is_file() and not Path(name).is_file() else Path(name)


def _configure(base: Config, settings: dict[str, Any]) -> Config:
    """`base` with dotted keys set; precision `auto` is decided here, so that the run's identity is known."""
    sections: dict[str, dict[str, Any]] = {}
    for key, value in settings.items():
        section, _, name = key.rpartition(".")
        sections.setdefault(section, {})[name] = _value(key, _Value(value))
    top = sections.pop("", {})
    try:
        changed = {name: replace(getattr(base, name), **values) for name, values in sections.items()}
        config = replace(base, **changed, **top)
        precision = "no" if config.train.precision == "auto" else config.train.precision
        return replace(config, train=replace(config.train, precision=precision))
    except ValueError as error:
        spelled = ", ".join(f"{key}={value}" for key, value in settings.items())
        raise InputError(f"{spelled}: {error}") from error


class _Value:
    """A value out of YAML that can key a cache, whatever it is."""

    def __init__(self, value: Any) -> None:
        self.value, self._text = value, f"{type(value).__name__} {value!r}"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Value) and other._text == self._text

    def __hash__(self) -> int:
        return hash(self._text)


def _value(key: str, given: _Value) -> Any:
    """A configuration key's value with the right type; the parser (10 ms) is used only if necessary."""
    hint = _types().get(key)
    choices = typing.get_args(hint) if typing.get_origin(hint) is typing.Literal else ()
    if given.value is False and "no" in choices:  # YAML's reading of a bare `no`
        return "no"
    if isinstance(given.value, str) and given.value in choices:
        return given.value
    if hint in PLAIN_TYPES and (type(given.value) is hint or (hint is float and type(given.value) is int)):
        return hint(given.value)
    return _parsed(key, given)


@functools.cache
def _types() -> dict[str, Any]:
    """The type of every key: of sections, and of their fields."""
    top = typing.get_type_hints(Config)
    return top | {
        f"{section}.{name}": hint
        for section, kind in top.items()
        if dataclasses.is_dataclass(kind)
        for name, hint in typing.get_type_hints(kind).items()
    }


@functools.cache
def _parsed(key: str, given: _Value) -> Any:
    section, _, name = key.rpartition(".")
    if dataclasses.is_dataclass(_types().get(key)):
        raise InputError(f"{key} cannot be set as a whole; set its fields, such as {key}.FIELD")
    if key.startswith("model.modules."):
        raise InputError(f"{key}: model.modules is one list; give all of it, as a preset does: model.modules: [...]")
    parser = _parser()
    with parser.raising(prefix=f"{key}: "):
        known = {action.dest for action in parser._actions}
        if key not in known:
            parser.error(f"unrecognized arguments: --{key}")
        parsed = parser.parse_object({section: {name: given.value}} if section else {name: given.value})
        if key != "model.modules":  # a plain value; whether it goes with the others is for the whole to say
            return parsed[key]
        try:
            return parser.instantiate(parsed).model.modules
        except ValueError as error:
            parser.error(str(error))


@functools.cache
def _parser() -> Parser:
    return experiment_parser("sweep", "")


def differing(variants: Sequence[Variant]) -> list[str]:
    """The varied keys that take more than one value over the sweep."""
    keys = dict.fromkeys(key for variant in variants for key in variant.varied)
    texts = {key: {repr(plain(variant.varied.get(key))) for variant in variants} for key in keys}
    return [key for key in keys if len(texts[key]) > 1]


def plain(value: Any) -> Any:
    """A value as YAML or JSON holds it."""
    return to_dict(value)
