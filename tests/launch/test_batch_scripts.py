"""The text that sbatch gets, and the resources of each kind of job."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
from submitit.slurm.slurm import SlurmExecutor

from launch.batch_scripts import job_profile, sbatch_parameters, spelled_indices, task_of
from launch.dry_run import planned_arrays, script
from launch.plan import Job
from launch.scheduler import JobArray
from simdist.cluster.profile import Profile, load_profile, profile_names, replaced
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


def test_indices_as_sbatch_takes_them() -> None:
    assert spelled_indices([0, 1, 2, 5, 7, 8]) == "0-2,5,7-8"


# --- profiles: what a file may hold, and what sbatch is told ----------------------------------------------------------


@pytest.fixture
def write(tmp_path: Path):
    def to_file(text: str) -> Path:
        path = tmp_path / "mine.yaml"
        path.write_text(text)
        return path

    return to_file


def sbatch_lines(profile: Profile, folder: Path, monkeypatch: pytest.MonkeyPatch, **overrides: object) -> list[str]:
    """The #SBATCH lines that submitit writes for a profile, also where there is no SLURM."""
    monkeypatch.setattr(SlurmExecutor, "affinity", classmethod(lambda cls: 1))
    executor = SlurmExecutor(folder)
    executor.update_parameters(**sbatch_parameters(replaced(profile, overrides)))
    return executor._make_submission_file_text("true", "uid").splitlines()


