"""A real SLURM on one machine: `up DIR` and `down DIR`. Nothing but Python's own library, and Debian's packages.

    apt-get install -y --no-install-recommends slurm-wlm slurmdbd munge mariadb-server

All of it lies in DIR and belongs to it: munge with its own key, a database, slurmdbd, slurmctld and one slurmd a node,
each on a free port. Nothing of the machine's own SLURM or MariaDB is read or touched, and several may run side by side.

The one surprising decision: `down` asks no pid files. It looks for the processes that carry this cluster's mark in
their environment, so it also finds steps whose slurmd was killed, and their orphans.
"""

from __future__ import annotations

import argparse
import dataclasses
import fcntl
import json
import os
import random
import re
import shutil
import socket
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from slurm.testbed.daemons import (
    NODE,
    TestbedError,
    ask,
    await_answer,
    environment_of,
    find_processes,
    kill,
    listens,
    start_daemon,
    succeeds,
)
from slurm.testbed.settings import PORTS, Layout, database_sql, gres_conf, slurm_conf, slurmdbd_conf

PROGRAMS = ("slurmctld", "slurmd", "slurmdbd", "sacctmgr", "munged", "mariadbd", "mariadb-install-db")
PACKAGES = "slurm-wlm slurmdbd munge mariadb-server"
INSTALLING = Path(tempfile.gettempdir(), "simdist-testbed-install.lock")
LAYOUT = "testbed.json"  # makes a folder one of ours
NAMES = ("gpu_type", "cluster_name")
LIMITS = {
    "nodes": (1, 16),
    "cpus": (1, 1024),
    "gpus": (0, 16),
    "grace": (0, 3600),
    "cpu_nodes": (0, 15),
    "max_array_size": (2, 4_000_001),
    "job_requeue": (0, 1),
    "max_submit": (0, 1_000_000),
}
OPTIONS = {
    "nodes": "number of nodes, 1 to 16, named n1, n2, …",
    "cpus": "cores per node, which may be more than this machine has",
    "gpus": "simulated GPUs per node",
    "grace": "seconds between the warning and the end of a job that is preempted in partition low",
    "cpu_nodes": "number of nodes without GPUs, the last ones; they form the default partition cpu",
    "gpu_type": "type of the GPUs, such as a100 (default: none)",
    "max_array_size": "SLURM's MaxArraySize: job arrays have indices below this",
    "job_requeue": "SLURM's JobRequeue: whether jobs may be requeued by default, 0 or 1",
    "max_submit": "maximum number of jobs per user in the queue (default: no limit)",
    "cluster_name": "name of the cluster",
    "accounting_of": "folder of a testbed to share slurmdbd with, so that `squeue -M` reaches both (default: none)",
}


def up(root: Path, options: dict[str, Any]) -> Layout:
    """Start a cluster in `root`, or find the one that runs there.

    Raises:
        TestbedError: not root, packages are missing, an option cannot be, the folder is not ours, the cluster whose
            accounting is asked for does not run, or a daemon did not start.
    """
    _check_machine(root)
    _check_options(options)
    options = {**options, "accounting_port": _accounting_port(options.get("accounting_of"))}
    running = running_layout(root)
    if running is not None:
        asked = dataclasses.replace(running, **options | {"accounting_port": running.accounting_port})
        if asked != running:
            raise TestbedError(f"the cluster in {root} was started with other options; take it down first")
        return running
    down(root)
    root.mkdir(parents=True, exist_ok=True)
    layout = Layout(root, _free_ports(), socket.gethostname().split(".")[0], **options)
    try:
        _start(layout)
    except BaseException:
        logs = _last_lines(layout)
        down(root)
        print(logs, file=sys.stderr)
        raise
    return layout


def down(root: Path) -> None:
    """Kill every process of the cluster in `root`, and remove the folder.

    Raises:
        TestbedError: the folder is not ours.
    """
    if not root.exists() or not any(root.iterdir()):
        return
    if not (root / LAYOUT).exists():
        raise TestbedError(f"{root} holds something that is no testbed; name another folder")
    deadline = time.monotonic() + 60
    while pids := [pid for pid, _ in find_processes(root)]:
        for pid in pids:
            kill(pid)
        if time.monotonic() > deadline:
            raise TestbedError(f"processes {pids} of {root} cannot be killed")
        time.sleep(0.05)
    shutil.rmtree(root)


