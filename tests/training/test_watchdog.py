"""A run that makes no step ends by itself, in a real process."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from simdist.training.watchdog import Watchdog

HANGS = """
    import sys, threading, time
    from pathlib import Path
    from simdist.training.watchdog import Watchdog

    watchdog = Watchdog(1.0, Path(sys.argv[1]))
    def wait_for_a_rank_that_is_gone():
        threading.Event().wait()
    with watchdog.watching():
        for _ in range(8):  # longer than the timeout, with progress
            time.sleep(0.2)
            watchdog.progress()
        print("alive", flush=True)
        wait_for_a_rank_that_is_gone()
"""


def test_a_hang_ends_with_all_stacks_and_a_code_that_says_again(tmp_path: Path) -> None:
    command = [sys.executable, "-c", textwrap.dedent(HANGS), str(tmp_path / "stacks")]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert ended.stdout == "alive\n"
    assert ended.returncode == 75
    assert "in wait_for_a_rank_that_is_gone" in (tmp_path / "stacks").read_text()
    assert "in wait_for_a_rank_that_is_gone" in ended.stderr
    assert (
        f"no progress in 1 s (train.hang_timeout). All stacks are above and in {tmp_path}/stacks. Exiting"
        in ended.stderr
    )


@pytest.mark.parametrize("timeout", [0.0, 5.0])
def test_off_and_after_the_end_it_ends_nothing(tmp_path: Path, timeout: float) -> None:
    with Watchdog(timeout, tmp_path / "stacks").watching():
        pass
    assert not (tmp_path / "stacks").exists()
