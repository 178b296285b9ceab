"""The long run, `make chaos`: prints what each kind of fault came to, and the table at the end.

Exit code 1 if anything was lost, repeated or other than undisturbed. The seed is printed; one kind is run again alone
by `make chaos CHAOS='--only "kill a rank" --seed 7'`.
"""

from __future__ import annotations

import argparse
import random
import resource
import shutil
import sys
import tempfile
import time
from pathlib import Path

import pytest
from rich.console import Console
from rich.table import Table

from tests.chaos.faults import FAULTS
from tests.chaos.lab import Lab, Row
from tests.chaos.write_sites import SITES
from tests.support import forked

SHARE = {"kill": 30, "kill in a save": 24, "kill packing": 16, "rotten headers": 16}
USUAL = 10  # faults of each other kind
AT_WRITES = 5  # of each kind in each command


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6))
    parser.add_argument("--only", choices=sorted(FAULTS), action="append", help="one kind; may be given several times")
    parser.add_argument("--times", type=int, help="faults of each kind, instead of the usual number")
    chosen = parser.parse_args()
    console = Console(soft_wrap=True, highlight=False, width=None if sys.stdout.isatty() else 120)
    folder = Path(tempfile.mkdtemp(prefix="simdist-chaos-"))
    rows, begin = [], time.monotonic()
    with forked.zygote() as zygote:
        lab = Lab(folder, zygote)
        for name in chosen.only or FAULTS:
            row = _inject(lab, name, chosen.seed, chosen.times or _usual(name), console)
            if row is not None:
                rows.append(row)
    console.print(table(rows))
    total, minutes = sum(row.injected for row in rows), (time.monotonic() - begin) / 60
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = (used.ru_utime + used.ru_stime) / 60
    console.print(f"{total} faults in {minutes:.0f} minutes ({cpu:.0f} of processor time), seed {chosen.seed}")
    if all(is_good(row) for row in rows):
        shutil.rmtree(folder, ignore_errors=True)
        return 0
    console.print(f"the runs that differ are kept in {folder}")
    return 1


def _usual(name: str) -> int:
    return AT_WRITES if name in SITES else SHARE.get(name, USUAL)


def is_good(row: Row) -> bool:
    return row.injected == row.survived and row.lost == row.repeated == 0 and row.equal


def table(rows: list[Row]) -> Table:
    made = Table("fault", "injected", "survived", "samples lost", "repeated", "equal to undisturbed", box=None)
    for row in rows:
        counts = (row.injected, row.survived, row.lost, row.repeated)
        made.add_row(row.fault, *map(str, counts), "yes" if row.equal else "NO")
    return made


def _inject(lab: Lab, name: str, seed: int, times: int, console: Console) -> Row | None:
    begin = time.monotonic()
    try:
        row = FAULTS[name](lab, random.Random(f"{seed}/{name}"), times)
    except pytest.skip.Exception as skipped:
        console.print(f"{name}: not possible here: {skipped}")
        return None
    state = "good" if is_good(row) else f'BAD; again alone: --only "{name}" --seed {seed} --times {times}'
    console.print(f"{name}: {row.survived} of {row.injected} survived, {time.monotonic() - begin:.0f} s, {state}")
    for note in row.notes:
        console.print(f"  {note}", markup=False)
    return row


if __name__ == "__main__":
    sys.exit(main())