def _start(at: Layout) -> None:
    for folder in ("etc", "state", "spool", "log", "pid", "gpu", "munge", "database"):
        (at.root / folder).mkdir()
    (at.root / LAYOUT).write_text(json.dumps(dataclasses.asdict(at), indent=1, default=str))
    at.conf.write_text(slurm_conf(at))
    at.conf.with_name("gres.conf").write_text(gres_conf(at))
    at.conf.with_name("cgroup.conf").write_text("CgroupAutomount=no\n")
    for device in at.gpu_files:
        os.mknod(device, stat.S_IFCHR | 0o666, os.makedev(1, 3))
    if at.accounting_of is None:
        _start_accounting(at)
    ask(at, "sacctmgr", "-i", "add", "cluster", at.cluster_name)
    if at.max_submit is not None:
        ask(at, "sacctmgr", "-i", "modify", "qos", "normal", "set", f"MaxSubmitJobsPerUser={at.max_submit}")
    start_daemon(at, "slurmctld", "-D", "-c")
    await_answer("slurmctld", lambda: "is UP" in ask(at, "scontrol", "ping"))
    for number in range(1, at.nodes + 1):
        start_node(at, f"n{number}")
    await_answer("slurmd-n1", lambda: len(idle_nodes(at)) == at.nodes)


def start_node(at: Layout, node: str) -> None:
    """Start a node's slurmd; one that was killed comes back into service."""
    (at.root / "spool" / node).mkdir(exist_ok=True)
    start_daemon(at, "slurmd", "-D", "-N", node, name=f"slurmd-{node}", environment={NODE: node})


def kill_node(at: Layout, node: str, *, with_tasks: bool = True) -> None:
    """End a node as a power cut does: its slurmd and steps at once, and the tasks too unless they shall be orphans."""
    of_node = [f"{NODE}={node}".encode()]
    of_task = [f"SLURMD_NODENAME={node}".encode()]
    for pid, environment in find_processes(at.root):
        if any(entry in environment for entry in of_node + with_tasks * of_task):
            kill(pid)


def idle_nodes(at: Layout) -> list[str]:
    """Names of the nodes that could take a job."""
    return sorted(set(ask(at, "sinfo", "--noheader", "--Node", "--states=idle", "--format=%N").split()))


def _start_accounting(at: Layout) -> None:
    _start_munge(at)
    _start_database(at)
    conf = at.conf.with_name("slurmdbd.conf")
    conf.write_text(slurmdbd_conf(at))
    conf.chmod(0o600)  # slurmdbd insists: it holds a password
    start_daemon(at, "slurmdbd", "-D")
    await_answer("slurmdbd", lambda: succeeds(at, "sacctmgr", "-n", "list", "cluster"))


def _accounting_port(folder: Path | None) -> int:
    """Port of the slurmdbd that runs in another testbed; 0 where none is asked for."""
    if folder is None:
        return 0
    other = running_layout(folder)
    if other is None or other.accounting_of is not None:
        raise TestbedError(
            f"--accounting-of is {folder}, where no testbed with its own accounting runs; start it first"
        )
    return other.port + 1


def _start_munge(at: Layout) -> None:
    folder = at.munge_socket.parent
    key = folder / "key"
    key.write_bytes(os.urandom(128))
    key.chmod(0o400)
    paths = {"key-file": key, "socket": at.munge_socket, "pid-file": folder / "pid", "seed-file": folder / "seed"}
    words = [f"--{name}={path}" for name, path in paths.items()]
    # --force: munged warns of folders that others may not enter, such as pytest's; all users here are one
    start_daemon(at, "munged", "--foreground", "--force", *words)
    await_answer("munged", at.munge_socket.exists)


def _start_database(at: Layout) -> None:
    folder = at.root / "database"
    script = folder / "init.sql"
    script.write_text(database_sql())
    data = f"--datadir={folder}/data"
    with at.log("mariadb-install-db").with_suffix(".out").open("w") as log:
        install = ["mariadb-install-db", "--no-defaults", "--user=root", data, "--skip-test-db", "--skip-name-resolve"]
        with INSTALLING.open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # two at one moment fail
            subprocess.run(install, stdout=log, stderr=log, check=True, env=environment_of(at))
    start_daemon(
        at,
        "mariadbd",
        "--no-defaults",
        "--user=root",
        data,
        f"--socket={folder}/socket",
        f"--pid-file={folder}/pid",
        "--bind-address=127.0.0.1",
        f"--port={at.port + 2}",
        "--skip-name-resolve",
        f"--init-file={script}",
        "--innodb-buffer-pool-size=64M",
        "--innodb-lock-wait-timeout=900",  # what slurmdbd asks for
        "--innodb-flush-log-at-trx-commit=0",
    )
    await_answer("mariadbd", lambda: listens(at.port + 2))


def _free_ports() -> int:
    """The first of twenty ports that nobody listens on; chosen at random, for another cluster may be choosing too."""
    for first in random.sample(PORTS, len(PORTS)):
        if not any(listens(port) for port in range(first, first + 20)):
            return first
    raise TestbedError(f"no twenty free ports in a row between {PORTS.start} and {PORTS.stop}")


