"""The cache of latents under damage: to the audio that it is made from, and to itself."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from simdist.config.schema import Config
from simdist.data.splits import MANIFEST, open_split
from tests.support.damage import flip, rotten_copy
from tests.support.training import lines, train, weights

pytestmark = pytest.mark.usefixtures("fresh_process")


@pytest.fixture
def cached(tiny: Config) -> Config:
    """Two of the four modules, with latents in between: 24 steps."""
    model = replace(tiny.model, modules=tiny.model.modules[:2])
    loop = replace(tiny.train, schedule="stagewise", max_steps=12, validate_every=0, cache_latents=True)
    return replace(tiny, model=model, train=loop)


def assert_same(whole: Path, parts: Path) -> None:
    before, after = weights(whole, 24), weights(parts, 24)
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert lines(whole) == lines(parts)


def test_an_utterance_that_does_not_decode_is_left_out_and_told(cached: Config, tmp_path: Path) -> None:
    root = rotten_copy(cached.data.root, tmp_path / "shards", [2, 7])
    config = replace(cached, data=replace(cached.data, root=str(root)))
    train(config, tmp_path / "run")
    audio = open_split(root, "train")
    latents = open_split(tmp_path / "run" / "latents" / "module_0", "train")
    assert list(latents.index.key) == [key for row, key in enumerate(audio.index.key) if row not in (2, 7)]
    told = latents.manifest.packed_with["skipped"]
    assert [text.split(" in ")[0] for text in told] == [str(audio.index.key[row]) for row in (2, 7)]
    train(config, tmp_path / "parts", stop_at=15)
    train(config, tmp_path / "parts")
    assert_same(tmp_path / "run", tmp_path / "parts")


@pytest.mark.parametrize("damage", ["flipped", "lost", "index", "half written"])
def test_damaged_latents_are_made_again(cached: Config, tmp_path: Path, damage: str) -> None:
    train(cached, tmp_path / "whole")
    train(cached, tmp_path / "parts", stop_at=15)
    folder = tmp_path / "parts" / "latents" / "module_0" / "train"
    sound = json.loads((folder / MANIFEST).read_text())["shards"]
    if damage == "flipped":
        flip(folder / "shard-000000.tar")
    elif damage == "lost":
        (folder / "shard-000000.tar").unlink()
    elif damage == "index":
        (folder / "index.npz").write_bytes(b"torn")
    else:
        (folder / MANIFEST).unlink()
        (folder / ".shard-000000.json").unlink()
        (folder / ".tmp-4711-shard-000000.tar").write_bytes(b"of a process that was killed")
    train(cached, tmp_path / "parts")
    assert json.loads((folder / MANIFEST).read_text())["shards"] == sound
    assert not list(folder.glob(".tmp-*"))
    assert_same(tmp_path / "whole", tmp_path / "parts")
