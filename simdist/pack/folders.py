"""What lies in OUT and in the folder of a split, complete or not: identity, sidecars, report, leftovers."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

from simdist.core.errors import InputError, shortened
from simdist.core.files import TEMPORARY, write_json
from simdist.data.splits import INDEX, MANIFEST, Manifest, read_manifest
from simdist.pack.corpora import CorpusProblem, some_names, visible
from simdist.pack.shards import DiskError, Shard, ShardJob, read_sidecar, sidecar_path

REPORT = "report.json"
_BEGUN = ".packing.json"
_OLD_MANIFEST = ".old-manifest.json"
_TAR = re.compile(r"shard-\d{6}\.tar")
_SIDECAR = re.compile(r"\.(shard-\d{6})\.json")
_HASHED = {
    "train_split": "another --train-split list",
    "test_split": "another --test-split list",
    "phones": "other --phones",
    "inputs": "other audio files",
}


def require_usable(source: Path, out: Path) -> None:
    """Raise InputError unless `out` is apart from `source`, and new, empty or packed by us; writes nothing."""
    real_source, real_out = (Path(os.path.realpath(folder)) for folder in (source, out))
    if real_out.is_relative_to(real_source) or real_source.is_relative_to(real_out):
        relation = "are one folder" if real_source == real_out else "lie one inside the other"
        raise InputError(f"SOURCE {source} and OUT {out} {relation}; choose an OUT apart from the corpus")
    try:
        for name in ("config.yaml", "metrics.jsonl"):
            if (out / name).is_file():
                raise InputError(f"OUT {out} has a {name}, as run folders do; choose a new or empty folder")
        if _holds_something(out) and not _holds_ours(out):
            raise InputError(
                f"OUT {out} holds {some_names(out)}, but no split packed by simdist.pack; choose a new or empty folder"
            )
    except OSError as error:
        raise InputError(f"OUT {out} cannot be read: {error.strerror}; choose another folder") from error


def _holds_something(out: Path) -> bool:
    """More than hidden files, and folders of splits in which nothing was written yet."""
    return out.is_dir() and any(not p.is_dir() or visible(p) for p in visible(out))


def _holds_ours(out: Path) -> bool:
    # the manifest is looked for last: it may come, and the others go, while another process completes the split
    return any(next(out.glob(f"*/{name}"), None) for name in (_BEGUN, _OLD_MANIFEST, MANIFEST))


# --- identity ---------------------------------------------------------------------------------------------------------


def stored_manifest(folder: Path) -> Manifest | None:
    """The manifest of a complete split; None where packing was not finished."""
    path = folder / MANIFEST
    if not path.is_file():
        return None
    try:
        return read_manifest(path)
    except (OSError, ValueError) as error:
        raise InputError(
            f"{path} is not a manifest of this simdist ({error}); remove {folder} to pack it from scratch"
        ) from error


def begin(folder: Path, identity: dict[str, Any]) -> None:
    """Note what is being packed into `folder`, until the manifest says it."""
    try:
        write_json(folder / _BEGUN, identity)
    except OSError as error:
        raise DiskError(f"{folder / _BEGUN} cannot be written: {error.strerror}") from error


def _begun(folder: Path) -> dict[str, Any]:
    try:
        return json.loads((folder / _BEGUN).read_text())
    except (OSError, ValueError):
        return {}


def require_same(folder: Path, manifest: Manifest | None, wanted: dict[str, Any]) -> None:
    """Raise InputError, naming what differs, unless the split that `folder` has or has begun is the one asked for.

    Between the parts of an unfinished packing audio files may change: the shards that have them are packed again.
    """
    packed = manifest.packed_with if manifest else {**wanted, **_begun(folder), "inputs": wanted["inputs"]}
    state = "is complete, but was packed with" if manifest else "is half packed, with"
    for name in {**wanted, **packed}:
        before, now = packed.get(name), wanted.get(name)
        if before == now:
            continue
        difference = f"{name.replace('_', '-')} {_said(before)}, not {_said(now)}"
        if name in _HASHED:
            flag = f"--{name.replace('_', '-')}"
            difference = _HASHED[name] if before and now else f"{flag}, not without" if before else f"no {flag}"
        raise InputError(f"{folder} {state} {difference}; add --overwrite to replace it, or choose another OUT")


def _said(value: Any) -> str:
    return ",".join(value) if isinstance(value, list) else "none" if value is None else str(value)


# --- problems ---------------------------------------------------------------------------------------------------------


def write_report(folder: Path, problems: list[CorpusProblem], num_packed: int) -> None:
    left_out = sum(not problem.packed for problem in problems)
    content = {"packed": num_packed, "left_out": left_out, "problems": [dataclasses.asdict(p) for p in problems]}
    write_json(folder / REPORT, content)


def stored_problems(folder: Path) -> list[CorpusProblem]:
    try:
        return [CorpusProblem(**p) for p in json.loads((folder / REPORT).read_text())["problems"]]
    except (OSError, ValueError, KeyError, TypeError):
        return []


# --- unfinished work --------------------------------------------------------------------------------------------------


def finished_shard(job: ShardJob, check_hash: bool) -> Shard | None:
    """The shard that an earlier packing finished, if it is what `job` would write."""
    shard = read_sidecar(job.folder, job.name)
    if shard and shard.fingerprint == job.fingerprint() and shard.is_complete(job.folder, check_hash):
        return shard
    return None


def refuse_foreign(folder: Path) -> None:
    """Raise InputError where there are tars that simdist.pack did not write."""
    try:
        foreign = sorted(_tars(folder) - _with_sidecars(folder) - _of_manifests(folder)) if folder.is_dir() else []
    except OSError as error:
        raise InputError(f"cannot read {folder}: {error.strerror}; choose another OUT") from error
    if foreign:
        raise InputError(f"{folder} holds {shortened(foreign)}, not written by simdist.pack; choose another OUT")


def _tars(folder: Path) -> set[str]:
    return {p.name for p in folder.iterdir() if _TAR.fullmatch(p.name)}


def _with_sidecars(folder: Path) -> set[str]:
    return {f"{m[1]}.tar" for p in folder.iterdir() if (m := _SIDECAR.fullmatch(p.name))}


def _of_manifests(folder: Path) -> set[str]:
    """Shards of the complete split that is, or was, in `folder`."""
    manifests = [folder / name for name in (MANIFEST, _OLD_MANIFEST) if (folder / name).is_file()]
    return {shard["name"] for path in manifests for shard in json.loads(path.read_text())["shards"]}


def clear(folder: Path, wanted: set[str]) -> None:
    """Make `folder` ready for the shards named `wanted`: drop a complete split there, leftovers and other shards.

    A manifest is set aside under another name before the shards go, and removed after them, so that a folder whose
    clearing was killed neither looks complete nor holds shards of which nobody knows who wrote them.
    """
    remove_temporaries(folder)
    if (folder / MANIFEST).is_file():
        (folder / MANIFEST).replace(folder / _OLD_MANIFEST)
    sidecars = _with_sidecars(folder)
    for name in (_tars(folder) | sidecars) - (wanted & sidecars - _of_manifests(folder)):
        (folder / name).unlink(missing_ok=True)
        sidecar_path(folder, name).unlink(missing_ok=True)
    for name in (INDEX, REPORT, _OLD_MANIFEST):
        (folder / name).unlink(missing_ok=True)


def remove_temporaries(folder: Path) -> None:
    for path in folder.glob(f"{TEMPORARY}*"):
        path.unlink(missing_ok=True)


def remove_traces(folder: Path) -> None:
    """Remove what only the continuation of a packing needs."""
    for path in folder.iterdir():
        if _SIDECAR.fullmatch(path.name) or path.name == _BEGUN:
            path.unlink()


# --- room -------------------------------------------------------------------------------------------------------------


def expected_bytes(job: ShardJob) -> int:
    """About how large a shard will be; FLAC of speech takes some half of its PCM."""
    total = 0
    for utterance in job.utterances:
        is_flac = utterance.path.endswith(".flac")
        audio = 2 * (utterance.exact_length or 0) or utterance.size * (2 if is_flac else 1)
        total += (audio // 2 if job.encoding == "flac" else audio) + 3 * 1024
        total += (utterance.phones.size // 3 + 1024) if utterance.phones else 0
    return total


def free_bytes(folder: Path) -> int:
    return shutil.disk_usage(folder).free
