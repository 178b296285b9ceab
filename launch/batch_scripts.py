"""Batch scripts of job arrays: a profile's resources, dependencies, the code they run, and how they end."""

from __future__ import annotations

import os
import re
import shlex
import sys
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from submitit import SlurmExecutor
from submitit.core.utils import DelayedSubmission, JobPaths

from simdist.cluster.profile import Profile, profile_for
from simdist.core.errors import InputError
from simdist.core.requeue import without_job

from .endings import ENDED
from .job import Task
from .naming import PACKAGE
from .plan import Job, Plan
from .records import HELD
from .scheduler import JobArray

# Since SLURM 22.05, srun no longer takes this over from sbatch, and each task would get one core.
CORES = 'export SRUN_CPUS_PER_TASK="$SLURM_CPUS_PER_TASK"'
SAME_NAME = ("partition", "account", "qos", "constraint", "nodes", "cpus_per_task", "mem_per_gpu", "mem", "exclude")


@dataclass(frozen=True)
class BatchContext:
    """Settings that the batch scripts of a sweep share."""

    name: str
    """The sweep's name."""
    folder: Path
    """The sweep's folder."""
    profile: Profile
    code: Callable[[], Path]
    """Makes or finds the copy of the code that jobs import."""

    def tasks(self, array: JobArray) -> list[Task]:
        """The jobs as submitit pickles them."""
        return [task_of(job, job_profile(job, self.profile)) for job in array.jobs]


def task_of(job: Job, profile: Profile) -> Task:
    """The job as submitit pickles it, with the profile's limit of requeues."""
    limit = profile.allowed_requeues
    words = (*job.command, *(("--train.max_requeues", str(limit)) if job.kind == "train" else ()))
    marker = str(job.marker.absolute()) if job.marker else None
    return Task(words, marker, str(job.folder.absolute()), limit)


def sbatch_parameters(profile: Profile) -> dict[str, Any]:
    """A profile as keywords for `submitit.SlurmExecutor.update_parameters`."""
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


def job_profile(job: Job, profile: Profile) -> Profile:
    """The profile as this job uses it.

    Raises:
        InputError: the sweep's resources name a field that a profile does not have, or a value that cannot be.
    """
    try:
        return profile_for(job.kind, profile, job.resources)
    except (ValueError, TypeError) as error:
        raise InputError(f"stage {job.stage}: resources: {error}") from error


def stage_profiles(plan: Plan, profile: Profile) -> dict[str, Profile]:
    """The profile of every stage, so that errors are found before submission."""
    return {job.stage: job_profile(job, profile) for job in plan.jobs.values()}


def parameters(context: BatchContext, array: JobArray, tag: str, code: Path) -> dict[str, Any]:
    """Parameters of submitit for the batch script of an array.

    The set-up lines and the job are a shell of their own: what they export, or `set -e`, does not reach the end of the
    script, which may submit other jobs.
    """
    profile = job_profile(array.jobs[0], context.profile)
    made = sbatch_parameters(profile)
    path = f"{code}${{PYTHONPATH:+:$PYTHONPATH}}"
    logs = context.folder.absolute() / "slurm" / tag
    environment = [f'export PYTHONPATH="{path}" PYTHONSAFEPATH=1 SIMDIST_JOB_FOLDER={shlex.quote(str(logs))}']
    environment.append(f"export SIMDIST_GPUS_EXPECTED={profile.gpus_per_node}")
    number = "${SLURM_ARRAY_JOB_ID:+${SLURM_ARRAY_JOB_ID}_}${SLURM_ARRAY_TASK_ID:-$SLURM_JOB_ID}"
    environment.append(f'rm -f "$SIMDIST_JOB_FOLDER/{number}{ENDED}"  # how it ended the last time')
    extra = dict(made["additional_parameters"])
    extra["comment"] = " ".join([extra["comment"], tag] if "comment" in extra else [tag])
    waits_for = dependency(array)
    if waits_for:
        extra |= {"dependency": waits_for, "kill-on-invalid-dep": "yes"}
    return made | {
        "job_name": f"{context.name}.{array.stage}",
        "additional_parameters": extra,
        "array_parallelism": array.throttle,
        "setup": [*environment, "(", *made["setup"]],
        "teardown": [")", *end_lines(context, profile)],
        "stderr_to_stdout": True,
        "wckey": None,  # submitit's own would be refused where keys must be known
    }


