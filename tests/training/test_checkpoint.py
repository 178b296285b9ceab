"""Checkpoints written in the background: whole or not there, never waited for, and loud when they fail."""

from __future__ import annotations

import os
import stat
import subprocess
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from simdist.core.errors import FailedError, InputError
from simdist.runs.checkpoints import finish_saving, latest_checkpoint
from simdist.training import checkpoint as checkpoints
from simdist.training.checkpoint import AsyncCheckpointer, Checkpoint, Retention, load_checkpoint, save_checkpoint


def checkpoint(step: int = 1, size: int = 1000) -> Checkpoint:
    weight = torch.full((size,), float(step))
    return Checkpoint(step, 8 * step, "f" * 64, {"weight": weight}, [{"optimizer": {"exp_avg": weight * 2}}])


def steps(folder: Path) -> list[int]:
    return sorted(int(path.name.removeprefix("step_")) for path in folder.glob("step_*"))


def test_what_is_read_back_is_what_was_saved(tmp_path: Path) -> None:
    saved = replace(checkpoint(7), recovery=[{"lr_scale": 0.5}], nonfinite_steps=[3], bad_samples=["x"])
    read = load_checkpoint(save_checkpoint(tmp_path, saved, Retention(1)))
    assert torch.equal(read.model["weight"], saved.model["weight"])
    assert torch.equal(read.optimizer[0]["optimizer"]["exp_avg"], saved.optimizer[0]["optimizer"]["exp_avg"])
    assert replace(read, model={}, optimizer=[]) == replace(saved, model={}, optimizer=[])


def test_retention(tmp_path: Path) -> None:
    for step in range(1, 12):
        save_checkpoint(tmp_path, checkpoint(step), Retention(last=2, every=4))
    assert steps(tmp_path) == [4, 8, 10, 11]


@pytest.mark.parametrize(("mask", "mode"), [(0o022, 0o644), (0o077, 0o600)])
def test_files_have_the_users_umask(tmp_path: Path, mask: int, mode: int) -> None:
    before = os.umask(mask)
    try:
        folder = save_checkpoint(tmp_path / "checkpoints", checkpoint(), Retention(1))
    finally:
        os.umask(before)
    assert {stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()} == {mode}
    assert stat.S_IMODE(folder.stat().st_mode) == 0o777 & ~mask


def test_saving_copies_and_does_not_wait(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gate = threading.Event()

    def slow(folder: Path, content: Checkpoint, retention: Retention) -> Path:
        gate.wait(60)
        return save_checkpoint(folder, content, retention)

    monkeypatch.setattr(checkpoints, "save_checkpoint", slow)
    saver, mine = AsyncCheckpointer(tmp_path, Retention(2), lambda: None), checkpoint(1)
    saver.save(mine)
    assert steps(tmp_path) == []  # not written, and here we are
    mine.model["weight"].zero_()  # training goes on
    mine.optimizer[0]["optimizer"]["exp_avg"].zero_()
    second = threading.Thread(target=saver.save, args=(checkpoint(2),))
    second.start()
    time.sleep(0.2)
    assert second.is_alive()  # a second save waits for the first
    gate.set()
    second.join()
    saver.finish()
    assert steps(tmp_path) == [1, 2]
    first = load_checkpoint(tmp_path / "step_00000001")
    assert first.model["weight"].eq(1).all()
    assert first.optimizer[0]["optimizer"]["exp_avg"].eq(2).all()


def test_a_failure_in_the_background_is_raised_at_the_next_question(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    saver = AsyncCheckpointer(tmp_path / "file" / "checkpoints", Retention(2), lambda: None)
    saver.save(checkpoint())
    with pytest.raises(FailedError, match=r"step_00000001 could not be written .*Not a directory.*8,000 bytes"):
        saver.finish()
    with pytest.raises(FailedError):
        saver.check()


def test_nothing_is_written_by_who_may_not(tmp_path: Path) -> None:
    def lost() -> None:
        raise InputError("another process writes this run")

    saver = AsyncCheckpointer(tmp_path, Retention(2), lost)
    saver.save(checkpoint())
    with pytest.raises(InputError, match="another process"):
        saver.finish()
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of one MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("a tmpfs cannot be mounted here (it takes root)")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_leaves_the_last_checkpoint(small_disk: Path) -> None:
    save_checkpoint(small_disk, checkpoint(1, size=30_000), Retention(2))
    words = r"step_00000002 could not be written \(No space left on device\): it needs 2,400,000 bytes below .* free. "
    with pytest.raises(FailedError, match=words + "Free some space and run the same command again"):
        save_checkpoint(small_disk, checkpoint(2, size=300_000), Retention(2))
    assert steps(small_disk) == [1]
    assert [path.name for path in small_disk.iterdir()] == ["step_00000001"]
    found = latest_checkpoint(small_disk, pytest.fail)
    assert found is not None
    assert load_checkpoint(found).step == 1


def test_a_save_that_was_killed_is_cleared_away(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, checkpoint(1), Retention(2))
    (tmp_path / ".step_00000002.tmp").mkdir()
    (tmp_path / ".step_00000002.tmp" / "model.safetensors").write_text("half")
    finish_saving(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["step_00000001"]


@pytest.mark.parametrize("left", [(".old",), (".tmp",), (".old", ".tmp")])
def test_a_kill_between_the_two_renames_of_a_replacement_loses_nothing(tmp_path: Path, left: tuple[str, ...]) -> None:
    """The newer one counts where it is whole."""
    for ending in left:
        folder = save_checkpoint(
            tmp_path / ending, checkpoint(7, size=len(ending + "x" * (ending == ".tmp"))), Retention(1)
        )
        folder.rename(tmp_path / f".{folder.name}{ending}")
        (tmp_path / ending).rmdir()
    finish_saving(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["step_00000007"]
    assert len(load_checkpoint(tmp_path / "step_00000007").model["weight"]) == (5 if ".tmp" in left else 4)


def test_a_damaged_newer_checkpoint_does_not_cost_the_good_one(tmp_path: Path) -> None:
    newest = save_checkpoint(tmp_path, checkpoint(12), Retention(1))
    (newest / "model.safetensors").write_text("damaged")
    save_checkpoint(tmp_path, checkpoint(10), Retention(1))
    save_checkpoint(tmp_path, checkpoint(11), Retention(1))
    assert steps(tmp_path) == [11, 12]
    save_checkpoint(tmp_path, checkpoint(12), Retention(1))
    assert steps(tmp_path) == [12]
    found = latest_checkpoint(tmp_path, pytest.fail)
    assert found is not None


def test_an_old_checkpoint_that_cannot_be_removed_stays_and_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    old = save_checkpoint(tmp_path, checkpoint(1), Retention(1))
    if subprocess.run(["chattr", "+i", str(old)], capture_output=True).returncode:
        pytest.skip("a folder cannot be made immutable here (it takes root)")
    try:
        save_checkpoint(tmp_path, checkpoint(2), Retention(1))
    finally:
        subprocess.run(["chattr", "-i", str(old)], check=True)
    assert steps(tmp_path) == [1, 2]
    assert f"warning: the old checkpoint {old} cannot be removed (Operation not permitted)" in capsys.readouterr().err


def test_a_damaged_checkpoint_of_the_same_step_is_replaced(tmp_path: Path) -> None:
    folder = save_checkpoint(tmp_path, checkpoint(1), Retention(2))
    (folder / "optimizer.pt").write_text("damaged")
    save_checkpoint(tmp_path, checkpoint(1), Retention(2))
    assert latest_checkpoint(tmp_path, pytest.fail) == folder
    assert len(list(tmp_path.iterdir())) == 1
