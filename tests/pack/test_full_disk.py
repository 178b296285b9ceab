"""Packing on to a disk that is full: one line with the bytes needed, finished shards stay, the same command goes on."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

import pytest

from simdist.core.console import run
from simdist.pack.__main__ import main
from tests.support.packing_cases import SmallCorpus, small_corpus
from tests.support.small_disk import small_disk

SHARDS = ["--shard-samples", "2"]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> SmallCorpus:
    """Eight shards of some 90 kB."""
    return small_corpus(tmp_path_factory.mktemp("corpus"), speakers=4)


def failure(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as ended:
        run(main, arguments)
    assert ended.value.code == 1
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    return said


def hashes(out: Path) -> dict[str, str]:
    files = [p for p in out.rglob("*") if p.is_file() and p.name != ".pack.lock"]
    return {str(p.relative_to(out)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


@pytest.fixture(scope="module")
def undisturbed(corpus: SmallCorpus, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    out = tmp_path_factory.mktemp("undisturbed") / "out"
    main(corpus.arguments(out, *SHARDS))
    return hashes(out)


@pytest.mark.parametrize(("kilobytes", "finished"), [(4, 0), (60, 0), (300, 3), (700, 7)])
def test_a_full_disk_while_packing(
    corpus: SmallCorpus,
    undisturbed: dict[str, str],
    tmp_path: Path,
    kilobytes: int,
    finished: int,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with small_disk(tmp_path / "disk", kilobytes) as disk:
        out = disk.folder / "out"
        said = failure(corpus.arguments(out, *SHARDS), capsys)
        found = re.fullmatch(
            rf"error: {out}/t\S+ cannot be written: No space left on device; what is missing needs about ([\d,]+) "
            r"bytes and ([\d,]+) are free there \(finished shards are kept: make room and run the same command "
            r"again\)\n",
            said,
        )
        assert found, said
        needed, free = (int(number.replace(",", "")) for number in found.groups())
        assert free < needed
        shards = {p: p.stat().st_mtime_ns for p in out.glob("*/shard-*.tar")}
        assert len(shards) == finished
        assert needed == pytest.approx((8 - finished) * 92_000, rel=0.3)
        assert not list(out.rglob(".tmp-*"))
        disk.resize(2000)
        assert main(corpus.arguments(out, *SHARDS)) == 0
        assert {p: p.stat().st_mtime_ns for p in shards} == shards, "finished shards are not packed again"
        assert hashes(out) == undisturbed


def test_a_full_disk_at_the_very_end(corpus: SmallCorpus, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """All shards are there, and no room for the index: it is not a complete split, and becomes one."""
    options = [*SHARDS, "--min-samples", "24050"]  # some are shorter: --strict leaves shards without index and manifest
    with small_disk(tmp_path / "disk", 2000) as disk:
        out = disk.folder / "out"
        with pytest.raises(SystemExit):
            run(main, corpus.arguments(out, *options, "--strict"))
        shards = {p: p.stat().st_mtime_ns for p in out.glob("*/shard-*.tar")}
        assert len(shards) == 8
        capsys.readouterr()
        ballast = disk.fill()
        said = failure(corpus.arguments(out, *options), capsys)
        assert re.search(r"No space left on device; what is missing needs about [4-9],\d{3} bytes and", said)
        assert not list(out.rglob("manifest.json"))
        ballast.unlink()
        assert main(corpus.arguments(out, *options)) == 0
        assert {p: p.stat().st_mtime_ns for p in shards} == shards
        main(corpus.arguments(tmp_path / "fresh", *options))
        assert hashes(out) == hashes(tmp_path / "fresh")


def test_a_full_disk_while_speech_is_made(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("espeakng_loader")
    options = ["--speakers", "2", "--minutes", "0.5", "--workers", "1"]
    with small_disk(tmp_path / "disk", 300) as disk:
        source = disk.folder / "source"
        said = failure(["synthetic", str(source), str(tmp_path / "out"), *options], capsys)
        assert re.search(
            r"cannot be written: No space left on device; the corpus takes about 600,000 bytes and [\d,]+ are free",
            said,
        )
        disk.resize(5000)
        assert main(["synthetic", str(source), str(tmp_path / "out"), *options]) == 0
    assert main(["synthetic", str(tmp_path / "source"), str(tmp_path / "other"), *options]) == 0
    assert hashes(tmp_path / "out") == hashes(tmp_path / "other")
