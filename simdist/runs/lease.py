"""One writer per run: the process that created the newest file in the folder `lease/` and keeps it fresh.

After a node failure, orphans may keep running next to the requeued job; after `kill -9` of a launcher, its ranks do.
File locks end with the wrong process or do not exist on the file system. So each claim creates a file with the next
number, which a file system lets only one process do (`link`, also over NFS). A file of another process is never
renamed, changed or removed while it may be the newest, so two processes that take over from the same dead one cannot
both succeed. The holder touches its file every few seconds; another process takes over if it has ended on this machine,
or after watching it for a while without a touch, by a clock of its own. A holder that was suspended finds a newer file
and stops. A job that SLURM has requeued takes over from its own orphans immediately.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import socket
import threading
import time
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta, Struct

from simdist.core.errors import FailedError, InputError
from simdist.core.files import PASSING, TEMPORARY, remedy, sync
from simdist.core.requeue import job_id
from simdist.runs.folder import LEASE
from simdist.runs.records import RecordError, read_record

REFRESH = 3.0  # seconds between two touches
PATIENCE = 30.0  # seconds without a touch after which a holder on another host counts as dead
CLAIM = re.compile(r"(\d{8})\.(json|released)")
NO_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)


class LeaseLostError(InputError):
    """Another process has taken over the run."""


class Holder(Struct, frozen=True):
    """The content of a claim's file: who made it."""

    host: Annotated[str, Meta(max_length=255, pattern=r"^[\w.:-]*$")]
    pid: Annotated[int, Meta(ge=1, le=2**31)]
    token: Annotated[str, Meta(max_length=64)]
    job: str | None = None
    life: int = 0
    """How often SLURM had requeued the job."""
    machine: str = ""
    """Boot and PID namespace in which `pid` means something; empty where the kernel does not tell."""
    started: int = 0
    """Start of the process, in clock ticks after the boot: a PID is used again."""

    @classmethod
    def this_process(cls, token: str) -> Holder:
        pid, life = os.getpid(), int(os.environ.get("SLURM_RESTART_COUNT", 0))
        return cls(socket.gethostname(), pid, token, job_id(os.environ), life, _machine(), _started(pid))

    def has_ended(self) -> bool:
        """Whether the process certainly has ended; false if that cannot be known here."""
        if not self.machine or self.machine != _machine():
            return False
        try:
            os.kill(self.pid, 0)
            return _started(self.pid) != self.started
        except ProcessLookupError:
            return True
        except OSError:  # of another user, whose processes may be hidden
            return False

    def is_earlier_life_of(self, other: Holder) -> bool:
        """Whether this is the same SLURM job before it was requeued."""
        return other.job is not None and self.job == other.job and self.life < other.life


@dataclass(frozen=True)
class Claim:
    """A claim to a run.

    Args:
        folder: of the claims.
        number: claims are numbered from 1.
        is_released: its process ended in order.
    """

    folder: Path
    number: int
    is_released: bool = False

    @property
    def path(self) -> Path:
        return self.folder / f"{self.number:08d}.json"

    def holder(self) -> Holder | None:
        """Who made it; None if the file is gone, or cannot be understood after a power cut."""
        try:
            return read_record(self.path, Holder)
        except (FileNotFoundError, RecordError):
            return None

    def touched(self) -> int:
        """When it was last touched, in nanoseconds; 0 if it is gone.

        Raises:
            OSError: that cannot be read.
        """
        try:  # opened: a network file system answers from a cache otherwise
            descriptor = os.open(self.path, os.O_RDONLY | os.O_NONBLOCK)
        except FileNotFoundError:
            return 0
        try:
            return os.fstat(descriptor).st_mtime_ns
        finally:
            os.close(descriptor)


def newest_claim(run: Path) -> Claim | None:
    """The newest claim to the run in a folder; None if there is none.

    Raises:
        OSError: the folder cannot be read.
    """
    folder = run / LEASE
    try:
        found = [match.groups() for name in os.listdir(folder) if (match := CLAIM.fullmatch(name))]
    except FileNotFoundError:
        return None
    if not found:
        return None
    newest = max(number for number, _ in found)
    return Claim(folder, int(newest), (newest, "released") in found)


