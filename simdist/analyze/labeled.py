"""Vectors of a module with their labels: time-averaged clips, or single frames where phones are asked for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from simdist.analyze.encoder_under_test import EncoderUnderTest, draw
from simdist.analyze.settings import LabelSettings
from simdist.core.errors import InputError
from simdist.data.splits import Split
from simdist.probe.feature_spec import FeatureSpec, check_lengths, encode_rows, spec_for
from simdist.probe.labels import SplitPair, find_splits, read_targets
from simdist.probe.settings import FRAME_LABEL, ProbeSettings

CHUNK = 32  # utterances between two looks at the stop signal


@dataclass(frozen=True)
class Vectors:
    """N vectors of C dimensions."""

    values: npt.NDArray[np.float64]
    """(N, C)."""
    classes: dict[str, npt.NDArray[np.int64]]
    """For each label (N,) class numbers."""
    names: dict[str, list[str]]
    """For each label the names of its classes."""

    def __len__(self) -> int:
        return len(self.values)


@dataclass(frozen=True)
class Labeled:
    """Where the vectors of some labels come from: the splits that carry them, and what is kept of an utterance."""

    labels: list[str]
    pair: SplitPair
    spec: FeatureSpec

    @property
    def fingerprints(self) -> list[str]:
        return [split.manifest.fingerprint for split in (self.pair.train, self.pair.test)]


def find_labeled(encoder: EncoderUnderTest, labels: str, data_root: Path | None, seed: int) -> list[Labeled]:
    """The splits of each label asked for (empty: of each there is); labels of the same splits and kind together.

    Raises:
        InputError: a label that nothing carries, or that has one class only.
    """
    config = encoder.run.config
    settings = ProbeSettings(label=labels, all=not labels, data_root=data_root, crops=1, seed=seed)
    found: dict[tuple[str, bool], Labeled] = {}
    for label, pair in find_splits(settings, config).items():
        spec = spec_for(settings, config, label, pair)
        check_lengths(config, spec, pair, with_mfcc=False)
        key = (str(pair.test.folder), label == FRAME_LABEL)
        found.setdefault(key, Labeled([], pair, spec)).labels.append(label)
    return list(found.values())


def vectors_of(
    encoder: EncoderUnderTest,
    module: int,
    where: Labeled,
    split: Split,
    wanted: int,
    seed: int,
    check: Callable[[], None] = lambda: None,
) -> Vectors:
    """Up to `wanted` vectors of a module, drawn at random from a split, with every label that `where` names.

    Args:
        check: called between utterances; may raise to stop.
    """
    frames = where.spec.kind == "frames"
    targets = {label: read_targets(split, label) for label in where.labels}
    rows = np.array(sorted(set.intersection(*(set(t.rows.tolist()) for t in targets.values()))), dtype=np.int64)
    rows = rows[draw(len(rows), min(wanted, len(rows)), seed, "examples")]
    values, owners = _encoded(encoder, module, where.spec, split, rows, check)
    classes = {label: _classes(label, t.rows, t.classes, rows, owners) for label, t in targets.items()}
    if frames:
        kept = draw(len(values), wanted, seed, "frames")
        values, classes = values[kept], {label: found[kept] for label, found in classes.items()}
    return Vectors(values, classes, {label: t.names for label, t in targets.items()})


def _encoded(
    encoder: EncoderUnderTest,
    module: int,
    spec: FeatureSpec,
    split: Split,
    rows: npt.NDArray[np.int64],
    check: Callable[[], None],
) -> tuple[npt.NDArray[np.float64], list[int]]:
    """(N, C) vectors of these utterances in their order, and how many each has."""
    found: dict[int, torch.Tensor] = {}
    for begin in range(0, len(rows), CHUNK):
        check()
        part = rows[begin : begin + CHUNK].tolist()
        encoded = encode_rows(encoder.extractor, split, part, [spec], encoder.device)
        found |= {row: specs[0][module] for row, specs in encoded}
    parts = [found[row].double().numpy() for row in rows.tolist()]
    return np.concatenate(parts), [len(part) for part in parts]


def _classes(
    label: str,
    known: npt.NDArray[np.int64],
    classes: list[npt.NDArray[np.int64]],
    rows: npt.NDArray[np.int64],
    counts: list[int],
) -> npt.NDArray[np.int64]:
    """The class of every vector: an utterance's own, repeated, or one each frame."""
    by_row = dict(zip(known.tolist(), classes, strict=True))
    parts = []
    for row, count in zip(rows.tolist(), counts, strict=True):
        own = by_row[row]
        parts.append(np.resize(own, count) if len(own) == 1 else own[:count])
        if len(parts[-1]) != count:
            raise InputError(f"row {row} has {count} frames and {len(own)} classes of {label!r}; pack the corpus again")
    return np.concatenate(parts)


def with_consonants(vectors: Vectors) -> Vectors:
    """Syllables taken apart: where all of them end in the vowel's name, `consonant` takes the place of `syllable`.

    Syllable and vowel are no independent factors, and a score of disentanglement asks for such.
    """
    if not {"syllable", "vowel"} <= set(vectors.classes):
        return vectors
    syllables, vowels = (vectors.names[label] for label in ("syllable", "vowel"))
    stems = [next((s.removesuffix(v) for v in vowels if s.endswith(v) and s != v), None) for s in syllables]
    if None in stems:
        return vectors
    consonants = sorted({stem for stem in stems if stem})
    numbers = np.array([consonants.index(stem) for stem in stems if stem])
    classes = {"consonant": numbers[vectors.classes["syllable"]], **vectors.classes}
    del classes["syllable"]
    return Vectors(vectors.values, classes, {**vectors.names, "consonant": consonants})


class LabeledAnalysis:
    """What the analyses of labeled vectors share: finding them."""

    def __init__(self, encoder: EncoderUnderTest, module: int, settings: LabelSettings) -> None:
        self.encoder, self.module = encoder, module
        self.found = find_labeled(encoder, settings.label, settings.data_root, settings.seed)
        self.inputs = [fingerprint for where in self.found for fingerprint in where.fingerprints]
        self.where = f"{encoder.run.folder.name}, module {module}"
