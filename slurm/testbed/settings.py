"""The configuration files of a cluster of several nodes on one machine. Nothing but Python's own library.

What is unusual, and why:
- All nodes are this machine, each a slurmd with a port and a spool folder of its own; `config_overrides` lets them
  claim cores and memory that are not there. Their names do not resolve, as on some real clusters.
- `cred_expire` is also how long a requeued job waits before it may start again; its default is two minutes.
- `preempt_send_user_signal` sends the job's own `--signal` when it is preempted, and GraceTime is the time it then has.
- `low` has that grace, `abrupt` has none; both are preempted by `high`.
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

    @property
    def conf(self) -> Path:
        """SLURM_CONF of this cluster."""
        return self.root / "etc" / "slurm.conf"

    @property
    def munge_socket(self) -> Path:
        return self.root / "munge" / "socket"

    @property
    def gpu_files(self) -> list[Path]:
        return [self.root / "gpu" / f"gpu{number}" for number in range(self.gpus)]

    @property
    def first_job_id(self) -> int:
        return 1000 + PORTS.index(self.port) * 140

    def log(self, daemon: str) -> Path:
        return self.root / "log" / f"{daemon}.log"


def slurm_conf(at: Layout) -> str:
    """slurm.conf: the controller, its scheduler, four nodes, three partitions."""
    return f"""\
ClusterName=testbed
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
MaxArraySize=1001
MinJobAge=600

AuthType=auth/munge
AuthInfo=socket={at.munge_socket},cred_expire=5
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=127.0.0.1
AccountingStoragePort={at.port + 1}
AccountingStoragePass={at.munge_socket}
AccountingStorageTRES=gres/gpu
JobCompType=jobcomp/none
JobAcctGatherType=jobacct_gather/none

SchedulerType=sched/backfill
SchedulerParameters=bf_interval=2,sched_interval=2,batch_sched_delay=0,sched_min_interval=100000
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
JobRequeue=1
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
NodeName=n[1-{at.nodes}] NodeHostname={at.host} NodeAddr=127.0.0.1 Port=[{at.port + 3}-{at.port + 2 + at.nodes}] \
CPUs={at.cpus} RealMemory=4000 Gres=gpu:{at.gpus} State=UNKNOWN
PartitionName=low Nodes=ALL Default=YES MaxTime=INFINITE PriorityTier=1 PreemptMode=REQUEUE GraceTime={at.grace}
PartitionName=abrupt Nodes=ALL MaxTime=INFINITE PriorityTier=1 PreemptMode=REQUEUE GraceTime=0
PartitionName=high Nodes=ALL MaxTime=INFINITE PriorityTier=10 PreemptMode=OFF
"""


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
    return f"Name=gpu Flags=nvidia_gpu_env File={files}\n" if at.gpus else ""


def database_sql() -> str:
    """What slurmdbd finds in its database; only this machine reaches it."""
    return """\
CREATE DATABASE IF NOT EXISTS accounting;
CREATE USER IF NOT EXISTS 'slurm'@'127.0.0.1' IDENTIFIED BY 'slurm';
GRANT ALL ON accounting.* TO 'slurm'@'127.0.0.1';
"""
