"""A sweep as a graph of jobs: pack, train, probe, decode, analyze, report.

`build` makes a plan out of a sweep file and looks nothing up. The sweep's command writes it to `sweeps/NAME/plan.json`,
which `status`, `logs` and `cancel` read.

A job is done when certain files exist, wherever and by whomever it was run: that makes every executor idempotent. Pack
and train leave such files themselves; for the others `launch.job` leaves a marker in the run's folder, so that removing
a run removes what is known of it.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from simdist.config.load import read_yaml
from simdist.config.schema import Config, to_dict
from simdist.core.errors import InputError
from simdist.core.files import temporary_path, write_json
from simdist.runs.folder import DONE

from .naming import command
from .shared_stages import shared_stages
from .sweep_file import Kind, Stage, SweepFile
from .variants import Variant, differing, expand, plain

RUNS, SWEEPS = Path("runs"), Path("sweeps")
MARKERS = "jobs"  # a run's folder of markers
MANIFEST = "manifest.json"
FILE = "plan.json"
DUMPER = getattr(yaml, "CSafeDumper", yaml.SafeDumper)
SWITCHES = {  # options without a value
    "pack": ("strict", "overwrite", "verify"),
    "probe": ("all", "force"),
    "decode": ("force",),
    "analyze": ("force",),
}


@dataclass(frozen=True)
class Job:
    """One command to run."""

    name: str
    """`train/RUN`, `probe/RUN/speaker-module3`: unique in a sweep, and a path below its folder of logs."""
    stage: str
    """Name of the stage in the sweep file."""
    kind: Kind
    command: tuple[str, ...]
    """Words after `python -m simdist.`: the command's name, then its arguments."""
    folder: Path
    """What it writes to: the run's folder, the packed corpus, or the report."""
    done: tuple[Path, ...]
    """It is done when all of these exist."""
    parents: tuple[str, ...] = ()
    """Jobs that must be done before."""
    resources: dict[str, Any] = field(default_factory=dict)
    """Fields of the cluster's profile that are overridden."""
    run: str | None = None
    """The run it belongs to."""

    @property
    def identity(self) -> str:
        """Sixteen hex digits that identify the work."""
        return _digest([hashed_words(self.command), [str(path) for path in self.done]], 16)

    @property
    def marker(self) -> Path | None:
        """The file that `launch.job` writes when the command succeeds; None if the command writes its own."""
        return None if self.kind in ("pack", "train") else self.done[0]

    @property
    def runs_after_failure(self) -> bool:
        """Whether the job runs even if parents failed, as a report does."""
        return self.kind == "report"


@dataclass(frozen=True)
class Length:
    """What determines the number of steps of a run, once the corpus is packed."""

    data: Path
    """Folder of the training split."""
    epochs: float
    batch_size: int
    max_steps: int | None
    stages: int
    """Parts that each go through all epochs: greedy modules of a stagewise run, else one."""
    full_batches: bool = False
    """Whether an epoch leaves out the clips that do not fill a batch."""
    taken_over: int = 0
    """Stages that another run trains for this one."""

    @property
    def own_share(self) -> float:
        """Share of the steps that the run itself trains."""
        return 1 - self.taken_over / self.stages


@dataclass(frozen=True)
class PlannedRun:
    """One training of a sweep."""

    folder: Path
    varied: dict[str, Any]
    """This run's values of the keys that vary over the sweep."""
    length: Length


@dataclass(frozen=True)
class Plan:
    """A sweep's runs and jobs, parents before their children."""

    name: str
    folder: Path
    """`sweeps/NAME`: configurations of the runs, logs, submissions, report."""
    runs: dict[str, PlannedRun]
    """By run name."""
    jobs: dict[str, Job]
    """By job name."""
    varied: list[str]
    """Keys that tell the runs apart."""

    def children(self) -> dict[str, list[str]]:
        """The children of each job."""
        found: dict[str, list[str]] = {name: [] for name in self.jobs}
        for job in self.jobs.values():
            for parent in job.parents:
                found[parent].append(job.name)
        return found


def hashed_words(command: Sequence[str]) -> list[str]:
    """A command as it is hashed for jobs and markers: with the words of the first sweeps, so that their results count.

    `--run-dir` was `--run` then, which torchrun refuses.
    """
    return ["--run" if word == "--run-dir" else word for word in command]


def _digest(words: Sequence[Any], length: int) -> str:
    return hashlib.sha256(json.dumps(words).encode()).hexdigest()[:length]


def config_file(folder: Path, run: str) -> Path:
    """Where the resolved configuration of a run is written for its job, in the sweep's folder."""
    return folder / "configs" / f"{run}.yaml"


