"""Copy the code at submission, so that a job runs what was submitted even if it waits for days.

A copy of all files that git tracks, and of those it neither tracks nor ignores, in `sweeps/NAME/code/HASH`; equal code
shares one copy. Without git, the packages alone; of an installed wheel, the package `simdist`, whatever else is in
site-packages.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import uuid
from pathlib import Path

from simdist.core.errors import InputError
from simdist.core.files import TEMPORARY
from simdist.core.secrets import redacted
from simdist.runs.folder import SNAPSHOT

MAX_BYTES = 200_000_000
WITHOUT_GIT = ("launch", "simdist", "configs", "slurm", "pyproject.toml")
OF_WHEEL = ("simdist",)


def take_snapshot(root: Path, folder: Path) -> Path:
    """Copy the code in `root` to `folder`/HASH; returns that folder, absolute.

    Args:
        root: the clone, or site-packages with an installed simdist.
        folder: of all snapshots of a sweep.

    Raises:
        InputError: the files are so many bytes that they cannot all be code.
    """
    if (root / SNAPSHOT).is_file():  # a job that submits others runs from one
        return root.absolute()
    files = _files(root, folder)
    _refuse_data(root, files)
    target = folder.absolute() / _hash(root, files)
    if target.is_dir():
        return target
    temporary = target.with_name(f"{TEMPORARY}{uuid.uuid4().hex}")
    for file in files:
        copy = temporary / file
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(root / file, copy, follow_symlinks=False)
    commit = difference = None
    if not _is_installed(root):  # a repository around site-packages would be another project's
        commit, difference = _git(root, "rev-parse", "HEAD"), _git(root, "diff", "HEAD")
    origin = {
        "root": str(root.absolute()),
        "commit": commit.strip() if commit else None,
        "diff": redacted(difference) if difference else difference,
    }
    (temporary / SNAPSHOT).write_text(json.dumps(origin, indent=1))
    try:
        temporary.rename(target)
    except OSError:  # another submission was faster
        shutil.rmtree(temporary)
    return target


def _files(root: Path, folder: Path) -> list[Path]:
    """Files of the code below `root`, but not those of earlier snapshots."""
    installed = _is_installed(root)
    listed = (
        None if installed else _git(root, "ls-files", "--cached", "--others", "--exclude-standard", "-z", "--", ".")
    )
    if listed is None:
        found = [path for name in (OF_WHEEL if installed else WITHOUT_GIT) for path in _below(root / name)]
        return sorted(path.relative_to(root) for path in found if "__pycache__" not in path.parts)
    sweeps = folder.absolute().parent.parent
    files = [Path(name) for name in dict.fromkeys(listed.split("\0")) if name]
    return sorted(file for file in files if _is_code(root.absolute() / file, sweeps))


def _is_installed(root: Path) -> bool:
    """Whether `root` is site-packages: there the launcher is `simdist/launch`."""
    return (root / "simdist" / "launch").is_dir()


def _is_code(path: Path, sweeps: Path) -> bool:
    """Whether a file or link exists; a tracked one may have been removed."""
    return os.path.lexists(path) and (path.is_symlink() or path.is_file()) and not path.is_relative_to(sweeps)


def _below(path: Path) -> list[Path]:
    return [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]


def _refuse_data(root: Path, files: list[Path]) -> None:
    sizes = {file: (root / file).lstat().st_size for file in files}
    if sum(sizes.values()) > MAX_BYTES:
        largest = max(sizes, key=lambda file: sizes[file])
        raise InputError(
            f"the code in {root} is {sum(sizes.values()) / 1e6:,.0f} MB, too much to copy for each submission; the "
            f"largest file is {largest} ({sizes[largest] / 1e6:,.0f} MB): move it away, or add it to .gitignore"
        )


def _hash(root: Path, files: list[Path]) -> str:
    digest = hashlib.sha256()
    for file in files:
        path = root / file
        content = os.readlink(path).encode() if path.is_symlink() else path.read_bytes()
        digest.update(f"{file}\0{len(content)}\0".encode() + content)
    return digest.hexdigest()[:12]


def _git(root: Path, *words: str) -> str | None:
    """Output of git in `root`; None without git or a repository."""
    try:
        result = subprocess.run(
            ["git", "-C", str(root), *words], capture_output=True, text=True, timeout=60, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return result.stdout
