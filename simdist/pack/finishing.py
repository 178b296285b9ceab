"""Completing a split whose shards are all written: index, then manifest, then nothing is left of the work."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from simdist.config.schema import SAMPLE_RATE
from simdist.core.files import replacing, write_json
from simdist.data.splits import FORMAT_VERSION, INDEX, MANIFEST, Index, Manifest
from simdist.pack import folders
from simdist.pack.corpora import Corpus
from simdist.pack.shards import Shard


def finish(name: str, folder: Path, shards: Sequence[Shard], corpus: Corpus, packed_with: dict[str, Any]) -> Manifest:
    """Write index and manifest of split `name`, in this order, and remove what only a continuation needs.

    Args:
        shards: those that have samples, in order.
        packed_with: for the manifest's field of that name.
    """
    tables = corpus.label_tables()
    with replacing(folder / INDEX) as temporary:
        _index(shards, tables).save(temporary)
    manifest = Manifest(
        format_version=FORMAT_VERSION,
        corpus=corpus.name,
        split=name,
        encoding=packed_with["encoding"],
        sample_rate=SAMPLE_RATE,
        num_samples=sum(len(shard.rows) for shard in shards),
        num_seconds=sum(shard.num_seconds for shard in shards),
        shards=[
            {
                "name": shard.name,
                "sha256": shard.sha256,
                "bytes": shard.bytes,
                "num_samples": len(shard.rows),
                "num_seconds": shard.num_seconds,
            }
            for shard in shards
        ],
        labels=tables,
        fingerprint=hashlib.sha256("\n".join(shard.sha256 for shard in shards).encode()).hexdigest(),
        packed_with=packed_with,
    )
    write_json(folder / MANIFEST, dataclasses.asdict(manifest))
    folders.remove_traces(folder)
    return manifest


def _index(shards: Sequence[Shard], tables: dict[str, list[str]]) -> Index:
    rows = [row for shard in shards for row in shard.rows]
    number = {label: {name: i for i, name in enumerate(names)} for label, names in tables.items() if label != "phone"}

    def column(name: str) -> Any:
        return np.array([row[name] for row in rows], dtype=np.int64)

    return Index(
        key=np.array([row["key"] for row in rows]),
        shard=np.repeat(np.arange(len(shards), dtype=np.int32), [len(shard.rows) for shard in shards]),
        offset=column("offset"),
        size=column("size"),
        num_samples=column("num_samples"),
        phones_offset=column("phones_offset"),
        phones_size=column("phones_size"),
        labels={
            label: np.array([names.get(row["classes"].get(label), -1) for row in rows], dtype=np.int32)
            for label, names in number.items()
        },
    )
