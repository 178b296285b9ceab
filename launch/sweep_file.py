"""A sweep as its YAML file describes it: base presets, varied keys, and the stages of each run.

Every key is checked before anything is planned; a wrong one is named with the valid ones. Values of configuration keys
are checked later, by the experiment's own parser (`launch.variants`).
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml

from simdist.config.load import CONFIGS, read_yaml
from simdist.config.parser import Parser
from simdist.config.schema import Config
from simdist.core.errors import InputError

Kind = Literal["pack", "train", "probe", "decode", "analyze", "report"]
ORDER: tuple[Kind, ...] = ("pack", "train", "probe", "decode", "analyze", "report")
COMMON = ("kind", "after", "options", "resources")
OWN: dict[Kind, tuple[str, ...]] = {
    "pack": ("corpus", "source", "splits"),
    "train": (),
    "probe": ("labels", "modules"),
    "decode": ("modules", "losses"),
    "analyze": ("which",),
    "report": (),
}
SHIPPED = CONFIGS / "sweeps"
CORPORA = ("librispeech", "artificial-speech", "synthetic")
CONFIG_KEYS = frozenset(item.name for item in dataclasses.fields(Config)) - {"name"}


@dataclass(frozen=True)
class Stage:
    """One kind of work, once per run (pack: once per corpus; report: once)."""

    name: str
    kind: Kind
    after: tuple[str, ...] = ()
    """Other stages of the same run that must be finished first, in addition to the training."""
    options: dict[str, Any] = field(default_factory=dict)
    """Options of the stage's command, as `{probe: lbfgs}` for `--probe lbfgs`."""
    resources: dict[str, Any] = field(default_factory=dict)
    """Fields of the cluster's profile that this stage overrides."""
    corpus: str = ""
    """pack: librispeech, artificial-speech or synthetic."""
    source: str = ""
    """pack: the folder that the corpus is read from or made in."""
    splits: list[str] = field(default_factory=list)
    """pack: splits that must exist in addition to the training and test split."""
    labels: list[str] = field(default_factory=list)
    """probe: a job for each of them; [] probes all labels in one job."""
    modules: list[int] = field(default_factory=list)
    """probe, decode: a job for each module; [] is every module, in one job of a probe."""
    losses: list[str] = field(default_factory=lambda: ["mse"])
    """decode: a job for each reconstruction loss."""
    which: list[str] = field(default_factory=list)
    """analyze: a job for each analysis."""


@dataclass(frozen=True)
class Random:
    """Random search: every draw depends only on (seed, number of the draw, key)."""

    samples: int
    """Number of draws."""
    draw: dict[str, Any]
    """For each configuration key {uniform: [a, b]}, {log_uniform: [a, b]}, {integer: [a, b]} or {choice: [...]}."""
    seed: int = 0
    """Another seed draws other values."""

    def __post_init__(self) -> None:
        if self.samples < 1:
            raise ValueError(f"random.samples is {self.samples}; it must be at least 1")


@dataclass(frozen=True)
class SweepFile:
    """A sweep as requested."""

    name: str
    """Names the sweep's folder."""
    base: list[str] = field(default_factory=lambda: ["sim_librispeech"])
    """Presets of configs/ or YAML files, later wins."""
    config: dict[str, Any] = field(default_factory=dict)
    """Configuration keys that all runs share, as `train.epochs: 10`."""
    grid: dict[str, Any] = field(default_factory=dict)
    """Configuration keys with a list of values each: every combination."""
    variants: tuple[dict[str, Any], ...] = ()
    """Variants written out: each with a `name`, and its own `base` and `config`, and is crossed with the grid."""
    random: Random | None = None
    """Random search, crossed with the rest."""
    seeds: tuple[int, ...] = (0,)
    """Each combination is trained once a seed."""
    stages: dict[str, Stage] = field(default_factory=dict)
    """By name, in the file's order; a stage that is `false` is left out."""