def build(sweep: SweepFile, runs: Path = RUNS, sweeps: Path = SWEEPS) -> tuple[Plan, dict[str, Config]]:
    """The graph of a sweep, and the configuration of each of its runs.

    Args:
        sweep: as the file says it.
        runs: folder of all runs.
        sweeps: folder of all sweeps.

    Raises:
        InputError: a configuration that cannot be, or a stage that asks for a module that a run does not have.
    """
    variants = {variant.run: variant for variant in expand(sweep)}
    folder = sweeps / sweep.name
    jobs: dict[str, Job] = {}
    for job in _jobs(sweep, variants, runs, folder):
        if job.name in jobs:
            raise InputError(f"two jobs have the name {job.name}. List each label, module, loss and analysis once")
        jobs[job.name] = job
    varied = differing(list(variants.values()))
    shared, sources = shared_stages({run: variant.config for run, variant in variants.items()})
    configs = {**shared, **{run: variant.config for run, variant in variants.items()}}
    planned = {}
    for run, config in configs.items():
        values = variants[run].varied if run in variants else {}
        taken = len(configs[sources[run]].model.modules) if run in sources else 0
        planned[run] = PlannedRun(
            runs / run, {key: plain(values.get(key)) for key in varied}, _length(config, taken_over=taken)
        )
    return Plan(sweep.name, folder, planned, jobs, varied), configs


def _length(config: Config, taken_over: int) -> Length:
    data, train = config.data, config.train
    split, full = Path(data.root) / data.train_split, data.epoch == "full_batches"
    return Length(split, train.epochs, data.batch_size, train.max_steps, config.stages, full, taken_over)


def _jobs(sweep: SweepFile, variants: dict[str, Variant], runs: Path, folder: Path) -> Iterator[Job]:
    stages = list(sweep.stages.values())
    pack = next((stage for stage in stages if stage.kind == "pack"), None)
    packing = {run: _pack(pack, variant.config) for run, variant in variants.items()} if pack else {}
    packed = {job.name: job for job in packing.values()}
    yield from packed.values()
    names = list(packed)
    shared, sources = shared_stages({run: variant.config for run, variant in variants.items()})
    trained: dict[str, Job] = {}
    for run, config in shared.items():
        parents = (_pack(pack, config).name,) if pack else ()
        trained[run] = _train(sweep, run, runs, folder, parents, trained.get(sources.get(run, "")))
        yield trained[run]
        names.append(trained[run].name)
    for run, variant in variants.items():
        parents = (packing[run].name,) if pack else ()
        train = _train(sweep, run, runs, folder, parents, trained.get(sources.get(run, "")))
        yield train
        names.append(train.name)
        of_stage: dict[str, list[str]] = {}
        for stage in stages:
            if stage.kind in ("probe", "decode", "analyze"):
                after = (train.name, *(name for parent in stage.after for name in of_stage[parent]))
                made = list(_on_run(stage, variant, runs / run, after))
                of_stage[stage.name] = [job.name for job in made]
                names += of_stage[stage.name]
                yield from made
    report = next((stage for stage in stages if stage.kind == "report"), None)
    if report is not None:
        yield _report(report, folder, [runs / run for run in variants], names)


def _pack(stage: Stage, config: Config) -> Job:
    data = config.data
    root = Path(data.root)
    splits = dict.fromkeys([data.train_split, data.test_split, *stage.splits])
    command = ("pack", stage.corpus, stage.source, data.root, *_words(stage))
    done = tuple(root / split / MANIFEST for split in splits)
    name = f"{stage.name}/{data.root.strip('/').replace('/', '-')}"
    return Job(name, stage.name, "pack", command, root, done, resources=stage.resources)


def _train(
    sweep: SweepFile, run: str, runs: Path, sweep_folder: Path, parents: tuple[str, ...], source: Job | None
) -> Job:
    """The training of a run; `source` trains its first stages."""
    stage = next(stage for stage in sweep.stages.values() if stage.kind == "train")
    folder, words = runs / run, _words(stage)
    if source is not None:
        parents, words = (*parents, source.name), (*words, "--stages-from", str(source.folder))
    command = ("train", "--config", str(config_file(sweep_folder, run)), "--run-dir", str(folder), *words)
    return Job(
        f"{stage.name}/{run}", stage.name, "train", command, folder, (folder / DONE,), parents, stage.resources, run
    )


def _on_run(stage: Stage, variant: Variant, folder: Path, parents: tuple[str, ...]) -> Iterator[Job]:
    """The jobs of a stage that reads a trained run."""
    for what, words in _parts(stage, variant):
        command = (stage.kind, *words, "--run-dir", str(folder), *_words(stage))
        marker = folder / MARKERS / f"{stage.name}-{what}-{_digest(hashed_words(command), 8)}.json"
        name = f"{stage.name}/{variant.run}/{what}"
        yield Job(name, stage.name, stage.kind, command, folder, (marker,), parents, stage.resources, variant.run)


