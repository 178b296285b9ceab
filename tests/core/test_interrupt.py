"""Ctrl-C while a command imports what it needs: real processes, hit as soon as the package is there."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

CAUGHT = 1 << (signal.SIGINT - 1)


def catches_ctrl_c(pid: int) -> bool:
    status = Path(f"/proc/{pid}/status").read_text()
    return bool(int(status.partition("SigCgt:")[2].split()[0], 16) & CAUGHT)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc")
@pytest.mark.parametrize("command", ["train", "probe", "report"])
def test_ctrl_c_during_the_imports_prints_no_traceback(command: str) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", f"simdist.{command}", "--help"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background job ignores it
    )
    for state in (True, False):  # Python begins to catch it, and the package lets it end the process
        while catches_ctrl_c(process.pid) != state:
            assert process.poll() is None
            time.sleep(0.0005)
    process.send_signal(signal.SIGINT)
    printed, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (-signal.SIGINT, ""), printed
