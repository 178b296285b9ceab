"""Labels of packed splits, and the class of each example."""

from __future__ import annotations

import io
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from simdist.config.schema import Config
from simdist.core.errors import InputError
from simdist.data.labels import PHONE_TOLERANCE, SESSION, num_phone_frames
from simdist.data.splits import MANIFEST, Split, open_split
from simdist.probe.settings import FRAME_LABEL, ProbeSettings, names_in

SILENCE = "SIL"  # the phone class that is left out of a second set of metrics


@dataclass(frozen=True)
class Targets:
    """The classes of a split's examples for one label."""

    rows: npt.NDArray[np.int64]
    """(U,) rows of the index that have the label."""
    classes: list[npt.NDArray[np.int64]]
    """For each of these rows its classes: (1,), or (num_frames,) for phones."""
    names: list[str]
    """Class names by number."""

    def counts(self) -> npt.NDArray[np.int64]:
        """(num_classes,) examples of each class."""
        classes = np.concatenate(self.classes)
        return np.bincount(classes[classes >= 0], minlength=len(self.names))

    def only(self, allowed: npt.NDArray[np.bool_]) -> Targets:
        """Without utterances, or with class -1 for frames, whose class is not `allowed`, (num_classes,)."""
        if all(len(classes) == 1 for classes in self.classes):
            kept = [number for number, classes in enumerate(self.classes) if allowed[classes[0]]]
            return Targets(self.rows[kept], [self.classes[number] for number in kept], self.names)
        return Targets(self.rows, [np.where(allowed[classes], classes, -1) for classes in self.classes], self.names)


def labels_of(split: Split) -> list[str]:
    """Labels that at least one utterance of the split carries."""
    index = split.index
    found = sorted(name for name, classes in index.labels.items() if (classes >= 0).any())
    return [*found, FRAME_LABEL] if (index.phones_offset >= 0).any() else found


def num_present(split: Split, label: str) -> int:
    """Number of classes of a label in the split; 2 for phones, which are not counted."""
    if label == FRAME_LABEL:
        return 2
    classes = split.index.labels[label]
    return len(np.unique(classes[classes >= 0]))


@dataclass(frozen=True)
class SplitPair:
    """The splits that a probe is trained and tested on."""

    train: Split
    test: Split


def find_splits(settings: ProbeSettings, config: Config) -> dict[str, SplitPair]:
    """The training and test split of each requested label.

    A label that the run's own splits lack is looked for in pairs such as `syllables_train`, `syllables_test`.

    Raises:
        InputError: a label that nothing carries, named with those that are carried; a label with a single class.
    """
    root = Path(settings.data_root or config.data.root)
    found: dict[str, SplitPair] = {}
    for pair in _pairs(root, settings, config):
        for label in labels_of(pair.train):
            if label in labels_of(pair.test):
                found.setdefault(label, pair)
    single = [label for label, pair in found.items() if num_present(pair.train, label) < 2]
    if settings.all:
        wanted = [label for label in found if label not in single and label != SESSION]
        if not wanted:
            raise InputError(f"the shards in {root} carry no label with two classes or more")
    else:
        wanted = names_in(settings.label)
    carried = ", ".join(found) or "none"
    for label in wanted:
        if label not in found:
            raise InputError(f"the shards in {root} have no label {label!r}; they have {carried}")
        if label in single:
            name = found[label].train.manifest.labels[label][0]
            raise InputError(f"label {label!r} has the single class {name!r} in {root}; there is nothing to tell apart")
    if not wanted:
        raise InputError(f"no label to probe for; give --label, one or more of {carried}, or --all")
    return {label: found[label] for label in wanted}


def _pairs(root: Path, settings: ProbeSettings, config: Config) -> list[SplitPair]:
    """Pairs of splits in the order in which labels are searched."""
    train, test = settings.train_split, settings.test_split
    if (train is None) != (test is None):
        given = "--train-split" if test is None else "--test-split"
        raise InputError(f"{given} is given without the other split. Give both, or neither")
    if train is not None and test is not None:
        return [SplitPair(open_split(root, train), open_split(root, test))]
    train, test = config.data.train_split, config.data.test_split
    pairs = [SplitPair(open_split(root, train), open_split(root, test))]
    for manifest in sorted(root.glob(f"*_{train}/{MANIFEST}"), key=lambda path: (len(path.parent.name), path)):
        prefix = manifest.parent.name.removesuffix(train)
        if (root / (prefix + test) / MANIFEST).is_file():
            pairs.append(SplitPair(open_split(root, prefix + train), open_split(root, prefix + test)))
    return pairs


