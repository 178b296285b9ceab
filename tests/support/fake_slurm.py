"""Commands of a SLURM that only writes down what it is asked, for tests without a cluster."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Console

from launch.submit import submit_sweep

SBATCH = """#!/bin/bash
script=$(<"$1")
set -- {folder}/*.sh
[[ -e $1 ]] && number=$((100 + $#)) || number=100
printf '%s\\n' "$script" > {folder}/$number.sh
[[ $script =~ --comment=([0-9a-f]+) ]] && comment=${{BASH_REMATCH[1]}}
tasks=$number
if [[ $script =~ --array=([0-9,-]+) ]]; then
    tasks=
    for range in ${{BASH_REMATCH[1]//,/ }}; do
        for ((task = ${{range%-*}}; task <= ${{range#*-}}; task++)); do tasks+=" ${{number}}_$task"; done
    done
fi
for task in $tasks; do echo "$task|PENDING|Dependency||$comment"; done >> {folder}/queue
echo "Submitted batch job $number"
"""
SQUEUE = "#!/bin/sh\ncat {folder}/queue 2>/dev/null || true\n"
SCANCEL = '#!/bin/sh\nfor id in "$@"; do sed -i "/^$id|/d" {folder}/queue; echo "$id" >> {folder}/cancelled; done\n'
SACCT = "#!/bin/sh\ncat {folder}/accounts 2>/dev/null || true\n"


def submit(plan: Any, **options: Any) -> str:
    """Submit to the cluster of the defaults; what was said."""
    console = Console(record=True, width=200, quiet=True)
    with console.capture() as said:
        console.quiet = False
        submit_sweep(plan, "slurm", console, **options)
    return said.get()


def scripts(slurm: Path) -> list[str]:
    return [path.read_text() for path in sorted(slurm.glob("*.sh"))]
