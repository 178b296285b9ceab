"""Faults at each operation of a command that writes: the file system refuses it, or the process is killed there.

An audit hook sees every file that Python opens for writing, renames, links, creates or removes, wherever the call comes
from; `os.write`, `os.fsync` and `os.ftruncate` are wrapped. EIO passes, as on a network; the others last until the
process ends, as a full or read-only disk does.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import yaml

from tests.chaos.lab import BAD_INPUT, CPU, FAILED, SLOW, Lab, Row, expect
from tests.support.training import lines, short_training

EVENTS = ("os.rename", "os.link", "os.mkdir", "os.remove", "os.rmdir", "os.truncate", "os.utime", "os.symlink")
WRAPPED = ("write", "fsync", "ftruncate")
KINDS = ("ENOSPC", "EIO", "EROFS", "EDQUOT", "kill")
VOLATILE = ("time", "seconds", "finished", "training_and_testing")


def inject(kind: str, site: int, folder: str, tally: str) -> None:
    """From now on in this process, the operation with number `site` below `folder` meets a fault.

    Args:
        kind: one of `KINDS`.
        site: counted from 0; -1 for none.
        folder: with all that the command writes.
        tally: file for the number of operations so far.
    """
    count, mine, met = 0, os.getpid(), False
    counter = os.open(tally, os.O_WRONLY | os.O_CREAT, 0o666)

    def meet(operation: str, path: object) -> None:
        nonlocal count, met
        name = os.fsdecode(path) if isinstance(path, str | bytes | os.PathLike) else ""
        if os.getpid() != mine or not os.path.abspath(name).startswith(folder):
            return
        number, count = count, count + 1
        os.pwrite(counter, f"{count:6d}".encode(), 0)
        if site < 0 or not (number == site or (met and kind != "EIO")):
            return
        met = True
        os.pwrite(counter, f"{number:6d} {operation} {name}\n".encode(), 8)
        if kind == "kill":
            os.kill(mine, signal.SIGKILL)
        code = getattr(errno, kind)
        raise OSError(code, os.strerror(code), name)

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            meet("open", arguments[0])
        elif event in EVENTS:
            meet(event, arguments[0])

    def wrapped(name: str) -> Callable[..., Any]:
        original = getattr(os, name)

        def call(descriptor: int, *arguments: Any) -> Any:
            try:
                path = os.readlink(f"/proc/self/fd/{descriptor}")
            except OSError:
                path = ""
            meet(name, path)
            return original(descriptor, *arguments)

        return call

    for name in WRAPPED:
        setattr(os, name, wrapped(name))
    sys.addaudithook(hook)


@dataclass(frozen=True)
class Case:
    """A command whose write sites are hit."""

    module: str
    argv: Callable[[Lab, Path], list[str]]
    """Its arguments, given a folder for all that it writes."""
    needs_run: bool = True
    """Whether the folder has a trained run to begin with."""


def _training(lab: Lab, place: Path) -> list[str]:
    steps = ("--train.max_steps=4", "--train.checkpoint_every=2", "--train.keep_last=1", "--data.num_workers=0")
    return short_training(lab.shards, place / "run", *steps, "--train.validate_batches=2")


def _sweep(lab: Lab, place: Path) -> list[str]:
    """A sweep of one run, whose jobs run in the process of the command."""
    config = {"data.root": str(lab.shards), "data.crop": 5120, "data.num_workers": 0, "loss.prediction_steps": 4}
    steps = {"train.max_steps": 2, "train.precision": "no", "train.validate_every": 0}
    sweep = {"name": "tiny", "base": ["sim_librispeech", "debug"], "config": config | steps, "stages": {"report": {}}}
    (lab.folder / "tiny.yaml").write_text(yaml.safe_dump(sweep))
    folders = ("--runs", f"{place}/runs", "--sweeps", f"{place}/sweeps")
    return [str(lab.folder / "tiny.yaml"), "--cluster", "debug", *folders]


PACKING = ("--min-samples=5120", "--shard-samples=8")
PROBE = ("--label=speaker", "--module=0", "--epochs=1", "--crops=1")
DECODER = ("--module=0", "--train.max_steps=2", "--data.batch_size=4")
CASES = {
    "pack": Case("simdist.pack", lambda lab, place: lab.corpus.arguments(place / "out", *PACKING), needs_run=False),
    "train": Case("simdist.train", _training, needs_run=False),
    "probe": Case("simdist.probe", lambda lab, place: [f"--run-dir={place}/run", *PROBE]),
    "decode": Case("simdist.decode", lambda lab, place: [f"--run-dir={place}/run", *DECODER]),
    "analyze": Case("simdist.analyze", lambda lab, place: ["distributions", f"--run-dir={place}/run", "--module=0"]),
    "report": Case("simdist.report", lambda lab, place: [f"{place}/run", "--out", f"{place}/page"]),
    "sweep": Case("launch.sweep", _sweep, needs_run=False),
}


SITES = {f"{kind} in {name}": (name, kind) for name in CASES for kind in KINDS}


def fault(name: str, kind: str) -> Callable[[Lab, Random, int], Row]:
    """Faults of one kind at sites of one command; what is left must be that of the command that nobody disturbs."""

    def hit(lab: Lab, rng: Random, times: int) -> Row:
        row = Row(f"{kind} at a write of {name}")
        total, expected = _undisturbed(lab, name)
        for site in rng.sample(range(total), min(times, total)):
            place = _place(lab, name)
            code, printed = _start(lab, name, place, kind, site)
            ended = code == -signal.SIGKILL if kind == "kill" else code in (0, FAILED, BAD_INPUT)
            again, printed_again = _start(lab, name, place)
            said = f"site {site}: {printed[-1000:]}\n{printed_again[-1000:]}"
            expect(row, ended and again == 0 and "Traceback" not in printed + printed_again, said)
            different = _different(expected, contents(place))
            if different:
                row.equal = False
                kept = place.rename(lab.folder / f"{kind} in {name} at {site}")
                row.notes.append(f"site {site}: {kept} differs in {different}")
        return row

    return hit


def contents(place: Path) -> dict[str, Any]:
    """What a command has left, without times and hosts."""
    found: dict[str, Any] = {}
    for path in sorted(place.rglob("*")):
        name = str(path.relative_to(place))
        if path.is_dir() or "lease/" in name or path.name in ("environment.json", "events.jsonl", ".verified.json"):
            continue
        if path.name == "metrics.jsonl":
            found[name] = lines(path.parent)
        elif path.suffix == ".json":
            found[name] = _steady(json.loads(path.read_text()))
        elif path.suffix in (".html", ".png", ".svg", ".log", ".lock") or path.name == "DONE":
            found[name] = "exists"
        else:
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


def _steady(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _steady(item) for key, item in value.items() if key not in VOLATILE}
    return [_steady(item) for item in value] if isinstance(value, list) else value


def _undisturbed(lab: Lab, name: str) -> tuple[int, dict[str, Any]]:
    """The number of sites of a command, and what it leaves."""
    if name not in lab.undisturbed:
        place = _place(lab, name)
        code, printed = _start(lab, name, place)
        assert code == 0, printed
        lab.undisturbed[name] = int((lab.folder / "tally").read_text()[:6]), contents(place)
    return lab.undisturbed[name]


def _place(lab: Lab, name: str) -> Path:
    """An empty folder, with what the command needs; always the same, because a sweep's hashes contain its path."""
    place = lab.folder / f"{name}-sites"
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir()
    if CASES[name].needs_run:
        shutil.copytree(lab.trained(), place / "run")
    return place


def _start(lab: Lab, name: str, place: Path, kind: str = "", site: int = -1) -> tuple[int | None, str]:
    """The command's exit code, and what it printed."""
    case = CASES[name]
    request = {"module": case.module, "argv": case.argv(lab, place), "kind": kind, "site": site, "folder": str(place)}
    process = lab.zygote.call("tests.chaos.write_sites:obey", request | {"tally": str(lab.folder / "tally")}, CPU)
    printed, _ = process.communicate(SLOW)
    return process.returncode, printed


def _different(expected: dict[str, Any], found: dict[str, Any]) -> list[str]:
    return sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))


def obey(module: str, argv: list[str], kind: str, site: int, folder: str, tally: str) -> None:
    """What a forked process does: the command, with a fault."""
    from tests.support.forked import command

    inject(kind, site, folder, tally)
    command(module, argv, None)
