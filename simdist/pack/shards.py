"""Writing one shard: a WebDataset tar that appears complete and verified, or not at all.

The tar gets a temporary name, is synced, read back and compared, and renamed. Beside it stands a sidecar
`.shard-000000.json` with its index rows, hash and problems, by which a packing that was killed knows what is done.
The sidecar comes first and the tar's rename last: no tar of ours is ever without one until the manifest replaces it.

Tars are written by `tarfile` with the header fields that webdataset's TarWriter would write; a test holds the two
equal byte for byte. Importing webdataset itself imports torch: two seconds and 300 MB for each packing process.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import os
import tarfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from simdist.config.schema import SAMPLE_RATE
from simdist.core.files import TEMPORARY, HashedWriter, sha256_of, sync, write_json
from simdist.data import audio
from simdist.data.labels import PHONE_TOLERANCE, PHONES, num_phone_frames
from simdist.pack.corpora import CorpusProblem, PhoneLine, Utterance

PACKING = 2  # raise when the same inputs would give other bytes, so that half-packed splits are not continued
Encoding = Literal["flac", "wav"]


@dataclass(frozen=True)
class ShardJob:
    """One shard to write."""

    folder: Path
    name: str
    utterances: Sequence[Utterance]
    encoding: Encoding
    min_samples: int

    def fingerprint(self) -> str:
        """Identity of everything the shard is made from; files by size and time, not by content."""
        inputs = [dataclasses.astuple(u) for u in self.utterances]
        text = json.dumps([PACKING, self.encoding, self.min_samples, inputs])
        return hashlib.sha256(text.encode()).hexdigest()


@dataclass
class Shard:
    """A written shard, as its sidecar holds it."""

    name: str
    fingerprint: str
    sha256: str = ""
    bytes: int = 0
    """Size of the tar; 0 where none of the utterances was usable, and then there is no tar."""
    num_seconds: float = 0.0
    rows: list[dict[str, Any]] = field(default_factory=list)
    """For each sample what the index holds of it, with `classes` by name."""
    problems: list[CorpusProblem] = field(default_factory=list)

    def is_complete(self, folder: Path, check_hash: bool = False) -> bool:
        path = folder / self.name
        if not self.bytes:
            return not path.exists()
        if not path.is_file() or path.stat().st_size != self.bytes:
            return False
        return not check_hash or sha256_of(path) == self.sha256


class PackingError(Exception):
    """Packing failed for a reason other than its input: a full disk, or a dead process."""


class DiskError(PackingError):
    """The file system rejects a write: full, quota, size limit, or damaged."""


def sidecar_path(folder: Path, name: str) -> Path:
    return folder / f".{Path(name).stem}.json"


def read_sidecar(folder: Path, name: str) -> Shard | None:
    """The shard that a sidecar describes; None where there is none or it cannot be read."""
    try:
        stored = json.loads(sidecar_path(folder, name).read_text())
        stored["problems"] = [CorpusProblem(**p) for p in stored["problems"]]
        return Shard(**stored)
    except (OSError, ValueError, TypeError, KeyError):
        return None


def write_shard(job: ShardJob, check_stop: Callable[[], None] = lambda: None) -> Shard:
    """Write `job`'s tar and its sidecar; bad utterances are left out and listed.

    Args:
        check_stop: called before each utterance; may raise to give up, which leaves nothing behind.

    Raises:
        DiskError: the disk is full or refuses the file.
    """
    shard = Shard(job.name, job.fingerprint())
    temporary = job.folder / f"{TEMPORARY}{os.getpid()}-{job.name}"
    final = job.folder / job.name
    try:
        with temporary.open("wb") as file:
            hashed = HashedWriter(file)
            with tarfile.open(fileobj=hashed, mode="w|", format=tarfile.USTAR_FORMAT) as tar:  # pyright: ignore
                for utterance in job.utterances:
                    check_stop()
                    _add(tar, utterance, job, shard)
        sync(temporary)
        shard.sha256 = hashed.digest.hexdigest()
        if shard.rows:
            _read_back(temporary, shard, job.encoding)
            shard.bytes = temporary.stat().st_size
        shard.num_seconds = sum(row["num_samples"] for row in shard.rows) / SAMPLE_RATE
        final.unlink(missing_ok=True)  # or the new sidecar could vouch for an old tar of the same size
        write_json(sidecar_path(job.folder, job.name), dataclasses.asdict(shard))
        if shard.rows:
            temporary.rename(final)
            sync(job.folder)
    except OSError as error:
        raise DiskError(f"{job.folder / job.name} cannot be written: {error.strerror or error}") from error
    finally:
        temporary.unlink(missing_ok=True)
    return shard


# --- members ----------------------------------------------------------------------------------------------------------


def _add(tar: tarfile.TarFile, utterance: Utterance, job: ShardJob, shard: Shard) -> None:
    """Add an utterance's members and its row, or a problem."""
    try:
        sound = audio.read(utterance.path, job.min_samples, utterance.resample, utterance.exact_length)
        phones = _phones(utterance.phones, len(sound.pcm)) if utterance.phones else None
    except audio.AudioError as error:
        shard.problems.append(CorpusProblem(utterance.path, str(error)))
        return
    for kind, reason in sound.warnings.items():
        shard.problems.append(CorpusProblem(utterance.path, reason, packed=True, kind=kind))
    facts = {
        "speaker": utterance.speaker,
        "chapter": utterance.chapter,
        "text": utterance.text,
        "num_samples": len(sound.pcm),
        "sample_rate": SAMPLE_RATE,
        **utterance.labels,
        **utterance.facts,
    }
    members = {job.encoding: sound.stored_as(job.encoding), "json": json.dumps(facts, ensure_ascii=False).encode()}
    if phones is not None:
        members["phones.npy"] = _npy(phones)
    for extension, content in sorted(members.items()):
        _add_member(tar, f"{utterance.key}.{extension}", content)
    shard.rows.append({"key": utterance.key, "num_samples": len(sound.pcm), "classes": utterance.classes()})


