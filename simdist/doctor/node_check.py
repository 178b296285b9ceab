"""A short job on one node of the cluster, and what it tells of the difference between there and here."""

from __future__ import annotations

import json
import os
import re
import secrets
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from simdist.cluster.profile import Profile, profile_for
from simdist.core.requeue import without_job
from simdist.doctor.cluster import slurm_options
from simdist.doctor.findings import Finding, error, ok, warning
from simdist.doctor.machine import versions
from simdist.doctor.node import NodeReport


def check_node(profile: Profile, runs: Path, wait: int) -> Iterator[Finding]:
    """Look around on one node as a training does; gives up after `wait` seconds in the queue."""
    profile = profile_for("train", profile)
    created = not runs.exists()
    runs.mkdir(parents=True, exist_ok=True)
    token = secrets.token_hex(8)
    file = runs.absolute() / f".doctor-{token}"
    answer = file.with_name(f"{file.name}-answer")
    file.write_text(token)
    try:
        report = _run_on_node(profile, file.parent, token, wait)
        if isinstance(report, Finding):
            yield report
        else:
            yield from compare(profile, report, versions(), shared=answer.exists(), runs=runs)
    finally:
        file.unlink(missing_ok=True)
        answer.unlink(missing_ok=True)
        if created:
            runs.rmdir()


def compare(
    profile: Profile, report: NodeReport, here: dict[str, str | None], *, shared: bool, runs: Path
) -> Iterator[Finding]:
    """What a node sees against what it should.

    Args:
        profile: the cluster.
        sight: the node's.
        here: versions on this side.
        shared: whether the node's answer arrived.
        runs: the folder that both should see.
    """
    yield _compare_folder(report, shared, runs)
    yield _compare_versions(report, here)
    yield _compare_gpus(profile, report)
    yield _compare_commands(report)
    yield _compare_address(profile, report)
    if not report.reaches_wandb:
        yield ok("wandb", f"{report.node} has no way to wandb, as is usual; `--wandb.mode offline` is for that")


def _compare_folder(report: NodeReport, shared: bool, runs: Path) -> Finding:
    if report.sees_folder and shared:
        return ok("shared folder", f"{report.node} reads and writes {runs}")
    text = f"{report.node} {'cannot write to' if report.sees_folder else 'does not see'} {runs.absolute()}"
    return error("shared folder", text, "name a folder on the cluster's file system with --runs, and train there")


def _compare_versions(report: NodeReport, here: dict[str, str | None]) -> Finding:
    other = [
        f"{name} {there} ({here.get(name)} here)" for name, there in report.versions.items() if there != here[name]
    ]
    if other:
        remedy = "activate the same environment in the profile's setup lines"
        return error("versions", f"on {report.node}: {', '.join(other)}", remedy)
    code = str(Path(__file__).parent.parent)
    if report.code != code:
        remedy = "run the doctor and your jobs from the same clone"
        return warning("versions", f"{report.node} runs the simdist in {report.code}, this is {code}", remedy)
    return ok("versions", f"the same on {report.node}, and the same simdist")


def _compare_gpus(profile: Profile, report: NodeReport) -> Finding:
    if not profile.gpus_per_node:
        return ok("gpus", "the profile requests none")
    text = f"torch sees {report.gpus} GPU(s) on {report.node}; the profile requests {profile.gpus_per_node}"
    if report.gpus != profile.gpus_per_node:
        remedy = "compare `nvidia-smi` with the driver that torch needs; was a CPU build of torch installed?"
        return error("gpus", text, remedy)
    return ok("gpus", text)


def _compare_commands(report: NodeReport) -> Finding:
    missing = [name for name, there in report.commands.items() if not there]
    if not missing:
        return ok("commands", f"scontrol, srun and sbatch are available on {report.node}")
    remedy = "runs then end with exit code 75, and slurm/*.sbatch or the launcher submits a successor"
    return warning("commands", f"no {', '.join(missing)} on {report.node}", remedy)


def _compare_address(profile: Profile, report: NodeReport) -> Finding:
    if report.address is not None:
        how = "" if report.address == report.node else f" at {report.address}, because its name does not resolve"
        return ok("address", f"other nodes reach {report.node}{how}")
    text, remedy = f"{report.node} does not resolve, SLURM gives no address", "export MASTER_ADDR in the setup lines"
    return (error if profile.nodes > 1 else warning)("address", text, remedy)


def _run_on_node(profile: Profile, folder: Path, token: str, wait: int) -> NodeReport | Finding:
    """What a node sees, or why it could not be asked."""
    ask_gpus = "1" if profile.gpus_per_node else "0"
    python = profile.python or shlex.quote(sys.executable)
    look = f"{python} -m simdist.doctor.node {shlex.join([str(folder), token, ask_gpus])}"
    script = "\n".join([*profile.setup, f"exec {look}"])
    options = [*slurm_options(profile, nodes=1, minutes=5), "--ntasks-per-node=1", f"--immediate={wait}"]
    command = ["srun", "--job-name=simdist-doctor", *options, *profile.srun_args, "bash", "-c", script]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=wait + 180, env=without_job(os.environ))
    except subprocess.TimeoutExpired:
        return error("node", "the job on a node did not answer within three minutes", "try `srun hostname` there")
    found = re.search(r"^\{.*\}$", done.stdout, re.MULTILINE)  # setup lines may print something too
    if found:
        return NodeReport(**json.loads(found[0]))
    said = " ".join(done.stderr.split()[-60:])
    if re.search(r"Unable to allocate resources: .*(busy|immediate)|allocation.*revoked", said, re.IGNORECASE):
        text = f"no node was free within {wait} s, so the nodes were not checked"
        return warning("node", text, "try again with a larger --wait")
    return error("node", f"a job on a node failed: {said}", f"try it: {shlex.join(command[:-1])} {shlex.quote(script)}")
