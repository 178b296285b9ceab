"""Every kind of fault: how it is injected, and what has to come out. Each takes a lab, a source of chance and a number.

All of them start a run, disturb it at a moment that `rng` draws, start the same command again as often as it takes, and
compare what is left with the run that nobody disturbed.
"""

from __future__ import annotations

import os
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

from simdist.data.splits import open_split
from simdist.runs.checkpoints import MANIFEST, MODEL, OPTIMIZER, STATE
from tests.chaos import write_sites
from tests.chaos.lab import BAD_INPUT, FAILED, PREEMPTED, Disturbed, Lab, Processes, Row, expect, pack
from tests.support.damage import flip, unchanged_times
from tests.support.small_disk import SmallDisk, small_disk

Fault = Callable[[Lab, Random, int], Row]


def _unless_done(run: Disturbed) -> bool:
    return not (run.folder / "DONE").exists()


def _hit(run: Disturbed, rng: Random, phase: str, most: int, hit: Callable[[Processes], None]) -> Processes:
    """Start the run, wait until `phase` has begun 1 … `most` times, and a moment, then hit it."""
    processes = run.start()
    processes.wait_for(phase, rng.randint(1, most))
    time.sleep(rng.uniform(0, 0.03))
    hit(processes)
    return processes


# --- kills ------------------------------------------------------------------------------------------------------------


def _kills(name: str, variant: str, phase: str, most: int, more: tuple[str, ...] = ()) -> Fault:
    def fault(lab: Lab, rng: Random, times: int) -> Row:
        row = Row(name)
        options: dict[str, Any] = {"more": list(more)}
        while row.injected < times:
            run = Disturbed(lab, variant, f"{name}-{row.injected}".replace(" ", "-"), **options)
            while row.injected < times and _unless_done(run):
                rank = rng.randrange(2) if variant == "two ranks" else 0
                processes = _hit(run, rng, phase, most, lambda p, rank=rank: p.signal(signal.SIGKILL, rank))
                codes = processes.end(patience=60)
                if codes[rank] == -signal.SIGKILL:
                    others = [code for r, code in enumerate(codes) if r != rank]
                    expect(row, None not in others, f"a rank hangs when another is killed: {processes.log()[-1500:]}")
            run.compare(row, lab.reference(variant, **options))
        return row

    return fault


def worker_killed(lab: Lab, rng: Random, times: int) -> Row:
    """The run goes on by itself, to the same result."""
    row = Row("kill -9 of a loader worker")
    while row.injected < times:
        run = Disturbed(lab, "workers", f"worker-{row.injected}")

        def kill(processes: Processes) -> None:
            for worker in rng.sample(processes.workers(), min(1, len(processes.workers()))):
                os.kill(worker, signal.SIGKILL)

        processes = _hit(run, rng, "step", 12, kill)
        expect(row, processes.end() == [0], processes.log()[-1500:])
        run.compare(row, lab.reference("joint"))
    return row


# --- signals ----------------------------------------------------------------------------------------------------------


def _signals(name: str, variant: str, to: str) -> Fault:
    def fault(lab: Lab, rng: Random, times: int) -> Row:
        row = Row(name)
        while row.injected < times:
            run = Disturbed(lab, variant, f"{name}-{row.injected}".replace(" ", "-"))
            while row.injected < times and _unless_done(run):
                number = rng.choice([signal.SIGTERM, signal.SIGUSR2])

                def send(processes: Processes, number: int = number) -> None:
                    if to == "worker":
                        for worker in processes.workers():
                            os.kill(worker, number)
                    else:
                        rank = rng.randrange(len(processes.ranks))
                        processes.signal(number, rank, group=to == "group")

                processes = _hit(run, rng, "step", 6, send)
                codes = set(processes.end())
                wanted = {0} if to == "worker" else {PREEMPTED}
                if codes != {0} or to == "worker":
                    expect(row, codes == wanted, f"exit codes {codes}: {processes.log()[-1500:]}")
            run.compare(row, lab.reference("joint" if variant == "workers" else variant))
        return row

    return fault


