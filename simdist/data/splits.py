"""What a packed split looks like on disk, and how to open one.

A split is a folder:

    shard-000000.tar …   ordinary WebDataset tars: KEY.flac or KEY.wav (PCM16), KEY.json, KEY.phones.npy
    index.npz            one row per sample, in shard order (see `Index`); numpy arrays, never pickled
    manifest.json        written last, so that a folder with a manifest is complete (see `Manifest`)

The index says at which byte of which tar a sample's audio lies, so that a crop is read without walking the tar.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, NotRequired, TypedDict

import msgspec
import numpy as np
import numpy.typing as npt

from simdist.config.schema import DataConfig
from simdist.core.errors import InputError
from simdist.core.files import open_regular, read_regular

FORMAT_VERSION = 1
MANIFEST = "manifest.json"
INDEX = "index.npz"
PHONE_HOP = 160  # samples between two phone labels: 10 ms at 16 kHz
WAV_HEADER = 44  # bytes before the first sample of the WAV files that simdist.pack writes
NPY_HEADER = 128  # bytes before the first value of a two-dimensional array in .npy
FLAC_DENSITY = 6554  # samples per byte at most: a frame takes 10 bytes or more and holds 65,535 samples or fewer
NOT_IN_NAMES = frozenset("/\\\0") | {chr(code) for code in range(0xD800, 0xE000)}  # surrogates cannot be encoded

Count = Annotated[int, msgspec.Meta(ge=0, le=2**53)]


def is_plain(name: object) -> bool:
    """Whether a name that was read from a file stays in the folder that it is looked up in."""
    return isinstance(name, str) and name not in ("", ".", "..") and NOT_IN_NAMES.isdisjoint(name)


class ShardEntry(TypedDict):
    """A tar in a manifest."""

    name: str
    sha256: str
    bytes: Count
    num_samples: Count
    num_seconds: float
    largest: NotRequired[float]
    """Of latents: the largest magnitude of a value."""


@dataclass(frozen=True)
class Manifest:
    """The description of a split, as `manifest.json` holds it."""

    format_version: int
    corpus: str
    split: str
    encoding: Literal["flac", "wav", "npy"]
    """`npy` are latents that a stagewise run cached: (frames, channels) float16, and "samples" are frames."""
    sample_rate: int
    num_samples: Count
    """Utterances in the split."""
    num_seconds: float
    shards: list[ShardEntry]
    """The tars, in order."""
    labels: dict[str, list[str]]
    """Class names: `speaker`, `syllable`, `vowel` are one an utterance, `phone` one each 10 ms."""
    fingerprint: str
    """sha256 over the shards' sha256: two splits with equal fingerprints hold equal data."""
    packed_with: dict[str, Any] = field(default_factory=dict)
    """What the split was packed from and how, by which a later packing sees whether it is the same."""

    def __post_init__(self) -> None:
        """Raise ValueError where a name could lead out of the folder: shards and labels become names of files."""
        for name in [shard["name"] for shard in self.shards] + list(self.labels):
            if not is_plain(name):
                raise ValueError(f"it names {name!r}, which is no plain file name")


@dataclass(frozen=True)
class Index:
    """One row a sample. All arrays have the length (num_samples,)."""

    key: npt.NDArray[np.str_]
    shard: npt.NDArray[np.int32]
    """Row of the tar in `Manifest.shards`."""
    offset: npt.NDArray[np.int64]
    """Byte of the tar at which the audio member's content begins."""
    size: npt.NDArray[np.int64]
    """Bytes of the audio member."""
    num_samples: npt.NDArray[np.int64]
    """Audio samples at 16 kHz."""
    phones_offset: npt.NDArray[np.int64]
    """Byte of the tar at which the KEY.phones.npy member begins; -1 where there is none."""
    phones_size: npt.NDArray[np.int64]
    labels: dict[str, npt.NDArray[np.int32]]
    """Class of each utterance for each utterance-level label; -1 where it has none. Stored as `label_NAME`."""

    def __len__(self) -> int:
        return len(self.key)

    def save(self, path: Path) -> None:
        arrays = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name != "labels"}
        arrays |= {f"label_{name}": values for name, values in self.labels.items()}
        with path.open("wb") as file:
            np.savez(file, allow_pickle=False, **arrays)

    @staticmethod
    def load(path: Path) -> Index:
        with open_regular(path, None) as file, np.load(file, allow_pickle=False) as stored:
            if sum(member.file_size for member in stored.zip.infolist()) > path.stat().st_size:
                raise ValueError("it is compressed, and may have any size")
            plain = {f.name: stored[f.name] for f in dataclasses.fields(Index) if f.name != "labels"}
            labels = {name.removeprefix("label_"): stored[name] for name in stored if name.startswith("label_")}
        return Index(**plain, labels=labels)


@dataclass(frozen=True)
class Split:
    """A packed split that was opened: folder, manifest and index."""

    folder: Path
    manifest: Manifest
    index: Index

    def shard_path(self, shard: int) -> Path:
        return self.folder / self.manifest.shards[shard]["name"]


