"""A cluster as its users know it: which partition, how many GPUs a node, how long, and how a job is warned.

A profile is a YAML file that holds what differs from these defaults; `slurm/profiles/` has some to begin with. The
launcher, the sbatch scripts and the doctor read the same one. Imports no torch.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path

from simdist.cli import Parser, read_yaml
from simdist.errors import InputError

CLONE_PROFILES = Path(__file__).parent.parent / "slurm" / "profiles"
PROFILES = (
    CLONE_PROFILES if CLONE_PROFILES.is_dir() else Path(__file__).parent / "cluster_profiles"
)  # the latter in a wheel


@dataclass(frozen=True)
class Profile:
    """What a job asks of one cluster."""

    partition: str | None = None
    """Partition (queue) of the jobs; null takes the cluster's default."""
    account: str | None = None
    """Account that pays; null takes your default."""
    qos: str | None = None
    """Quality of service; null takes your default."""
    constraint: str | None = None
    """Features that a node must have, such as `a100&nvlink`."""
    nodes: int = 1
    """Nodes of one job."""
    gpus_per_node: int = 0
    """GPUs on each node; 0 trains on CPU cores."""
    tasks_per_node: int | None = None
    """Processes on each node; null is one a GPU, or one where there are none."""
    cpus_per_task: int = 4
    """CPU cores of a process: itself and its data.num_workers."""
    mem_per_gpu: str | None = None
    """Memory for each GPU, such as 60G; not together with mem."""
    mem: str | None = None
    """Memory of a node, such as 240G; null takes the cluster's default."""
    time_minutes: int = 240
    """Minutes until a job is stopped and requeued; short jobs find gaps in the queue, runs may take many of them."""
    exclude: str | None = None
    """Nodes that are never used, such as `n[3,7]`."""
    reservation: str | None = None
    """Reservation to run in."""
    array_throttle: int = 16
    """Jobs of one array that run at the same time."""
    setup: tuple[str, ...] = ()
    """Lines of shell before the program, on the first node: modules, conda, export."""
    signal_lead_s: int = 90
    """Seconds before the time limit at which a job is told to save; more than a step and a checkpoint take."""
    requeue: bool = True
    """A stopped job goes back to the queue by itself; false needs the same command again by hand."""
    max_requeues: int = 100
    """Requeues after which a run is left alone; ends an endless loop."""
    extra: dict[str, str | int | bool] = field(default_factory=dict)
    """Further sbatch options without their dashes, such as `{licenses: scratch, exclusive: true}`."""

    def __post_init__(self) -> None:
        for key in ("nodes", "cpus_per_task", "time_minutes", "array_throttle", "signal_lead_s"):
            self._require(getattr(self, key) >= 1, key, "at least 1")
        self._require(self.gpus_per_node >= 0, "gpus_per_node", "0 or more")
        self._require(self.tasks_per_node is None or self.tasks_per_node >= 1, "tasks_per_node", "at least 1, or null")
        self._require(self.max_requeues >= 0, "max_requeues", "0 or more")
        self._require(self.signal_lead_s < 60 * self.time_minutes, "signal_lead_s", "less than time_minutes")
        if self.mem is not None and self.mem_per_gpu is not None:
            raise ValueError(f"mem is {self.mem} and mem_per_gpu is {self.mem_per_gpu}; SLURM takes one of them")
        if self.mem_per_gpu is not None and not self.gpus_per_node:
            raise ValueError("mem_per_gpu is given, but gpus_per_node is 0; give mem, the memory of a node")
        own = sorted({key.replace("_", "-") for key in self.extra} & OWN_OPTIONS)
        if own:
            raise ValueError(f"extra has {', '.join(own)}, for which a profile has fields of its own; set those")

    @property
    def num_tasks_per_node(self) -> int:
        """Processes on each node: as said, else one a GPU, else one."""
        return self.tasks_per_node or self.gpus_per_node or 1

    def _require(self, condition: bool, key: str, allowed: str) -> None:
        if not condition:
            raise ValueError(f"{key} is {getattr(self, key)!r}; it must be {allowed}")


OWN_OPTIONS = {
    "partition",
    "account",
    "qos",
    "constraint",
    "nodes",
    "gpus-per-node",
    "ntasks-per-node",
    "cpus-per-task",
    "mem-per-gpu",
    "mem",
    "time",
    "exclude",
    "reservation",
    "signal",
    "requeue",
    "no-requeue",
}


def load_profile(name: str | Path) -> Profile:
    """The profile in `slurm/profiles/NAME.yaml`, or in a file of your own.

    Raises:
        InputError: there is no such profile, or it has a wrong key or value; named with the valid ones.
    """
    path = _find(str(name))
    parser = Parser(prog="profile")
    parser.add_class_arguments(Profile)
    with parser.raising(prefix=f"{path}: "):
        parsed = parser.parse_object(read_yaml(path))
        try:
            return Profile(**{item.name: parsed[item.name] for item in dataclasses.fields(Profile)})
        except ValueError as error:
            parser.error(str(error))


def profile_names() -> list[str]:
    """Names of the profiles that come with simdist, and of those you put beside them."""
    return sorted(path.stem for path in PROFILES.glob("*.yaml"))


def _find(name: str) -> Path:
    for path in (Path(name), PROFILES / f"{name}.yaml"):
        if path.is_file():
            return path
    raise InputError(
        f"there is no cluster profile {name!r}; name one of {', '.join(profile_names())} in {PROFILES}, "
        "or the path of a YAML file of your own"
    )
