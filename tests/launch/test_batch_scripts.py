"""The text that sbatch gets, and the resources of each kind of job."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from launch.batch_scripts import task_of
from launch.dry_run import planned_arrays, script
from launch.plan import Job
from launch.profiles import Profile, job_profile, load_profile
from simdist.core.errors import InputError
from tests.support.sweeps import of_kind, small_plan

GOLDEN = """\
#!/bin/bash

# Parameters
#SBATCH --array=0-1%2
#SBATCH --comment='<id>'
#SBATCH --constraint=a100
#SBATCH --cpus-per-task=6
#SBATCH --dependency='afterok:<pack/data-small>'
#SBATCH --gpus-per-node=4
#SBATCH --job-name=small.train
#SBATCH --kill-on-invalid-dep=yes
#SBATCH --licenses=scratch
#SBATCH --mem-per-gpu=60G
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=4
#SBATCH --open-mode=append
#SBATCH --output='{folder}/%A_%a_0_log.out'
#SBATCH --partition=gpu
#SBATCH --requeue
#SBATCH --signal=USR2@120
#SBATCH --time=600

# setup
export PYTHONPATH="<code>${{PYTHONPATH:+:$PYTHONPATH}}" PYTHONSAFEPATH=1 SIMDIST_JOB_FOLDER='{folder}'
export SIMDIST_GPUS_EXPECTED=4
rm -f "$SIMDIST_JOB_FOLDER/{number}_ended.json"  # how it ended the last time
(
export SRUN_CPUS_PER_TASK="$SLURM_CPUS_PER_TASK"
module load cuda

# command
export SUBMITIT_EXECUTOR=slurm
srun --unbuffered --output '{folder}/%A_%a_%t_log.out' {python} -u -m submitit.core._submit '{folder}'


# teardown
)
code=$?
if [ $code -ne 0 ] || [ -e {sweep}/held ]; then
    {python} -m launch.endings $code 7 {sweep}
fi
exit $code"""


def test_the_text_of_a_batch_script(tmp_path: Path) -> None:
    profile = tmp_path / "mine.yaml"
    profile.write_text(
        "{partition: gpu, constraint: a100, gpus_per_node: 4, cpus_per_task: 6, mem_per_gpu: 60G, signal_lead_s: 120, "
        "max_requeues: 7, setup: [module load cuda], extra: {licenses: scratch}}"
    )
    stages = {
        "pack": {"corpus": "synthetic", "source": "data/source"},
        "train": {"resources": {"nodes": 2, "time_minutes": 600, "signal_lead_s": 120}},
    }
    plan = small_plan(grid={}, seeds=[0, 1], stages=stages)
    array = next(array for array in planned_arrays(plan, plan.jobs, 2) if array.stage == "train")
    sweep = plan.folder.absolute()
    text = script(plan, array, load_profile(profile))
    number = "${SLURM_ARRAY_JOB_ID:+${SLURM_ARRAY_JOB_ID}_}${SLURM_ARRAY_TASK_ID:-$SLURM_JOB_ID}"
    folder = sweep / "slurm" / "<id>"
    assert text == GOLDEN.format(folder=folder, sweep=sweep, python=sys.executable, number=number)


def test_resources_follow_the_kind_of_work_and_the_sweep_file() -> None:
    profile = Profile(gpus_per_node=4, nodes=2, mem_per_gpu="60G")

    def used(kind: Any, **resources: Any) -> tuple[int, int, int]:
        made = job_profile(Job("j", kind, kind, (kind,), Path(), (), resources=resources), profile)
        return made.nodes, made.gpus_per_node, made.num_tasks_per_node

    assert used("train") == (2, 4, 4)
    assert used("pack") == used("report") == (1, 0, 1)
    assert used("probe") == used("decode") == (1, 1, 1)
    assert used("probe", gpus_per_node=2) == (1, 2, 2)
    assert used("train", nodes=1, tasks_per_node=1) == (1, 4, 1)
    with pytest.raises(InputError, match="stage probe: resources: a profile has no gpus; its fields are partition"):
        used("probe", gpus=2)


def test_a_training_may_come_back_as_often_as_the_profile_says() -> None:
    plan = small_plan()
    train = plan.jobs[of_kind(plan, "train")[0]]
    assert task_of(train, Profile(max_requeues=7)).command[-2:] == ("--train.max_requeues", "7")
    assert task_of(train, Profile(requeue=False)).command[-2:] == ("--train.max_requeues", "0")
    assert task_of(train, Profile(requeue=False)).max_requeues == 0
