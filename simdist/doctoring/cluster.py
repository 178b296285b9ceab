"""A cluster as its controller describes it: would jobs of a profile start, and would they come back?"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator

from simdist.doctoring.findings import Finding, error, ok, warning
from simdist.profiles import Profile

SAVES = 2.0  # a save also hashes what it writes, and many jobs may be told at once
COMMANDS = ("sbatch", "srun", "scontrol", "squeue", "sacct")
AIR = 10.0  # seconds for the step, and for SLURM


def check_cluster(profile: Profile, save_seconds: float) -> Iterator[Finding]:
    """Everything that can be told without a job; `save_seconds` is what a checkpoint takes."""
    missing = [command for command in COMMANDS if shutil.which(command) is None]
    if missing:
        yield error("slurm", f"{', '.join(missing)} not found", "run the doctor on a login node of the cluster")
        return
    settings = _pairs(ask("scontrol", "show", "config"))
    if not settings:
        yield error("slurm", "the controller does not answer", "look at `scontrol ping`; is SLURM_CONF set if needed?")
        return
    yield ok("slurm", f"{settings.get('SLURM_VERSION', '?')}, cluster {settings.get('ClusterName', '?')}")
    partition = _partition(profile)
    if partition is None:
        yield _no_partition(profile)
        return
    yield from _check_partition(profile, partition)
    yield _check_submission(profile)
    yield _check_requeue(profile, settings)
    yield _check_warning(profile, save_seconds)
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
        "gpus-per-node": profile.gpus_per_node or None,
    }
    same = ("partition", "account", "qos", "constraint", "mem", "exclude", "reservation")
    values |= {name: getattr(profile, name) for name in same} | {"mem-per-gpu": profile.mem_per_gpu}
    values |= {name.replace("_", "-"): value for name, value in profile.extra.items()}
    given = {name: value for name, value in values.items() if value is not None and value is not False}
    return [f"--{name}" if value is True else f"--{name}={value}" for name, value in given.items()]


def ask(*words: str) -> str:
    """What a command of SLURM prints, or nothing if it fails."""
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=60, check=True)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout


def _pairs(text: str) -> dict[str, str]:
    """`Key = value` and `Key=value`, as scontrol prints them."""
    return {key: value.strip() for key, value in re.findall(r"(\w+) *= *(\S[^\s]*)", text)}


def _partition(profile: Profile) -> dict[str, str] | None:
    for line in ask("scontrol", "--oneliner", "show", "partition").splitlines():
        found = _pairs(line)
        if profile.partition in (found.get("PartitionName"), None) and (
            profile.partition or found.get("Default") == "YES"
        ):
            return found
    return None


def _no_partition(profile: Profile) -> Finding:
    names = re.findall(r"PartitionName=(\S+)", ask("scontrol", "--oneliner", "show", "partition"))
    if profile.partition is None:
        return error("partition", "the profile names none, and the cluster has no default", f"set one of {names}")
    remedy = f"set partition to one of {', '.join(names)}"
    return error("partition", f"there is no partition {profile.partition}", remedy)


def _check_partition(profile: Profile, partition: dict[str, str]) -> Iterator[Finding]:
    name, state = partition["PartitionName"], partition.get("State", "?")
    limit = _minutes(partition.get("MaxTime", "UNLIMITED"))
    if state != "UP":
        yield error("partition", f"{name} is {state}", "name another partition, or wait")
    elif limit is not None and profile.time_minutes > limit:
        text = f"{name} lets jobs run for {limit} minutes; the profile asks for {profile.time_minutes}"
        yield error("partition", text, f"set time_minutes to {limit} or less; runs take as many jobs as they need")
    else:
        yield ok("partition", f"{name} is up, {partition.get('TotalNodes', '?')} nodes, jobs of {_spelled(limit)}")


def _check_submission(profile: Profile) -> Finding:
    """Let SLURM itself judge account, qos, constraint, memory and GPUs; `--test-only` submits nothing."""
    command = ["sbatch", "--test-only", *slurm_options(profile), "--wrap=true"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    except subprocess.TimeoutExpired:
        return warning("job", "`sbatch --test-only` did not answer within 60 s", "the controller is busy; try again")
    said = re.sub(r"^sbatch: (error: )?", "", done.stderr.strip().splitlines()[-1]) if done.stderr.strip() else ""
    if done.returncode:
        return error("job", f"SLURM refuses the profile's jobs: {said}", f"try it: {' '.join(command)}")
    return ok("job", re.sub(r"^Job \d+", "SLURM accepts the profile's jobs; one", said))


def _check_requeue(profile: Profile, settings: dict[str, str]) -> Finding:
    if not profile.requeue:
        text = "the profile has requeue: false; a preempted or timed-out job stays away"
        return warning("requeue", text, "set requeue: true, or run the same command again by hand")
    if settings.get("JobRequeue") == "0":
        return ok("requeue", "JobRequeue is 0 on this cluster; jobs of simdist ask for --requeue themselves")
    return ok("requeue", f"jobs go back to the queue, at most {profile.max_requeues} times")


def _check_warning(profile: Profile, save_seconds: float) -> Finding:
    needed = SAVES * save_seconds + AIR
    text = f"jobs are told {profile.signal_lead_s} s before the time limit; a save needs about {needed:.0f} s"
    if profile.signal_lead_s < needed:
        return error("signal", text, f"set signal_lead_s to {needed:.0f} or more")
    if profile.signal_lead_s < needed + 30:  # SLURM looks at time limits twice a minute
        return warning("signal", text, f"SLURM may be 30 s late; set signal_lead_s to {needed + 30:.0f} or more")
    return ok("signal", text)


def _check_preemption(settings: dict[str, str], partition: dict[str, str], save_seconds: float) -> Finding:
    name, mode = partition["PartitionName"], partition.get("PreemptMode", settings.get("PreemptMode", "OFF"))
    if settings.get("PreemptType", "preempt/none").endswith("none") or mode == "OFF":
        return ok("preemption", f"jobs in {name} are not preempted")
    grace, needed = int(partition.get("GraceTime", "0")), SAVES * save_seconds + AIR
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
    if ask("sacct", "--noheader", "--parsable2", "--format=jobid", "--starttime=now-1hour") or _succeeds("sacct", "-n"):
        return ok("accounting", "sacct answers")
    remedy = "the states of jobs that ended come from run folders alone; nothing to do"
    return warning("accounting", "sacct does not answer", remedy)


def _succeeds(*words: str) -> bool:
    return subprocess.run(words, capture_output=True, timeout=60).returncode == 0


def _minutes(limit: str) -> int | None:
    """SLURM's [DAYS-]HOURS:MINUTES:SECONDS in minutes; None for no limit."""
    found = re.fullmatch(r"(?:(\d+)-)?(\d+):(\d+):(\d+)", limit)
    if found is None:
        return None
    days, hours, minutes, _ = (int(part or 0) for part in found.groups())
    return (days * 24 + hours) * 60 + minutes


def _spelled(minutes: int | None) -> str:
    return "any length" if minutes is None else f"up to {minutes} minutes"