def lease_taken_over(lab: Lab, rng: Random, times: int) -> Row:
    """A stopped process is taken for dead; when it wakes up it finds another's lease, and must not write a byte."""
    row = Row("SIGSTOP, lease taken over, SIGCONT")
    while row.injected < times:
        run = Disturbed(lab, "joint", f"lease-{row.injected}", patience=1.0)
        first = _hit(run, rng, "step", 12, lambda p: p.signal(signal.SIGSTOP))
        if first.ranks[0].poll() is not None:
            continue
        problem = run.finish()
        first.signal(signal.SIGCONT)
        codes = first.end(patience=60)
        stopped = "Stopping without writing" in first.log()
        expect(row, not problem and codes == [BAD_INPUT] and stopped, f"{problem} {codes} {first.log()[-1500:]}")
        run.compare(row, lab.reference("joint"))
    return row


# --- full disks -------------------------------------------------------------------------------------------------------


def _full_disk(name: str, more: tuple[str, ...], said: str) -> Fault:
    def fault(lab: Lab, rng: Random, times: int) -> Row:
        row = Row(name)
        while row.injected < times:
            place = lab.folder / f"{name}-{row.injected}".replace(" ", "-")
            with small_disk(place, 20_000) as disk:
                options: dict[str, Any] = {"more": list(more)}
                run = Disturbed(lab, "joint", f"{place.name}-run", folder=disk.folder / "run", **options)
                processes = _hit(run, rng, "step", 16, lambda p, disk=disk: _fill(disk))
                codes, log = processes.end(), processes.log()
                if codes != [0]:
                    one_line = "Traceback" not in log and "No space left on device" in log and said in log
                    expect(row, codes == [FAILED] and one_line, f"{codes}: {log[-1500:]}")
                (disk.folder / "ballast").unlink()
                run.compare(row, lab.reference("joint", **options))
        return row

    return fault


def _fill(disk: SmallDisk) -> None:
    """Take all that is free, also what a checkpoint that is pruned meanwhile gives back."""
    ballast = os.open(disk.folder / "ballast", os.O_WRONLY | os.O_CREAT)
    for size in (1 << 20, 1 << 12, 1):
        try:
            while os.write(ballast, b"x" * size):
                pass
        except OSError:
            continue
    os.close(ballast)


def full_disk_while_packing(lab: Lab, rng: Random, times: int) -> Row:
    row = Row("full disk while packing")
    while row.injected < times:
        place = lab.folder / f"packing-disk-{row.injected}"
        with small_disk(place, rng.randrange(8, 500, 4)) as disk:
            packing = pack(lab.corpus, disk.folder / "out", "--shard-samples=4")
            error = packing.communicate()[1]
            said = "No space left on device; what is missing needs about" in error and error.count("\n") == 1
            if packing.returncode != 0:
                expect(row, packing.returncode == FAILED and said, error)
            disk.resize(5000)
            _compare_packing(row, lab, disk.folder / "out")
    return row


# --- data -------------------------------------------------------------------------------------------------------------


def packing_killed(lab: Lab, rng: Random, times: int) -> Row:
    row = Row("kill -9 while packing")
    while row.injected < times:
        out = lab.folder / f"packing-{row.injected}"
        while row.injected < times and not list(out.glob("*/manifest.json")):
            begin, tars = time.monotonic(), len(list(out.glob("*/shard-*.tar"))) + rng.randint(0, 3)
            packing = pack(lab.corpus, out, "--shard-samples=1")
            while len(list(out.glob("*/shard-*.tar"))) < tars and packing.poll() is None:
                assert time.monotonic() - begin < 120
            time.sleep(rng.uniform(0, 0.02))
            os.killpg(packing.pid, signal.SIGKILL) if packing.poll() is None else None
            packing.communicate()
            if packing.returncode == -signal.SIGKILL:
                expect(row, True, "")
        packing = pack(lab.corpus, out, "--shard-samples=1")
        packing.communicate()
        _compare_packing(row, lab, out, "--shard-samples=1")
    return row


def _compare_packing(row: Row, lab: Lab, out: Path, size: str = "--shard-samples=4") -> None:
    whole = lab.folder / f"packed{size}"
    for folder in (out, whole):
        packing = pack(lab.corpus, folder, size)
        error = packing.communicate()[1]
        if packing.returncode:
            row.equal = False
            row.notes.append(error)
            return
    ours, theirs = (_contents(folder) for folder in (out, whole))
    row.lost += len(theirs.keys() - ours.keys())
    row.repeated += len(ours.keys() - theirs.keys())
    row.equal = row.equal and ours == theirs


