"""`simdist sweep` from a wheel in an empty folder, on a real SLURM: what it shows, and jobs that run."""

from __future__ import annotations

from pathlib import Path

from launch.plan import read_plan
from tests.support.slurm_jobs import Slurm, await_
from tests.support.wheel import environment_of, install_wheel, run


def test_a_sweep_without_a_clone(testbed: Slurm, speech: Path, tmp_path: Path) -> None:
    bin = install_wheel(tmp_path / "wheel")
    here = tmp_path / "empty"
    here.mkdir()
    environment = environment_of(bin) | {name: testbed.environment[name] for name in ("SLURM_CONF",)}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)

    def simdist(*words: str) -> str:
        return run(str(bin / "simdist"), *words, cwd=here, env=environment)

    for words in (("--cluster", "slurm"), ()):  # without --cluster it finds SLURM by itself
        shown = simdist("sweep", *words, "--dry-run")
        assert "sbatch: decode, 2 jobs" in shown
        assert ("cluster: slurm, because SLURM answers on this machine" in shown) == (not words)
    assert list(here.iterdir()) == []

    setup = "setup: [export ACCELERATE_USE_CPU=true OMP_NUM_THREADS=1]"
    (here / "cpu.yaml").write_text(f"cpus_per_task: 1\nmem: 1500M\n{setup}\n")
    (here / "one.yaml").write_text("name: one\nbase: [sim_librispeech, debug]\nstages: {report: null}\n")
    tiny = ("data.crop=5120", "loss.prediction_steps=4", "loss.num_negatives=5", "train.max_steps=4")
    said = simdist("sweep", "--cluster", "cpu.yaml", "one.yaml", f"data.root={speech}", *tiny)
    assert "watch it: simdist status one --watch" in said
    markers = [here / path for job in read_plan(here / "sweeps" / "one").jobs.values() for path in job.done]
    await_(lambda: all(path.exists() for path in markers), "the sweep's end", lambda: simdist("status"))
    (code,) = (here / "sweeps" / "one" / "code").iterdir()
    assert sorted(path.name for path in code.iterdir()) == ["simdist", "snapshot.json"]
    assert list((code / "simdist" / "launch").glob("__pycache__/job.*.pyc"))  # jobs import the snapshot, not the wheel
