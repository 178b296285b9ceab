"""What jobs request on one cluster: partition, GPUs, memory, time, set-up lines, and how a job is warned.

A profile is a YAML file with what differs from these defaults; `slurm/profiles/` has some to start from, and
`simdist.cluster` makes one from what SLURM reports. Fields at the top hold for all jobs; the sections `train`, `gpu`
and `cpu` override them for one kind of job. The launcher and the doctor read the same file. Imports no torch.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from simdist.config.load import read_yaml
from simdist.config.parser import Parser
from simdist.core.errors import InputError, require
from simdist.core.secrets import redacted

CLONE_PROFILES = Path(__file__).parent.parent.parent / "slurm" / "profiles"
PROFILES = (
    CLONE_PROFILES if CLONE_PROFILES.is_dir() else Path(__file__).parent.parent / "cluster_profiles"
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
    """GPUs on each node, with their type where the cluster names one, such as `a100:4`; 0 trains on CPU cores."""
    gpu_type: str | None = None
    """Type of the GPUs, as in `a100:4`; null takes any."""
    tasks_per_node: int | None = None
    """Processes on each node; null is one per GPU, or one where there are none."""
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
    python: str | None = None
    """Command that runs Python on the nodes, such as `apptainer exec image.sif python`; null is the launcher's own."""
    srun_args: tuple[str, ...] = ()
    """Arguments of the srun that starts the processes, such as `--mpi=pmix`."""
    mail: str | None = None
    """Address that SLURM sends mail to."""
    mail_events: tuple[str, ...] = ("FAIL",)
    """Events that SLURM sends mail about: BEGIN, END, FAIL, REQUEUE, TIME_LIMIT_80, ARRAY_TASKS, …"""
    comment: str | None = None
    """Comment of each job, where accounting or site scripts read it; the launcher appends its own mark."""
    extra: dict[str, str | int | bool] = field(default_factory=dict)
    """Further sbatch options without their dashes, such as `{licenses: scratch, exclusive: true}`."""
    train: dict[str, Any] = field(default_factory=dict)
    """Fields that differ for trainings, such as `{nodes: 2}`."""
    gpu: dict[str, Any] = field(default_factory=dict)
    """Fields that differ for probes, decoders and analyses; they get one process and one GPU unless it says more."""
    cpu: dict[str, Any] = field(default_factory=dict)
    """Fields that differ for packing and reports, such as `{partition: cpu, mem: 16G}`; they get no GPU."""

    def __post_init__(self) -> None:
        for key in ("nodes", "cpus_per_task", "time_minutes", "array_throttle", "signal_lead_s"):
            require(getattr(self, key) >= 1, key, getattr(self, key), "at least 1")
        require(self.gpus_per_node >= 0, "gpus_per_node", self.gpus_per_node, "0 or more")
        require(
            self.tasks_per_node is None or self.tasks_per_node >= 1,
            "tasks_per_node",
            self.tasks_per_node,
            "at least 1, or null",
        )
        require(self.max_requeues >= 0, "max_requeues", self.max_requeues, "0 or more")
        require(
            self.signal_lead_s < 60 * self.time_minutes, "signal_lead_s", self.signal_lead_s, "less than time_minutes"
        )
        if self.mem is not None and self.mem_per_gpu is not None:
            raise ValueError(f"mem is {self.mem} and mem_per_gpu is {self.mem_per_gpu}; SLURM accepts only one of them")
        if self.mem_per_gpu is not None and not self.gpus_per_node:
            raise ValueError("mem_per_gpu is given, but gpus_per_node is 0; give mem, the memory of a node")
        for line in self.setup:
            shown = redacted(line, {})
            if shown != line:
                raise ValueError(
                    f"setup has a secret: {shown}. Batch scripts are kept in the sweep's folder. Export it in your "
                    "shell, which jobs inherit, or read it from a file: export NAME=$(cat FILE)"
                )
        own = sorted({key.replace("_", "-") for key in self.extra} & OWN_OPTIONS)
        if own:
            raise ValueError(f"extra has {', '.join(own)}, which are fields of the profile itself. Set those")
        for section in SECTIONS:
            _check_keys(getattr(self, section), SECTION_FIELDS, f"section {section}")

    @property
    def num_tasks_per_node(self) -> int:
        """Processes on each node: `tasks_per_node`, else one per GPU, else one."""
        return self.tasks_per_node or self.gpus_per_node or 1

    @property
    def gpu_request(self) -> str | None:
        """GPUs of a node as SLURM takes them, `4` or `a100:4`; None for no GPU."""
        if not self.gpus_per_node:
            return None
        return f"{self.gpu_type}:{self.gpus_per_node}" if self.gpu_type else str(self.gpus_per_node)

    @property
    def allowed_requeues(self) -> int:
        """Times that a job may be requeued: `max_requeues`, or 0 if `requeue` is false."""
        return self.max_requeues if self.requeue else 0


