"""Shards whose manifest, index or members lie, through the loader of training, whatever the cache.

Their manifest vouches for every lie, so that no sha256 finds it. Each is refused, or its sample skipped, with one
sentence that names the file and the sample; what training does not look at (the tar's own headers) changes nothing.
"""

from __future__ import annotations

import dataclasses
import io
import json
import os
import re
import shutil
import signal
import struct
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from rich.console import Console

from simdist.config.schema import DataConfig
from simdist.core.errors import InputError
from simdist.core.files import sha256_of
from simdist.core.signals import SignalHandler
from simdist.data.loader import BatchLoader, open_clips
from simdist.data.splits import INDEX, MANIFEST, Index, Split, open_split
from simdist.pack.librispeech import librispeech
from simdist.pack.packing import Options, pack
from simdist.probe.labels import read_phones
from tests.support.packing_cases import small_corpus

ROW = 3
CACHES = ("none", "memory", "device")


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight utterances in two shards, as FLAC and as WAV."""
    folder = tmp_path_factory.mktemp("packed")
    corpus = small_corpus(folder, speakers=2)
    plan = librispeech(corpus.source, test_fraction=0, phones=corpus.phones)
    for encoding in ("flac", "wav"):
        options = Options(encoding=encoding, shard_samples=4)
        pack(plan, folder / encoding, options, Console(quiet=True), SignalHandler())
    return folder


@pytest.fixture(autouse=True)
def _no_hang() -> Iterator[None]:
    """Ends a test that waits for a pipe."""
    before = signal.signal(signal.SIGALRM, lambda *_: pytest.fail("it hangs"))
    signal.alarm(30)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@dataclass
class Lie:
    """A copy of the shards to lie in."""

    folder: Path
    split: Split

    @property
    def key(self) -> str:
        return str(self.split.index.key[ROW])

    @property
    def pcm(self) -> np.ndarray:
        """A tone as long as the sample that is lied about."""
        time = np.arange(int(self.split.index.num_samples[ROW])) / 16_000
        return (8000 * np.sin(2 * np.pi * 300 * time)).astype(np.int16)

    def manifest(self, change: Callable[[dict[str, Any]], object]) -> None:
        path = self.folder / MANIFEST
        stored = json.loads(path.read_text())
        change(stored)
        path.write_text(json.dumps(stored))

    def index(self, **columns: object) -> None:
        """Replace columns; a plain number only in one row."""
        index = vars(self.split.index).copy()
        for name, value in columns.items():
            if isinstance(value, int | str):
                index[name] = index[name].copy()
                index[name][ROW] = value
            else:
                index[name] = value
        Index(**index).save(self.folder / INDEX)

    def member(self, content: bytes, **columns: int) -> None:
        """Put other audio in the place of the sample's, at the end of its tar, and vouch for it."""
        shard = int(self.split.index.shard[ROW])
        path = self.split.shard_path(shard)
        offset = path.stat().st_size
        with path.open("ab") as tar:
            tar.write(content)
        self.index(**{"offset": offset, "size": len(content), **columns})
        self.vouch(shard)

    def tar(self, change: Callable[[bytearray, int], object]) -> None:
        """Change the bytes of the sample's tar, given them and where the sample's header begins."""
        shard = int(self.split.index.shard[ROW])
        path = self.split.shard_path(shard)
        content = bytearray(path.read_bytes())
        change(content, int(self.split.index.offset[ROW]) - tarfile.BLOCKSIZE)
        path.write_bytes(content)
        self.vouch(shard)

    def vouch(self, shard: int) -> None:
        path = self.split.shard_path(shard)

        def change(stored: dict[str, Any]) -> None:
            stored["shards"][shard] |= {"sha256": sha256_of(path), "bytes": path.stat().st_size}

        self.manifest(change)


def sound(pcm: np.ndarray, rate: int = 16_000, kind: str = "FLAC", subtype: str = "PCM_16") -> bytes:
    written = io.BytesIO()
    soundfile.write(written, pcm, rate, format=kind, subtype=subtype)
    return written.getvalue()


def announcing(flac: bytes, samples: int) -> bytes:
    """A FLAC whose STREAMINFO states another number of samples."""
    changed = bytearray(flac)
    (packed,) = struct.unpack(">Q", changed[18:26])
    changed[18:26] = struct.pack(">Q", packed >> 36 << 36 | samples)
    return bytes(changed)


