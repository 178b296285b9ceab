"""A cluster profile as submitit takes it; the profile itself is `simdist.profiles`, which the doctor reads too."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from simdist.errors import InputError
from simdist.profiles import OWN_OPTIONS, PROFILES, Profile, load_profile, profile_names

from .plan import Job, Plan

__all__ = ["OWN_OPTIONS", "PROFILES", "Profile", "load_profile", "profile_names", "sbatch_parameters"]

# Since SLURM 22.05, srun no longer takes this over from sbatch, and each task would get one core.
CORES = 'export SRUN_CPUS_PER_TASK="$SLURM_CPUS_PER_TASK"'
SAME_NAME = ("partition", "account", "qos", "constraint", "nodes", "cpus_per_task", "mem_per_gpu", "mem", "exclude")


WITHOUT_GPU = ("pack", "report")


def profile_named(cluster: str) -> Profile:
    """`slurm` is the cluster's defaults; otherwise a profile's name or file."""
    return Profile() if cluster == "slurm" else load_profile(cluster)


def sbatch_parameters(profile: Profile, overrides: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Keywords for `submitit.SlurmExecutor.update_parameters` (for `AutoExecutor`, put `slurm_` before each).

    Args:
        profile: the cluster.
        overrides: fields of `Profile` that this job has otherwise, such as `{"time_minutes": 30}`.

    Raises:
        ValueError: an override names no field of a profile, or has a value that is not allowed.
    """
    profile = replaced(profile, overrides or {})
    parameters = {key: getattr(profile, key) for key in SAME_NAME if getattr(profile, key) is not None}
    if profile.gpus_per_node:
        parameters["gpus_per_node"] = profile.gpus_per_node
    return parameters | {
        "ntasks_per_node": profile.num_tasks_per_node,
        "time": profile.time_minutes,
        "array_parallelism": profile.array_throttle,
        "signal_delay_s": profile.signal_lead_s,
        "setup": [CORES, *profile.setup],
        "additional_parameters": _additional(profile),
    }


def replaced(profile: Profile, overrides: Mapping[str, Any]) -> Profile:
    """`profile` with other values in some fields; memory and `extra` behave as a user means it.

    Raises:
        ValueError: an override names no field of a profile, or has a value that is not allowed.
    """
    valid = profile.__dataclass_fields__
    unknown = sorted(set(overrides) - set(valid))
    if unknown:
        raise ValueError(f"a profile has no {', '.join(unknown)}; its fields are {', '.join(valid)}")
    values = vars(profile) | dict(overrides)
    if overrides.get("gpus_per_node") == 0 and "tasks_per_node" not in overrides:
        values["tasks_per_node"] = None
    if "mem" in overrides or (overrides.get("gpus_per_node") == 0 and "mem_per_gpu" not in overrides):
        values["mem_per_gpu"] = None
    elif "mem_per_gpu" in overrides:
        values["mem"] = None
    if "time_minutes" in overrides and "signal_lead_s" not in overrides:  # a short job keeps most of its time
        values["signal_lead_s"] = min(profile.signal_lead_s, 30 * int(overrides["time_minutes"]))
    values["extra"] = {**profile.extra, **overrides.get("extra", {})}
    return Profile(**values)


def _additional(profile: Profile) -> dict[str, Any]:
    """What submitit has no keyword for; a value of false leaves the option out."""
    options: dict[str, Any] = {
        key.replace("_", "-"): value for key, value in profile.extra.items() if value is not False
    }
    if profile.reservation is not None:
        options["reservation"] = profile.reservation
    options["requeue" if profile.requeue else "no-requeue"] = True
    return options


# --- of one job -----------------------------------------------------------------------------------------------------


def resources_of(job: Job, profile: Profile) -> dict[str, Any]:
    """Fields of the profile that this job has otherwise: all of it is for training, one process does the rest."""
    if job.kind == "train":
        return job.resources
    gpus = 0 if job.kind in WITHOUT_GPU else min(1, profile.gpus_per_node)
    usual: dict[str, Any] = {"nodes": 1, "gpus_per_node": gpus, "tasks_per_node": 1}
    if "gpus_per_node" in job.resources:
        usual["tasks_per_node"] = None  # one a GPU
    return usual | job.resources


def job_profile(job: Job, profile: Profile) -> Profile:
    """The profile as this job has it.

    Raises:
        InputError: the sweep's resources name a field that a profile does not have, or a value that cannot be.
    """
    try:
        return replaced(profile, resources_of(job, profile))
    except (ValueError, TypeError) as error:
        raise InputError(f"stage {job.stage}: resources: {error}") from error


def parameters_of_all(plan: Plan, profile: Profile) -> dict[str, Profile]:
    """The profile of every stage, so that a mistake is found before anything is submitted."""
    return {job.stage: job_profile(job, profile) for job in plan.jobs.values()}
