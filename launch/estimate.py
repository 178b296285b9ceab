"""Estimate the time of jobs from earlier jobs of the same kind on the same partition."""

from __future__ import annotations

import functools
import json
import statistics
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from simdist.cluster.profile import Profile
from simdist.config.schema import Config, epoch_size, to_dict
from simdist.runs.folder import CONFIG, ENVIRONMENT, EVENTS, METRICS
from simdist.runs.records import (
    CorpusSize,
    Environment,
    EventRecord,
    JobMarker,
    MetricsRecord,
    RecordError,
    read_config,
    read_lines,
    read_record,
)
from simdist.runs.schedule import stage_steps

from .plan import MANIFEST, MARKERS, Job, Length, Plan, hashed_words

WARM_UP_LINES = 2  # of metrics, which include the start of workers and compilation
ALIKE = {  # what determines a step's time, besides the number of processes and the machines
    "data": ("crop", "batch_size", "group", "cache"),
    "loss": ("prediction_steps", "num_negatives", "negatives", "window"),
    "train": ("schedule", "trunk_modules", "cache_latents", "groups_at_once", "precision"),
}


@dataclass(frozen=True)
class Machine:
    """The machines of a job, as far as they determine its time."""

    partition: str | None
    """None outside SLURM."""
    processes: int


def total_steps(length: Length) -> int | None:
    """Optimizer steps of a run; None while the corpus is not packed and no limit is set."""
    samples = _num_samples(length.data / MANIFEST)
    if samples is None:
        return None
    size = epoch_size(samples, length.batch_size, length.full_batches)
    return length.stages * stage_steps(length.epochs, size, length.batch_size, length.max_steps)


@functools.cache
def _num_samples(manifest: Path) -> int | None:
    try:
        return read_record(manifest, CorpusSize).num_samples
    except (OSError, RecordError):
        return None


def kind_of_training(config: Mapping[str, Any]) -> str:
    """A key: runs with the same key take the same time per step on the same machines."""
    parts = {section: {key: config.get(section, {}).get(key) for key in keys} for section, keys in ALIKE.items()}
    return json.dumps({**parts, "model": config.get("model")}, sort_keys=True)


def kind_of_job(command: tuple[str, ...]) -> str:
    """A job's command without the run that it is about; markers of earlier versions say `--run`."""
    words = hashed_words(command)
    if "--run" in words:
        option = words.index("--run")
        words[option : option + 2] = []
    return " ".join(words)


@dataclass(frozen=True)
class MeasuredTimes:
    """Times of earlier runs."""

    steps_per_s: dict[tuple[str, Machine], float]
    """Of trainings; the median over runs."""
    seconds: dict[tuple[str, str | None], float]
    """Of other jobs, by what they do and the partition; the median."""

    def train_hours(self, config: Config, length: Length, machine: Machine) -> float | None:
        """Hours of a training; None if none of its kind was measured, or its length is not known."""
        rate, steps = self.steps_per_s.get((kind_of_training(to_dict(config)), machine)), total_steps(length)
        return None if rate is None or steps is None else steps * length.own_share / rate / 3600

    def job_hours(self, job: Job, machine: Machine) -> float | None:
        """Hours of a job other than training."""
        seconds = self.seconds.get((kind_of_job(job.command), machine.partition))
        return None if seconds is None else seconds / 3600


def measure(runs: Path) -> MeasuredTimes:
    """Measure the times of all runs in a folder."""
    rates: dict[tuple[str, Machine], list[float]] = {}
    seconds: dict[tuple[str, str | None], list[float]] = {}
    for config in sorted(runs.glob(f"*/{CONFIG}")):
        for key, rate in _rate(config.parent):
            rates.setdefault(key, []).append(rate)
        for path in sorted(config.parent.glob(f"{MARKERS}/*.json")):
            with suppress(OSError, RecordError):
                marker = read_record(path, JobMarker)
                key = (kind_of_job(tuple(marker.command)), marker.partition)
                seconds.setdefault(key, []).append(marker.seconds)
    return MeasuredTimes(
        {key: statistics.median(found) for key, found in rates.items()},
        {key: statistics.median(found) for key, found in seconds.items()},
    )


def _rate(run: Path) -> Iterator[tuple[tuple[str, Machine], float]]:
    """Steps per second of one run, and the machines it ran on last."""
    try:
        sizes = [event.world_size for event in read_lines(run / EVENTS, EventRecord)[0] if event.world_size]
        records = [record for record in read_lines(run / METRICS, MetricsRecord)[0] if record.kind == "train"]
        tree, config = read_config(run / CONFIG)
    except (OSError, RecordError):
        return
    rates = [record.samples_per_s for record in records if record.samples_per_s][WARM_UP_LINES:]
    if sizes and rates and config.data.batch_size:
        machine = Machine(_partition(run), sizes[-1])
        yield (kind_of_training(tree), machine), statistics.median(rates) / config.data.batch_size


def _partition(run: Path) -> str | None:
    try:
        return read_record(run / ENVIRONMENT, Environment).slurm.get("SLURM_JOB_PARTITION")
    except (OSError, RecordError):
        return None


@dataclass(frozen=True)
class StageCost:
    """Estimated cost of the open jobs of a stage."""

    jobs: int
    hours: float | None
    """Of one job, on average over those that are known; None if none is."""
    device_hours: float
    """GPU-hours, or core-hours where there are no GPUs, of all jobs that are known."""
    unknown: int
    """Jobs whose time is not known."""
    uses_gpus: bool


def stage_costs(
    plan: Plan,
    configs: Mapping[str, Config],
    open_jobs: list[Job],
    profiles: Mapping[str, Profile] | None,
    measured: MeasuredTimes,
) -> dict[str, StageCost]:
    """The cost of every stage that has open jobs.

    Args:
        plan: the graph.
        configs: of its runs.
        open_jobs: jobs that are not done.
        profiles: of every stage; None on this machine, one process per job.
        measured: what earlier runs took.
    """
    costs: dict[str, StageCost] = {}
    for stage in dict.fromkeys(job.stage for job in open_jobs):
        jobs = [job for job in open_jobs if job.stage == stage]
        profile = profiles[stage] if profiles is not None else Profile(cpus_per_task=1)
        machine = Machine(
            profile.partition if profiles is not None else None, profile.nodes * profile.num_tasks_per_node
        )
        hours = [_hours(job, plan, configs, machine, measured) for job in jobs]
        known = [value for value in hours if value is not None]
        gpus = profile.nodes * profile.gpus_per_node
        devices = gpus or machine.processes * profile.cpus_per_task
        mean = sum(known) / len(known) if known else None
        costs[stage] = StageCost(len(jobs), mean, sum(known) * devices, len(jobs) - len(known), gpus > 0)
    return costs


def _hours(
    job: Job, plan: Plan, configs: Mapping[str, Config], machine: Machine, measured: MeasuredTimes
) -> float | None:
    if job.kind == "train" and job.run is not None:
        return measured.train_hours(configs[job.run], plan.runs[job.run].length, machine)
    return measured.job_hours(job, machine)
