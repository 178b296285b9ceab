"""One writer per run: refused while it lives, taken over when it is dead or silent, noticed when it is lost."""

from __future__ import annotations

import errno
import os
import random
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgspec
import pytest

from simdist.core.errors import FailedError, InputError
from simdist.runs import lease as lease_module
from simdist.runs.lease import Claim, Holder, Lease, LeaseLostError, newest_claim


def quick(folder: Path) -> Lease:
    return Lease(folder, refresh=0.05, patience=0.6)


def claimed(folder: Path, holder: Holder | None = None, **changes: Any) -> Path:
    """A claim that follows the newest one, by default of another host."""
    holder = holder or Holder("another-host", 7, "theirs")
    newest = newest_claim(folder)
    claim = Claim(folder / "lease", 1 if newest is None else newest.number + 1)
    claim.folder.mkdir(exist_ok=True)
    claim.path.write_bytes(msgspec.json.encode(msgspec.structs.replace(holder, **changes)))
    return claim.path


@pytest.fixture(scope="module")
def ended() -> Holder:
    """A process of this machine that has ended."""
    lines = ("import msgspec, sys", "from simdist.runs.lease import Holder", "holder = Holder.this_process('theirs')")
    code = "\n".join([*lines, "sys.stdout.buffer.write(msgspec.json.encode(holder))"])
    gone = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    return msgspec.json.decode(gone.stdout, type=Holder)


def test_a_second_writer_is_refused_and_told_who_writes(tmp_path: Path) -> None:
    with quick(tmp_path), pytest.raises(InputError, match=rf"process {os.getpid()} on .*wait for it, or stop it"):
        quick(tmp_path).__enter__()
    released = newest_claim(tmp_path)
    assert released is not None
    assert released.is_released
    begun = time.monotonic()
    with quick(tmp_path):
        assert time.monotonic() - begun < 0.5
    assert sorted(path.name for path in (tmp_path / "lease").iterdir()) == ["00000002.json", "00000002.released"]


def test_a_dead_process_of_this_machine_is_followed_at_once(tmp_path: Path, ended: Holder) -> None:
    claimed(tmp_path, ended)
    begun = time.monotonic()
    with Lease(tmp_path):
        assert time.monotonic() - begun < 2


def test_a_process_that_its_parent_has_not_buried_is_dead(tmp_path: Path) -> None:
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    holder = msgspec.structs.replace(
        Holder.this_process("theirs"), pid=child.pid, started=lease_module._started(child.pid)
    )
    assert not holder.has_ended()
    child.kill()
    while lease_module._started(child.pid) != -1:
        time.sleep(0.01)
    assert holder.has_ended()
    child.wait()
    assert holder.has_ended()


@pytest.mark.parametrize(
    "changes",
    [{"host": "another-host"}, {"machine": "another-boot pid:[4026531836]"}, {"machine": ""}],
    ids=["host", "container", "unknown"],
)
def test_a_silent_holder_elsewhere_is_followed_after_a_while(
    tmp_path: Path, ended: Holder, changes: dict[str, str]
) -> None:
    """Its process number means nothing here: there may be one of that number, or none, in its own container."""
    claimed(tmp_path, ended, **({"machine": "another-boot"} | changes))
    begun = time.monotonic()
    with quick(tmp_path) as lease:
        assert time.monotonic() - begun > 0.6
        lease.check()


def test_a_process_number_that_is_used_again_is_not_the_holder(tmp_path: Path) -> None:
    before = msgspec.structs.replace(Holder.this_process("theirs"), started=17)
    assert before.has_ended()
    assert not Holder.this_process("theirs").has_ended()


def test_who_was_taken_over_notices_and_leaves_the_other_its_lease(tmp_path: Path) -> None:
    with quick(tmp_path) as lease:
        theirs = claimed(tmp_path)
        time.sleep(0.5)  # ten refreshes
        with pytest.raises(LeaseLostError, match="written by process 7 on another-host now"):
            lease.check()
    claim = newest_claim(tmp_path)
    assert claim is not None
    assert (claim.path, claim.is_released) == (theirs, False)


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"host": "\\u001b[2J", "pid": 3, "token": "t"}'])
def test_a_claim_that_a_power_cut_has_torn_is_watched_and_followed(tmp_path: Path, content: str) -> None:
    claimed(tmp_path).write_text(content)
    with quick(tmp_path) as lease:
        lease.check()


def test_a_requeued_job_follows_its_own_orphan_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "42")
    with quick(tmp_path) as orphan:
        with pytest.raises(InputError, match="wait for it"):  # two processes of one life
            quick(tmp_path).__enter__()
        monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
        with quick(tmp_path) as heir:
            heir.check()
            with pytest.raises(LeaseLostError, match="Stopping without writing"):
                orphan.check()
    monkeypatch.setenv("SLURM_JOB_ID", "43")
    with quick(tmp_path):
        monkeypatch.setenv("SLURM_JOB_ID", "44")
        with pytest.raises(InputError, match="wait for it"):
            quick(tmp_path).__enter__()


def test_a_process_that_was_suspended_looks_before_it_writes(tmp_path: Path) -> None:
    """Its thread may wake up after the training does: chaos found a line of metrics written in between."""
    with Lease(tmp_path, refresh=1000) as lease:
        claimed(tmp_path)
        lease.check()  # it looked a moment ago
        lease._looked -= 3000
        with pytest.raises(LeaseLostError, match=r"is written by process 7 on another-host now.*without writing"):
            lease.check()


def test_claims_that_a_person_removes_are_made_again(tmp_path: Path) -> None:
    with quick(tmp_path) as lease:
        shutil.rmtree(tmp_path / "lease")
        time.sleep(0.3)
        lease.check()
        with pytest.raises(InputError, match=f"process {os.getpid()} on "):
            quick(tmp_path).__enter__()
        lease.check()