SECTIONS = ("train", "gpu", "cpu")
SECTION_OF = {"train": "train", "probe": "gpu", "decode": "gpu", "analyze": "gpu", "pack": "cpu", "report": "cpu"}
FIELDS = tuple(item.name for item in dataclasses.fields(Profile))
SECTION_FIELDS = tuple(name for name in FIELDS if name not in SECTIONS)
GPUS = re.compile(r"(?:gpu:)?(?:(?P<type>[\w.+-]+):)?(?P<number>\d+)")
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
    content = read_yaml(path)
    parser = Parser(prog="profile")
    parser.add_class_arguments(Profile)
    with parser.raising(prefix=f"{path}: "):
        try:
            parsed = parser.parse_object(split_gpus(content))
            profile = Profile(**{name: parsed[name] for name in FIELDS})
        except ValueError as error:
            parser.error(str(error))
    typed = {section: _typed(parser, path, section, getattr(profile, section)) for section in SECTIONS}
    profile = dataclasses.replace(profile, **typed)
    for kind, section in SECTION_OF.items():
        with parser.raising(prefix=f"{path}: section {section}: "):
            try:
                profile_for(kind, profile)
            except (ValueError, TypeError) as error:
                parser.error(str(error))
    return profile


def _typed(parser: Parser, path: Path, section: str, fields: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a section with their values checked, and lists as tuples."""
    with parser.raising(prefix=f"{path}: section {section}: "):
        try:
            given = split_gpus(fields)
        except ValueError as error:
            parser.error(str(error))
        parsed = parser.parse_object(given)
    return {name: parsed[name] for name in given}


def split_gpus(fields: Mapping[str, Any]) -> dict[str, Any]:
    """The fields with `gpus_per_node: a100:4` as `gpus_per_node: 4` and `gpu_type: a100`.

    Raises:
        ValueError: the text is no number of GPUs.
    """
    gpus = fields.get("gpus_per_node")
    if isinstance(gpus, int) and gpus >= 600:  # YAML reads 3090:8 as minutes and seconds
        raise ValueError(f"gpus_per_node is {gpus}; put quotes around TYPE:NUMBER: '{gpus // 60}:{gpus % 60}'")
    if not isinstance(gpus, str):
        return dict(fields)
    found = GPUS.fullmatch(gpus)
    if found is None:
        raise ValueError(f"gpus_per_node is {gpus!r}; it must be a number such as 4, or TYPE:NUMBER such as a100:4")
    own = {"gpu_type": found["type"]} if found["type"] else {}
    return {**fields, "gpus_per_node": int(found["number"]), **own}


def replaced(profile: Profile, overrides: Mapping[str, Any]) -> Profile:
    """`profile` with other values in some fields; memory, time, GPUs and `extra` behave as a user means it.

    Raises:
        ValueError: an override names no field of a profile, or has a value that is not allowed.
    """
    overrides = split_gpus(overrides)
    _check_keys(overrides, SECTION_FIELDS, "a profile")
    values = vars(profile) | overrides
    one_per_gpu = profile.tasks_per_node == profile.gpus_per_node  # and so with another number of GPUs
    gpus = overrides.get("gpus_per_node")
    if "tasks_per_node" not in overrides and (gpus == 0 or (gpus is not None and one_per_gpu)):
        values["tasks_per_node"] = None
    if "mem_per_gpu" not in overrides and ("mem" in overrides or overrides.get("gpus_per_node") == 0):
        values["mem_per_gpu"] = None
    elif "mem_per_gpu" in overrides and "mem" not in overrides:
        values["mem"] = None
    if "time_minutes" in overrides and "signal_lead_s" not in overrides:  # a short job keeps most of its time
        values["signal_lead_s"] = min(profile.signal_lead_s, 30 * int(overrides["time_minutes"]))
    values["extra"] = {**profile.extra, **overrides.get("extra", {})}
    return Profile(**values)


def profile_for(kind: str, profile: Profile, resources: Mapping[str, Any] | None = None) -> Profile:
    """The profile as one kind of job uses it: the section of the kind applied, and no sections left.

    Args:
        kind: `train`, `probe`, `decode`, `analyze`, `pack` or `report`.
        profile: the cluster's.
        resources: fields that differ for this job; they win over the section.

    Raises:
        ValueError: a field that a profile does not have, or a value that is not allowed.
    """
    section, resources = SECTION_OF[kind], resources or {}
    fields = dict(getattr(profile, section))
    if "mem" in resources or "mem_per_gpu" in resources:
        fields = {name: value for name, value in fields.items() if name not in ("mem", "mem_per_gpu")}
    fields |= resources
    if section != "train":
        gpus = 0 if section == "cpu" else min(1, profile.gpus_per_node)
        tasks = None if "gpus_per_node" in fields else 1  # None: one per GPU
        fields = {"nodes": 1, "gpus_per_node": gpus, "tasks_per_node": tasks} | fields
    return dataclasses.replace(replaced(profile, fields), **{name: {} for name in SECTIONS})


def _check_keys(given: Mapping[str, Any], valid: tuple[str, ...], where: str) -> None:
    unknown = sorted(set(given) - set(valid))
    if unknown:
        raise ValueError(f"{where} has no {', '.join(unknown)}; its fields are {', '.join(valid)}")


def profile_names() -> list[str]:
    """Names of the profiles that come with simdist, and of those in the same folder."""
    return sorted(path.stem for path in PROFILES.glob("*.yaml"))


def _find(name: str) -> Path:
    for path in (Path(name), PROFILES / f"{name}.yaml"):
        if path.is_file():
            return path
    raise InputError(
        f"there is no cluster profile {name!r}. Use one of {', '.join(profile_names())} in {PROFILES}, "
        "or the path of your own YAML file"
    )