def _contents(folder: Path) -> dict[str, bytes]:
    files = [p for p in folder.rglob("*") if p.is_file() and p.name != ".pack.lock"]
    return {str(p.relative_to(folder)): p.read_bytes() for p in files}


def shards_damaged(lab: Lab, rng: Random, times: int) -> Row:
    """Found before the first step, by name; put back, the run goes on."""
    row = Row("shard flipped, cut or lost before a start")
    run = Disturbed(lab, "joint", f"damaged-{rng.random()}", root=shutil.copytree(lab.shards, _new(lab, "damaged")))
    while row.injected < times:
        processes = _hit(run, rng, "step", 3, lambda p: p.signal(signal.SIGTERM)) if _unless_done(run) else None
        if processes is not None:
            processes.end()
        (run.folder / "DONE").unlink(missing_ok=True)
        split = open_split(run.root, "train")
        path = split.shard_path(rng.randrange(len(split.manifest.shards)))
        good = path.read_bytes()
        _damage(path, rng)
        processes = run.start()
        codes, log = processes.end(), processes.log()
        named = f"shards in {path.parent} are damaged: {path.name}" in log
        expect(row, codes == [BAD_INPUT] and named and "Traceback" not in log, f"{codes}: {log[-1500:]}")
        path.write_bytes(good)
    run.compare(row, lab.reference("joint"))
    return row


def sample_rotten(lab: Lab, rng: Random, times: int) -> Row:
    """Bytes rot without a trace in the file's time. Disturbed or not, a run passes over the same samples."""
    row = Row("sample rots; killed and resumed")
    while row.injected < times:
        root = shutil.copytree(lab.shards, _new(lab, "rotten"))
        split = open_split(root, "train")
        rows = rng.sample(range(len(split.index)), 2)
        for sample in rows:
            path = split.shard_path(int(split.index.shard[sample]))
            early = int(split.index.size[sample]) * 9 // 10  # every crop reads them, few the short last block
            place = int(split.index.offset[sample]) + rng.randrange(200, early)
            with unchanged_times(path):
                flip(path, place)
        run = Disturbed(lab, "joint", f"{root.name}-run", root=root)
        _hit(run, rng, "step", 12, lambda p: p.signal(signal.SIGKILL)).end()
        run.compare(row, lab.reference("joint", root=root))
        log = (run.traces / "log.0").read_text()
        for sample in rows:
            named = f"skipping corrupt sample: {split.index.key[sample]} in " in log
            expect(row, named, f"{split.index.key[sample]} is not named in {log[-1500:]}")
    return row


def header_rotten(lab: Lab, rng: Random, times: int) -> Row:
    """Of a tar's headers no training depends on a byte."""
    row = Row("tar header rots")
    root = shutil.copytree(lab.shards, _new(lab, "headers"))
    split = open_split(root, "train")
    for sample in rng.sample(range(len(split.index)), min(times, len(split.index))):
        path = split.shard_path(int(split.index.shard[sample]))
        with unchanged_times(path):
            flip(path, int(split.index.offset[sample]) - 512 + rng.randrange(512))
    run = Disturbed(lab, "joint", f"{root.name}-run", root=root)
    run.compare(row, lab.reference("joint"))
    for _ in range(min(times, len(split.index))):
        expect(row, row.equal, "")
    return row


def shard_away(lab: Lab, rng: Random, times: int) -> Row:
    """Shards vanish under a run, and come back: it waits."""
    row = Row("shards lost for a while")
    while row.injected < times:
        root = shutil.copytree(lab.shards, _new(lab, "away"))
        run = Disturbed(lab, "joint", f"{root.name}-run", root=root, more=["--data.retry_seconds=200"])
        hidden = root / "hidden"
        processes = _hit(run, rng, "step", 6, lambda p, root=root, hidden=hidden: os.rename(root / "train", hidden))
        time.sleep(rng.uniform(0.2, 1.5))
        hidden.rename(root / "train")
        codes = processes.end()
        expect(row, codes == [0], f"{codes}: {processes.log()[-1500:]}")
        run.compare(row, lab.reference("joint"))
    return row


