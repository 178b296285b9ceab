"""One writer a run: refused while it lives, taken over when it is dead or silent, noticed when it is lost."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from simdist.core.errors import InputError
from simdist.runs.lease import Lease, LeaseLostError


def quick(folder: Path) -> Lease:
    return Lease(folder, refresh=0.05, patience=0.6)


def hold(folder: Path, host: str, pid: int) -> None:
    (folder / "lease.json").write_text(json.dumps({"host": host, "pid": pid, "token": "theirs"}))


def test_a_second_writer_is_refused_and_told_who_writes(tmp_path: Path) -> None:
    with quick(tmp_path), pytest.raises(InputError, match=rf"process {os.getpid()} on .*wait for it, or stop it"):
        quick(tmp_path).__enter__()
    assert not (tmp_path / "lease.json").exists()
    with quick(tmp_path):
        pass


def test_a_dead_process_of_this_host_is_followed_at_once(tmp_path: Path) -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    hold(tmp_path, socket.gethostname(), gone.pid)
    begun = time.monotonic()
    with Lease(tmp_path):
        assert time.monotonic() - begun < 5


def test_a_silent_holder_elsewhere_is_followed_after_a_while(tmp_path: Path) -> None:
    hold(tmp_path, "another-host", 1)
    begun = time.monotonic()
    with quick(tmp_path) as lease:
        assert time.monotonic() - begun > 0.5
        lease.check()


def test_who_was_taken_over_notices_and_leaves_the_other_its_lease(tmp_path: Path) -> None:
    with quick(tmp_path) as lease:
        hold(tmp_path, "another-host", 7)
        time.sleep(0.5)  # ten refreshes
        with pytest.raises(LeaseLostError, match="written by process 7 on another-host now"):
            lease.check()
    assert json.loads((tmp_path / "lease.json").read_text())["token"] == "theirs"


@pytest.mark.parametrize("content", ["", "{", "[]", "{}"])
def test_a_torn_lease_holds_nobody_off(tmp_path: Path, content: str) -> None:
    (tmp_path / "lease.json").write_text(content)
    with quick(tmp_path):
        pass


def test_a_requeued_job_follows_its_own_orphan_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "42")
    with quick(tmp_path) as orphan:
        with pytest.raises(InputError, match="wait for it"):  # two processes of one life
            quick(tmp_path).__enter__()
        monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
        with quick(tmp_path) as heir:
            time.sleep(0.2)
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
        (tmp_path / "lease.json").write_text(json.dumps({"host": "another-host", "pid": 7, "token": "theirs"}))
        lease.check()  # it looked a moment ago
        lease._looked -= 3000
        with pytest.raises(LeaseLostError, match=r"is written by process 7 on another-host now.*without writing"):
            lease.check()