def _check_machine(root: Path) -> None:
    missing = [program for program in PROGRAMS if shutil.which(program) is None]
    if missing:
        install = f"apt-get install -y --no-install-recommends {PACKAGES}"
        raise TestbedError(f"{', '.join(missing)} not found; on Debian 12: {install}")
    if os.geteuid() != 0:
        raise TestbedError("slurmd needs root; run this with sudo, or in a container")
    if len(str(root / "munge" / "socket")) > 100:
        raise TestbedError(f"{root} is too long a name for a socket inside it; name a shorter folder")


def _check_options(options: dict[str, Any]) -> None:
    for name, value in options.items():
        option = "--" + name.replace("_", "-")
        if name in LIMITS and not LIMITS[name][0] <= value <= LIMITS[name][1]:
            raise TestbedError(f"{option} is {value}; it must be from {LIMITS[name][0]} to {LIMITS[name][1]}")
        if name in NAMES and not re.fullmatch(r"[a-z][a-z0-9_]*", value):
            raise TestbedError(f"{option} is {value!r}; use lower-case letters, digits and _, a letter first")
    nodes, cpu_nodes = options.get("nodes", Layout.nodes), options.get("cpu_nodes", 0)
    if cpu_nodes >= nodes:
        raise TestbedError(f"--cpu-nodes is {cpu_nodes}; of {nodes} nodes at least one must have GPUs")
    if options.get("accounting_of") and "cluster_name" not in options:
        raise TestbedError("--accounting-of needs --cluster-name: two clusters of one slurmdbd cannot have one name")
    if options.get("accounting_of") and "max_submit" in options:
        raise TestbedError("--max-submit changes the QOS of both clusters; give it to the one that owns the accounting")


def running_layout(root: Path) -> Layout | None:
    """The cluster that runs in `root`, if its controller answers."""
    if not (root / LAYOUT).exists():
        return None
    fields = json.loads((root / LAYOUT).read_text())
    paths = {name: Path(fields[name]) for name in ("root", "accounting_of") if fields[name] is not None}
    layout = Layout(**fields | paths)
    return layout if "is UP" in ask(layout, "scontrol", "ping") else None


def _last_lines(at: Layout) -> str:
    logs = sorted((at.root / "log").glob("*.out"), key=lambda path: path.stat().st_mtime)
    return "\n".join(f"--- {log.name}\n" + "\n".join(log.read_text().splitlines()[-5:]) for log in logs)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="slurm/testbed/up or slurm/testbed/down",
        description="Start or stop a private SLURM cluster on this machine. Needs root and the packages of "
        "slurm/testbed/install.",
        epilog='Example: eval "$(slurm/testbed/up /tmp/testbed)"; sinfo; slurm/testbed/down /tmp/testbed',
    )
    commands = parser.add_subparsers(dest="command", required=True)
    about = {
        "up": "Start a private SLURM cluster in DIR, or find the one running there, and print the `export` to use it.",
        "down": "Stop the cluster in DIR with all its processes and jobs, and remove DIR.",
    }
    codes = "Exit codes: 0 done; 1 a program of the cluster failed; 2 wrong input, or packages are missing."
    for name, text in about.items():
        sub = commands.add_parser(name, prog=f"slurm/testbed/{name}", help=text, description=text)
        sub.formatter_class, sub.epilog = argparse.RawDescriptionHelpFormatter, f"{parser.epilog}\n{codes}"
        sub.add_argument("root", metavar="DIR", type=Path, help="folder of the cluster")
    start = commands.choices["up"]
    defaults = {item.name: item.default for item in dataclasses.fields(Layout)}
    kinds = {"gpu_type": str, "cluster_name": str, "accounting_of": _folder}
    for name, text in OPTIONS.items():
        default = argparse.SUPPRESS  # what was not asked for is no difference to a cluster that runs
        shown = f" (default: {defaults[name]})" if defaults[name] is not None else ""
        option = "--" + name.replace("_", "-")
        start.add_argument(option, type=kinds.get(name, int), default=default, help=text + shown)
    return parser


def _folder(text: str) -> Path:
    return Path(text).absolute()


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    words = vars(_parser().parse_args(argv))
    command, root = words.pop("command"), words.pop("root").absolute()
    began = time.monotonic()
    try:
        if command == "up":
            layout = up(root, words)
            seconds = time.monotonic() - began
            names = "partitions low, abrupt, cancel, high" + (", cpu" if layout.cpu_nodes else "")
            print(f"{layout.nodes} nodes up in {seconds:.1f} s, {names}; logs in {root}/log", file=sys.stderr)
            print(f"export SLURM_CONF={layout.conf}")
        else:
            down(root)
    except TestbedError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except subprocess.CalledProcessError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