def _parts(stage: Stage, variant: Variant) -> Iterator[tuple[str, tuple[str, ...]]]:
    """The parts of a stage that are separate jobs: name and arguments of each."""
    modules = _modules(stage, variant)
    if stage.kind == "analyze":
        yield from ((which, (which,)) for which in stage.which)
    elif stage.kind == "decode":
        for module in modules or _conv_modules(variant):
            for loss in stage.losses:
                yield f"{loss}-module{module}", ("--module", str(module), "--loss", loss)
    elif not stage.labels and not modules:
        yield "all", ("--all",)
    elif not stage.labels:
        raise InputError(
            f"stage {stage.name}: modules are given without labels. Give both, or neither for all labels at all modules"
        )
    else:
        for label in stage.labels:
            for module in modules or ["all"]:
                where = "modules" if module == "all" else f"module{module}"
                yield f"{label}-{where}", ("--label", label, "--module", str(module))


def _modules(stage: Stage, variant: Variant) -> list[int]:
    number = len(variant.config.model.modules)
    for module in stage.modules:
        if not -number <= module < number:
            raise InputError(
                f"stage {stage.name}: module {module} does not exist in {variant.run}; it has modules 0 to {number - 1}"
            )
    return list(dict.fromkeys(module % number for module in stage.modules))


def _conv_modules(variant: Variant) -> list[int]:
    return [m for m, module in enumerate(variant.config.model.modules) if module.layers and not module.gru]


def _report(stage: Stage, folder: Path, runs: list[Path], parents: Iterable[str]) -> Job:
    out = folder / "report"
    command = ("report", *(str(run) for run in runs), "--out", str(out), *_words(stage))
    marker = out / f"done-{_digest(command, 8)}.json"
    return Job(stage.name, stage.name, "report", command, out, (marker,), tuple(parents), stage.resources)


def _words(stage: Stage) -> tuple[str, ...]:
    """Options as command-line words: `{l2: 0.1, force: true}` is `--l2 0.1 --force`."""
    words: list[str] = []
    for name, value in stage.options.items():
        option = "--" + (name if stage.kind in ("train", "decode") else name.replace("_", "-"))
        if name.replace("-", "_") in SWITCHES.get(stage.kind, ()):
            words += [option] if value else []
        else:
            words += [option, _text(value)]
    return tuple(words)


def _text(value: Any) -> str:
    if isinstance(value, list):
        return ",".join(_text(part) for part in value)
    return json.dumps(value) if isinstance(value, bool) or value is None else str(value)


# --- on disk ----------------------------------------------------------------------------------------------------------


def write_plan(plan: Plan, configs: Mapping[str, Config]) -> None:
    """The graph, and the runs' configurations, which their jobs read."""
    (plan.folder / "configs").mkdir(parents=True, exist_ok=True)
    for run, config in configs.items():
        text = yaml.dump(to_dict(config), Dumper=DUMPER, sort_keys=False)
        file = config_file(plan.folder, run)
        file.parent.mkdir(exist_ok=True)
        if not file.exists() or file.read_text() != text:  # not synced: made again by the next command if it is lost
            temporary = temporary_path(file)
            temporary.write_text(text)
            temporary.replace(file)
    write_json(plan.folder / FILE, json.loads(json.dumps(dataclasses.asdict(plan), default=str)))


def read_plan(folder: Path) -> Plan:
    """The plan that a sweep's folder holds.

    Raises:
        InputError: there is none; named with those that there are.
    """
    file = folder / FILE
    if not file.is_file():
        found = ", ".join(sorted(path.parent.name for path in folder.parent.glob(f"*/{FILE}"))) or "none"
        raise InputError(f"there is no sweep {folder.name!r} in {folder.parent}; there are {found}")
    try:
        content = json.loads(file.read_text())
        runs = {run: _run(entry) for run, entry in content["runs"].items()}
        jobs = {name: _job(entry) for name, entry in content["jobs"].items()}
        return Plan(content["name"], folder, runs, jobs, content["varied"])
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{file} was written by another version ({error}); run `{command('sweep')}` again") from error


def find_sweeps(sweeps: Path, name: str | None) -> list[Path]:
    """The folder of one sweep, named by its name, its folder or its YAML file, or of all.

    Raises:
        InputError: there is no such sweep, or none at all.
    """
    if name is not None:
        path = Path(name)
        if path.suffix == ".yaml" and path.is_file():
            name = str(read_yaml(path).get("name", path.stem))
        elif (path / FILE).is_file():
            return [path]
        folder = sweeps / name
        read_plan(folder)
        return [folder]
    found = sorted(path.parent for path in sweeps.glob(f"*/{FILE}"))
    if not found:
        raise InputError(
            f"there is no sweep in {sweeps}; `{command('sweep')}` starts one, --sweeps names another folder"
        )
    return found


def _run(entry: dict[str, Any]) -> PlannedRun:
    length = Length(**{**entry["length"], "data": Path(entry["length"]["data"])})
    return PlannedRun(Path(entry["folder"]), entry["varied"], length)


def _job(entry: dict[str, Any]) -> Job:
    done = tuple(Path(path) for path in entry["done"])
    paths = {"folder": Path(entry["folder"]), "done": done}
    return Job(**{**entry, **paths, "command": tuple(entry["command"]), "parents": tuple(entry["parents"])})