def open_split(root: str | Path, name: str) -> Split:
    """Open split `name` below `root`.

    Raises:
        InputError: the folder is missing, empty, unfinished, damaged or of another format version.
    """
    folder = Path(root) / name
    if Path(root).is_file():
        raise InputError(f"data folder {root} is a file; name the folder that simdist.pack wrote")
    if (Path(root) / MANIFEST).is_file() and not folder.exists():
        raise InputError(f"{root} is one split; name the folder above it: {Path(root).resolve().parent}")
    is_default = Path(root) == Path(DataConfig().root)
    how = "python -m simdist.pack librispeech" if is_default else f"python -m simdist.pack CORPUS SOURCE {root}"
    if not folder.is_dir():
        if not Path(root).is_dir():
            raise InputError(f"data folder {root} does not exist; pack a corpus with `{how}`, or set --data.root")
        found = sorted(p.parent.name for p in Path(root).glob(f"*/{MANIFEST}"))
        there = f"it has {', '.join(found)}" if found else "it holds no packed split at all"
        raise InputError(f"data folder {root} has no split {name!r}: {there}; pack a corpus with `{how}`")
    if not (folder / MANIFEST).is_file():
        state = "packing was not finished" if any(folder.iterdir()) else "the folder is empty"
        raise InputError(f"{folder} has no {MANIFEST}: {state}; run `{how}` (it continues where it stopped)")
    manifest = _open_manifest(folder / MANIFEST)
    try:
        index = Index.load(folder / INDEX)
        _check_index(index, manifest)
    except Exception as error:  # zipfile and numpy raise many kinds for what is no index
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise InputError(f"{folder / INDEX} cannot be used ({reason}); pack again with --overwrite") from error
    return Split(folder, manifest, index)


def _check_index(index: Index, manifest: Manifest) -> None:
    """Raise ValueError unless the index describes samples inside the manifest's shards, under plain names."""
    if len(index) != manifest.num_samples:
        raise ValueError(f"it has {len(index)} samples and {MANIFEST} {manifest.num_samples}")
    columns = {name: value for name, value in vars(index).items() if name != "labels"} | index.labels
    for name, column in columns.items():
        if column.shape != (len(index),):
            raise ValueError(f"its column {name!r} has the shape {column.shape}, not ({len(index)},)")
        if len(index) and column.dtype.kind != ("U" if name == "key" else "i"):
            raise ValueError(f"its column {name!r} has the type {column.dtype}")
    _check_labels(index, manifest)
    if len(index) == 0:
        return
    if index.shard.min() < 0 or index.shard.max() >= len(manifest.shards):
        raise ValueError("it names a shard that the manifest does not have")
    inside = (index.num_samples > 0) & _lies_inside(index.offset, index.size, index, manifest)
    inside &= (index.phones_offset < 0) | _lies_inside(index.phones_offset, index.phones_size, index, manifest)
    for row in np.flatnonzero(~inside)[:1]:
        raise ValueError(f"sample {index.key[row]} does not lie inside its shard")
    for row in np.flatnonzero(~_has_room(index, manifest.encoding))[:1]:
        count, size = int(index.num_samples[row]), int(index.size[row])
        raise ValueError(
            f"sample {index.key[row]} cannot have {count:,} samples in {size:,} bytes of {manifest.encoding}"
        )
    keys = index.key.tolist()
    for key in keys:
        if not is_plain(key):
            raise ValueError(f"it names a sample {key!r}, which is no plain file name")
    if len(set(keys)) < len(keys):
        raise ValueError(f"it names {len(keys) - len(set(keys))} samples more than once")


def _check_labels(index: Index, manifest: Manifest) -> None:
    wanted = {name: len(classes) for name, classes in manifest.labels.items() if name != "phone"}
    if index.labels.keys() != wanted.keys():
        raise ValueError(f"it has the labels {sorted(index.labels)} and {MANIFEST} {sorted(wanted)}")
    for name, classes in index.labels.items():
        if len(classes) and not -1 <= classes.min() <= classes.max() < wanted[name]:
            raise ValueError(f"its label {name!r} has classes that {MANIFEST} does not name")


def _lies_inside(offset: np.ndarray, size: np.ndarray, index: Index, manifest: Manifest) -> npt.NDArray[np.bool_]:
    """(num_samples,) whether bytes [offset, offset + size) are in the sample's shard."""
    ends = np.array([shard["bytes"] for shard in manifest.shards], dtype=np.int64)[index.shard]
    return (offset >= 0) & (size > 0) & (offset <= ends) & (size <= ends - offset)


def _has_room(index: Index, encoding: str) -> npt.NDArray[np.bool_]:
    """(num_samples,) whether a member of its size can have as many samples as the index says."""
    if encoding == "flac":
        return index.num_samples // FLAC_DENSITY <= index.size
    if encoding == "wav":
        return (index.size - WAV_HEADER) // 2 == index.num_samples
    return (index.size > NPY_HEADER) & ((index.size - NPY_HEADER) % index.num_samples == 0)


def read_manifest(path: Path) -> Manifest:
    """Raises OSError or ValueError if it cannot be read, or is no manifest."""
    try:
        stored = json.loads(read_regular(path))
        return msgspec.convert({field.name: stored[field.name] for field in dataclasses.fields(Manifest)}, Manifest)
    except (KeyError, TypeError, RecursionError, msgspec.ValidationError) as error:
        raise ValueError(str(error)) from error


def _open_manifest(path: Path) -> Manifest:
    try:
        manifest = read_manifest(path)
    except (OSError, ValueError) as error:
        raise InputError(f"{path} is not a manifest of simdist ({error}); pack again with --overwrite") from error
    if manifest.format_version != FORMAT_VERSION:
        raise InputError(
            f"{path} has format version {manifest.format_version}, this simdist reads {FORMAT_VERSION}; "
            "pack again with --overwrite, or use the simdist that packed it"
        )
    return manifest
