"""A cluster profile as parameters of submitit; `simdist.cluster.profile` has the profile itself."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from simdist.cluster.choice import Choice, chosen_profile
from simdist.cluster.profile import Profile, load_profile, profile_for, profile_names, replaced
from simdist.core.errors import InputError

from .plan import Job, Plan

__all__ = [
    "Choice",
    "Profile",
    "chosen_profile",
    "job_profile",
    "load_profile",
    "profile_names",
    "replaced",
    "sbatch_parameters",
]

# Since SLURM 22.05, srun no longer takes this over from sbatch, and each task would get one core.
CORES = 'export SRUN_CPUS_PER_TASK="$SLURM_CPUS_PER_TASK"'
SAME_NAME = ("partition", "account", "qos", "constraint", "nodes", "cpus_per_task", "mem_per_gpu", "mem", "exclude")


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
    if profile.gpu_request is not None:
        parameters["gpus_per_node"] = profile.gpu_request
    return parameters | {
        "ntasks_per_node": profile.num_tasks_per_node,
        "time": profile.time_minutes,
        "array_parallelism": profile.array_throttle,
        "signal_delay_s": profile.signal_lead_s,
        "setup": [CORES, *profile.setup],
        "srun_args": list(profile.srun_args),
        "additional_parameters": _additional(profile),
    }


def _additional(profile: Profile) -> dict[str, Any]:
    """Options without a keyword in submitit; false omits an option."""
    options: dict[str, Any] = {
        key.replace("_", "-"): value for key, value in profile.extra.items() if value is not False
    }
    own = {"reservation": profile.reservation, "comment": profile.comment, "mail-user": profile.mail}
    options |= {name: value for name, value in own.items() if value is not None}
    if profile.mail is not None:
        options["mail-type"] = ",".join(profile.mail_events)
    options["requeue" if profile.requeue else "no-requeue"] = True
    return options


# --- of one job -----------------------------------------------------------------------------------------------------


def job_profile(job: Job, profile: Profile) -> Profile:
    """The profile as this job uses it.

    Raises:
        InputError: the sweep's resources name a field that a profile does not have, or a value that cannot be.
    """
    try:
        return profile_for(job.kind, profile, job.resources)
    except (ValueError, TypeError) as error:
        raise InputError(f"stage {job.stage}: resources: {error}") from error


def parameters_of_all(plan: Plan, profile: Profile) -> dict[str, Profile]:
    """The profile of every stage, so that errors are found before submission."""
    return {job.stage: job_profile(job, profile) for job in plan.jobs.values()}
