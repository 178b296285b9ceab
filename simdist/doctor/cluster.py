"""A cluster as its controller describes it: would jobs of a profile start, and would they come back?"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator, Mapping

from simdist.cluster.description import describe_nodes, describe_reservation, misfits, partitions_of, reservations_due
from simdist.cluster.discovery import Cluster, discover
from simdist.cluster.parsing import Partition
from simdist.cluster.profile import SECTION_OF, Profile, profile_for
from simdist.core.requeue import without_job
from simdist.doctor.findings import Finding, error, ok, warning

SAVES = 2.0  # a save also hashes what it writes, and many jobs may be told at once
COMMANDS = ("sbatch", "srun", "scontrol", "squeue", "sacct")
AIR = 10.0  # seconds for the step, and for SLURM


def check_cluster(profile: Profile, save_seconds: float) -> Iterator[Finding]:
    """Everything that can be told without a job; `save_seconds` is what a checkpoint takes."""
    missing = [command for command in COMMANDS if shutil.which(command) is None]
    if missing:
        yield error(
            "slurm",
            f"{', '.join(missing)} not found",
            "run the doctor on a login node of the cluster; sweeps run without SLURM with --cluster local",
        )
        return
    cluster = discover()
    if cluster is None:
        remedy = "look at `scontrol ping`; is SLURM_CONF set if needed? Sweeps run without SLURM with --cluster local"
        yield error("slurm", "the controller does not answer", remedy)
        return
    train, settings = profile_for("train", profile), cluster.settings
    yield ok("slurm", f"{settings.get('SLURM_VERSION', '?')}, cluster {cluster.name}")
    names = partitions_of(cluster, train)
    partitions = [part for part in cluster.partitions if part.name in names]
    if not partitions or len(partitions) < len(names):
        yield _no_partition(cluster, names)
        return
    for partition in partitions:
        yield _check_partition(train, partition)
    yield from _check_resources(cluster, profile)
    yield from _check_submission(profile)
    yield _check_requeue(train, settings)
    yield _check_warning(train, save_seconds)
    for partition in partitions:
        yield _check_preemption(settings, partition, save_seconds)
    yield _check_accounting()


def slurm_options(profile: Profile, nodes: int | None = None, minutes: int | None = None) -> list[str]:
    """A profile as options of sbatch, srun and salloc.

    Args:
        profile: the cluster.
        nodes: instead of the profile's number.
        minutes: instead of the profile's time.
    """
    values: dict[str, object] = {
        "nodes": nodes or profile.nodes,
        "time": minutes or profile.time_minutes,
        "ntasks-per-node": profile.num_tasks_per_node,
        "cpus-per-task": profile.cpus_per_task,
        "gpus-per-node": profile.gpu_request,
    }
    same = ("partition", "account", "qos", "constraint", "mem", "exclude", "reservation")
    values |= {name: getattr(profile, name) for name in same} | {"mem-per-gpu": profile.mem_per_gpu}
    values |= {name.replace("_", "-"): value for name, value in profile.extra.items()}
    given = {name: value for name, value in values.items() if value is not None and value is not False}
    return [f"--{name}" if value is True else f"--{name}={value}" for name, value in given.items()]


def _no_partition(cluster: Cluster, wanted: list[str]) -> Finding:
    names = ", ".join(part.name for part in cluster.partitions)
    if not wanted:
        return error("partition", "the profile names none, and the cluster has no default", f"set one of {names}")
    unknown = ", ".join(name for name in wanted if name not in {part.name for part in cluster.partitions})
    return error("partition", f"there is no partition {unknown}", f"set partition to one of {names}")


def _check_partition(profile: Profile, partition: Partition) -> Finding:
    name, limit = partition.name, partition.max_minutes
    if not partition.is_up:
        return error("partition", f"{name} is {partition.state}", "name another partition, or wait")
    if limit is not None and profile.time_minutes > limit:
        text = f"{name} lets jobs run for {limit} minutes; the profile asks for {profile.time_minutes}"
        return error("partition", text, f"set time_minutes to {limit} or less; runs take as many jobs as they need")
    nodes = partition.fields.get("TotalNodes", "?")
    return ok("partition", f"{name} is up, {nodes} nodes, jobs of {_spelled(limit)}")


def _check_resources(cluster: Cluster, profile: Profile) -> Iterator[Finding]:
    """GPUs, limits and reservations."""
    names = [part.name for part in cluster.partitions if any(kind.gpus for kind in cluster.kinds(part.name))]
    listed = "; ".join(f"{name}: {describe_nodes(cluster, name)}" for name in names)
    wrong = list(misfits(cluster, profile))
    if wrong:
        yield warning("GPU nodes", "; ".join(wrong), "`--cluster slurm --write FILE` writes a profile that fits")
    else:
        yield ok("GPU nodes", listed or "SLURM shows no GPUs")
    limits = cluster.limits(profile)
    tasks = "unknown" if limits.max_array_size is None else f"at most {limits.max_array_size - 1}"
    jobs = "no limit known" if limits.max_submit is None else f"at most {limits.max_submit}"
    yield ok("limits", f"jobs in the queue: {jobs}; largest index of an array: {tasks}")
    for entry in reservations_due(cluster, profile):
        text = describe_reservation(entry, cluster)
        if "you may use it" in text:
            yield ok("reservation", text)
        else:
            yield warning("reservation", text, "shorter jobs (time_minutes) may still end before it begins")


def _check_submission(profile: Profile) -> Iterator[Finding]:
    """Let SLURM itself judge account, QOS, constraint, memory and GPUs; `--test-only` submits nothing."""
    kinds: dict[tuple[str, ...], list[str]] = {}
    for kind in SECTION_OF:
        kinds.setdefault(tuple(slurm_options(profile_for(kind, profile))), []).append(kind)
    for options, named in kinds.items():
        yield _test_only(options, "all jobs" if len(kinds) == 1 else f"{', '.join(named)} jobs")


def _test_only(options: tuple[str, ...], jobs: str) -> Finding:
    command = ["sbatch", "--test-only", *options, "--wrap=true"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, env=without_job(os.environ))
    except subprocess.TimeoutExpired:
        return warning("job", "`sbatch --test-only` did not answer within 60 s", "the controller is busy; try again")
    said = re.sub(r"^sbatch: (error: )?", "", done.stderr.strip().splitlines()[-1]) if done.stderr.strip() else ""
    if done.returncode:
        return error("job", f"SLURM refuses the profile's {jobs}: {said}", f"try it: {shlex.join(command)}")
    return ok("job", re.sub(r"^Job \d+", f"SLURM accepts {jobs}; one", said))


def _check_requeue(profile: Profile, settings: Mapping[str, str]) -> Finding:
    if not profile.requeue:
        text = "the profile has requeue: false; a preempted or timed-out job stays away"
        return warning("requeue", text, "set requeue: true, or repeat the same command")
    if settings.get("JobRequeue") == "0":
        return ok("requeue", "JobRequeue is 0 on this cluster; jobs of simdist ask for --requeue themselves")
    return ok("requeue", f"jobs are requeued, at most {profile.max_requeues} times")


def _check_warning(profile: Profile, save_seconds: float) -> Finding:
    needed = SAVES * save_seconds + AIR
    text = f"jobs are told {profile.signal_lead_s} s before the time limit; a save needs about {needed:.0f} s"
    if profile.signal_lead_s < needed:
        return error("signal", text, f"set signal_lead_s to {needed:.0f} or more")
    if profile.signal_lead_s < needed + 30:  # SLURM looks at time limits twice a minute
        return warning("signal", text, f"SLURM may be 30 s late; set signal_lead_s to {needed + 30:.0f} or more")
    return ok("signal", text)


def _check_preemption(settings: Mapping[str, str], partition: Partition, save_seconds: float) -> Finding:
    name, mode = partition.name, partition.fields.get("PreemptMode", settings.get("PreemptMode", "OFF"))
    if settings.get("PreemptType", "preempt/none").endswith("none") or mode == "OFF":
        return ok("preemption", f"jobs in {name} are not preempted")
    grace, needed = int(partition.fields.get("GraceTime", "0")), SAVES * save_seconds + AIR
    loss = "runs go on from their last periodic checkpoint; set --train.checkpoint_every to what you can lose"
    if mode not in ("REQUEUE", "CANCEL"):
        text = f"jobs in {name} are preempted with PreemptMode {mode}"
        return warning("preemption", text, "suspended jobs keep their memory and go on later; nothing is lost")
    if grace == 0:
        return warning("preemption", f"jobs in {name} are preempted without a warning (GraceTime 0)", loss)
    if grace < needed:
        text = f"jobs in {name} get {grace} s of grace; a save needs about {needed:.0f} s"
        return warning("preemption", text, loss)
    by = "their own signal" if "preempt_send_user_signal" in settings.get("SlurmctldParameters", "") else "SIGTERM"
    return ok("preemption", f"jobs in {name} are told by {by} {grace} s before ({mode}); a save needs {needed:.0f} s")


def _check_accounting() -> Finding:
    if _succeeds("sacct", "--noheader", "--format=jobid", "--starttime=now-1hour"):
        return ok("accounting", "sacct answers")
    remedy = "the states of jobs that ended come from run folders alone; nothing to do"
    return warning("accounting", "sacct does not answer", remedy)


def _succeeds(*words: str) -> bool:
    return subprocess.run(words, capture_output=True, timeout=60).returncode == 0


def _spelled(minutes: int | None) -> str:
    return "any length" if minutes is None else f"up to {minutes} minutes"
