"""The configuration files of a cluster of several nodes on one machine. Nothing but Python's own library.

What is unusual, and why:
- All nodes are this machine, each a slurmd with a port and a spool folder of its own; `config_overrides` lets them
  claim cores and memory that are not there. Their names do not resolve, as on some real clusters.
- `cred_expire` is also how long a requeued job waits before it may start again; its default is two minutes.
- `preempt_send_user_signal` sends the job's own `--signal` when it is preempted, and GraceTime is the time it then has.
- `high` preempts the others: `low` has that grace, `abrupt` has none, `cancel` has none and does not requeue.
- With `cpu_nodes`, the last nodes have no GPU and are alone in a partition `cpu`, the default one, as on many clusters.
- A cluster may share the slurmdbd of another one (`accounting_of`), and so its munge; `squeue -M` then reaches both.
- A node that is silent for ten seconds is taken for dead, so that tests of node failure end soon.
- Job ids begin at another number in each cluster: the port that ranks meet at follows from the job id.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

PORTS = range(30_100, 32_700, 20)  # above the ports that jobs derive from their ids, below those that Linux hands out


@dataclass(frozen=True)
class Layout:
    """Where everything of one cluster lies, and what it looks like."""

    root: Path
    """Its folder; all files are below it."""
    port: int
    """First of twenty ports: the controller, the accounting, its database, then one for each node."""
    host: str
    """This machine's short name."""
    nodes: int = 4
    """Nodes, named n1, n2, …"""
    cpus: int = 4
    """Cores that each node claims."""
    gpus: int = 2
    """Made-up GPUs of each node."""
    grace: int = 20
    """Seconds between the warning and the end of a preempted job in partition low."""
    gpu_type: str | None = None
    """Type of the GPUs, such as a100; None for GPUs without a type."""
    cpu_nodes: int = 0
    """The last of the nodes that have no GPU, and make the default partition `cpu`; 0 makes none."""
    max_array_size: int = 1001
    """MaxArraySize: task numbers of an array are below it."""
    job_requeue: int = 1
    """JobRequeue: whether jobs that did not say so may be requeued, 0 or 1."""
    max_submit: int | None = None
    """Jobs that a user may have in the queue (MaxSubmitJobsPerUser of the QOS); None sets and enforces no limits."""
    cluster_name: str = "testbed"
    """ClusterName."""
    accounting_of: Path | None = None
    """Folder of a running testbed whose munge, database and slurmdbd this one uses; None starts its own."""
    accounting_port: int = 0
    """Port of the slurmdbd; 0 is this cluster's own."""

    @property
    def conf(self) -> Path:
        """SLURM_CONF of this cluster."""
        return self.root / "etc" / "slurm.conf"

    @property
    def munge_socket(self) -> Path:
        return (self.accounting_of or self.root) / "munge" / "socket"

    @property
    def gpu_files(self) -> list[Path]:
        return [self.root / "gpu" / f"gpu{number}" for number in range(self.gpus)]

    @property
    def gpu_nodes(self) -> str:
        """Nodes with GPUs, as SLURM abbreviates them."""
        return f"n[1-{self.nodes - self.cpu_nodes}]"

    @property
    def gres(self) -> str:
        """The GPUs of a node as slurm.conf names them."""
        return f"gpu:{self.gpu_type}:{self.gpus}" if self.gpu_type else f"gpu:{self.gpus}"

    @property
    def first_job_id(self) -> int:
        return 1000 + PORTS.index(self.port) * 140

    def log(self, daemon: str) -> Path:
        return self.root / "log" / f"{daemon}.log"


