"""Probe every module of a run for one label, and plot the accuracies.

    python examples/probe_and_plot.py RUN LABEL

RUN is a run folder that `simdist.train` wrote, LABEL a label of its shards (`speaker`, `phone`, …). The script trains
one linear probe per module, on the trained and on the untrained encoder, and writes LABEL.png. Options after LABEL are
passed to `simdist.probe`, for example `--crops 4`.
"""

import json
import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")  # draw into a file, without a display
import matplotlib.pyplot as plt

from simdist.probe.__main__ import main as probe

if __name__ == "__main__":
    run, label = Path(sys.argv[1]), sys.argv[2]

    # 1. Train the probes. Features are encoded once and cached; finished probes are not trained again.
    options = ["--features", "trained,untrained", "--module", "all", "--probe", "lbfgs"]
    code = probe(["--run-dir", str(run), "--label", label, *options, *sys.argv[3:]])
    if code != 0:
        sys.exit(code)

    # 2. Read the results: one folder per probe.
    results = [json.loads(path.read_text()) for path in run.glob("probes/*/result.json")]
    results = [result for result in results if result["label"] == label and result["probe"]["probe"] == "lbfgs"]

    # 3. Plot test accuracy with its 95 % interval, one line per kind of features.
    for kind in ("trained", "untrained"):
        points = sorted((r["source"]["module"], r["test"]["accuracy"]) for r in results if r["source"]["kind"] == kind)
        modules = [module for module, _ in points]
        accuracy = [100 * each["value"] for _, each in points]
        below = [100 * (each["value"] - each["interval"][0]) for _, each in points]
        above = [100 * (each["interval"][1] - each["value"]) for _, each in points]
        plt.errorbar(modules, accuracy, yerr=[below, above], marker="o", capsize=3, label=kind)
        print(f"{kind}: " + ", ".join(f"module {m} {a:.1f} %" for m, a in zip(modules, accuracy, strict=True)))
    plt.axhline(100 * results[0]["chance"], color="gray", linestyle=":", label="chance")
    plt.xticks(sorted({r["source"]["module"] for r in results}))
    plt.xlabel("module")
    plt.ylabel(f"{label}: test accuracy in %")
    plt.legend()
    plt.savefig(f"{label}.png", dpi=150)
    print(f"wrote {label}.png")
