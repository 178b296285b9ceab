"""A run is a folder: its config, its environment, its events, its metrics, its checkpoints.

config.yaml  environment.json  events.jsonl  metrics.jsonl  checkpoints/  DONE
"""

from __future__ import annotations

import json
import os
import platform
import socket
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any, Generic

import yaml
from typing_extensions import TypeVar

from simdist.config.load import read_config, read_tree
from simdist.config.schema import Config, Experiment, differences, identity, to_dict
from simdist.core.errors import InputError
from simdist.core.files import append_json, naming_the_disk, read_json_lines, write_text
from simdist.core.secrets import redacted, redacted_words

ExperimentT = TypeVar("ExperimentT", bound=Experiment, default=Config)

SLOW_PRECISION = "slow_precision"  # event: bf16 is emulated, or was replaced by float32 for that reason
LEASE = "lease.json"  # all that a run which was killed at once may have
CONFIG, ENVIRONMENT, EVENTS, METRICS, CHECKPOINTS, DONE = (
    "config.yaml",
    "environment.json",
    "events.jsonl",
    "metrics.jsonl",
    "checkpoints",
    "DONE",
)
SNAPSHOT = "snapshot.json"  # beside the packages in a sweep's copy of the code, which git does not know
PACKAGES = ("simdist", "torch", "accelerate", "deepspeed", "webdataset", "numpy", "safetensors", "soundfile", "wandb")


def default_folder(config: Config) -> Path:
    """`runs/NAME-HASH`: the same configuration always finds its run again."""
    return Path("runs") / f"{config.name}-{identity(config)[:8]}"


def with_precision(config: Config, precision: str) -> Config:
    """`config` with another `train.precision`."""
    return replace(config, train=replace(config.train, precision=precision))


def saved_precision(config: Config, folder: Path | None) -> str | None:
    """Precision of the run that training `config` resumes; None if there is no such run.

    Without a folder, the run is found although `auto` is bf16 on one CPU and float32 on another, which changes the
    default folder's name. A float32 run counts only if it trains in float32 because its CPU emulates bf16: another one
    was started by another command.
    """
    if folder is not None:
        return read_config(folder / CONFIG).train.precision if (folder / CONFIG).is_file() else None
    folders = {name: default_folder(with_precision(config, name)) for name in ("bf16", "no")}
    begun = [name for name, candidate in folders.items() if (candidate / CONFIG).is_file()]
    if begun == ["no"] and not Run(folders["no"], config).count(SLOW_PRECISION):
        return None
    return begun[0] if len(begun) == 1 else None


@dataclass(frozen=True)
class Run(Generic[ExperimentT]):
    """An experiment's folder on disk."""

    folder: Path
    config: ExperimentT
    title: str = ""
    """Name for trackers; empty takes the folder's."""

    @property
    def name(self) -> str:
        return self.title or self.folder.resolve().name

    @property
    def checkpoints(self) -> Path:
        return self.folder / CHECKPOINTS

    @property
    def metrics(self) -> Path:
        return self.folder / METRICS

    @property
    def is_finished(self) -> bool:
        return (self.folder / DONE).exists()

    @property
    def has_begun(self) -> bool:
        """Whether the run ever had weights to lose: a checkpoint was written, or it was imported."""
        saved = self.checkpoints.is_dir() and any(path.name.startswith("step_") for path in self.checkpoints.iterdir())
        return saved or any(line["event"] in ("imported", "stopped") for line in read_json_lines(self.folder / EVENTS))

    def event(self, name: str, **fields: Any) -> None:
        """Append to events.jsonl: start, resumed, stopped, finished, …"""
        line = {"event": name, "time": time.time(), "host": socket.gethostname(), **fields}
        with naming_the_disk(f"event {name!r}", self.folder, len(json.dumps(line))):
            append_json(self.folder / EVENTS, line)

    def count(self, name: str) -> int:
        """How many events of one name were recorded."""
        return sum(line["event"] == name for line in read_json_lines(self.folder / EVENTS))

    def write(self) -> None:
        """Create the folder, or bring its config and environment up to date."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            write_text(self.folder / CONFIG, yaml.safe_dump(to_dict(self.config), sort_keys=False))
            write_text(self.folder / ENVIRONMENT, json.dumps(environment(), indent=1))
        except OSError as error:
            reason = f"run folder {self.folder} cannot be written ({error.strerror})"
            raise InputError(f"{reason}; name another with --run-dir") from error

    def finish(self, step: int) -> None:
        """Mark the run as complete."""
        with naming_the_disk(DONE, self.folder, 100):
            write_text(self.folder / DONE, json.dumps({"step": step, "time": time.time()}))


def existing_run(folder: Path | None) -> Run:
    """A run that was trained, or is.

    Raises:
        InputError: none was named, or it is none.
    """
    if folder is None:
        raise InputError("no run was named; name its folder with --run-dir")
    if not (folder / CONFIG).is_file():
        raise InputError(f"{folder} is no run (it has no {CONFIG}); name the folder that simdist.train wrote")
    return Run(folder, read_config(folder / CONFIG))


def open_run(
    folder: Path, config: ExperimentT, force: bool = False, elsewhere: str = "name another folder with --run-dir"
) -> Run[ExperimentT]:
    """The run in `folder`, which need not exist yet. Writes nothing.

    Args:
        elsewhere: how a user gets to an empty folder.
        force: go on with `config` although the folder's run was started with another one.

    Raises:
        InputError: the folder holds a run of another configuration, or no run at all.
    """
    if folder.exists() and not folder.is_dir():
        raise InputError(f"--run-dir {folder} is a file; name a folder")
    if not (folder / CONFIG).exists():
        if folder.exists() and any(path.name != LEASE and path.name[0] != "." for path in folder.iterdir()):
            raise InputError(f"{folder} exists and is no run (it has no {CONFIG}); {elsewhere}")
        return Run(folder, config)
    saved = read_tree(type(config), folder / CONFIG)
    if saved.train.precision == "auto":  # never trained yet: a run that was imported
        train = replace(saved.train, precision=config.train.precision)
        saved = replace(saved, train=train)  # pyright: ignore[reportArgumentType]: every experiment is a dataclass
    changed = differences(saved, config)
    if changed and not force:
        raise InputError(
            f"{folder} holds a run of another configuration ({'; '.join(changed)}); "
            f"{elsewhere}, or go on in this one with --force"
        )
    return Run(folder, config)


def environment() -> dict[str, Any]:
    """Versions, code and machine, so that a number in a paper can be traced to what made it."""
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = None
    commit, difference = code_state()
    return {
        "time": time.time(),
        "command": redacted_words(sys.argv),
        "host": socket.gethostname(),
        "platform": platform.platform(),
        "python": platform.python_version(),
        "packages": versions,
        "git_commit": commit,
        "git_diff": None if difference is None else redacted(difference),
        "slurm": {
            key: redacted(value)
            for key, value in os.environ.items()
            if key.startswith("SLURM_JOB") or key == "SLURM_ARRAY_TASK_ID"
        },
    }


def code_state(root: Path = Path(__file__).parents[2]) -> tuple[str | None, str | None]:
    """The commit of the code, and how it differs from it; a sweep's copy of the code has both in a file."""
    snapshot = root / SNAPSHOT
    if snapshot.is_file():
        origin = json.loads(snapshot.read_text())
        return origin["commit"], origin["diff"]
    return _git("rev-parse", "HEAD"), _git("diff", "HEAD")


def _git(*words: str) -> str | None:
    """Output of git in the folder of the code, or None where there is no repository."""
    try:
        command = ["git", "-C", str(Path(__file__).parent), *words]
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
