"""Are the shards those that were packed? Asked before a training starts, and answered without reading what is known.

Every shard must be there with its size. Its sha256 is computed only where it may have changed: a shard is trusted that
has the time it had when it was last found good, or, if it never was, is no younger than the manifest, which packing
writes last. What is good is noted in `.verified.json` next to the manifest, or in the user's cache where that folder is
read-only. So a corpus that was copied without its times is hashed once, by one process, and an unchanged one never.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import filelock
from rich.console import Console

from simdist.core.errors import InputError, shortened
from simdist.core.files import write_json
from simdist.core.progress import progress
from simdist.data.splits import MANIFEST, Split

NOTE = ".verified.json"
BLOCK = 1 << 20  # bytes that are hashed between two looks at whether to go on
STAT_THREADS = 16  # a network file system answers many questions at a time


@dataclass(frozen=True)
class _FileState:
    """What tells without reading it whether a file changed."""

    bytes: int
    mtime_ns: int


def check_shards(split: Split) -> None:
    """Compare the shards of a split with its manifest.

    Raises:
        InputError: shards are missing, cut off or other than packed; all of them are named.
    """
    damaged = damaged_shards(split)
    if damaged:
        found = shortened([f"{_name(split, i)} {reason}" for i, reason in damaged.items()], most=12)
        raise InputError(
            f"{len(damaged)} of {len(split.manifest.shards)} shards in {split.folder} are damaged: {found}; "
            "restore them from a copy, or pack again with simdist.pack and --overwrite"
        )


def damaged_shards(split: Split) -> dict[int, str]:
    """What is wrong with shards of a split, by their place in the manifest."""
    states = _states(split)
    damaged = {i: reason for i, state in enumerate(states) if (reason := _wrong_size(split, i, state))}
    present = {i: state for i, state in enumerate(states) if state is not None and i not in damaged}
    known = _known(split)
    if any(known.get(_name(split, i)) != state for i, state in present.items()):
        if _unsure(split, present, known):
            damaged |= _check_hashes(split, present)
        else:
            _note(split, known, present)
    return dict(sorted(damaged.items()))


def _name(split: Split, shard: int) -> str:
    return split.manifest.shards[shard]["name"]


def _states(split: Split) -> list[_FileState | None]:
    def state(shard: int) -> _FileState | None:
        try:
            found = split.shard_path(shard).stat()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise InputError(
                f"shard {split.shard_path(shard)} cannot be looked at ({error.strerror}); "
                "wait for its file system, then run the same command again"
            ) from error
        return _FileState(found.st_size, found.st_mtime_ns)

    with ThreadPoolExecutor(STAT_THREADS) as pool:
        return list(pool.map(state, range(len(split.manifest.shards))))


def _wrong_size(split: Split, shard: int, state: _FileState | None) -> str:
    wanted = split.manifest.shards[shard]["bytes"]
    if state is None:
        return "is missing"
    return "" if state.bytes == wanted else f"has {state.bytes:,} of {wanted:,} bytes"


# --- hashes -----------------------------------------------------------------------------------------------------------


def _unsure(split: Split, present: dict[int, _FileState], known: dict[str, _FileState]) -> list[int]:
    """Shards that are neither as they were noted nor, where there is no note of them, older than the manifest."""
    packed_at = (split.folder / MANIFEST).stat().st_mtime_ns
    trusted = {i: state if state.mtime_ns <= packed_at else None for i, state in present.items()}
    return [i for i, state in present.items() if known.get(_name(split, i), trusted[i]) != state]


def _check_hashes(split: Split, present: dict[int, _FileState]) -> dict[int, str]:
    """What is wrong with the content of shards of which nothing is known; a note is made of all that are good."""
    with _alone(split):
        known = _known(split)  # another process may have checked them meanwhile
        other = _other_hashes(split, _unsure(split, present, known))
        _note(split, known, {i: state for i, state in present.items() if i not in other})
    return dict.fromkeys(other, "is not what was packed (other sha256)")


def _other_hashes(split: Split, shards: list[int]) -> list[int]:
    """Those of `shards` that do not have the sha256 of the manifest."""
    if not shards:
        return []
    cancelled = threading.Event()
    total = sum(split.manifest.shards[i]["bytes"] for i in shards) >> 20
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    with progress(console, f"checking {split.folder}", total, "MiB") as advance, ThreadPoolExecutor(_cpus()) as pool:
        try:
            hashes = pool.map(lambda i: _sha256(split.shard_path(i), advance, cancelled), shards)
            return [i for i, found in zip(shards, hashes, strict=True) if found != split.manifest.shards[i]["sha256"]]
        except BaseException:  # Ctrl-C: threads that hash would go on to the end
            cancelled.set()
            raise


def _sha256(path: Path, advance: Callable[[int], None], cancelled: threading.Event) -> str:
    digest = hashlib.sha256()
    try:
        with path.open("rb", buffering=0) as file:
            while not cancelled.is_set() and (block := file.read(BLOCK)):
                digest.update(block)
                advance(1)
    except OSError as error:
        raise InputError(
            f"shard {path} cannot be read ({error.strerror}); wait for its file system, then run the same command again"
        ) from error
    return digest.hexdigest()


def _cpus() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


# --- notes ------------------------------------------------------------------------------------------------------------


def _places(split: Split) -> list[Path]:
    """Where the note may be: next to the manifest, or in the user's cache."""
    name = hashlib.sha256(str(split.folder.resolve()).encode()).hexdigest()[:16]
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return [split.folder / NOTE, cache / "simdist" / f"verified-{name}.json"]


def _known(split: Split) -> dict[str, _FileState]:
    """Shards that were found good, as they were then."""
    known: dict[str, _FileState] = {}
    for place in reversed(_places(split)):
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError, AttributeError):
            stored = json.loads(place.read_text())
            if stored["fingerprint"] == split.manifest.fingerprint:
                known |= {name: _FileState(*state) for name, state in stored["shards"].items()}
    return known


def _note(split: Split, known: dict[str, _FileState], good: dict[int, _FileState]) -> None:
    now = known | {_name(split, i): state for i, state in good.items()}
    content = {
        "fingerprint": split.manifest.fingerprint,
        "shards": {name: [state.bytes, state.mtime_ns] for name, state in sorted(now.items())},
    }
    for place in _places(split):
        with contextlib.suppress(OSError):
            place.parent.mkdir(parents=True, exist_ok=True)
            write_json(place, content)
            return


@contextmanager
def _alone(split: Split) -> Iterator[None]:
    """One process of a machine, or of a cluster where file locks reach so far, hashes; the others read its note."""
    with contextlib.ExitStack() as held:
        for place in _places(split):
            try:
                place.parent.mkdir(parents=True, exist_ok=True)
                held.enter_context(filelock.FileLock(place.with_suffix(".lock")))
            except (OSError, NotImplementedError):
                continue
            break
        yield
