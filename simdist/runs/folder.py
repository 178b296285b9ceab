"""A run folder: configuration, environment, events, metrics, checkpoints.

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
from simdist.core.errors import FailedError, InputError
from simdist.core.files import FULL, PASSING, append_json, naming_the_disk, patiently, remedy, write_text
from simdist.core.secrets import PRIVATE_FILES, redacted, redacted_words
from simdist.runs.records import EventRecord, read_lines

ExperimentT = TypeVar("ExperimentT", bound=Experiment, default=Config)

STRAGGLERS = "stragglers"  # event: which ranks are slow now
SLOW_PRECISION = "slow_precision"  # event: bf16 is emulated, or was replaced by float32 for that reason
LEASE = "lease"  # the only file of a run that was killed right after its start
CONFIG, ENVIRONMENT, EVENTS, METRICS, CHECKPOINTS, DONE = (
    "config.yaml",
    "environment.json",
    "events.jsonl",
    "metrics.jsonl",
    "checkpoints",
    "DONE",
)
SNAPSHOT = "snapshot.json"  # in a sweep's copy of the code, which is not a git repository
DIFF = ("diff", "HEAD", "--", ":(top)", *(f":(top,exclude,glob,icase)**/{name}" for name in PRIVATE_FILES))
"""Words for git: the uncommitted changes, except those of files that hold secrets."""
OF_SLURM = (
    "SLURM_JOB_ID",
    "SLURM_ARRAY_JOB_ID",
    "SLURM_ARRAY_TASK_ID",
    "SLURM_JOB_NAME",
    "SLURM_JOB_PARTITION",
    "SLURM_JOB_ACCOUNT",
    "SLURM_JOB_QOS",
    "SLURM_JOB_NUM_NODES",
    "SLURM_JOB_NODELIST",
    "SLURM_JOB_GPUS",
    "SLURM_JOB_CPUS_PER_NODE",
    "SLURM_JOB_START_TIME",
    "SLURM_JOB_END_TIME",
)
"""The only variables whose values are written."""
PACKAGES = ("simdist", "torch", "accelerate", "deepspeed", "webdataset", "numpy", "safetensors", "soundfile", "wandb")


def default_folder(config: Config) -> Path:
    """`runs/NAME-HASH`, so that the same configuration always finds its run."""
    return Path("runs") / f"{config.name}-{identity(config)[:8]}"


def with_precision(config: Config, precision: str) -> Config:
    """`config` with another `train.precision`."""
    return replace(config, train=replace(config.train, precision=precision))


def saved_precision(config: Config, folder: Path | None) -> str | None:
    """Precision of the run that training `config` resumes, or None if there is no such run.

    `auto` may be bf16 on one CPU and float32 on another, which changes the name of the default folder. A float32 run
    only counts if its CPU emulates bf16; otherwise a different command started it.
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
    """The folder of an experiment."""

    folder: Path
    config: ExperimentT
    title: str = ""
    """Name for trackers. Empty uses the folder's name."""

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
        """Whether the run ever had a checkpoint or was imported."""
        saved = self.checkpoints.is_dir() and any(path.name.startswith("step_") for path in self.checkpoints.iterdir())
        return saved or any(event.event in ("imported", "stopped") for event in self.events())

    def event(self, name: str, **fields: Any) -> None:
        """Append to events.jsonl: start, resumed, stopped, finished, …"""
        line = {"event": name, "time": time.time(), "host": socket.gethostname(), **fields}
        with naming_the_disk(f"event {name!r}", self.folder, len(json.dumps(line))):
            patiently(lambda: append_json(self.folder / EVENTS, line))

    def count(self, name: str) -> int:
        """Number of events with a name."""
        return sum(event.event == name for event in self.events())

    def events(self) -> list[EventRecord]:
        """All events that can be read."""
        return read_lines(self.folder / EVENTS, EventRecord)[0]

    def damaged_events(self) -> list[str]:
        """A sentence on each line of events.jsonl that cannot be read."""
        path = self.folder / EVENTS
        return [f"warning: {path} is damaged and read without {reason}" for reason in read_lines(path, EventRecord)[1]]

    def write(self) -> None:
        """Create the folder, or update its configuration and environment."""
        try:
            patiently(lambda: self.folder.mkdir(parents=True, exist_ok=True))
            write_text(self.folder / CONFIG, yaml.safe_dump(to_dict(self.config), sort_keys=False))
            write_text(self.folder / ENVIRONMENT, json.dumps(environment(), indent=1))
        except OSError as error:
            what_to_do = remedy(error) or "Look at it"
            raise (FailedError if error.errno in PASSING.union(FULL) else InputError)(
                f"run folder {self.folder} cannot be written ({error.strerror}). {what_to_do}, or use another --run-dir"
            ) from error

    def reopen(self) -> None:
        """Mark the run as unfinished: it is trained again, or longer."""
        patiently(lambda: (self.folder / DONE).unlink(missing_ok=True))

    def finish(self, step: int) -> None:
        """Mark the run as finished."""
        with naming_the_disk(DONE, self.folder, 100):
            write_text(self.folder / DONE, json.dumps({"step": step, "time": time.time()}))