# --- several claimants ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rounds", [60, pytest.param(1000, marks=pytest.mark.chaos)])
@pytest.mark.parametrize("claimants", [2, 5])
def test_of_several_claimants_one_gets_the_run(
    tmp_path: Path, ended: Holder, claimants: int, rounds: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With delays before file operations: of a new run, after a death, and after a release."""
    rng = random.Random(claimants)

    def delayed(operation: Callable[..., Any]) -> Callable[..., Any]:
        def slow(*arguments: Any, **named: Any) -> Any:
            if rng.random() < 0.5:
                time.sleep(rng.random() * 0.003)
            return operation(*arguments, **named)

        return slow

    for name in ("listdir", "link", "utime"):
        monkeypatch.setattr(os, name, delayed(getattr(os, name)))
    for name in ("unlink", "mkdir", "read_bytes", "write_bytes"):
        monkeypatch.setattr(Path, name, delayed(getattr(Path, name)))

    def compete(number: int) -> None:
        run = tmp_path / f"{number}"
        run.mkdir()
        if number % 3:
            path = claimed(run, ended)
            if number % 3 == 2:
                path.with_suffix(".released").touch()
        holders = _holders(run, claimants)
        assert len(holders) == 1, f"round {number}: {len(holders)} of {claimants} hold the run"
        newest = newest_claim(run)
        assert newest is not None
        assert newest.holder() == holders[0]._mine

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(compete, range(rounds)))


def _holders(run: Path, claimants: int) -> list[Lease]:
    together, done, entered = threading.Barrier(claimants), threading.Barrier(claimants), list[Lease]()

    def claim() -> None:
        lease = Lease(run, refresh=0.004, patience=5.0)
        together.wait()
        try:
            lease.__enter__()
        except InputError:
            done.wait()
            return
        entered.append(lease)
        done.wait()
        lease.check()
        lease._ended.set()

    threads = [threading.Thread(target=claim) for _ in range(claimants)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return entered


def test_a_claimant_that_was_slow_between_looking_and_claiming_withdraws(
    tmp_path: Path, ended: Holder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Meanwhile two others had the run; its claim has a number that is free again, and is not the newest."""
    claimed(tmp_path, ended)
    create = Lease._create

    def slow(self: Lease) -> bool:
        monkeypatch.setattr(Lease, "_create", create)
        with quick(tmp_path):
            pass
        other.__enter__()
        return create(self)

    with quick(tmp_path / "somewhere"):
        pass
    other = quick(tmp_path)
    monkeypatch.setattr(Lease, "_create", slow)
    with pytest.raises(InputError, match="is being trained by process"):
        quick(tmp_path).__enter__()
    other.check()
    other.__exit__()


# --- file systems -----------------------------------------------------------------------------------------------------

OPERATIONS = ["listdir", "link", "utime", "fsync", "mkdir", "unlink", "read", "write"]


def failing(monkeypatch: pytest.MonkeyPatch, site: str, number: int, times: int) -> list[str]:
    """The next `times` operations of a kind fail; returns a list that is filled with them."""
    failed: list[str] = []
    homes = {"mkdir": Path, "unlink": Path, "read": (lease_module, "read_record"), "write": (Path, "write_bytes")}
    home = homes.get(site, os)
    owner, name = home if isinstance(home, tuple) else (home, site)
    original = getattr(owner, name)

    def fail(*arguments: Any, **named: Any) -> Any:
        if len(failed) < times and threading.current_thread().name != "elsewhere":
            failed.append(site)
            raise OSError(number, os.strerror(number), str(arguments[0]))
        return original(*arguments, **named)

    monkeypatch.setattr(owner, name, fail)
    return failed


@pytest.mark.parametrize("site", OPERATIONS)
@pytest.mark.parametrize("when", ["before", "while"])
def test_a_short_failure_of_the_file_system_ends_nothing(
    tmp_path: Path, ended: Holder, site: str, when: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    claimed(tmp_path, ended)
    failed = failing(monkeypatch, site, errno.EIO, 3) if when == "before" else []
    with quick(tmp_path) as lease:
        if when == "while":
            if site in ("link", "fsync", "mkdir", "write"):
                shutil.rmtree(tmp_path / "lease", ignore_errors=True)
            failed = failing(monkeypatch, site, errno.EIO, 3)
        time.sleep(0.4)
        lease._looked -= 1
        lease.check()
    claim = newest_claim(tmp_path)
    assert claim is not None
    assert claim.holder() == lease._mine
    if site != "unlink" or when == "before":
        assert failed


@pytest.mark.parametrize(
    ("number", "remedy"),
    [(errno.EROFS, "Make it writable"), (errno.EACCES, "Make it writable"), (errno.ENOSPC, "Free some space")],
)
def test_a_folder_that_cannot_be_written_is_one_sentence(
    tmp_path: Path, number: int, remedy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    failing(monkeypatch, "write", number, 1000)
    said = rf"lease cannot be written \({os.strerror(number)}\)\. {remedy} and run the same command again"
    with pytest.raises(FailedError, match=said):
        quick(tmp_path).__enter__()


def test_a_file_system_without_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    failing(monkeypatch, "link", errno.EPERM, 1000)
    with quick(tmp_path), pytest.raises(InputError, match="wait for it"):
        quick(tmp_path).__enter__()


def test_a_link_that_was_made_although_it_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """NFS repeats a request whose answer was lost, and then says that the name exists."""
    link = os.link

    def twice(source: Path, target: Path) -> None:
        link(source, target)
        link(source, target)

    monkeypatch.setattr(os, "link", twice)
    with quick(tmp_path) as lease:
        lease.check()