@pytest.mark.parametrize("name", profile_names())
def test_each_profile_that_ships_becomes_a_job(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = sbatch_lines(load_profile(name), tmp_path, monkeypatch)
    assert "#SBATCH --requeue" in lines
    assert any(line.startswith("#SBATCH --signal=USR2@") for line in lines)


def test_every_field_reaches_sbatch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    profile = Profile(
        partition="gpu",
        account="speech",
        qos="long",
        constraint="a100",
        nodes=2,
        gpus_per_node=4,
        cpus_per_task=6,
        mem_per_gpu="60G",
        time_minutes=90,
        exclude="n3",
        reservation="workshop",
        setup=("module load cuda",),
        signal_lead_s=45,
        requeue=False,
        gpu_type="a100",
        srun_args=("--mpi=pmix",),
        mail="ada@example.org",
        mail_events=("END", "FAIL"),
        comment="speech project",
        extra={"licenses": "scratch", "exclusive": True, "overcommit": False},
    )
    lines = sbatch_lines(profile, tmp_path, monkeypatch)
    options = {line.removeprefix("#SBATCH --") for line in lines if line.startswith("#SBATCH")}
    assert options >= {
        "partition=gpu",
        "account=speech",
        "qos=long",
        "constraint=a100",
        "nodes=2",
        "gpus-per-node=a100:4",
        "mail-user=ada@example.org",
        "mail-type=END,FAIL",
        "comment='speech project'",
        "ntasks-per-node=4",
        "cpus-per-task=6",
        "mem-per-gpu=60G",
        "time=90",
        "exclude=n3",
        "reservation=workshop",
        "signal=USR2@45",
        "no-requeue",
        "licenses=scratch",
        "exclusive",
    }
    assert not any("overcommit" in option or option == "requeue" for option in options)
    assert "module load cuda" in lines
    start = next(n for n, line in enumerate(lines) if line.startswith("srun "))
    assert lines.index("module load cuda") < start
    assert " --mpi=pmix " in lines[start]


@pytest.mark.parametrize(
    ("text", "gpus", "kind", "request_"),
    [
        ("gpus_per_node: 4", 4, None, "4"),
        ("gpus_per_node: a100:4", 4, "a100", "a100:4"),
        ("gpus_per_node: gpu:a100:4", 4, "a100", "a100:4"),
        ("gpus_per_node: gpu:2", 2, None, "2"),
        ("gpus_per_node: a100_3g.20gb:1", 1, "a100_3g.20gb", "a100_3g.20gb:1"),
        ("gpus_per_node: '3090:8'", 8, "3090", "3090:8"),
        ("gpus_per_node: gpu:1g.10gb+me:1", 1, "1g.10gb+me", "1g.10gb+me:1"),
        ("{gpus_per_node: 2, gpu_type: h100}", 2, "h100", "h100:2"),
        ("nodes: 1", 0, None, None),
    ],
)
def test_gpus_with_and_without_a_type(write, text: str, gpus: int, kind: str | None, request_: str | None) -> None:
    profile = load_profile(write(text))
    assert (profile.gpus_per_node, profile.gpu_type, profile.gpu_request) == (gpus, kind, request_)


def test_fewer_gpus_are_of_the_same_type() -> None:
    profile = Profile(gpus_per_node=4, gpu_type="a100")
    assert replaced(profile, {"gpus_per_node": 2}).gpu_request == "a100:2"
    assert replaced(profile, {"gpus_per_node": "v100:1"}).gpu_request == "v100:1"
    assert replaced(profile, {"gpus_per_node": 0}).gpu_request is None


def test_one_process_per_gpu_stays_so_with_fewer_gpus() -> None:
    assert replaced(Profile(gpus_per_node=4, tasks_per_node=4), {"gpus_per_node": 2}).num_tasks_per_node == 2
    assert replaced(Profile(gpus_per_node=4, tasks_per_node=1), {"gpus_per_node": 2}).num_tasks_per_node == 1


SECTIONS = """
partition: gpu
gpus_per_node: a100:4
mem_per_gpu: 60G
time_minutes: 600
train: {nodes: 2, qos: long}
gpu: {time_minutes: 60, gpus_per_node: v100:2, mem_per_gpu: 20G}
cpu: {partition: cpu, mem: 16G, cpus_per_task: 16, setup: [module load gcc]}
"""


def job(kind: Any, **resources: Any) -> Job:
    return Job("j", kind, kind, (kind,), Path(), (), resources=resources)


def test_a_section_for_each_kind_of_job(write) -> None:
    profile = load_profile(write(SECTIONS))
    train = job_profile(job("train"), profile)
    assert (train.nodes, train.qos, train.gpu_request, train.mem_per_gpu, train.time_minutes) == (
        *(2, "long", "a100:4", "60G", 600),
    )
    for kind in ("probe", "decode", "analyze"):
        made = job_profile(job(kind), profile)
        assert (made.nodes, made.gpu_request, made.num_tasks_per_node, made.mem_per_gpu) == (1, "v100:2", 2, "20G")
        assert (made.partition, made.time_minutes, made.qos) == ("gpu", 60, None)
    for kind in ("pack", "report"):
        made = job_profile(job(kind), profile)
        assert (made.partition, made.gpu_request, made.mem, made.mem_per_gpu) == ("cpu", None, "16G", None)
        assert (made.num_tasks_per_node, made.cpus_per_task, made.setup) == (1, 16, ("module load gcc",))


def test_a_stage_of_the_sweep_wins_over_the_section(write) -> None:
    profile = load_profile(write(SECTIONS))
    assert job_profile(job("pack", mem="2G", partition="low"), profile).mem == "2G"
    assert job_profile(job("pack", gpus_per_node=1, mem_per_gpu="9G"), profile).mem_per_gpu == "9G"
    probe = job_profile(job("probe", gpus_per_node=1), profile)
    assert (probe.num_tasks_per_node, probe.gpus_per_node) == (1, 1)
    assert job_profile(job("train", nodes=1), profile).nodes == 1


def test_a_profile_without_sections_is_as_before() -> None:
    profile = load_profile("gpu")
    assert job_profile(job("train"), profile) == profile
    assert job_profile(job("probe"), profile) == replaced(profile, {"gpus_per_node": 1, "tasks_per_node": 1})
    assert job_profile(job("pack"), profile) == replaced(profile, {"gpus_per_node": 0, "tasks_per_node": 1})


def test_python_of_a_container_and_the_comment_of_the_site(tmp_path: Path) -> None:
    plan = small_plan(tmp_path)
    pack = plan.jobs[of_kind(plan, "pack")[0]]
    profile = Profile(python="apptainer exec image.sif python", comment="site")
    text = script(plan, JobArray((pack,)), profile)
    assert " apptainer exec image.sif python -u -m submitit.core._submit " in text
    assert "#SBATCH --comment='site <id>'" in text


def test_a_job_without_gpus_asks_for_none() -> None:
    parameters = sbatch_parameters(replaced(load_profile("gpu"), {"gpus_per_node": 0}))
    assert "gpus_per_node" not in parameters
    assert "mem_per_gpu" not in parameters
    assert parameters["ntasks_per_node"] == 1


def test_a_short_job_is_still_warned_in_time() -> None:
    assert replaced(Profile(), {"time_minutes": 1}).signal_lead_s == 30
    assert replaced(Profile(), {"time_minutes": 1, "signal_lead_s": 10}).signal_lead_s == 10


def test_an_unknown_override_names_the_fields() -> None:
    with pytest.raises(ValueError, match=r"has no gpus; its fields are partition, account.*gpus_per_node"):
        replaced(Profile(), {"gpus": 4})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("partion: gpu", r"unknown key 'partion': did you mean 'partition'\? .*account, .*time_minutes"),
        ("nodes: many", "nodes must be a whole number, not many"),
        ("nodes: 0", "nodes is 0; it must be at least 1"),
        ("time_minutes: 1\nsignal_lead_s: 60", "signal_lead_s is 60; it must be less than time_minutes"),
        ("mem: 8G\ngpus_per_node: 1\nmem_per_gpu: 4G", "SLURM accepts only one of them"),
        ("mem_per_gpu: 4G", "gpus_per_node is 0; give mem"),
        ("gpus_per_node: a100:many", "gpus_per_node is 'a100:many'; it must be a number such as 4, or TYPE:NUMBER"),
        ("gpus_per_node: 3090:8", "gpus_per_node is 185408; put quotes around TYPE:NUMBER: '3090:8'"),
        ("gpu: {gpus: 1}", "section gpu has no gpus; its fields are partition"),
        ("cpu: {nodes: many}", "section cpu: nodes must be a whole number, not many"),
        ("cpu: {nodes: 0}", "section cpu: nodes is 0; it must be at least 1"),
        ("cpu: {mem_per_gpu: 4G}", "section cpu: mem_per_gpu is given, but gpus_per_node is 0"),
        ("train: {gpu: {nodes: 1}}", "section train has no gpu"),
        ("mail_events: FAIL", "mail_events must be a list"),
        ("extra: {cpus_per_task: 3}", "extra has cpus-per-task, which are fields of the profile itself"),
        ("setup: module load cuda", "setup must be a list"),
        ("setup: [export HF_TOKEN=hunter2hunter2]", r"setup has a secret: export HF_TOKEN=\[redacted\]\. Batch"),
        ("train: {setup: [login --password hunter2]}", r"section train: setup has a secret: login --password \["),
    ],
)
def test_a_mistake_is_named_with_its_remedy(write, text: str, message: str) -> None:
    path = write(text)
    with pytest.raises(InputError, match=message) as caught:
        load_profile(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


def test_a_profile_that_is_not_there_names_those_that_are() -> None:
    with pytest.raises(InputError, match=r"no cluster profile 'juwels'. Use one of cpu, gpu, testbed"):
        load_profile("juwels")
