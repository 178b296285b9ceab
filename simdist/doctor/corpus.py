"""A packed corpus: are its splits finished, and are all shards as long as their manifest says?"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from simdist.core.errors import InputError, counted
from simdist.data.splits import Split, open_split
from simdist.doctor.findings import Finding, error, ok, warning


def check_corpus(root: Path) -> Iterator[Finding]:
    """One finding a split; hashes are left to `python -m simdist.pack --verify`, which reads everything."""
    splits = sorted(path.name for path in root.iterdir() if path.is_dir()) if root.is_dir() else []
    if not splits:
        yield error(
            "data", f"{root} holds no packed corpus", f"pack one: `python -m simdist.pack CORPUS SOURCE {root}`"
        )
    for name in splits:
        try:
            yield _check_split(open_split(root, name))
        except InputError as problem:
            yield error("data", f"split {name}: {problem}", "pack it again: the command resumes where it stopped")
    missing = {"train", "test"} - set(splits)
    if splits and missing:
        remedy = "name the splits that there are with --data.train_split and --data.test_split"
        yield warning("data", f"{root} has no split {' and no split '.join(sorted(missing, reverse=True))}", remedy)


def _check_split(split: Split) -> Finding:
    wrong = []
    for number, shard in enumerate(split.manifest.shards):
        path = split.shard_path(number)
        if not path.is_file():
            wrong.append(f"{path.name} is missing")
        elif path.stat().st_size != shard["bytes"]:
            wrong.append(f"{path.name} has {path.stat().st_size:,} of {shard['bytes']:,} bytes")
    count, hours = len(split.manifest.shards), split.manifest.num_seconds / 3600
    if wrong:
        some = ", ".join(wrong[:3]) + (", …" if len(wrong) > 3 else "")
        text = f"split {split.folder.name}: {len(wrong)} of {counted(count, 'shard')} not whole: {some}"
        return error("data", text, "pack it again with --overwrite, or copy these shards again")
    content = f"{counted(count, 'shard')}, {counted(split.manifest.num_samples, 'clip')}, {hours:.2f} h"
    return ok("data", f"split {split.folder.name}: {content}")
