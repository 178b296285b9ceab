"""What lies in the folder of a split before it is complete, and afterwards: sidecars, report, leftovers, identity."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
from pathlib import Path
from typing import Any

from simdist.data.corpora import Problem, shortened
from simdist.data.shards import Shard, ShardJob, read_sidecar, sidecar_path
from simdist.data.splits import INDEX, MANIFEST, Manifest
from simdist.durable import TEMPORARY, write_json
from simdist.errors import InputError

REPORT = "report.json"
_OLD_MANIFEST = ".old-manifest.json"
_TAR = re.compile(r"shard-\d{6}\.tar")
_SIDECAR = re.compile(r"\.(shard-\d{6})\.json")
_HASHED = {
    "train_split": "another --train-split list",
    "test_split": "another --test-split list",
    "phones": "other --phones",
    "inputs": "other audio files",
}


def stored_manifest(folder: Path) -> Manifest | None:
    """The manifest of a complete split; None where packing was not finished."""
    path = folder / MANIFEST
    if not path.is_file():
        return None
    try:
        stored = json.loads(path.read_text())
        return Manifest(**{f.name: stored[f.name] for f in dataclasses.fields(Manifest)})
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} is not a manifest of this simdist ({error}); remove {folder} to pack anew") from error


def require_same(folder: Path, packed: dict[str, Any], wanted: dict[str, Any]) -> None:
    """Raise InputError, naming what differs, unless a complete split is the one that is asked for."""
    for name in {**wanted, **packed}:
        before, now = packed.get(name), wanted.get(name)
        if before == now:
            continue
        difference = f"{name.replace('_', '-')} {_said(before)}, not {_said(now)}"
        if name in _HASHED:
            flag = f"--{name.replace('_', '-')}"
            difference = _HASHED[name] if before and now else f"{flag}, not without" if before else f"no {flag}"
        raise InputError(
            f"{folder} is complete, but was packed with {difference}; "
            "add --overwrite to replace it, or choose another OUT"
        )


def _said(value: Any) -> str:
    return ",".join(value) if isinstance(value, list) else "none" if value is None else str(value)


# --- problems ---------------------------------------------------------------------------------------------------------


def write_report(folder: Path, problems: list[Problem], num_packed: int) -> None:
    left_out = sum(not problem.packed for problem in problems)
    content = {"packed": num_packed, "left_out": left_out, "problems": [dataclasses.asdict(p) for p in problems]}
    write_json(folder / REPORT, content)


def stored_problems(folder: Path) -> list[Problem]:
    try:
        return [Problem(**p) for p in json.loads((folder / REPORT).read_text())["problems"]]
    except (OSError, ValueError, KeyError, TypeError):
        return []


# --- unfinished work --------------------------------------------------------------------------------------------------


def finished_shard(job: ShardJob, check_hash: bool) -> Shard | None:
    """The shard that an earlier packing finished, if it is what `job` would write."""
    shard = read_sidecar(job.folder, job.name)
    if shard and shard.fingerprint == job.fingerprint() and shard.is_complete(job.folder, check_hash):
        return shard
    return None


def clear(folder: Path, wanted: set[str]) -> None:
    """Make `folder` ready for the shards named `wanted`: drop a complete split there, leftovers and other shards.

    A manifest is set aside under another name before the shards go, and removed after them, so that a folder whose
    clearing was killed neither looks complete nor holds shards of which nobody knows who wrote them.

    Raises:
        InputError: there are tars that simdist.pack did not write.
    """
    remove_temporaries(folder)
    aside = folder / _OLD_MANIFEST
    if (folder / MANIFEST).is_file():
        (folder / MANIFEST).replace(aside)
    tars = {p.name for p in folder.iterdir() if _TAR.fullmatch(p.name)}
    sidecars = {f"{m[1]}.tar" for p in folder.iterdir() if (m := _SIDECAR.fullmatch(p.name))}
    old = {shard["name"] for shard in json.loads(aside.read_text())["shards"]} if aside.is_file() else set()
    foreign = sorted(tars - sidecars - old)
    if foreign:
        raise InputError(f"{folder} holds {shortened(foreign)}, not written by simdist.pack; choose another OUT")
    for name in (tars | sidecars) - (wanted & sidecars - old):
        (folder / name).unlink(missing_ok=True)
        sidecar_path(folder, name).unlink(missing_ok=True)
    for name in (INDEX, REPORT, _OLD_MANIFEST):
        (folder / name).unlink(missing_ok=True)


def remove_temporaries(folder: Path) -> None:
    for path in folder.glob(f"{TEMPORARY}*"):
        path.unlink(missing_ok=True)


def remove_sidecars(folder: Path) -> None:
    for path in folder.iterdir():
        if _SIDECAR.fullmatch(path.name):
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
