"""`simdist.act JOURNAL HOW [FILE…]`: write a line to the journal, and end in one of the ways in which jobs end."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Sequence
from pathlib import Path

from simdist.core.errors import EXIT_OK, EXIT_PREEMPTED, InputError

PATIENCE = 120.0


def main(argv: Sequence[str]) -> int:
    journal, how, *files = argv
    before = Path(journal).read_text().count(f" {how} {files}") if Path(journal).exists() else 0
    _note(journal, f"begin {how} {files} {os.environ.get('CUDA_VISIBLE_DEVICES', '')}")
    if how == "fail":
        raise InputError("this job was made to fail; take another")
    if how == "preempted" and before < 2:
        return EXIT_PREEMPTED
    if how == "wait" and not before:
        return _wait_for_a_signal(journal)
    for file in files:
        Path(file).parent.mkdir(parents=True, exist_ok=True)
        Path(file).touch()
    _note(journal, f"end {how}")
    return EXIT_OK


def _wait_for_a_signal(journal: str) -> int:
    came: list[int] = []
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, frame: came.append(number))
    _note(journal, "waits")
    begin = time.monotonic()
    while not came and time.monotonic() - begin < PATIENCE:
        time.sleep(0.05)
    time.sleep(0.3)  # saving
    _note(journal, f"saved after {signal.Signals(came[0]).name}" if came else "gave up waiting")
    return 130 if came and came[0] == signal.SIGINT else EXIT_PREEMPTED


def _note(journal: str, text: str) -> None:
    with open(journal, "a") as file:
        file.write(f"{os.getpid()} {text}\n")
