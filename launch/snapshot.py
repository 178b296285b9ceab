"""Copy the code at submission, so that a job runs what was submitted even if it waits for days.

`sweeps/NAME/code/HASH` gets the files that git tracks, with their uncommitted changes, and untracked .py and .yaml
files of `CODE_FOLDERS`; other untracked files may be keys or data. Equal code shares one copy. Without git, the
packages alone; of an installed wheel, the package `simdist`, whatever else is in site-packages.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
from pathlib import Path

from simdist.core.errors import InputError
from simdist.core.files import temporary_path
from simdist.core.secrets import is_private, redacted
from simdist.runs.folder import DIFF, SNAPSHOT

CODE_COPIES = "code"  # in a sweep's folder
MAX_BYTES = 200_000_000
CODE_FOLDERS = ("launch", "simdist", "configs", "slurm")
WITHOUT_GIT = (*CODE_FOLDERS, "pyproject.toml")
OF_WHEEL = ("simdist",)
COPIED_UNTRACKED = (".py", ".yaml", ".yml")
PROGRAMS = (".py", ".pyi", ".pyx", ".sh", ".sbatch", ".c", ".cpp", ".cu")
SHOWN_FILES = 3


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
    tracked = _listed(root, folder, "--cached")
    files = _files(root, folder, tracked)
    _refuse_data(root, files)
    target = folder.absolute() / _hash(root, files)
    if target.is_dir():
        return target
    temporary = temporary_path(target)
    for file in files:
        copy = temporary / file
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(root / file, copy, follow_symlinks=False)
    commit = difference = None
    if tracked:
        commit, difference = _git(root, "rev-parse", "HEAD"), _git(root, *DIFF)
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


def left_out(root: Path, folder: Path) -> list[str]:
    """One line if untracked files that look like code are not in a snapshot, else nothing.

    Args:
        root: as for `take_snapshot`.
        folder: as for `take_snapshot`.
    """
    if (root / SNAPSHOT).is_file() or not _listed(root, folder, "--cached"):
        return []
    files = [file for file in _untracked(root, folder) if not _is_copied(file) and _looks_like_code(file)]
    if not files:
        return []
    names = ", ".join(map(str, files[:SHOWN_FILES])) + (", …" if len(files) > SHOWN_FILES else "")
    what = "untracked file looks" if len(files) == 1 else "untracked files look"
    return [f"{len(files):,} {what} like code, but jobs get no copy: {names}. `git add` what jobs need"]


def _files(root: Path, folder: Path, tracked: list[Path]) -> list[Path]:
    """Files of the code below `root`, but not those of earlier snapshots."""
    if tracked:
        return sorted([*tracked, *filter(_is_copied, _untracked(root, folder))])
    names = OF_WHEEL if _is_installed(root) else WITHOUT_GIT
    found = [path.relative_to(root) for name in names for path in _below(root / name)]
    return sorted(path for path in found if "__pycache__" not in path.parts and not is_private(path.name))


def _untracked(root: Path, folder: Path) -> list[Path]:
    return sorted(_listed(root, folder, "--others", "--exclude-standard"))


def _listed(root: Path, folder: Path, *options: str) -> list[Path]:
    """Files that git lists and that are not of a sweep; none of a wheel, around which git is another project's."""
    listed = None if _is_installed(root) else _git(root, "ls-files", "-z", *options, "--", ".")
    files = [Path(name) for name in dict.fromkeys((listed or "").split("\0")) if name]
    sweeps = folder.absolute().parent.parent
    return [file for file in files if _exists(root.absolute() / file, sweeps)]


def _is_copied(file: Path) -> bool:
    """Whether jobs may need an untracked file."""
    return file.parts[0] in CODE_FOLDERS and file.suffix in COPIED_UNTRACKED and not is_private(file.name)


def _looks_like_code(file: Path) -> bool:
    return not is_private(file.name) and (file.parts[0] in CODE_FOLDERS or file.suffix in PROGRAMS)


def _is_installed(root: Path) -> bool:
    """Whether `root` is site-packages: there the launcher is `simdist/launch`."""
    return (root / "simdist" / "launch").is_dir()


def _exists(path: Path, sweeps: Path) -> bool:
    """Whether a file or link exists outside of the sweeps; a tracked one may have been removed."""
    return os.path.lexists(path) and (path.is_symlink() or path.is_file()) and not path.is_relative_to(sweeps)


def _below(path: Path) -> list[Path]:
    return [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]


def _refuse_data(root: Path, files: list[Path]) -> None:
    sizes = {file: (root / file).lstat().st_size for file in files}
    if sum(sizes.values()) > MAX_BYTES:
        largest = max(sizes, key=lambda file: sizes[file])
        raise InputError(
            f"the code in {root} is {sum(sizes.values()) / 1e6:,.0f} MB, too much to copy for each submission; the "
            f"largest file is {largest} ({sizes[largest] / 1e6:,.0f} MB): move it away, or out of git"
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