def _add_member(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)  # uid, gid, mtime 0: the same inputs give the same bytes
    member.size = len(content)
    member.mode = 0o444
    tar.addfile(member, io.BytesIO(content))


def _phones(line: PhoneLine, num_samples: int) -> npt.NDArray[np.uint8]:
    """An utterance's classes, one per 10 ms frame, exactly as many as the audio has frames.

    Raises:
        AudioError: they are not classes, or differ from the audio by more than a few frames.
    """
    try:
        with Path(line.path).open("rb") as file:
            file.seek(line.offset)
            classes = np.array(file.read(line.size).split(), dtype=np.int64)
    except OSError as error:
        raise audio.AudioError(f"its phones in {line.path} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise audio.AudioError(f"its phones in {line.path} are not numbers") from error
    if len(classes) and (classes.min() < 0 or classes.max() >= len(PHONES)):
        raise audio.AudioError(f"its phones in {line.path} are not all within 0..{len(PHONES) - 1}")
    frames = num_phone_frames(num_samples)
    if abs(len(classes) - frames) > PHONE_TOLERANCE or not len(classes):
        raise audio.AudioError(f"has {frames:,} frames of 10 ms, but {len(classes):,} phones in {line.path}")
    return np.pad(classes[:frames], (0, max(0, frames - len(classes))), mode="edge").astype(np.uint8)


def _npy(array: npt.NDArray[Any]) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    return buffer.getvalue()


def _read_back(path: Path, shard: Shard, encoding: Encoding) -> None:
    """Compare the tar on disk with what was meant to be written, and note where its members lie."""
    if sha256_of(path) != shard.sha256:
        raise OSError(f"{path.name} reads back other than it was written; the disk or its cable is at fault")
    with tarfile.open(path) as tar:
        members = {member.name: member for member in tar}
    for row in shard.rows:
        sound = members[f"{row['key']}.{encoding}"]
        phones = members.get(f"{row['key']}.phones.npy")
        row["offset"], row["size"] = sound.offset_data, sound.size
        row["phones_offset"] = phones.offset_data if phones else -1
        row["phones_size"] = phones.size if phones else 0
