"""The doctor's command line, this machine, and a corpus; clusters are in tests/doctor and tests/slurm."""

from __future__ import annotations

import json
import re
import shutil
import socket
from pathlib import Path

import pytest

from simdist.cluster.profile import load_profile
from simdist.core.errors import InputError
from simdist.doctor import __main__ as doctor
from simdist.doctor import machine
from simdist.doctor.corpus import check_corpus


@pytest.fixture(autouse=True)
def no_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")


def test_a_machine_and_a_corpus_that_are_ready(
    speech: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert doctor.main(["--data-root", str(speech), "--runs", str(tmp_path / "runs"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert {finding["subject"] for finding in found} == {"packages", "accelerator", "bf16", "disk", "wandb", "data"}
    assert all(finding["level"] != "error" for finding in found)
    assert all(finding["remedy"] for finding in found if finding["level"] != "ok")
    assert list(tmp_path.iterdir()) == []  # what was written to measure the disk is gone


def test_an_error_is_shown_with_its_remedy_and_fails(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert doctor.main(["--data-root", str(tmp_path / "nothing"), "--runs", str(tmp_path)]) == 1
    lines = capsys.readouterr().out.splitlines()
    at = next(n for n, line in enumerate(lines) if line.startswith("error    data"))
    assert f"{tmp_path}/nothing holds no packed corpus" in lines[at]
    assert lines[at + 1].strip() == f"-> pack one: `python -m simdist.pack CORPUS SOURCE {tmp_path}/nothing`"
    assert re.search(r"1 error, \d warnings?$", lines[-1])  # a processor without bf16 is a warning


def test_unknown_profiles_and_impossible_options(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(InputError, match=r"no cluster profile 'juwels'\. Use one of"):
        doctor.main(["--cluster", "juwels"])
    with pytest.raises(SystemExit) as ended:
        doctor.main(["--wait", "-1"])
    assert ended.value.code == 2
    assert "--wait is -1; it must be 0" in capsys.readouterr().err


def test_a_profile_is_written_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mine = tmp_path / "mine.yaml"
    doctor.main(["--cluster", "gpu", "--write", str(mine), "--runs", str(tmp_path), "--wait", "0"])
    assert f"wrote this profile to {mine}" in capsys.readouterr().out
    assert load_profile(mine) == load_profile("gpu")
    before = mine.read_text()
    with pytest.raises(InputError, match=r"mine\.yaml already exists"):
        doctor.main(["--cluster", "gpu", "--write", str(mine)])
    assert mine.read_text() == before
    with pytest.raises(SystemExit) as ended:
        doctor.main(["--write", str(tmp_path / "other.yaml")])
    assert ended.value.code == 2
    assert "--write needs --cluster" in capsys.readouterr().err


def test_nothing_is_written_where_slurm_does_not_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SLURM_CONF", "SIMDIST_CLUSTER"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    with pytest.raises(InputError, match="SLURM does not answer, so nothing was written"):
        doctor.main(["--cluster", "slurm", "--write", str(tmp_path / "mine.yaml")])
    assert not (tmp_path / "mine.yaml").exists()


def test_shards_that_are_missing_or_cut(speech: Path, tmp_path: Path) -> None:
    root = tmp_path / "shards"
    shutil.copytree(speech, root)
    (first, *_) = sorted((root / "train").glob("*.tar"))
    with first.open("r+b") as file:
        file.truncate(1000)
    (root / "test" / "manifest.json").unlink()
    cut, unfinished = sorted(check_corpus(root), key=lambda finding: "train" not in finding.message)
    assert cut.level == unfinished.level == "error"
    assert "shard-000000.tar has 1,000 of" in cut.message
    assert "packing was not finished" in unfinished.message
    first.unlink()
    assert any("shard-000000.tar is missing" in finding.message for finding in check_corpus(root))


def test_a_corpus_without_a_test_split(speech: Path, tmp_path: Path) -> None:
    shutil.copytree(speech / "train", tmp_path / "train")
    levels = {finding.message: finding.level for finding in check_corpus(tmp_path)}
    assert levels[f"{tmp_path} has no split test"] == "warning"


def test_a_disk_that_is_nearly_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil._ntuple_diskusage(10**9, 9 * 10**8, 10**8)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    ((found,), seconds) = machine.check_disk(tmp_path)
    assert (found.level, seconds) == ("error", 0.0)
    assert found.message.startswith("0.1 GB free")


def test_the_largest_checkpoint_is_what_is_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "MODEL_BYTES", 2_000_000)
    for run, size in (("a", 5_000_000), ("b", 1_000)):
        checkpoint = tmp_path / run / "checkpoints" / "step_00000010"
        checkpoint.mkdir(parents=True)
        (checkpoint / "model.safetensors").write_bytes(bytes(size))
    ((found,), _) = machine.check_disk(tmp_path)
    assert "a checkpoint of 5.0 MB is saved in" in found.message
    ((found,), _) = machine.check_disk(tmp_path / "b")
    assert "a checkpoint of 2.0 MB is saved in" in found.message


def test_a_slow_disk_is_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "_time_to_save", lambda folder, size: 45.0)
    ((found,), seconds) = machine.check_disk(tmp_path)
    assert (found.level, seconds) == ("warning", 45.0)


def test_wandb_offline_unreachable_and_logged_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (offline,) = machine.check_wandb()
    assert offline.message == "WANDB_MODE is offline"
    for name in ("WANDB_MODE", "WANDB_API_KEY", "https_proxy", "HTTPS_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        monkeypatch.setattr(machine, "WANDB", server.getsockname())
        (unreachable,) = machine.check_wandb()  # bound, and not listening
        assert (unreachable.level, "offline" in unreachable.remedy) == ("warning", True)
        server.listen()
        monkeypatch.setattr(machine, "_netrc", lambda: "")
        monkeypatch.setattr(machine, "WANDB", (server.getsockname()[0], server.getsockname()[1]))
        monkeypatch.setenv("WANDB_API_KEY", "key")
        assert [finding.level for finding in machine.check_wandb()] == ["ok"]