def different_sessions(pair: SplitPair) -> str | None:
    """A warning where the splits come from different recording sessions, as their labels say; None otherwise."""
    train, test = _sessions(pair.train), _sessions(pair.test)
    if not train or not test or train & test:
        return None
    return (
        f"{pair.train.folder.name} and {pair.test.folder.name} are different recording sessions "
        f"({', '.join(sorted(train))} and {', '.join(sorted(test))}), so accuracies also depend on the recording. "
        "Compare with splits that have all sessions (--train-split, --test-split)"
    )


def _sessions(split: Split) -> set[str]:
    if SESSION not in split.index.labels:
        return set()
    names = split.manifest.labels[SESSION]
    return {names[number] for number in np.unique(split.index.labels[SESSION]) if number >= 0}


def read_targets(split: Split, label: str) -> Targets:
    """Every example's class.

    Raises:
        InputError: phones that are missing from the tar, no classes, or do not fit the audio.
    """
    names = split.manifest.labels[label]
    if label != FRAME_LABEL:
        classes = split.index.labels[label]
        rows = np.flatnonzero(classes >= 0)
        return Targets(rows, [np.array([classes[row]], dtype=np.int64) for row in rows], names)
    rows = np.flatnonzero(split.index.phones_offset >= 0)
    return Targets(rows, [read_phones(split, int(row), len(names)) for row in rows], names)


def read_phones(split: Split, row: int, num_classes: int) -> npt.NDArray[np.int64]:
    """An utterance's phone classes, one per 10 ms, (num_frames,).

    Raises:
        InputError: they cannot be read, are no classes, or differ from the audio by more than a few frames.
    """
    index = split.index
    path, key = split.shard_path(int(index.shard[row])), str(index.key[row])
    try:
        with path.open("rb") as tar:
            tar.seek(int(index.phones_offset[row]))
            content = tar.read(int(index.phones_size[row]))
        phones = np.load(io.BytesIO(content), allow_pickle=False).astype(np.int64)
    except Exception as error:  # numpy raises many kinds for what is no array
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"the phones of {key} in {path} cannot be read ({reason}); pack again") from error
    frames = num_phone_frames(int(index.num_samples[row]))
    if phones.ndim != 1 or abs(len(phones) - frames) > PHONE_TOLERANCE:
        raise InputError(
            f"{key} in {path} has {phones.size:,} phones, but its audio has {frames:,} frames of 10 ms; "
            "labels and audio do not belong together: pack again"
        )
    if len(phones) and (phones.min() < 0 or phones.max() >= num_classes):
        raise InputError(f"the phones of {key} in {path} are not all within 0..{num_classes - 1}; pack again")
    return phones


_CUT_FROM = re.compile(r"([^-]+-[^-]+)-[^-]+|([a-z]+_\d+)_\d_[a-z]+(_session\d+)?")


def recordings(split: Split, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """(U,) a number for the recording that each utterance was cut from, as its key says.

    A chapter of LibriSpeech (SPEAKER-CHAPTER-UTTERANCE), or a word of the artificial speech (WORD_N_I_SYLLABLE); other
    utterances are recordings of their own.
    """
    keys = [str(split.index.key[row]) for row in rows]
    found = [_CUT_FROM.fullmatch(key) for key in keys]
    names = ["".join(filter(None, match.groups())) if match else key for match, key in zip(found, keys, strict=True)]
    return np.unique(names, return_inverse=True)[1].astype(np.int64)


def drop_unseen(train: Targets, test: Targets, label: str, policy: str) -> tuple[Targets, list[str]]:
    """The test examples whose class occurs in training, and the names of the classes left out.

    Raises:
        InputError: there is such a class and the policy is `fail`.
    """
    if train.names != test.names:
        raise InputError(f"the two splits number the classes of {label!r} differently; pack them in one command")
    seen = train.counts() > 0
    unseen = [test.names[number] for number in np.flatnonzero((test.counts() > 0) & ~seen)]
    if unseen and policy == "fail":
        raise InputError(
            f"test classes of {label!r} that training never shows: {', '.join(unseen)}; "
            "split otherwise, or leave them out with --unseen drop"
        )
    return (test.only(seen) if unseen else test), unseen
