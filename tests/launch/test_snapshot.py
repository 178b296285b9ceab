"""The copy of the code that jobs import: what is in it, and what is said of the rest."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest

import launch.snapshot
from launch.snapshot import left_out, take_snapshot
from simdist.core.errors import InputError
from simdist.runs.folder import code_state


def git(root: Path, *words: str) -> None:
    identity = ["-c", "user.name=t", "-c", "user.email=t@t"]
    subprocess.run(["git", "-C", str(root), *identity, *words], check=True, capture_output=True)


@pytest.fixture
def code(tmp_path: Path) -> Path:
    """A repository with a file of each kind."""
    root = tmp_path / "code"
    (root / "launch").mkdir(parents=True)
    for name, text in (("launch/a.py", "1"), (".gitignore", "data/\n*.pyc\n"), ("gone.py", "2"), ("launch/x.pyc", "3")):
        (root / name).write_text(text)
    (root / "link.py").symlink_to("launch/a.py")
    git(root, "init", "-q")
    git(root, "add", ".")
    git(root, "commit", "-qm", "one")
    (root / "launch/a.py").write_text("changed")
    (root / "launch/new.py").write_text("new")
    (root / "gone.py").unlink()
    (root / "data").mkdir()
    (root / "data" / "big").write_text("big")
    return root


PRIVATE = (".env", "launch/.env", "configs/secrets.yaml", "server.pem", ".netrc", "notes.txt", "corpus.tar")


def test_a_snapshot_holds_tracked_files_and_new_code_but_nothing_ignored_or_private(code: Path) -> None:
    (code / "configs").mkdir()
    for name in (*PRIVATE, "configs/mine.yaml", "tool.py"):
        (code / name).write_text("HF_TOKEN=hunter2hunter2")
    snapshot = take_snapshot(code, code / "sweeps" / "one" / "code")
    names = {str(path.relative_to(snapshot)) for path in snapshot.rglob("*") if not path.is_dir()}
    assert names == {".gitignore", "launch/a.py", "launch/new.py", "link.py", "configs/mine.yaml", "snapshot.json"}
    assert (snapshot / "launch/a.py").read_text() == "changed"
    assert (snapshot / "link.py").is_symlink()
    origin = json.loads((snapshot / "snapshot.json").read_text())
    assert len(origin["commit"]) == 40
    assert "+changed" in origin["diff"]
    assert code_state(snapshot) == (origin["commit"], origin["diff"])  # what a run of this copy writes down


def test_untracked_files_that_look_like_code_are_counted_and_named(code: Path) -> None:
    folder = code / "sweeps" / "one" / "code"
    take_snapshot(code, folder)
    for name in PRIVATE[:2]:
        (code / name).write_text("")
    assert left_out(code, folder) == []
    (code / "tool.py").write_text("")
    assert left_out(code, folder) == [
        "1 untracked file looks like code, but jobs get no copy: tool.py. `git add` what jobs need"
    ]
    (code / "new").mkdir()
    for name in ("launch/a.json", "new/b.cu", "new/c.sh", "new/data.csv"):
        (code / name).write_text("")
    (line,) = left_out(code, folder)
    assert line.startswith(
        "4 untracked files look like code, but jobs get no copy: launch/a.json, new/b.cu, new/c.sh, …"
    )
    git(code, "add", "tool.py", "launch/a.json", "new")
    assert left_out(code, folder) == []
    assert (take_snapshot(code, folder) / "tool.py").is_file()


def test_code_without_git_or_in_the_repository_of_something_else_is_copied_by_folder(code: Path) -> None:
    (code / "launch/.env").write_text("HF_TOKEN=hunter2hunter2")
    shutil.rmtree(code / ".git")
    for _ in range(2):
        snapshot = take_snapshot(code, code / "sweeps" / "one" / "code")
        assert {path.name for path in snapshot.rglob("*") if path.is_file()} == {
            "a.py",
            "new.py",
            "x.pyc",
            "snapshot.json",
        }
        assert code_state(snapshot) == (None, None)
        git(code.parent, "init", "-q")


def test_a_snapshot_has_no_changes_of_private_files_and_no_secrets_in_others(code: Path) -> None:
    git(code, "add", "-f", "launch/new.py")
    for text in ("OLD", "hunter2hunter2"):
        (code / ".env").write_text(text)
        (code / "launch/a.py").write_text(f"login(token='{text}')  # {text[:3]}")
        git(code, "add", ".env")
        if text == "OLD":
            git(code, "commit", "-qm", "two")
    _, difference = code_state(take_snapshot(code, code / "sweeps" / "one" / "code"))
    assert difference is not None
    assert "+login(token=[redacted])  # hun" in difference
    assert "hunter2" not in difference
    assert ".env" not in difference


def test_equal_code_shares_a_snapshot_and_earlier_ones_are_not_copied(code: Path) -> None:
    folder = code / "sweeps" / "one" / "code"
    first = take_snapshot(code, folder)
    assert take_snapshot(code, folder) == first
    (code / "launch/new.py").write_text("newer")
    second = take_snapshot(code, folder)
    assert second != first
    assert not (second / "sweeps").exists()
    assert sorted(path.name for path in folder.iterdir()) == sorted([first.name, second.name])


def test_a_snapshot_refuses_data_and_names_it(code: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch.snapshot, "MAX_BYTES", 1000)
    (code / "corpus.bin").write_bytes(b"0" * 2000)
    take_snapshot(code, code / "sweeps" / "one" / "code")
    git(code, "add", "corpus.bin")
    with pytest.raises(InputError, match=r"the largest file is corpus\.bin .*out of git"):
        take_snapshot(code, code / "sweeps" / "one" / "code")
