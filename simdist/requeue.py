"""Back into SLURM's queue: a job that was preempted asks for it itself, from rank 0, once everything is saved.

Of the three that could act, this one does. SLURM requeues by itself only with `PreemptMode=REQUEUE`, not at a time
limit; submitit's handler calls `checkpoint()` on rank 0 while the other ranks go on, and is replaced by ours inside a
job. Where `scontrol` is missing, the job ends with exit code 75, and who started it (slurm/*.sbatch, launch/) submits
it again. A job that was cancelled gets SIGTERM too, and must not come back, which SLURM would allow: its state is asked
for first. SLURM says COMPLETING then, not CANCELLED, as it does of a job that it has just requeued itself.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Mapping


def job_id(environment: Mapping[str, str]) -> str | None:
    """SLURM's name of the batch job this process belongs to, `ARRAY_TASK` in an array; None outside SLURM."""
    if environment.get("SLURM_ARRAY_JOB_ID"):
        return f"{environment['SLURM_ARRAY_JOB_ID']}_{environment['SLURM_ARRAY_TASK_ID']}"
    return environment.get("SLURM_JOB_ID")


def requeue(environment: Mapping[str, str], requeues: int, limit: int) -> tuple[bool, str]:
    """Ask SLURM to run this job again.

    Args:
        environment: of this process.
        requeues: how often that was done already in this run.
        limit: how often it may be done.

    Returns:
        Whether it was asked for, and a sentence that says so or why not; an empty one outside SLURM.
    """
    job = job_id(environment)
    if job is None:
        return False, ""
    if requeues >= limit:
        return False, f"job {job} was requeued {requeues} times (train.max_requeues); not again: submit it by hand"
    try:
        found = re.search(r"JobState=(\w+) Reason=(\w+)", _scontrol("show", "job", job))
        if found is not None and found[1] != "RUNNING" and found[2] != "TimeLimit":
            return False, f"job {job} is {found[1]}: cancelled, or SLURM has requeued it already; not asked for again"
        _scontrol("requeue", job)
    except OSError as error:
        return False, f"scontrol cannot be run here ({error.strerror}); exit code 75 asks for a successor of job {job}"
    except subprocess.SubprocessError as error:
        reason = getattr(error, "stderr", "") or str(error)
        return False, f"SLURM does not requeue job {job}: {' '.join(reason.split())}"
    return True, f"job {job} is requeued"


def _scontrol(*words: str) -> str:
    command = ["scontrol", *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=30, check=True).stdout
