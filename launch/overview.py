"""One row per run of a sweep: its stage, its progress, read from the ends of its files, and what blocks it."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from simdist.runs.folder import CONFIG, DONE, METRICS
from simdist.runs.reader import heartbeat_age, is_held, last_records, starts
from simdist.runs.records import MetricsRecord, RecordError, read_config

from .estimate import total_steps
from .plan import Length, Plan, PlannedRun
from .records import Held, Record, Records
from .scheduler import Scheduler
from .states import JobState, Status, done_jobs, find_states

WORST_FIRST: tuple[Status, ...] = ("failed", "running", "queued", "stopped", "cancelled", "blocked", "missing", "done")


@dataclass(frozen=True)
class Progress:
    """Progress read from a run folder."""

    step: int
    total: int | None
    """None while the corpus is not packed."""
    losses: tuple[float, ...]
    """Of each module, at the last recorded step."""
    steps_per_s: float | None
    restarts: int
    """Times that it was continued from a checkpoint."""
    host: str
    """Where it was started last."""
    heartbeat: float | None
    """Seconds since its process last touched its lease; None if none holds it."""
    warning: str = ""
    """What a person should know, such as that it runs on the CPU although there are GPUs; empty if nothing."""
    stragglers: str = ""
    """Ranks that are slower than the others, by node; empty if there are none."""

    @property
    def seconds_left(self) -> float | None:
        """Seconds until the last step at the latest rate; None if unknown."""
        if self.total is None or not self.steps_per_s:
            return None
        return max(0, self.total - self.step) / self.steps_per_s


@dataclass(frozen=True)
class Row:
    """One run."""

    run: str
    varied: Mapping[str, Any]
    stage: str
    """The first stage that is not done, with how many of its jobs are: `probe 1/4`; `done` at the end."""
    status: Status
    """The state of the most notable job of that stage."""
    reason: str
    node: str
    progress: Progress


@dataclass(frozen=True)
class Overview:
    """A sweep, or the runs outside of sweeps."""

    name: str
    rows: list[Row]
    states: dict[str, JobState]
    """Of every job."""
    records: dict[str, Record]
    num_held: int = 0
    """Jobs held back by a queue limit."""
    damaged: Sequence[str] = ()
    """Sentences on lines of the sweep's records that cannot be read."""

    def count(self, status: Status) -> int:
        """Number of jobs with a status."""
        return sum(state.status == status for state in self.states.values())


def overview(plan: Plan, scheduler: Scheduler | None = None, now: float | None = None) -> Overview:
    """The state of a sweep, from run folders first, then the scheduler.

    Args:
        plan: the graph.
        scheduler: one that is asked again and again remembers what is final; None asks a new one.
        now: unix time.
    """
    moment = time.time() if now is None else now
    recorded = Records(plan.folder)
    records = recorded.latest()
    states = find_states(plan, done_jobs(plan), records, scheduler, moment)
    stages: dict[str, dict[str, list[str]]] = {name: {} for name in plan.runs}
    for job in plan.jobs.values():
        if job.run is not None:
            stages[job.run].setdefault(job.stage, []).append(job.name)
    rows = [_row(name, planned, stages[name], states, moment) for name, planned in plan.runs.items()]
    return Overview(plan.name, rows, states, records, len(Held.read(plan.folder).jobs), recorded.damaged())


def _row(
    name: str, planned: PlannedRun, stages: Mapping[str, list[str]], states: Mapping[str, JobState], now: float
) -> Row:
    progress = read_progress(planned.folder, planned.length, now)
    for stage, jobs in stages.items():
        open_jobs = [states[job] for job in jobs if states[job].status != "done"]
        if open_jobs:
            state = min(open_jobs, key=lambda state: WORST_FIRST.index(state.status))
            text = stage if len(jobs) == 1 else f"{stage} {len(jobs) - len(open_jobs)}/{len(jobs)}"
            return Row(name, planned.varied, text, state.status, state.reason, state.nodes or progress.host, progress)
    return Row(name, planned.varied, "done", "done", "", progress.host, progress)


def read_progress(folder: Path, length: Length, now: float) -> Progress:
    """The progress of the run in `folder`, which need not have begun."""
    newest: MetricsRecord | None = None
    losses: dict[int, float] = {}
    for record in last_records(folder / METRICS):
        if record.kind != "train":
            continue
        newest = newest or record
        losses = {m: module.loss for m, module in record.by_module().items() if module.loss is not None} | losses
        if length.stages == 1 or len(losses) == length.stages:  # a stagewise run's records hold one module each
            break
    rate = newest.samples_per_s if newest is not None else None
    started = starts(folder)
    return Progress(
        step=newest.step if newest is not None else 0,
        total=total_steps(length),
        losses=tuple(losses[module] for module in sorted(losses)),
        steps_per_s=rate / length.batch_size if rate else None,
        restarts=started.restarts,
        host=started.host,
        heartbeat=heartbeat_age(folder, now),
        warning=started.warning,
        stragglers=started.stragglers,
    )


def loose_runs(runs: Path, known: set[Path], now: float | None = None) -> Overview:
    """Runs of a folder that belong to no sweep."""
    moment = time.time() if now is None else now
    rows, states = [], {}
    for path in sorted(runs.glob(f"*/{CONFIG}")):
        folder = path.parent
        if folder.resolve() in known:
            continue
        status: Status = "done" if (folder / DONE).exists() else "running" if is_held(folder, moment) else "stopped"
        length, problem = _length(folder)
        progress = read_progress(folder, length, moment)
        stage = "done" if status == "done" else "train"
        rows.append(Row(folder.name, {}, stage, status, problem, progress.host, progress))
        states[folder.name] = JobState(status)
    return Overview("runs of no sweep", rows, states, {})


def _length(run: Path) -> tuple[Length, str]:
    """The length of a run, and what is wrong with its configuration if it does not say."""
    unknown = Length(run, 1, 1, None, 1)
    try:
        _, config = read_config(run / CONFIG)
    except (OSError, RecordError) as error:
        return unknown, f"{CONFIG} cannot be read: {error}"
    data, train = config.data, config.train
    if data.root is None or data.train_split is None or data.batch_size is None or train.epochs is None:
        return unknown, f"{CONFIG} does not say how long the run is"
    stages = max(1, len(config.model.modules or [()]) - train.trunk_modules) if train.schedule == "stagewise" else 1
    split, full = Path(data.root) / data.train_split, data.epoch == "full_batches"
    return Length(split, train.epochs, data.batch_size, train.max_steps, stages, full), ""