def stored(**changes: object) -> Callable[[Lie], None]:
    return lambda lie: lie.manifest(lambda manifest: manifest.update(changes))


def first_shard(**changes: object) -> Callable[[Lie], None]:
    return lambda lie: lie.manifest(lambda manifest: manifest["shards"][0].update(changes))


def column(name: str, value: Any) -> Callable[[Lie], None]:
    return lambda lie: lie.index(**{name: value(getattr(lie.split.index, name)) if callable(value) else value})


def replaced(name: str, make: Callable[[Path], object]) -> Callable[[Lie], None]:
    def change(lie: Lie) -> None:
        (lie.folder / name).unlink()
        make(lie.folder / name)

    return change


def raw_index(path: Path, compression: int = zipfile.ZIP_STORED, **members: bytes) -> None:
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name in [field.name for field in dataclasses.fields(Index) if field.name != "labels"]:
            archive.writestr(f"{name}.npy", members.get(name, npy(np.zeros(8, np.int64))))


def npy(array: np.ndarray, shape: str = "") -> bytes:
    written = io.BytesIO()
    np.save(written, array, allow_pickle=False)
    content = written.getvalue()
    return content.replace(f"({len(array)},), ".encode(), f"({shape},), ".encode()) if shape else content


def halved(lie: Lie) -> None:
    index = lie.split.index
    Index(**{n: v[:4] for n, v in vars(index).items() if n != "labels"}, labels={}).save(lie.folder / INDEX)


def rotten(tar: bytearray, place: int) -> None:
    tar[place : place + tarfile.BLOCKSIZE] = b"\xff" * tarfile.BLOCKSIZE


def header(change: Callable[[tarfile.TarInfo], object]) -> Callable[[Lie], None]:
    """Another tar header before the sample."""

    def written(content: bytearray, place: int) -> None:
        info = tarfile.TarInfo.frombuf(bytes(content[place : place + tarfile.BLOCKSIZE]), "utf-8", "strict")
        change(info)
        content[place : place + tarfile.BLOCKSIZE] = info.tobuf(tarfile.USTAR_FORMAT)[: tarfile.BLOCKSIZE]

    return lambda lie: lie.tar(written)


def named(**changes: object) -> Callable[[tarfile.TarInfo], object]:
    return lambda info: [setattr(info, name, value) for name, value in changes.items()]