class Lease:
    """The right to write a run.

    Args:
        run: the run folder.
        refresh: seconds between two touches.
        patience: seconds without a touch after which another process takes over.
    """

    def __init__(self, run: Path, refresh: float = REFRESH, patience: float = PATIENCE) -> None:
        self._run, self._folder = run, run / LEASE
        self._refresh, self._patience = refresh, patience
        self._mine = Holder.this_process(uuid.uuid4().hex)
        self._claim = Claim(self._folder, 0)
        self._ended = threading.Event()
        self._is_lost = False
        self._looked = time.monotonic()
        self._looking = threading.Lock()

    def __enter__(self) -> Lease:
        """Take the lease.

        Raises:
            InputError: another process holds it.
            FailedError: the folder cannot be written.
        """
        end = time.monotonic() + self._patience
        while True:
            try:
                if self._take():
                    break
            except OSError as error:
                if error.errno not in PASSING or time.monotonic() > end:
                    what_to_do = remedy(error) or "Look at that folder"
                    raise FailedError(
                        f"{self._folder} cannot be written ({error.strerror}). {what_to_do} and run the same command "
                        "again"
                    ) from error
                time.sleep(self._refresh / 4)
        for path in self._folder.iterdir():  # what earlier processes left; claims being made fail and are tried again
            if path.name < self._claim.path.name:
                with contextlib.suppress(OSError):
                    path.unlink()
        threading.Thread(target=self._keep_fresh, daemon=True, name="lease").start()
        return self

    def __exit__(self, *error: object) -> None:
        """Release the lease."""
        self._ended.set()
        with self._looking, contextlib.suppress(OSError):
            if self._is_mine():
                self._claim.path.with_suffix(".released").touch()

    def check(self) -> None:
        """Raise `LeaseLostError` if another process has taken over. Reads the folder first after a suspension."""
        if time.monotonic() - self._looked > 2 * self._refresh:
            self._look()
        if self._is_lost:
            holder = None
            with contextlib.suppress(OSError):
                claim = newest_claim(self._run)
                holder = None if claim is None or claim.is_released else claim.holder()
            now = f"is written by process {holder.pid} on {holder.host} now" if holder else "was taken over"
            raise LeaseLostError(
                f"{self._run} {now}, because this process did not respond for {self._patience:.0f} s. "
                "Stopping without writing"
            )

    def _take(self) -> bool:
        """Make the next claim once the newest one has ended. Returns whether it is the newest."""
        self._folder.mkdir(parents=True, exist_ok=True)
        claim, may_be_alive = newest_claim(self._run), False
        if claim is not None and not claim.is_released:
            holder = claim.holder()
            if holder == self._mine:  # made before the file system failed
                self._claim = claim
                return True
            if holder is None or not holder.has_ended():
                may_be_alive = True
                if (holder is None or not holder.is_earlier_life_of(self._mine)) and not self._rests(claim, holder):
                    return False
        self._claim = Claim(self._folder, 1 if claim is None else claim.number + 1)
        if not self._create() or not self._is_newest():
            return False
        if may_be_alive:
            time.sleep(2 * self._refresh)  # it looks that often, and stops
        return True

    def _rests(self, claim: Claim, holder: Holder | None) -> bool:
        """Watch a claim. Returns whether it was not touched for `patience` seconds; false if it was followed.

        Raises:
            InputError: it was touched.
        """
        touched, begun = claim.touched(), time.monotonic()
        while time.monotonic() - begun < self._patience:
            time.sleep(min(self._refresh, self._patience) / 4)
            if newest_claim(self._run) != claim:
                return False
            if claim.touched() != touched:
                raise self._refusal(claim, holder)
        return True

    def _refusal(self, claim: Claim, holder: Holder | None) -> InputError:
        if holder is None:
            return InputError(f"{self._run} is being trained by a process that {claim.path} should name. Wait for it")
        return InputError(
            f"{self._run} is being trained by process {holder.pid} on {holder.host}; "
            f"wait for it, or stop it there with `kill {holder.pid}` and run this command again"
        )

    def _create(self) -> bool:
        """Create the file of this claim, whole, unless it exists. Returns whether it is this process's."""
        draft = self._folder / f"{TEMPORARY}{os.getpid()}-{self._mine.token}"
        try:
            draft.write_bytes(msgspec.json.encode(self._mine))
            sync(draft)
            os.link(draft, self._claim.path)
        except OSError as error:
            if error.errno in NO_LINKS:
                with contextlib.suppress(FileExistsError), self._claim.path.open("xb") as file:
                    file.write(draft.read_bytes())
            elif not isinstance(error, FileExistsError | FileNotFoundError):  # or by us: NFS may ask twice
                raise
        finally:
            with contextlib.suppress(OSError):
                draft.unlink()
        return self._claim.holder() == self._mine

    def _is_newest(self) -> bool:
        """Whether nobody was faster; else this claim, which nobody has taken for the newest, is withdrawn."""
        newest = newest_claim(self._run)
        if newest is not None and newest.number > self._claim.number:
            self._claim.path.unlink(missing_ok=True)
            return False
        return True

    def _keep_fresh(self) -> None:
        while not self._ended.wait(self._refresh):
            if self._look():
                return

    def _look(self) -> bool:
        """Refresh the lease. Returns whether it is lost."""
        with self._looking, contextlib.suppress(OSError):  # a short failure of the file system; patience is longer
            if not self._ended.is_set():
                self._is_lost = self._is_lost or not self._is_mine()
                if not self._is_lost:
                    os.utime(self._claim.path)
                self._looked = time.monotonic()
        return self._is_lost

    def _is_mine(self) -> bool:
        """Whether this process holds the lease. Claims that a person has removed are made again."""
        newest = newest_claim(self._run)
        if newest is None or newest.number < self._claim.number:
            self._folder.mkdir(exist_ok=True)
            return self._create()
        holder = newest.holder()
        return newest.number == self._claim.number and (holder is None or holder.token == self._mine.token)


def _machine() -> str:
    """The running kernel and PID namespace; containers with one host name may differ in the latter."""
    with contextlib.suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    return ""


def _started(pid: int) -> int:
    """Start of a process in clock ticks after the boot; -1 if it has ended and its parent has not noticed yet.

    Raises:
        OSError: that cannot be read.
    """
    if not Path("/proc/self/stat").exists():
        return 0
    state, *fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return -1 if state in "ZX" else int(fields[18])
