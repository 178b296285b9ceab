"""What sbatch is told of a group of jobs: resources, what it waits for, which code it runs, and how it ends."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from submitit import SlurmExecutor

from .job import Task
from .plan import Job, Plan
from .profiles import Profile, job_profile, sbatch_parameters
from .submission import Group


def task_of(job: Job, profile: Profile) -> Task:
    """The job as submitit pickles it; a training's limit of requeues is the profile's."""
    words = job.command
    if job.kind == "train":
        words = (*words, "--train.max_requeues", str(profile.max_requeues if profile.requeue else 0))
    return Task(words, str(job.marker.absolute()) if job.marker else None)


def parameters(
    plan: Plan, job: Job, profile: Profile, code: Path, comment: str, waits_for: str | None
) -> dict[str, Any]:
    """Everything that submitit writes into the batch script of a group that `job` belongs to."""
    made = sbatch_parameters(job_profile(job, profile))
    path = f"{code}${{PYTHONPATH:+:$PYTHONPATH}}"
    environment = f'export PYTHONPATH="{path}" PYTHONSAFEPATH=1'
    extra = dict(made["additional_parameters"])
    extra["comment"] = " ".join([extra["comment"], comment] if "comment" in extra else [comment])
    if waits_for is not None:
        extra |= {"dependency": waits_for, "kill-on-invalid-dep": "yes"}
    return made | {
        "job_name": f"{plan.name}.{job.stage}",
        "additional_parameters": extra,
        "setup": [*made["setup"], environment],
        "teardown": requeue_lines(job_profile(job, profile)),
        "stderr_to_stdout": True,
        "wckey": None,  # submitit's own would be refused where keys must be known
    }


def group_executor(
    plan: Plan, group: Group, profile: Profile, folder: Path, code: Path, comment: str, waits_for: str | None
) -> SlurmExecutor:
    """A new executor for each group: submitit lets one submit five times a second only."""
    python = job_profile(group.jobs[0], profile).python
    executor = _Executor(folder, python=python)
    executor.update_parameters(**parameters(plan, group.jobs[0], profile, code, comment, waits_for))
    return executor


class _Executor(SlurmExecutor):
    """Writes batch scripts where there is no SLURM, too: for --dry-run."""

    @classmethod
    def affinity(cls) -> int:
        return 1


def requeue_lines(profile: Profile) -> list[str]:
    """Shell that ends the batch script: a command that asks to be run again, and has not been requeued, is.

    So is one that a warning (USR1, USR2, TERM) killed before it could listen.
    """
    if not profile.requeue:
        return []
    return [
        "code=$?",
        "case $code in 75|138|140|143)",
        f'    if [ "${{SLURM_RESTART_COUNT:-0}}" -lt {profile.max_requeues} ] &&',
        '       [ "$(squeue --noheader --jobs="$SLURM_JOB_ID" --format=%T)" = RUNNING ]; then',
        '        scontrol requeue "$SLURM_JOB_ID" && sleep 60  # until SLURM ends this script',
        "    fi",
        "esac",
        "exit $code",
    ]
