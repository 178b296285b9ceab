"""Write a sweep file, run it on a cluster, and print its table.

    python examples/sweep_on_a_cluster.py slurm

The argument is a cluster: `slurm` asks SLURM for partitions and GPUs, `local` runs the jobs on this machine, and
anything else is a cluster profile. The sweep compares two weights of the KL with two seeds each. Run the script again
to resume it: only missing jobs run. Further arguments are passed to the launcher, for example `train.max_steps=50`.
"""

import subprocess
import sys
from pathlib import Path

import yaml

# A sweep trains one encoder per combination of `grid` and `seeds`; `stages` run before and after each training.
SWEEP = {
    "name": "beta",
    "base": ["sim_librispeech", "demo"],  # presets in configs/; later ones override earlier ones
    "config": {"name": "beta", "data.root": "data/beta", "train.max_steps": 200},
    "grid": {"loss.beta": [0.001, 0.01]},
    "seeds": [0, 1],
    "stages": {
        "pack": {"corpus": "synthetic", "source": "data/beta-source", "options": {"speakers": 4, "minutes": 4}},
        "probe": {"labels": ["speaker"], "modules": "all", "options": {"probe": "lbfgs", "tolerance": 0.01}},
        "report": None,  # without options
    },
}

if __name__ == "__main__":
    cluster, arguments = sys.argv[1], sys.argv[2:]
    root = Path(__file__).resolve().parent.parent

    # 1. Write the sweep file. You would usually keep it under version control.
    file = Path("beta.yaml")
    file.write_text(yaml.safe_dump(SWEEP, sort_keys=False))

    # 2. Run it. --wait returns when all jobs have ended; without it, SLURM jobs continue in the background.
    wait = [] if cluster == "local" else ["--wait"]
    sweep = [sys.executable, root / "launch" / "sweep.py", "--cluster", cluster, *wait, file, *arguments]
    code = subprocess.run(sweep, check=False).returncode
    if code != 0:
        sys.exit(code)

    # 3. Print the mean and standard deviation over seeds. report.html is next to it.
    print(Path("sweeps/beta/report/report.md").read_text())