def read_sweep(file: str | Path, overrides: Iterable[str] = ()) -> SweepFile:
    """The sweep in a YAML file, with `key=value` overrides on top.

    Args:
        file: the path, or the name of a sweep of `configs/sweeps/`.
        overrides: `seeds=[0,1]`, `stages.probe.options.epochs=5`, or a configuration key such as `train.max_steps=20`,
            which goes to `config`.

    Raises:
        InputError: the file is missing or no YAML, or has a key or value that it cannot have.
    """
    path = sweep_path(file)
    content = _read_yaml(path)
    for override in overrides:
        _override(content, override)
    return parse_sweep(content, str(path))


def sweep_path(file: str | Path) -> Path:
    """The file itself where it exists, else the sweep of that name in `configs/sweeps/`."""
    shipped = SHIPPED / f"{file}.yaml"
    return shipped if shipped.is_file() and not Path(file).is_file() else Path(file)


def parse_sweep(content: Mapping[str, Any], where: str) -> SweepFile:
    """A sweep from what its YAML holds; `where` begins the error messages."""
    check_keys(content, [item.name for item in dataclasses.fields(SweepFile)], where)
    for key in ("config", "grid", "stages"):
        if not isinstance(content.get(key) or {}, dict):
            raise InputError(f"{where}: {key} is {content[key]!r}; it must be keys and values")
    entries = {name: entry for name, entry in (content.get("stages") or {}).items() if entry is not False}
    stages = {name: _stage(name, entry or {}, where) for name, entry in entries.items()}
    base = content.get("base", ["sim_librispeech"])
    plain = {
        **{key: value for key, value in content.items() if value is not None},
        "base": [base] if isinstance(base, str) else base,
        "stages": {},
        "random": None,
    }
    sweep = dataclasses.replace(_typed(SweepFile, plain, where), random=_random(content.get("random"), where))
    if not sweep.name or "/" in sweep.name or sweep.name.startswith("."):
        raise InputError(f"{where}: name is {sweep.name!r}; it must be a folder's name")
    if not sweep.seeds or min(sweep.seeds) < 0 or len(set(sweep.seeds)) < len(sweep.seeds):
        raise InputError(f"{where}: seeds are {sorted(sweep.seeds)}; they must be different numbers of 0 or more")
    for entry in sweep.variants:
        check_keys(entry, ("name", "base", "config"), f"{where}: variants")
    return dataclasses.replace(sweep, stages=_ordered(stages, where))


def check_keys(given: Mapping[str, Any], valid: Iterable[str], where: str) -> None:
    """Raise an `InputError` that names the first unknown key, the nearest valid one, and all of them."""
    known = list(valid)
    for key in given:
        if key not in known:
            near = difflib.get_close_matches(str(key), known, n=1)
            hint = f"did you mean {near[0]!r}? " if near else ""
            raise InputError(f"{where}: unknown key {key!r}: {hint}valid ones here are {', '.join(known)}")


def _random(entry: Any, where: str) -> Random | None:
    if entry is None:
        return None
    where = f"{where}: random"
    if not isinstance(entry, dict):
        raise InputError(f"{where} is {entry!r}; it must be keys and values, such as `samples: 20`")
    check_keys(entry, [item.name for item in dataclasses.fields(Random)], where)
    return _typed(Random, entry, where)