def existing_run(folder: Path | None) -> Run:
    """The run in an existing folder.

    Raises:
        InputError: `folder` is None or not a run folder.
    """
    if folder is None:
        raise InputError("--run-dir is missing. Give the folder of a run")
    if not (folder / CONFIG).is_file():
        why = f"it has no {CONFIG}" if folder.exists() else "it does not exist"
        near = [path.parent for place in (folder, folder.parent) for path in sorted(place.glob(f"*/{CONFIG}"))]
        such = f", such as {' or '.join(map(str, near[:3]))}" if near else ""
        raise InputError(f"{folder} is not a run folder ({why}). Give a folder written by simdist.train{such}")
    return Run(folder, read_config(folder / CONFIG))


def open_run(
    folder: Path, config: ExperimentT, force: bool = False, elsewhere: str = "name another folder with --run-dir"
) -> Run[ExperimentT]:
    """The run in `folder`, which may not exist yet. Writes nothing.

    Args:
        folder: of the run.
        config: the experiment.
        force: resume although the folder's run has another configuration.
        elsewhere: how a user starts in another folder, for messages.

    Raises:
        InputError: the folder contains a run of another configuration, or something else.
    """
    if folder.exists() and not folder.is_dir():
        raise InputError(f"--run-dir {folder} is a file. Give a folder")
    if not (folder / CONFIG).exists():
        if folder.exists() and any(path.name != LEASE and path.name[0] != "." for path in folder.iterdir()):
            raise InputError(f"{folder} exists and is not a run folder (it has no {CONFIG}); {elsewhere}")
        return Run(folder, config)
    saved = read_tree(type(config), folder / CONFIG)
    if saved.train.precision == "auto":  # imported and not trained yet
        train = replace(saved.train, precision=config.train.precision)
        saved = replace(saved, train=train)  # pyright: ignore[reportArgumentType]: every experiment is a dataclass
    changed = differences(saved, config)
    if changed and not force:
        raise InputError(
            f"{folder} contains a run with another configuration ({'; '.join(changed)}); "
            f"{elsewhere}, or resume this one with --force"
        )
    return Run(folder, config)


def environment() -> dict[str, Any]:
    """Versions, code and machine, to trace results."""
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
        "slurm": {key: redacted(os.environ[key]) for key in OF_SLURM if key in os.environ},
    }


def code_state(root: Path = Path(__file__).parents[2]) -> tuple[str | None, str | None]:
    """The git commit and diff of the code. A sweep's copy of the code has both in a file."""
    snapshot = root / SNAPSHOT
    if snapshot.is_file():
        origin = json.loads(snapshot.read_text())
        return origin["commit"], origin["diff"]
    return _git("rev-parse", "HEAD"), _git(*DIFF)


def _git(*words: str) -> str | None:
    """Output of git in the folder of the code, or None without a repository."""
    try:
        command = ["git", "-C", str(Path(__file__).parent), *words]
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
