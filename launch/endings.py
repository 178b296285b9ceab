"""Record how a job on SLURM ended, and act on it: requeue it, or submit jobs that were held back.

`python -m launch.endings CODE MAX_REQUEUES SWEEP_FOLDER` ends every batch script whose command failed, and each one
while jobs of its sweep are held back by a limit of the queue.

The exit code of a job is stored next to its log, so that the accounting need not be asked: it lags behind, is slow, and
is missing on some clusters. A job whose processes were killed (out of memory, by hand, by a hardware fault) is run
again if it made progress since its last start: new checkpoints, shards or results.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from simdist.core.errors import EXIT_OK, InputError
from simdist.core.files import write_json
from simdist.core.requeue import KILLED, PREEMPTED, WARNED, job_id, wants_requeue

from .slurm import SlurmScheduler

PROGRESS = (
    "checkpoints/step_*",
    "decoders/*/checkpoints/step_*",
    "probes/**/result.json",
    "*/*.tar",
    "analysis/*/result.json",
)
"""What a job leaves in its folder as it gets on: runs, decoders, probes, packing, analyses."""
ENDED = "_ended.json"  # how the name of the file ends, after the job's number
UNTIL_KILLED = 60.0  # seconds that SLURM may take to end a script that has been requeued
LOCK_SECONDS = 30.0  # for which a job waits to submit others; somebody who holds the lock longer does it for all


@dataclass(frozen=True)
class Ending:
    """The file in which a job records how it ended."""

    file: Path

    @classmethod
    def of(cls, folder: Path, number: str) -> Ending:
        """Of the job with this number, whose logs are in `folder`."""
        return cls(folder / f"{number}{ENDED}")

    @classmethod
    def of_this_job(cls, folder: Path) -> Ending:
        """Of the job that this process belongs to."""
        return cls.of(folder, job_id(os.environ) or "none")

    def begin(self, work: Path) -> None:
        """Record the start of a job that writes to the folder `work`."""
        write_json(self.file, {"code": None, "work": str(work), "progress": progress_of(work), "time": time.time()})

    def end(self, code: int) -> None:
        """Record the end of the job."""
        write_json(self.file, {**self.read(), "code": code, "time": time.time()})

    def read(self) -> dict:
        """What is known; {} if the job never began."""
        try:
            return json.loads(self.file.read_text())
        except (OSError, ValueError):
            return {}

    @property
    def code(self) -> int | None:
        """The exit code; None while the job runs, and if it was ended with its batch script."""
        return self.read().get("code")

    @property
    def has_progressed(self) -> bool:
        """Whether there are more results than when the job began."""
        content = self.read()
        return "work" in content and progress_of(Path(content["work"])) != content["progress"]


def progress_of(work: Path) -> list[str]:
    """The newest result of each kind in a job's folder, to detect progress."""
    found = [sorted(str(path.relative_to(work)) for path in work.glob(pattern)) for pattern in PROGRESS]
    return [f"{names[-1]} ({len(names)})" for names in found if names]


def restarts() -> int:
    """How often SLURM has restarted this job."""
    return int(os.environ.get("SLURM_RESTART_COUNT") or 0)


def conclude(ending: Ending, code: int, limit: int) -> bool:
    """Requeue a job that ended with `code` if the rules allow it; returns whether it was requeued.

    Args:
        ending: of the job.
        code: exit code of its command, or the highest of its tasks.
        limit: requeues allowed.
    """
    if code in KILLED and not ending.has_progressed:
        print(f"killed (exit code {code}) without progress since its last start; not requeued", flush=True)
        return False
    if not wants_requeue(code, ending.has_progressed):
        return False
    asked, sentence = SlurmScheduler().requeue(restarts(), limit)
    if sentence:
        print(sentence, flush=True)
    return asked


def main(argv: Sequence[str]) -> int:
    """End a batch script; returns 0, because the script exits with the command's own code."""
    code, limit, sweep = int(argv[0]), int(argv[1]), Path(argv[2])
    ending = Ending.of_this_job(Path(os.environ["SIMDIST_JOB_FOLDER"]))
    if code != EXIT_OK:
        if ending.code is None or code in KILLED:
            ending.end(code)
        if conclude(ending, code, limit):
            time.sleep(UNTIL_KILLED)
        if code in (PREEMPTED, *WARNED, *KILLED):
            return EXIT_OK  # SLURM may be ending this script: nothing is begun that it could cut off
    from .submit import feed  # needs submitit

    try:
        feed(sweep, LOCK_SECONDS)
    except InputError as error:
        print(
            f"jobs of {sweep.name} that are held back by the queue limit were not submitted: {error}", file=sys.stderr
        )
    return EXIT_OK


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
