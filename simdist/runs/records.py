"""The schema of every record in a run folder: metrics, events, configuration, results of probes, decoders and analyses.

Run folders are written to while they are read, by jobs of other versions and by people. A record either fits its schema
and can be used without further checks, or `RecordError` says where it does not. Keys that a schema does not name are
ignored, so that later versions may add some. Imports no torch.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import msgspec
import yaml
from msgspec import Meta, Struct

from simdist.core.files import MOST_CONFIG_BYTES, AliasError, NumberedLine, load_yaml, numbered_lines, read_regular

Record = TypeVar("Record")
LARGEST = 1e30  # magnitude; its square and a float32 can hold it
MOST_RESULT_BYTES = 2**26
SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")  # JSON can spell characters that no text file can hold

Count = Annotated[int, Meta(ge=0, le=2**53)]
Positive = Annotated[int, Meta(ge=1, le=2**53)]
Finite = Annotated[float, Meta(ge=-LARGEST, le=LARGEST)]
Amount = Annotated[float, Meta(ge=0, le=LARGEST)]
Share = Annotated[float, Meta(ge=0, le=1)]
Word = Annotated[str, Meta(max_length=1000)]
Text = Annotated[str, Meta(max_length=20_000)]
Setting = Word | bool | int | float | None | list[Word | int | float]


class RecordError(ValueError):
    """A record does not fit its schema; the message says where, and what was expected."""


class ModuleMetrics(Struct, frozen=True):
    """Metrics of one module; those of a diverged one are NaN or infinite."""

    module: Count | None = None
    """None in records of early versions, which hold all modules in order."""
    loss: float | None = None
    nce: float | None = None
    kl: float | None = None
    accuracy: float | None = None
    active_units: float | None = None


class MetricsRecord(Struct, frozen=True):
    """A line of metrics.jsonl."""

    kind: Literal["train", "validation"]
    step: Count
    modules: list[ModuleMetrics]
    epoch: Amount = 0.0
    samples_per_s: Amount | None = None

    def by_module(self) -> dict[int, ModuleMetrics]:
        """The modules by their number."""
        return {index if m.module is None else m.module: m for index, m in enumerate(self.modules)}


class EventRecord(Struct, frozen=True):
    """A line of events.jsonl."""

    event: Word
    step: Count | None = None
    host: Word = ""
    text: Text = ""
    world_size: Positive | None = None


class DataSection(Struct, frozen=True):
    """`data` of a configuration."""

    root: Word | None = None
    train_split: Word | None = None
    crop: Positive | None = None
    batch_size: Positive | None = None
    epoch: Word = "all"


class LossSection(Struct, frozen=True):
    """`loss` of a configuration."""

    num_negatives: Positive | None = None
    kl_reduction: Word | None = None


class ModelSection(Struct, frozen=True):
    """`model` of a configuration."""

    head: Word | None = None
    modules: list[dict[str, Any]] | None = None


class TrainSection(Struct, frozen=True):
    """`train` of a configuration."""

    epochs: Annotated[float, Meta(gt=0, le=1e9)] | None = None
    schedule: Word | None = None
    trunk_modules: Count = 0
    max_steps: Positive | None = None


class RunConfig(Struct, frozen=True):
    """What is used of config.yaml; another version may have written the rest."""

    name: Word
    seed: Annotated[int, Meta(ge=-(2**53), le=2**53)]
    data: DataSection = DataSection()
    loss: LossSection = LossSection()
    model: ModelSection = ModelSection()
    train: TrainSection = TrainSection()


class Environment(Struct, frozen=True):
    """What is used of environment.json."""

    slurm: dict[str, str] = {}


class ProbeSource(Struct, frozen=True):
    """The features that were probed."""

    kind: Word
    module: Count | None
    """None for what has no module, such as MFCC."""
    step: Count | None
    layer: Count | None = None
    """Inside the module; None for its output."""


class Score(Struct, frozen=True):
    """A share of test vectors."""

    value: Share
    interval: tuple[Share, Share] | None = None
    """95 %."""


class QuietScore(Struct, frozen=True):
    """A score without silence."""

    accuracy: Score


class Tested(Struct, frozen=True):
    """What a probe reached on the test split."""

    accuracy: Score
    balanced_accuracy: Score
    without_silence: QuietScore | None = None


class CurvePoint(Struct, frozen=True):
    """A point of a few-label curve."""

    examples_per_class: Positive
    accuracy: Score


class ProbeSplit(Struct, frozen=True):
    """A split that a probe was trained on."""

    labels: Count


class TestedSplit(Struct, frozen=True):
    """A split that a probe was tested on."""

    split: Word | None = None


class ProbeData(Struct, frozen=True):
    """The data of a probe."""

    train: ProbeSplit
    test: TestedSplit = TestedSplit()


class ProbeSettingsRecord(Struct, frozen=True):
    """The settings of a probe that are used one by one."""

    probe: Literal["linear", "lbfgs", "mlp"]
    examples_per_class: list[Positive] | None = None


class ProbeResult(Struct, frozen=True):
    """probes/NAME/result.json, with either a test or a few-label curve."""

    label: Word
    source: ProbeSource
    view: dict[Word, Setting]
    probe: dict[Word, Setting]
    chance: Share
    test: Tested | None = None
    curve: list[CurvePoint] | None = None
    data: ProbeData | None = None
    classes: Annotated[list[Word], Meta(min_length=1)] | None = None
    warnings: list[Word] = []
    protocol: Word | None = None
    """The published protocol that was followed, and what deviates from it: `thesis, but epochs 50`."""
    finished: Amount = 0
    """Unix time."""

    def __post_init__(self) -> None:
        parse(self.probe, ProbeSettingsRecord)
        if (self.test is None) == (self.curve is None):
            raise ValueError("Expected either `test` or `curve`")


class AnalysisRecord(Struct, frozen=True):
    """analysis/NAME/result.json."""

    analysis: Word
    module: Count
    step: Count
    finished: Amount
    values: dict[str, Any]
    """Of its kind; `simdist.analyze.registry` names the numbers in it."""
    summary: list[Word]
    layer: Count | None = None
    """Inside the module; None for its output."""
    definition: Word | None = None
    """`paper` for a score as the authors' code computes it; None for ours."""