def slurm_conf(at: Layout) -> str:
    """slurm.conf: the controller, its scheduler, its nodes, four partitions."""
    enforced = "AccountingStorageEnforce=associations,limits,qos\n" if at.max_submit is not None else ""
    default = "NO" if at.cpu_nodes else "YES"
    return f"""\
ClusterName={at.cluster_name}
SlurmctldHost={at.host}(127.0.0.1)
SlurmctldPort={at.port}
SlurmUser=root
SlurmdUser=root
StateSaveLocation={at.root}/state
SlurmdSpoolDir={at.root}/spool/%n
SlurmctldPidFile={at.root}/pid/slurmctld
SlurmdPidFile={at.root}/pid/slurmd-%n
SlurmctldLogFile={at.log("slurmctld")}
SlurmdLogFile={at.root}/log/slurmd-%n.log
FirstJobId={at.first_job_id}
MaxArraySize={at.max_array_size}
MinJobAge=600

AuthType=auth/munge
AuthInfo=socket={at.munge_socket},cred_expire=5
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=127.0.0.1
AccountingStoragePort={at.accounting_port or at.port + 1}
AccountingStoragePass={at.munge_socket}
AccountingStorageTRES=gres/gpu
{enforced}JobCompType=jobcomp/none
JobAcctGatherType=jobacct_gather/none

SchedulerType=sched/backfill
SchedulerParameters=bf_interval=2,sched_interval=2,batch_sched_delay=0,sched_min_interval=100000
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
JobRequeue={at.job_requeue}
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SlurmctldParameters=preempt_send_user_signal

SlurmctldTimeout=10
SlurmdTimeout=10
KillWait=5
InactiveLimit=0
CompleteWait=0
TCPTimeout=2
MessageTimeout=10
UnkillableStepTimeout=30
ReturnToService=2

MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SlurmdParameters=config_overrides
GresTypes=gpu
{_node_lines(at)}
PartitionName=low Nodes={at.gpu_nodes} Default={default} MaxTime=INFINITE PriorityTier=1 PreemptMode=REQUEUE \
GraceTime={at.grace}
PartitionName=abrupt Nodes={at.gpu_nodes} MaxTime=INFINITE PriorityTier=1 PreemptMode=REQUEUE GraceTime=0
PartitionName=cancel Nodes={at.gpu_nodes} MaxTime=INFINITE PriorityTier=1 PreemptMode=CANCEL GraceTime=0
PartitionName=high Nodes={at.gpu_nodes} MaxTime=INFINITE PriorityTier=10 PreemptMode=OFF
"""


def _node_lines(at: Layout) -> str:
    common = f"NodeHostname={at.host} NodeAddr=127.0.0.1 CPUs={at.cpus} RealMemory=4000 State=UNKNOWN"
    first, last, with_gpus = at.port + 3, at.port + 2 + at.nodes, at.nodes - at.cpu_nodes
    lines = [f"NodeName={at.gpu_nodes} Port=[{first}-{first + with_gpus - 1}] Gres={at.gres} {common}"]
    if at.cpu_nodes:
        names = f"n[{with_gpus + 1}-{at.nodes}]"
        lines += [f"NodeName={names} Port=[{first + with_gpus}-{last}] {common}"]
        lines += [f"PartitionName=cpu Nodes={names} Default=YES MaxTime=INFINITE PriorityTier=1"]
    return "\n".join(lines)


def slurmdbd_conf(at: Layout) -> str:
    """slurmdbd.conf: accounting, without which `sacct` has nothing to say."""
    return f"""\
AuthType=auth/munge
AuthInfo=socket={at.munge_socket}
DbdHost={at.host}
DbdAddr=127.0.0.1
DbdPort={at.port + 1}
SlurmUser=root
LogFile={at.log("slurmdbd")}
PidFile={at.root}/pid/slurmdbd
StorageType=accounting_storage/mysql
StorageHost=127.0.0.1
StoragePort={at.port + 2}
StorageUser=slurm
StoragePass=slurm
StorageLoc=accounting
"""


def gres_conf(at: Layout) -> str:
    """gres.conf: GPUs that are copies of /dev/null."""
    files = ",".join(map(str, at.gpu_files))
    kind = f" Type={at.gpu_type}" if at.gpu_type else ""
    return f"NodeName={at.gpu_nodes} Name=gpu{kind} Flags=nvidia_gpu_env File={files}\n" if at.gpus else ""


def database_sql() -> str:
    """What slurmdbd finds in its database; only this machine reaches it."""
    return """\
CREATE DATABASE IF NOT EXISTS accounting;
CREATE USER IF NOT EXISTS 'slurm'@'127.0.0.1' IDENTIFIED BY 'slurm';
GRANT ALL ON accounting.* TO 'slurm'@'127.0.0.1';
"""