MANIFEST_SAID, INDEX_SAID, SKIPPED = (
    r"manifest\.json",
    r"index\.npz cannot be used \(",
    "KEY in .*tar cannot be decoded",
)
LIES: dict[str, tuple[str, Callable[[Lie], object], str]] = {
    # members: skipped like any corrupt sample
    "flac of another rate": ("flac", lambda lie: lie.member(sound(lie.pcm, 8000)), SKIPPED),
    "flac in stereo": ("flac", lambda lie: lie.member(sound(np.stack([lie.pcm, lie.pcm], 1))), SKIPPED),
    "flac that is longer": ("flac", lambda lie: lie.member(announcing(sound(lie.pcm), 2**35)), SKIPPED),
    "flac that is longer in both": (
        "flac",
        lambda lie: lie.member(announcing(sound(lie.pcm), 2**35), num_samples=2**35),
        INDEX_SAID,
    ),
    "flac that is a bit longer in both": (
        "flac",
        lambda lie: lie.member(announcing(sound(lie.pcm), 2**25), num_samples=2**25),
        SKIPPED,
    ),
    "flac that is shorter": ("flac", lambda lie: lie.member(announcing(sound(lie.pcm), 100)), SKIPPED),
    "flac of one sample": ("flac", lambda lie: lie.member(sound(lie.pcm[:1])), SKIPPED),
    "flac of text": ("flac", lambda lie: lie.member(b"fLaC" + b"no audio " * 99), SKIPPED),
    "flac of nothing": ("flac", lambda lie: lie.member(b""), INDEX_SAID),
    "flac of zeros": ("flac", lambda lie: lie.member(bytes(5000)), SKIPPED),
    "flac cut": ("flac", lambda lie: lie.member(sound(lie.pcm)[:200]), SKIPPED),
    "flac that is a wav": ("flac", lambda lie: lie.member(sound(lie.pcm, kind="WAV")), "harmless"),
    "flac that is ogg": ("flac", lambda lie: lie.member(sound(lie.pcm, kind="OGG", subtype="VORBIS")), "harmless"),
    "wav of another rate": ("wav", lambda lie: lie.member(sound(lie.pcm, 8000, "WAV")), SKIPPED),
    "wav in stereo": ("wav", lambda lie: lie.member(sound(np.stack([lie.pcm, lie.pcm], 1), kind="WAV")), INDEX_SAID),
    "wav in stereo of half": (
        "wav",
        lambda lie: lie.member(sound(lie.pcm[: len(lie.pcm) // 2 * 2].reshape(-1, 2), kind="WAV")),
        SKIPPED,
    ),
    "wav of floats": ("wav", lambda lie: lie.member(sound(lie.pcm, kind="WAV", subtype="FLOAT")), INDEX_SAID),
    "wav of bytes": (
        "wav",
        lambda lie: lie.member(sound(np.tile(lie.pcm, 2), kind="WAV", subtype="PCM_U8")),
        SKIPPED,
    ),
    "wav that is flac": ("wav", lambda lie: lie.member(sound(lie.pcm)), INDEX_SAID),
    "wav of zeros": ("wav", lambda lie: lie.member(bytes(44 + 2 * len(lie.pcm))), SKIPPED),
    "wav shorter": ("wav", lambda lie: lie.member(sound(lie.pcm[:-9], kind="WAV")), INDEX_SAID),
    # index
    "index is text": ("flac", replaced(INDEX, lambda path: path.write_text("no index")), INDEX_SAID),
    "index is empty": ("flac", replaced(INDEX, lambda path: path.touch()), INDEX_SAID),
    "index is lost": ("flac", replaced(INDEX, lambda path: None), INDEX_SAID),
    "index is a fifo": ("flac", replaced(INDEX, os.mkfifo), INDEX_SAID),
    "index is a folder": ("flac", replaced(INDEX, lambda path: path.mkdir()), INDEX_SAID),
    "index is endless": ("flac", replaced(INDEX, lambda path: path.symlink_to("/dev/zero")), INDEX_SAID),
    "index is an array": ("flac", replaced(INDEX, lambda path: path.write_bytes(npy(np.zeros(8)))), INDEX_SAID),
    "index is cut": ("flac", lambda lie: os.truncate(lie.folder / INDEX, 900), INDEX_SAID),
    "index announces much": (
        "flac",
        replaced(INDEX, lambda path: raw_index(path, offset=npy(np.zeros(8, np.int64), "4398046511104"))),
        INDEX_SAID,
    ),
    "index is compressed": (
        "flac",
        replaced(INDEX, lambda path: raw_index(path, zipfile.ZIP_DEFLATED, offset=npy(np.zeros(10**7, np.int64)))),
        INDEX_SAID,
    ),
    "index has a torn header": (
        "flac",
        replaced(INDEX, lambda path: raw_index(path, offset=npy(np.zeros(8)).replace(b"False", b"(((((")),),
        INDEX_SAID,
    ),
    "index lacks a column": (
        "flac",
        replaced(INDEX, lambda path: np.savez(path, key=np.array(["a"] * 8), allow_pickle=False)),
        INDEX_SAID,
    ),
    "index of half": ("flac", halved, INDEX_SAID),
    "offsets are floats": ("flac", column("offset", lambda offset: offset.astype(np.float64)), INDEX_SAID),
    "offsets are unsigned": ("flac", column("offset", lambda offset: offset.astype(np.uint64)), INDEX_SAID),
    "offsets are complex": ("flac", column("offset", lambda offset: offset.astype(np.complex64)), INDEX_SAID),
    "offsets are words": ("flac", column("offset", lambda offset: offset.astype(np.str_)), INDEX_SAID),
    "offsets are a table": ("flac", column("offset", lambda offset: offset.reshape(2, 4)), INDEX_SAID),
    "shards are floats": ("flac", column("shard", lambda shard: shard.astype(np.float32)), INDEX_SAID),
    "keys are numbers": ("flac", column("key", np.arange(8)), INDEX_SAID),
    "keys are bytes": ("flac", column("key", lambda key: key.astype(np.bytes_)), INDEX_SAID),
    "keys are twice there": ("flac", lambda lie: lie.index(key=str(lie.split.index.key[0])), INDEX_SAID),
    "a key of no text": ("flac", column("key", "\ud800"), INDEX_SAID),
    "an offset beyond all": ("flac", column("offset", 2**63 - 8), INDEX_SAID),
    "an offset and a size that wrap": ("flac", lambda lie: lie.index(offset=2**62, size=2**62), INDEX_SAID),
    "an offset in another member": ("flac", lambda lie: lie.index(offset=0), SKIPPED),
    "phones outside": ("flac", column("phones_offset", 2**40), INDEX_SAID),
    "phones that wrap": ("flac", lambda lie: lie.index(phones_offset=2**62, phones_size=2**62), INDEX_SAID),
    "a sample of no bytes": ("flac", column("size", 0), INDEX_SAID),
    "more samples": ("flac", column("num_samples", lambda number: number + (np.arange(8) == ROW)), SKIPPED),
    "many more samples": ("flac", column("num_samples", 2**40), INDEX_SAID),
    "fewer samples": ("flac", column("num_samples", 8000), SKIPPED),
    "fewer samples in a wav": ("wav", column("num_samples", 8000), INDEX_SAID),
    "a label of no class": (
        "flac",
        column("labels", lambda labels: {name: values + 7 for name, values in labels.items()}),
        INDEX_SAID,
    ),
    "a label without classes": (
        "flac",
        column("labels", lambda labels: labels | {"age": labels["speaker"]}),
        INDEX_SAID,
    ),
    "a label that is missing": ("flac", column("labels", {}), INDEX_SAID),
    "a label of floats": (
        "flac",
        column("labels", lambda labels: {name: values.astype(np.float32) for name, values in labels.items()}),
        INDEX_SAID,
    ),
    # manifest
    "manifest is a list": ("flac", replaced(MANIFEST, lambda path: path.write_text("[1]")), MANIFEST_SAID),
    "manifest is deep": ("flac", replaced(MANIFEST, lambda path: path.write_text("[" * 10**5)), MANIFEST_SAID),
    "manifest is no text": ("flac", replaced(MANIFEST, lambda path: path.write_bytes(b"\xff\xfe")), MANIFEST_SAID),
    "manifest is a fifo": ("flac", replaced(MANIFEST, os.mkfifo), MANIFEST_SAID),
    "manifest is endless": ("flac", replaced(MANIFEST, lambda path: path.symlink_to("/dev/zero")), MANIFEST_SAID),
    "manifest is huge": (
        "flac",
        lambda lie: os.truncate(lie.folder / MANIFEST, 2**40),
        MANIFEST_SAID,
    ),
    "no shards": ("flac", stored(shards=[]), INDEX_SAID),
    "shards are a number": ("flac", stored(shards=3), MANIFEST_SAID),
    "shards are names": ("flac", stored(shards=["shard-000000.tar", "shard-000001.tar"]), MANIFEST_SAID),
    "a shard without a size": ("flac", lambda lie: lie.manifest(lambda m: m["shards"][0].pop("bytes")), MANIFEST_SAID),
    "a shard without a hash": ("flac", lambda lie: lie.manifest(lambda m: m["shards"][0].pop("sha256")), MANIFEST_SAID),
    "a size in words": ("flac", first_shard(bytes="40960"), MANIFEST_SAID),
    "a size of half a byte": ("flac", first_shard(bytes=0.5), MANIFEST_SAID),
    "a size below zero": ("flac", first_shard(bytes=-1), MANIFEST_SAID),
    "a size beyond all": ("flac", first_shard(bytes=2**70), MANIFEST_SAID),
    "another size": ("flac", first_shard(bytes=10**9), r"shard-000000\.tar has .* of 1,000,000,000 bytes"),
    "a hash that is a number": ("flac", first_shard(sha256=7), MANIFEST_SAID),
    "a name of no text": ("flac", first_shard(name="\ud800.tar"), MANIFEST_SAID),
    "a name without end": ("flac", first_shard(name="x" * 5000), "xxx"),
    "another encoding": ("flac", stored(encoding="mp3"), MANIFEST_SAID),
    "wav that is said to be flac": ("wav", stored(encoding="flac"), "harmless"),
    "flac that is said to be wav": ("flac", stored(encoding="wav"), INDEX_SAID),
    "flac that is said to be latents": ("flac", stored(encoding="npy"), INDEX_SAID),
    "a rate in words": ("flac", stored(sample_rate="16000"), MANIFEST_SAID),
    "another rate": ("flac", stored(sample_rate=8000), "was packed at 8,000 Hz"),
    "a length in words": ("flac", stored(num_seconds="long"), MANIFEST_SAID),
    "a number of samples in words": ("flac", stored(num_samples="8"), MANIFEST_SAID),
    "labels are a list": ("flac", stored(labels=["speaker"]), MANIFEST_SAID),
    "classes are numbers": ("flac", stored(labels={"speaker": [11, 12]}), MANIFEST_SAID),
    "a fingerprint of nothing": ("flac", stored(fingerprint=None), MANIFEST_SAID),
    "a format of the future": ("flac", stored(format_version=99), MANIFEST_SAID),
    # shards
    "a shard is a fifo": ("flac", replaced("shard-000000.tar", os.mkfifo), r"shard-000000\.tar"),
    "a shard is endless": (
        "flac",
        replaced("shard-000000.tar", lambda path: path.symlink_to("/dev/zero")),
        r"shard-000000\.tar",
    ),
    "a shard is a folder": ("flac", replaced("shard-000000.tar", lambda path: path.mkdir()), r"shard-000000\.tar"),
    "a shard is a circle": (
        "flac",
        replaced("shard-000000.tar", lambda path: path.symlink_to(path)),
        r"shard .*shard-000000\.tar cannot be looked at",
    ),
    # headers of the tar, of which training reads none
    "header: longer": ("flac", header(named(size=10**9)), "harmless"),
    "header: shorter": ("flac", header(named(size=3)), "harmless"),
    "header: leads out": ("flac", header(named(name="../../evil.flac")), "harmless"),
    "header: absolute": ("flac", header(named(name="/etc/passwd")), "harmless"),
    "header: link": ("flac", header(named(type=tarfile.SYMTYPE, linkname="/etc/passwd")), "harmless"),
    "header: hard link": ("flac", header(named(type=tarfile.LNKTYPE, linkname="other")), "harmless"),
    "header: sparse": ("flac", header(named(type=tarfile.GNUTYPE_SPARSE)), "harmless"),
    "header: device": ("flac", header(named(type=tarfile.CHRTYPE)), "harmless"),
    "header: another key": ("flac", header(named(name="11-7-0000.flac")), "harmless"),
    "header: rotten": ("flac", lambda lie: lie.tar(rotten), "harmless"),
}  # fmt: skip


PHONES: dict[str, Callable[[], bytes]] = {
    "announce much": lambda: npy(np.zeros(8, np.int64), "4398046511104"),
    "have a torn header": lambda: npy(np.zeros(8)).replace(b"False", b"((((("),
    "are words": lambda: npy(np.array(["AA", "B"])),
    "are text": lambda: b"no array",
}


@pytest.mark.parametrize("lie", PHONES)
def test_lying_phones(packed: Path, tmp_path: Path, lie: str) -> None:
    root = Path(shutil.copytree(packed / "flac", tmp_path / "shards"))
    split = open_split(root, "train")
    told, path = Lie(root / "train", split), split.shard_path(int(split.index.shard[ROW]))
    offset, content = path.stat().st_size, PHONES[lie]()
    with path.open("ab") as tar:
        tar.write(content)
    told.index(phones_offset=offset, phones_size=len(content))
    told.vouch(int(split.index.shard[ROW]))
    with pytest.raises(InputError, match=rf"^the phones of {told.key} in {path} cannot be read \(.*\); pack again$"):
        read_phones(open_split(root, "train"), ROW, 41)


@pytest.mark.parametrize("lie", LIES)
def test_lying_shards(packed: Path, tmp_path: Path, lie: str) -> None:
    encoding, tell, expected = LIES[lie]
    root = Path(shutil.copytree(packed / encoding, tmp_path / "shards"))
    told = Lie(root / "train", open_split(root, "train"))
    tell(told)
    key = told.key
    for cache in CACHES:
        config = DataConfig(root=str(root), crop=8000, batch_size=2, num_workers=0, cache=cache, retry_seconds=0)
        skipped: set[str] = set()
        said = ""
        try:
            loader = BatchLoader(open_clips(config, "train"), config, 0, 0, 1, torch.device("cpu"))
            for batch in loader.batches(0, 16):
                assert batch.inputs.shape == (2, 8000, 1)
                skipped |= set(batch.skipped)
        except InputError as error:
            said = str(error)
        found = said or "; ".join(sorted(skipped)) or "harmless"
        assert "\n" not in found
        assert re.search(expected.replace("KEY", key), found), found
        assert str(root) in found or found == "harmless"