# --- checkpoints and numbers ------------------------------------------------------------------------------------------


def checkpoints_damaged(lab: Lab, rng: Random, times: int) -> Row:
    """The newest one loses a byte or its end: it is named, and the one before it is taken."""
    row = Row("checkpoint file flipped, cut or lost")
    while row.injected < times:
        run = Disturbed(lab, "joint", f"checkpoint-{row.injected}", more=["--train.checkpoint_every=2"])
        first = run.start()
        first.wait_for("step", rng.randint(9, 16))
        first.signal(signal.SIGTERM)
        first.end()
        newest = max((run.folder / "checkpoints").glob("step_*"))
        path = newest / rng.choice([MODEL, OPTIMIZER, STATE, MANIFEST])
        _damage(path, rng)
        (run.folder / "DONE").unlink(missing_ok=True)
        run.compare(row, lab.reference("joint"))
        log = (run.traces / "log.0").read_text()
        expect(row, f"checkpoint {newest} is damaged (" in log, log[-1500:])
    return row


def not_finite(lab: Lab, rng: Random, times: int) -> Row:
    """Losses turn NaN, once or until the module is rolled back. Disturbed or not, a run makes the same of it."""
    row = Row("loss not finite; killed and resumed")
    while row.injected < times:
        module, begin = rng.randrange(4), rng.randrange(5, 10)
        count = rng.choice([1, 3])
        options: dict[str, Any] = {
            "not_finite": {str(begin + i): [module] for i in range(count)},
            "more": ["--train.max_nonfinite_steps=3"],
        }
        run = Disturbed(lab, "joint", f"nan-{row.injected}", **options)
        _hit(run, rng, "step", 20, lambda p: p.signal(signal.SIGKILL)).end()
        run.compare(row, lab.reference("joint", **options))
        log = (run.traces / "log.0").read_text()
        said = "rolled back to its weights of step" if count == 3 else f"module {module} skips a step"
        expect(row, said in log, log[-1500:])
    return row


def _damage(path: Path, rng: Random) -> None:
    """One bit is another, half the file is gone, or all of it."""
    kind, size = rng.choice(["flipped", "cut", "lost"]), path.stat().st_size
    if kind == "flipped":
        flip(path, rng.randrange(size))
    elif kind == "cut":
        os.truncate(path, size // 2)
    else:
        path.unlink()


def _new(lab: Lab, name: str) -> Path:
    return lab.folder / f"{name}-{len(list(lab.folder.iterdir()))}"


FAULTS: dict[str, Fault] = {
    "kill": _kills("kill -9 at a random moment", "joint", "step", 9),
    "kill in a save": _kills("kill -9 inside a save", "joint", "save", 6, ("--train.checkpoint_every=1",)),
    "kill in a validation": _kills("kill -9 inside a validation", "joint", "validation", 2),
    "kill in caching": _kills("kill -9 while latents are cached", "stagewise", "latents", 4),
    "kill a rank": _kills("kill -9 of one rank of two", "two ranks", "step", 6),
    "kill a worker": worker_killed,
    "signal": _signals("SIGTERM or SIGUSR2 to the process", "joint", "process"),
    "signal a rank": _signals("SIGTERM or SIGUSR2 to one rank of two", "two ranks", "process"),
    "signal the group": _signals("SIGTERM or SIGUSR2 to the group", "workers", "group"),
    "signal a worker": _signals("SIGTERM or SIGUSR2 to workers only", "workers", "worker"),
    "lease": lease_taken_over,
    "full disk, saving": _full_disk("full disk while saving", ("--train.checkpoint_every=2",), "could not be written"),
    "full disk, logging": _full_disk(
        "full disk while logging", ("--train.checkpoint_every=100", "--train.log_every=1"), "metrics of step"
    ),
    "full disk, packing": full_disk_while_packing,
    "kill packing": packing_killed,
    "damaged shards": shards_damaged,
    "rotten samples": sample_rotten,
    "rotten headers": header_rotten,
    "shards away": shard_away,
    "damaged checkpoints": checkpoints_damaged,
    "not finite": not_finite,
    **{f"{kind} in {name}": write_sites.fault(name, kind) for name in write_sites.CASES for kind in write_sites.KINDS},
}
