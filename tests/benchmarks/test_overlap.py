"""A module's all-reduce runs while the next module's forward does, in a real profiler trace of two processes."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parent.parent.parent / "benchmarks" / "overlap.py"


def test_all_reduces_overlap_the_next_modules_forward(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--rdzv_backend=c10d"]
    command += ["--rdzv_endpoint=localhost:0", str(SCRIPT), "--out", str(tmp_path / "trace.json")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=180)
    assert done.returncode == 0, done.stderr
    found = dict(re.findall(r"(DDP as it is|simdist): all-reduces [\d.]+ ms, (\d+)% of it", done.stdout))
    assert int(found["simdist"]) > 10
    assert int(found["simdist"]) > 2 * int(found["DDP as it is"])
    assert (tmp_path / "trace.json").stat().st_size > 0
