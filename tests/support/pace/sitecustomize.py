"""With this folder on PYTHONPATH, training rests for SIMDIST_REST_SECONDS after each step from SIMDIST_REST_FROM on,
until the file SIMDIST_REST_UNTIL exists: so a test can disturb a run in its middle, on a machine of any speed.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

if "SIMDIST_REST_FROM" in os.environ:
    from simdist.runs.schedule import Schedule

    first, gate = int(os.environ["SIMDIST_REST_FROM"]), Path(os.environ["SIMDIST_REST_UNTIL"])
    seconds = float(os.environ["SIMDIST_REST_SECONDS"])
    saves = Schedule.saves

    def rested_saves(self: Schedule, step: int) -> bool:
        end = time.monotonic() + seconds * (step >= first)
        while time.monotonic() < end and not gate.exists():
            time.sleep(0.05)
        return saves(self, step)

    Schedule.saves = rested_saves
