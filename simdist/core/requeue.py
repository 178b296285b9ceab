"""The rules of requeueing: a preempted job asks SLURM for it itself, on rank 0, once everything is saved.

Of the three that could act, this one does. SLURM requeues on its own only with `PreemptMode=REQUEUE`, not at a time
limit; submitit's handler calls `checkpoint()` on rank 0 while the other ranks continue, and is replaced by ours inside
a job. Training calls `requeue`, a job of a sweep `launch.endings`, and slurm/*.sbatch run this file as a program.

A cancelled job gets SIGTERM, too, and SLURM would allow it to come back. So its state is read first: a cancelled job is
COMPLETING, as is one that SLURM has just requeued, one that is out of time, and one that was preempted with
`PreemptMode=CANCEL`; the reason `TimeLimit` and a `PreemptTime` tell the last two from the others.

Imports only the standard library, for slurm/*.sbatch run it with the host's Python.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Literal

PREEMPTED = 75
"""Exit code of a command that saved everything and wants to run again."""
WARNED = (128 + 10, 128 + 12, 128 + 15)
"""Killed by a preemption warning before the command could handle it: there was nothing to save."""
KILLED = (128 + 6, 128 + 7, 128 + 9, 128 + 11)
"""Abort, bus error, kill, segmentation fault: worth another start if the last one made progress."""
Answer = Literal["requeued", "refused", "unavailable"]
ATTEMPTS = 10
"""SIGTERM reaches every process of a job, also a `scontrol` that was started by the first process that it reached."""

OF_A_JOB = ("SLURM_", "SLURMD_", "SRUN_", "SUBMITIT_")
OF_A_RANK = (
    "RANK",
    "WORLD_SIZE",
    "LOCAL_RANK",
    "LOCAL_WORLD_SIZE",
    "GROUP_RANK",
    "GROUP_WORLD_SIZE",
    "MASTER_ADDR",
    "MASTER_PORT",
    "SIMDIST_LAUNCHER",
    "SIMDIST_GPUS_EXPECTED",
    "SIMDIST_JOB_FOLDER",
    "CUDA_VISIBLE_DEVICES",
    "ROCR_VISIBLE_DEVICES",
    "GPU_DEVICE_ORDINAL",
)
OF_A_USER = ("SLURM_CONF", "SLURM_CLUSTERS", "SLURM_TIME_FORMAT")
"""Settings of SLURM's commands, which are not those of one job."""


def job_id(environment: Mapping[str, str]) -> str | None:
    """SLURM's name of the batch job this process belongs to, `ARRAY_TASK` in an array; None outside SLURM."""
    if environment.get("SLURM_ARRAY_JOB_ID"):
        return f"{environment['SLURM_ARRAY_JOB_ID']}_{environment['SLURM_ARRAY_TASK_ID']}"
    return environment.get("SLURM_JOB_ID")


def without_job(environment: Mapping[str, str]) -> dict[str, str]:
    """The environment without what a SLURM job put there: `sbatch` would take its memory and tasks for options.

    Outside a job nothing is taken away; what configures SLURM's commands themselves always stays.
    """
    if job_id(environment) is None:
        return dict(environment)
    return {
        name: value
        for name, value in environment.items()
        if name in OF_A_USER or not (name.startswith(OF_A_JOB) or name in OF_A_RANK)
    }


def wants_requeue(code: int, has_progressed: bool) -> bool:
    """Whether a command that ended with this exit code is to run again.

    Args:
        code: exit code of the command, or the highest of its tasks.
        has_progressed: whether it wrote results or checkpoints since its last start.
    """
    return code == PREEMPTED or code in WARNED or (code in KILLED and has_progressed)


def requeue(environment: Mapping[str, str], requeues: int, limit: int) -> tuple[bool, str]:
    """Ask SLURM to run this job again.

    Args:
        environment: of this process.
        requeues: number of requeues so far.
        limit: maximum number of requeues.

    Returns:
        Whether SLURM requeues the job, and a sentence with the reason; an empty one outside SLURM.
    """
    answer, sentence = _ask(environment, requeues, limit)
    return answer == "requeued", sentence


def _ask(environment: Mapping[str, str], requeues: int, limit: int) -> tuple[Answer, str]:
    job = job_id(environment)
    if job is None:
        return "refused", ""
    if requeues >= limit:
        return (
            "refused",
            f"job {job} was requeued {requeues} times, the maximum (max_requeues). Submit it again by hand",
        )
    try:
        text = _scontrol("show", "job", job)
        state = re.search(r"JobState=(\w+)", text)
        if state is not None and state[1] != "RUNNING" and not (_is_out_of_time(text) or is_preempted(text)):
            return "refused", f"job {job} is {state[1]}: cancelled, or requeued by SLURM already; not requeued again"
        _scontrol("requeue", job)
    except OSError as error:
        sentence = f"scontrol is not available here ({error.strerror}); exit code 75 asks for a successor of job {job}"
        return "unavailable", sentence
    except subprocess.SubprocessError as error:
        reason = getattr(error, "stderr", "") or str(error)
        return "unavailable", f"SLURM does not requeue job {job}: {' '.join(reason.split())}"
    return "requeued", f"job {job} is requeued"


def requeue_if_dying(environment: Mapping[str, str], requeues: int, limit: int) -> bool:
    """Requeue a job that SLURM is ending because of a preemption without grace; whether it did.

    With `PreemptMode=CANCEL` and GraceTime 0, SIGKILL follows SIGTERM after KillWait, and a step may take longer than
    that: the job would be gone. To ask for the requeue does not end it any sooner.
    """
    job = job_id(environment)
    if job is None:
        return False
    try:
        text = _scontrol("show", "job", job)
    except (OSError, subprocess.SubprocessError):
        return False
    is_ending = "JobState=RUNNING" not in text
    return is_ending and is_preempted(text) and requeue(environment, requeues, limit)[0]


def is_preempted(shown: str) -> bool:
    """Whether a job is being preempted, as `scontrol show job` says it; a preemption before this start is over."""
    found, start = re.search(r"\bPreemptTime=(\S+)", shown), re.search(r"\bStartTime=(\S+)", shown)
    if found is None or found[1] in ("None", "Unknown", "N/A"):
        return False
    return start is None or start[1] == "Unknown" or found[1] >= start[1]


def _is_out_of_time(shown: str) -> bool:
    return "Reason=TimeLimit" in shown


def _scontrol(*words: str, attempts: int = ATTEMPTS) -> str:
    plain = {name: value for name, value in os.environ.items() if name != "SLURM_TIME_FORMAT"}  # times that sort
    command = ["scontrol", *words]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=30, check=True, env=plain).stdout
    except subprocess.CalledProcessError as error:
        if error.returncode > 0 or attempts == 1:
            raise
    time.sleep(0.2)
    return _scontrol(*words, attempts=attempts - 1)


def main(argv: Sequence[str]) -> int:
    """`requeue.py CODE REQUEUES LIMIT`: 0 if SLURM requeues the job, 3 if it needs a successor, 1 if it has ended."""
    code, requeues, limit = map(int, argv)
    if not wants_requeue(code, has_progressed=False):
        return 1
    answer, sentence = _ask(os.environ, requeues, limit)
    print(sentence, file=sys.stderr, flush=True)
    return {"requeued": 0, "refused": 1, "unavailable": 3}[answer]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