def _stage(name: str, entry: Any, where: str) -> Stage:
    where = f"{where}: stage {name}"
    if not isinstance(entry, dict):
        raise InputError(f"{where} is {entry!r}; it must be keys and values, such as `labels: [speaker]`, or nothing")
    kind = entry.get("kind", name)
    if kind not in ORDER:
        raise InputError(f"{where}: kind is {kind!r}; it must be one of {', '.join(ORDER)}")
    check_keys(entry, (*COMMON, *OWN[kind]), where)
    every = [key for key in ("labels", "modules") if entry.get(key) == "all"]
    plain = {key: value for key, value in entry.items() if key not in every and value is not None}
    for key in ("after", "labels", "modules", "losses", "which", "splits"):
        if key in plain and not isinstance(plain[key], list):
            plain[key] = [plain[key]]
    stage = _typed(Stage, {**plain, "name": name, "kind": kind}, where)
    if kind == "pack" and (stage.corpus not in CORPORA or not stage.source):
        raise InputError(f"{where} needs a `source` folder and a `corpus`, one of {', '.join(CORPORA)}")
    if kind == "analyze" and not stage.which:
        raise InputError(f"{where} needs `which`, a list of analyses (python -m simdist.analyze --help names them)")
    if kind == "decode" and not stage.losses:
        raise InputError(f"{where} needs at least one of `losses`, such as [mse]")
    return stage


def _ordered(stages: dict[str, Stage], where: str) -> dict[str, Stage]:
    """In the order of their kinds, with a training always; an analysis waits for probes and decoders."""
    kinds = [stage.kind for stage in stages.values()]
    for kind in ("pack", "train", "report"):
        if kinds.count(kind) > 1:
            raise InputError(f"{where}: {kinds.count(kind)} stages of kind {kind}; there can be one")
    if "train" not in kinds:
        stages = {**stages, "train": Stage("train", "train")}
    ordered = dict(sorted(stages.items(), key=lambda item: ORDER.index(item[1].kind)))
    before = [stage.name for stage in ordered.values() if stage.kind in ("probe", "decode")]
    for name, stage in ordered.items():
        for parent in stage.after:
            allowed = [other for other in before if list(ordered).index(other) < list(ordered).index(name)]
            if parent not in allowed:
                listed = ", ".join(allowed) or "none"
                raise InputError(f"{where}: stage {name}: after names {parent!r}; stages that come before are {listed}")
        if stage.kind == "analyze" and not stage.after:
            ordered[name] = dataclasses.replace(stage, after=tuple(before))
    return ordered


def _typed(cls: Any, content: dict[str, Any], where: str) -> Any:
    """`content` as an instance of a dataclass, types checked by jsonargparse."""
    parser = Parser(prog="sweep")
    parser.add_class_arguments(cls)
    try:
        with parser.raising(prefix=f"{where}: "):
            values = parser.instantiate(parser.parse_object(content))
        return cls(**{item.name: values[item.name] for item in dataclasses.fields(cls)})
    except ValueError as error:
        raise InputError(f"{where}: {error}") from error


def _read_yaml(file: Path) -> dict[str, Any]:
    if not file.is_file():
        if (SHIPPED / file.name).is_file() and file.parent.resolve() != SHIPPED:
            raise InputError(f"sweep file {file} does not exist; did you mean {file.stem!r}, which comes with simdist?")
        folder = file.parent if any(file.parent.glob("*.yaml")) else SHIPPED
        found = ", ".join(sorted(path.name for path in folder.glob("*.yaml")))
        raise InputError(f"sweep file {file} does not exist; those in {folder} are {found}")
    return read_yaml(file)


def _override(content: dict[str, Any], text: str) -> None:
    """Put `key=value` into the sweep's content."""
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise InputError(f"{text!r} is no override; write key=value, such as train.max_steps=20 or seeds=[0,1]")
    try:
        parsed = yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise InputError(f"the value of {text!r} is not valid YAML: {' '.join(str(error).split())}") from error
    first, *rest = key.split(".")
    if first in CONFIG_KEYS:
        first, rest = "config", [key]
    elif first in ("config", "grid"):
        rest = [".".join(rest)] if rest else []
    place = content
    for part in [first, *rest][:-1]:
        if not isinstance(place.setdefault(part, {}) or {}, dict):
            raise InputError(f"{text!r}: {part} has no keys below it")
        place[part] = place[part] or {}
        place = place[part]
    place[[first, *rest][-1]] = parsed
