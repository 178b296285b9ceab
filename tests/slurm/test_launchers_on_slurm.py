"""`srun` on a real SLURM starts the same training and probes as torchrun does without one."""

from __future__ import annotations

import shutil
from pathlib import Path

from tests.support.launching import probed, probing, run, trained, training
from tests.support.slurm_jobs import Slurm


def test_srun_trains_and_probes_as_torchrun_does(testbed: Slurm, speech: Path, tmp_path: Path) -> None:
    tasks = ("srun", "--nodes=2", "--ntasks=2", "--ntasks-per-node=1", "--cpus-per-task=1", "python", "-m")
    testbed.ask(*tasks, *training(speech, tmp_path / "srun"))
    run("torchrun", 2, *training(speech, tmp_path / "torchrun"))
    assert trained(tmp_path / "srun") == trained(tmp_path / "torchrun")
    assert trained(tmp_path / "srun").world_size == 2
    shutil.copytree(tmp_path / "srun", tmp_path / "copy")
    assert "world size 2 on cpu" in testbed.ask(*tasks, *probing(tmp_path / "srun"))
    run("python", 1, *probing(tmp_path / "copy"))
    assert len(probed(tmp_path / "srun")) == 2
    assert probed(tmp_path / "srun") == probed(tmp_path / "copy")