AnalysisNumber = tuple[dict[Word, Word | bool | int | Finite | None], Word, Finite]
"""One of the numbers that `simdist.analyze.registry` finds in an analysis: what was measured, the metric, its value."""


class DecoderScore(Struct, frozen=True):
    """A figure of a decoder's quality; None where no test clip was long enough."""

    value: Finite | None


class DecodedEncoder(Struct, frozen=True):
    """The encoder of a decoder."""

    untrained: bool
    step: Count | None


class DecoderResult(Struct, frozen=True):
    """decoders/NAME/result.json."""

    module: Count
    loss: Word
    encoder: DecodedEncoder
    quality: dict[Word, dict[Word, DecoderScore]]
    layer: Count | None = None
    """Inside the module; None for its latent."""


class CorpusSize(Struct, frozen=True):
    """What is used of a packed split's manifest.json."""

    num_samples: Count


class JobMarker(Struct, frozen=True):
    """jobs/NAME.json, which a finished job of a sweep leaves."""

    command: list[str]
    seconds: Amount
    partition: Word | None = None


def parse(content: object, kind: type[Record]) -> Record:
    """Content of JSON or YAML as a record.

    Raises:
        RecordError: it does not fit.
    """
    try:
        return msgspec.convert(content, kind)
    except msgspec.ValidationError as error:
        what, _, where = str(error).replace("`", "").partition(" - at ")
        raise RecordError(f"{where.removeprefix('$').lstrip('.') or 'the record'}: {what}") from error


def parse_json(raw: bytes, kind: type[Record]) -> Record:
    """JSON in UTF-8 as a record.

    Raises:
        RecordError: it does not fit, or is no JSON.
    """
    try:
        text = raw.decode()
        content = json.loads(text)
        if SURROGATE.search(text):
            json.dumps(content, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        raise RecordError(f"it is no JSON ({' '.join(str(error).split())[:120]})") from error
    return parse(content, kind)


def read_record(path: Path, kind: type[Record]) -> Record:
    """The record in a JSON file.

    Raises:
        OSError: the file cannot be read, is not a regular file, or is too large.
        RecordError: it does not fit.
    """
    return parse_json(read_regular(path, MOST_RESULT_BYTES), kind)


def read_lines(path: Path, kind: type[Record]) -> tuple[list[Record], list[str]]:
    """Records of a JSON-lines file ([] if it does not exist), and what is wrong with each line that is left out.

    Raises:
        OSError: the file cannot be read, is not a regular file, or is too large.
    """
    return parse_lines(numbered_lines(path), kind)


def parse_lines(lines: Sequence[NumberedLine], kind: type[Record]) -> tuple[list[Record], list[str]]:
    """Like `read_lines`, of lines that were read before."""
    records, wrong = [], []
    for line in lines:
        try:
            records.append(parse_json(line.raw, kind))
        except RecordError as error:
            wrong.append(f"line {line.number}: {error}")
    return records, wrong


def read_config(path: Path) -> tuple[dict[str, Any], RunConfig]:
    """The configuration of a run as nested dictionaries, without validation of what this version does not use.

    Raises:
        OSError: the file cannot be read, is not a regular file, or is too large.
        RecordError: it does not fit, is no YAML, or has aliases, with which a short file can hold billions of values.
    """
    try:
        text = read_regular(path, MOST_CONFIG_BYTES).decode()
        content = json.loads(json.dumps(load_yaml(text)))  # no dates and no bytes
        json.dumps(content, ensure_ascii=False).encode()
    except AliasError as error:
        raise RecordError(f"it {error}") from error
    except (yaml.YAMLError, ValueError, TypeError, RecursionError) as error:
        raise RecordError(f"it is no YAML of plain values ({' '.join(str(error).split())[:120]})") from error
    return content, parse(content, RunConfig)


def is_finite(value: float | None) -> bool:
    """Whether there is a number that a run can measure before it diverges."""
    return value is not None and math.isfinite(value) and abs(value) <= LARGEST
