"""What a look at the shards before training finds, and that it reads only what may have changed."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from rich.console import Console

from simdist.config.schema import DataConfig
from simdist.core.errors import InputError
from simdist.core.signals import SignalHandler
from simdist.data import integrity
from simdist.data.integrity import NOTE, check_shards
from simdist.data.loader import open_clips
from simdist.data.splits import MANIFEST, Split, open_split
from simdist.pack.librispeech import librispeech
from simdist.pack.packing import Options, pack
from tests.support.damage import flip
from tests.support.packing_cases import small_corpus

HOUR = 3600 * 10**9


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("packed")
    plan = librispeech(small_corpus(folder, speakers=2).source, test_fraction=0)
    pack(plan, folder / "out", Options(encoding="wav", shard_samples=1), Console(quiet=True), SignalHandler())
    return folder / "out"


@pytest.fixture
def split(packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Split:
    """Eight shards, as they were packed."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return open_split(shutil.copytree(packed, tmp_path / "shards"), "train")


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the shards whose sha256 is computed from here on."""
    names: list[str] = []
    sha256 = integrity._sha256

    def noted(path: Path, *others) -> str:
        names.append(path.name)
        return sha256(path, *others)

    monkeypatch.setattr(integrity, "_sha256", noted)
    return names


def touch(path: Path) -> None:
    time = path.stat().st_mtime_ns + HOUR
    os.utime(path, ns=(time, time))


def test_an_unchanged_corpus_is_never_read(split: Split, hashed: list[str]) -> None:
    for _ in range(2):
        check_shards(split)
    assert hashed == []


def test_a_copy_without_its_times_is_read_once(split: Split, hashed: list[str]) -> None:
    for i in range(8):
        touch(split.shard_path(i))
    check_shards(split)
    assert sorted(hashed) == [f"shard-{i:06d}.tar" for i in range(8)]
    check_shards(split)
    touch(split.shard_path(3))
    check_shards(split)
    assert hashed[8:] == ["shard-000003.tar"]


def test_all_damage_is_named_at_once_with_its_remedy(split: Split) -> None:
    split.shard_path(1).unlink()
    os.truncate(split.shard_path(3), 1000)
    flip(split.shard_path(6))
    size = split.manifest.shards[3]["bytes"]
    with pytest.raises(InputError) as raised:
        open_clips(DataConfig(root=str(split.folder.parent), crop=8000), "train")
    assert str(raised.value) == (
        f"3 of 8 shards in {split.folder} are damaged: shard-000001.tar is missing, "
        f"shard-000003.tar has 1,000 of {size:,} bytes, "
        "shard-000006.tar is not what was packed (other sha256); "
        "restore them from a copy, or pack again with simdist.pack and --overwrite"
    )


def test_damage_stays_damage_until_it_is_mended(split: Split, tmp_path: Path) -> None:
    path = split.shard_path(6)
    shutil.copy(path, tmp_path / "good.tar")
    flip(path)
    for _ in range(2):
        with pytest.raises(InputError, match=r"1 of 8 shards .* shard-000006\.tar is not what was packed"):
            check_shards(split)
    shutil.copy(tmp_path / "good.tar", path)
    check_shards(split)


def test_a_shard_that_is_replaced_by_an_older_one_of_its_size_is_found(split: Split) -> None:
    """Words of one length make shards of one size; their times may all be older than the manifest."""
    check_shards(split)
    packed_at = split.shard_path(2).stat().st_mtime_ns
    flip(split.shard_path(2))
    os.utime(split.shard_path(2), ns=(packed_at - HOUR, packed_at - HOUR))
    with pytest.raises(InputError, match=r"shard-000002\.tar is not what was packed"):
        check_shards(split)


def test_a_note_about_another_packing_is_worth_nothing(split: Split, hashed: list[str]) -> None:
    flip(split.shard_path(0))
    state = split.shard_path(0).stat()
    note = {"fingerprint": "another", "shards": {"shard-000000.tar": [state.st_size, state.st_mtime_ns]}}
    (split.folder / NOTE).write_text(json.dumps(note))
    with pytest.raises(InputError, match=r"shard-000000\.tar is not what was packed"):
        check_shards(split)
    assert hashed == ["shard-000000.tar"]


@pytest.mark.parametrize("content", ["", "[]", '{"fingerprint": 3}', '{"shards": [1]}'])
def test_a_torn_note_is_written_anew(split: Split, content: str, hashed: list[str]) -> None:
    (split.folder / NOTE).write_text(content)
    touch(split.shard_path(0))
    check_shards(split)
    check_shards(split)
    assert hashed == ["shard-000000.tar"]


@pytest.fixture
def read_only(split: Split) -> Iterator[Split]:
    """The split on a file system that nobody can write to."""
    for i in range(8):
        touch(split.shard_path(i))
    folder = str(split.folder)
    if os.geteuid() != 0:
        split.folder.chmod(0o555)
        yield split
        split.folder.chmod(0o755)
        return
    for options in (["--bind"], ["-o", "remount,ro,bind"]):
        if subprocess.run(["mount", *options, folder, folder], capture_output=True).returncode:
            pytest.skip("root, but not allowed to mount: no folder is read-only")
    yield split
    subprocess.run(["umount", folder], check=True)


def test_of_a_read_only_corpus_the_note_stands_in_the_users_cache(
    read_only: Split, hashed: list[str], tmp_path: Path
) -> None:
    check_shards(read_only)
    check_shards(read_only)
    assert len(hashed) == 8
    assert not (read_only.folder / NOTE).exists()
    assert [p.suffix for p in sorted((tmp_path / "cache" / "simdist").iterdir())] == [".json", ".lock"]


def test_packing_writes_the_manifest_after_the_shards(split: Split) -> None:
    """What the first check relies on."""
    packed_at = (split.folder / MANIFEST).stat().st_mtime_ns
    assert max(split.shard_path(i).stat().st_mtime_ns for i in range(8)) <= packed_at
