"""The cache of latents under damage: to the audio that it is made from, and to itself."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from simdist.config.schema import Config
from simdist.core.errors import InputError
from simdist.data.crops import NPY_HEADER, CropReader
from simdist.data.splits import MANIFEST, open_split
from simdist.runs.folder import open_run
from tests.support.damage import flip, rotten_copy, unchanged_times
from tests.support.training import build_trainer, lines, train, weights

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


@pytest.mark.parametrize(
    "damage", ["rotten", "flipped", "lost", "index", "half written", "lost of unfinished", "sidecar"]
)
def test_damaged_latents_are_made_again(cached: Config, tmp_path: Path, damage: str) -> None:
    train(cached, tmp_path / "whole")
    train(cached, tmp_path / "parts", stop_at=15)
    folder = tmp_path / "parts" / "latents" / "module_0" / "train"
    sound = json.loads((folder / MANIFEST).read_text())["shards"]
    shard, sidecar = folder / "shard-000000.tar", folder / ".shard-000000.json"
    content = shard.read_bytes()
    if damage == "rotten":
        with unchanged_times(shard):
            flip(shard)
    elif damage == "flipped":
        flip(shard)
    elif damage == "lost":
        shard.unlink()
    elif damage == "index":
        (folder / "index.npz").write_bytes(b"torn")
    elif damage == "half written":
        (folder / MANIFEST).unlink()
        sidecar.unlink()
        (folder / ".tmp-4711-shard-000000.tar").write_bytes(b"of a process that was killed")
    elif damage == "lost of unfinished":
        (folder / MANIFEST).unlink()
        shard.unlink()
    else:
        known = json.loads(sidecar.read_text())
        known["rows"][1]["offset"] += 512
        sidecar.write_text(json.dumps(known))
        (folder / "index.npz").unlink()
    train(cached, tmp_path / "parts")
    assert shard.read_bytes() == content
    assert json.loads((folder / MANIFEST).read_text())["shards"] == sound
    assert not list(folder.glob(".tmp-*"))
    assert_same(tmp_path / "whole", tmp_path / "parts")


def test_latents_that_are_sound_are_kept(cached: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train(cached, tmp_path / "run", stop_at=15)
    shard = tmp_path / "run" / "latents" / "module_0" / "train" / "shard-000000.tar"
    written = shard.stat().st_mtime_ns
    train(cached, tmp_path / "run", stop_at=18)
    assert shard.stat().st_mtime_ns == written
    assert "computed again" not in capsys.readouterr().out
    flip(shard)
    train(cached, tmp_path / "run")
    assert f"latents in {shard.parent} were damaged; the damaged shards are computed again" in capsys.readouterr().out


@pytest.mark.parametrize("value", [np.nan, np.inf, -30000.0])
def test_latents_that_rot_while_they_are_read_end_the_run(cached: Config, tmp_path: Path, value: float) -> None:
    train(cached, tmp_path / "run", stop_at=15)
    split = open_split(tmp_path / "run" / "latents" / "module_0", "train")
    reader, row = CropReader(split), 3
    assert np.isfinite(reader.read_all(row)).all()
    with split.shard_path(int(split.index.shard[row])).open("r+b") as tar:
        tar.seek(int(split.index.offset[row]) + NPY_HEADER + 100)
        tar.write(np.float16(value).tobytes())
    with pytest.raises(InputError, match=rf"^the latents of {split.index.key[row]} in .* Run the same command again"):
        reader.read_all(row)
    assert len(reader.read(row, 20, 5)) == 5


def test_a_module_whose_latents_cannot_be_stored_is_named(cached: Config, tmp_path: Path) -> None:
    train(cached, tmp_path / "run", stop_at=12)
    trainer = build_trainer(open_run(tmp_path / "run", cached))
    trainer.resume()
    trainer.task.modules[0].module.mu.weight.data.fill_(1e30)
    with pytest.raises(InputError, match=r"^module 0 makes values of .* that are NaN, infinite or beyond 65,504"):
        trainer.fit()