def dependency(array: JobArray) -> str:
    """SLURM's dependencies of an array, such as `afterok:17,aftercorr:18:19`; empty if there are none."""
    parts = (
        ("afterok", array.after_success),
        ("aftercorr", array.after_same_index),
        ("afterany", tuple(dict.fromkeys(id.array for id in array.after_end))),  # whole arrays: short
    )
    return ",".join(":".join([name, *(id.number for id in ids)]) for name, ids in parts if ids)


def end_lines(context: BatchContext, profile: Profile) -> list[str]:
    """End of the batch script: `launch.endings` handles failures, and jobs held back by a queue limit."""
    folder = context.folder.absolute()
    python = profile.python or shlex.quote(sys.executable)
    setup = profile.setup if profile.python else ()  # a container's command may need a module
    return [
        "code=$?",
        f"if [ $code -ne 0 ] || [ -e {shlex.quote(str(folder / HELD))} ]; then",
        *(f"    {line}" for line in setup),
        f"    {python} -m {PACKAGE}.endings $code {profile.allowed_requeues} {shlex.quote(str(folder))}",
        "fi",
        "exit $code",
    ]


def batch_executor(context: BatchContext, array: JobArray, tag: str, code: Path | None = None) -> BatchExecutor:
    """Create an executor per array, because one executor submits only five times per second.

    Args:
        context: of the sweep.
        array: the jobs.
        tag: names the folder of their logs, and is found in the queue as the job's comment.
        code: the copy of the code that they import; None makes one.
    """
    python = job_profile(array.jobs[0], context.profile).python
    executor = BatchExecutor(context.folder / "slurm" / tag, array, python)
    executor.update_parameters(**parameters(context, array, tag, code or context.code()))
    return executor


class BatchExecutor(SlurmExecutor):
    """submitit's executor for arrays whose indices may have gaps: children wait for the task of their own index.

    It writes batch scripts where there is no SLURM, too: for --dry-run. sbatch is run without the variables of a job
    that this process may belong to, which it would take for options.
    """

    def __init__(self, folder: Path, array: JobArray, python: str | None) -> None:
        super().__init__(folder, python=python)
        self._array = array
        self.cluster = ""
        """Name of the cluster, where sbatch says it: of several."""

    @classmethod
    def affinity(cls) -> int:
        return 1

    def script(self) -> str:
        """The text for sbatch."""
        return self._make_submission_file_text(self._submitit_command_str, "")

    def submit_jobs(self, tasks: Sequence[Task]) -> list[str]:
        """Run `sbatch` once; returns the number of each job."""
        folder = JobPaths.get_first_id_independent_folder(self.folder)
        folder.mkdir(parents=True, exist_ok=True)
        pickles = [folder / f"{uuid.uuid4().hex}.pkl" for _ in tasks]
        for task, path in zip(tasks, pickles, strict=True):
            delayed = DelayedSubmission(task)
            delayed.set_timeout(self.parameters.get("time", 5), self.max_num_timeout)
            delayed.dump(path)
        first = self._submit_command(self._submitit_command_str)
        numbers = [f"{first.job_id}_{index}" for index in self._array.indices] or [first.job_id]
        for number, path in zip(numbers, pickles, strict=True):  # a job waits a minute for its pickle
            JobPaths(self.folder, job_id=number).move_temporary_file(path, "submitted_pickle")
        return numbers

    def _make_submission_file_text(self, command: str, uid: str) -> str:
        if self._array.indices:
            self.parameters["map_count"] = len(self._array.indices)
        text = super()._make_submission_file_text(command, uid)
        indices = f"{spelled_indices(self._array.indices)}%{self._array.throttle}"
        return re.sub(r"(?m)^(#SBATCH --array=).*$", rf"\g<1>{indices}", text)

    def _make_submission_command(self, submission_file_path: Path) -> list[str]:
        unset = [f"--unset={name}" for name in os.environ if name not in without_job(os.environ)]
        return [*(["env", *unset] if unset else []), *super()._make_submission_command(submission_file_path)]

    def _get_job_id_from_submission_command(self, string: bytes | str) -> str:  # pyright: ignore
        text = string if isinstance(string, str) else string.decode()
        on = re.search(r"on cluster (\S+)", text)
        self.cluster = on[1] if on else ""
        return super()._get_job_id_from_submission_command(string)


def spelled_indices(indices: Sequence[int]) -> str:
    """Indices in sbatch's syntax: 0, 1, 2, 5 is `0-2,5`."""
    parts: list[list[int]] = []
    for index in sorted(indices):
        if parts and index == parts[-1][1] + 1:
            parts[-1][1] = index
        else:
            parts.append([index, index])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in parts)
