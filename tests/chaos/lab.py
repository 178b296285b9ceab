"""Runs that are disturbed, and what they are compared with: the same run when nobody disturbs it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from simdist.config.load import CONFIGS
from simdist.runs.checkpoints import latest_checkpoint
from simdist.training.checkpoint import load_checkpoint
from tests.chaos.child import Order
from tests.support.forked import Zygote, free_port
from tests.support.packing_cases import SmallCorpus, small_corpus
from tests.support.training import lines, short_training

SLOW = 240.0  # seconds after which a process that should have ended counts as hung
VARIANTS: dict[str, list[str]] = {
    "joint": ["--train.max_steps=24", "--data.num_workers=0"],
    "workers": ["--train.max_steps=24", "--data.num_workers=2"],
    "two ranks": ["--train.max_steps=16", "--data.num_workers=0"],
    "stagewise": ["--train.max_steps=6", "--train.schedule=stagewise", "--train.cache_latents=true"],
}
WORLD = {"two ranks": 2}
PREEMPTED, FAILED, BAD_INPUT = 75, 1, 2
CPU = {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}


@dataclass
class Result:
    """What a finished run left."""

    weights: dict[str, Tensor]
    lines: list[dict[str, Any]]
    batches: dict[tuple[int, int, int], list[str]]
    """Keys of the last time that each (rank, stage, number of samples consumed) was trained on."""


@dataclass
class Row:
    """A line of the table."""

    fault: str
    injected: int = 0
    survived: int = 0
    lost: int = 0
    repeated: int = 0
    equal: bool = True
    notes: list[str] = field(default_factory=list)


def expect(row: Row, condition: bool, what: str) -> None:
    """Count a fault as survived, or note what else happened."""
    row.injected += 1
    row.survived += condition
    if not condition:
        row.notes.append(what)


class Processes:
    """All ranks of one start of a command."""

    def __init__(self, zygote: Zygote, orders: Sequence[Order]) -> None:
        self.orders = list(orders)
        self._marked = {name: self.count(name) for name in ("step", "save", "validation", "latents")}
        self.ranks = [
            zygote.call("tests.chaos.child:obey", {"order": asdict(order)}, order.environ, self._log(order))
            for order in self.orders
        ]

    def signal(self, number: int, rank: int = 0, group: bool = False) -> None:
        try:
            (os.killpg if group else os.kill)(self.ranks[rank].pid, number)
        except ProcessLookupError:
            return

    def count(self, phase: str, rank: int = 0) -> int:
        path = Path(self.orders[rank].traces) / f"phases.{rank}"
        return path.read_text().count(f'"{phase}"\n') if path.exists() else 0

    def wait_for(self, phase: str, times: int) -> bool:
        """Whether a phase has begun so often since the start; not if the process ended before."""
        begin = time.monotonic()
        while self.count(phase) < self._marked[phase] + times:
            if self.ranks[0].poll() is not None or time.monotonic() - begin > SLOW:
                return False
            time.sleep(0.002)
        return True

    def workers(self) -> list[int]:
        """Process ids of the first rank's loader workers: children of the fork server that it started."""
        return [pid for child in _children(self.ranks[0].pid) for pid in _children(child)]

    def end(self, patience: float = SLOW) -> list[int | None]:
        """Exit codes; what does not end by itself is killed, group and all, and has none."""
        until = time.monotonic() + patience
        codes = [process.wait(until - time.monotonic()) for process in self.ranks]
        for rank in range(len(self.ranks)):
            self.signal(signal.SIGKILL, rank, group=True)
        for process in self.ranks:
            process.wait(SLOW)
        return codes

    def log(self) -> str:
        return "".join(path.read_text() for path in map(self._log, self.orders) if path.exists())

    @staticmethod
    def _log(order: Order) -> Path:
        return Path(order.traces) / f"log.{order.rank}"


class Disturbed:
    """One run folder: started, hit, started again, until it finishes."""

    def __init__(self, lab: Lab, variant: str, name: str, folder: Path | None = None, **options: Any) -> None:
        self.lab, self.variant = lab, variant
        self.traces = lab.folder / f"{name}-traces"
        self.traces.mkdir()
        self.folder = folder or lab.folder / name
        self.root = Path(options.pop("root", lab.shards))
        self.more: list[str] = options.pop("more", [])
        self.options = options

    def start(self, *more: str) -> Processes:
        """The same command, whatever happened to the last one."""
        world = WORLD.get(self.variant, 1)
        argv = [*self.lab.arguments(self.variant, self.root), f"--run-dir={self.folder}", *self.more, *more]
        common = CPU
        if world > 1:
            common = common | {"WORLD_SIZE": str(world), "LOCAL_WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1"}
            common |= {"MASTER_PORT": str(free_port())}
        ranks = [{"RANK": str(r), "LOCAL_RANK": str(r)} if world > 1 else {} for r in range(world)]
        orders = [Order(argv, str(self.traces), r, common | ranks[r], **self.options) for r in range(world)]
        return Processes(self.lab.zygote, orders)

    def finish(self) -> str:
        """Run it to its end; returns what was printed then, or why it did not finish."""
        processes = self.start()
        codes = processes.end()
        return "" if set(codes) == {0} else f"exit codes {codes}: {processes.log()[-2000:]}"

    def result(self) -> Result:
        """What a run that finished left."""
        found = latest_checkpoint(self.folder / "checkpoints", lambda text: None)
        assert found is not None
        weights = {name: tensor.clone() for name, tensor in load_checkpoint(found).model.items()}
        batches = {}
        for path in self.traces.glob("keys.*"):
            for line in path.read_text().splitlines():
                stage, consumed, keys = json.loads(line)
                batches[int(path.suffix[1:]), stage, consumed] = keys
        return Result(weights, lines(self.folder), batches)

    def compare(self, row: Row, reference: Result) -> None:
        """Finish the run, and count in `row` what differs from the undisturbed one."""
        problem = self.finish()
        if problem:
            row.equal = False
            row.notes.append(problem)
            return
        ours = self.result()
        expected, trained = (Counter(_flat(result)) for result in (reference, ours))
        row.lost += (expected - trained).total()
        row.repeated += (trained - expected).total()
        same = ours.weights.keys() == reference.weights.keys() and all(
            torch.equal(ours.weights[name], reference.weights[name]) for name in ours.weights
        )
        if not same or ours.lines != reference.lines:
            row.equal = False
            row.notes.append(f"{self.folder} has other {'metrics' if same else 'weights'}")
        else:
            shutil.rmtree(self.folder, ignore_errors=True)


class Lab:
    """Data, and undisturbed runs that are made once.

    Args:
        folder: for everything; a new one.
        zygote: forks the processes of all runs.
    """

    def __init__(self, folder: Path, zygote: Zygote) -> None:
        self.folder, self.zygote = folder, zygote
        self.corpus = small_corpus(folder / "corpus", speakers=4, utterances=8, num_samples=8000)
        self.shards = folder / "shards"
        pack(self.corpus, self.shards, "--encoding=flac", "--shard-samples=4").communicate()
        self._references: dict[tuple[str, ...], Result] = {}
        self.undisturbed: dict[str, tuple[int, dict[str, Any]]] = {}
        """Of the commands in `write_sites`: number of operations that write, and what is left."""

    def arguments(self, variant: str, root: Path) -> list[str]:
        return [
            *("--config", str(CONFIGS / "sim_librispeech.yaml"), "--config", str(CONFIGS / "debug.yaml")),
            *("--data.crop=5120", "--loss.prediction_steps=4", "--loss.num_negatives=5", f"--data.root={root}"),
            *("--train.precision=no", "--train.checkpoint_every=4", "--train.validate_every=0.6"),
            *("--train.log_every=3", "--train.validate_batches=100", *VARIANTS[variant]),
        ]

    def trained(self) -> Path:
        """A run that others are made from; not to be written to."""
        folder = self.folder / "trained"
        if not folder.exists():
            argv = short_training(self.shards, folder, "--train.max_steps=4", "--data.num_workers=0")
            printed, _ = self.zygote.command("simdist.train", *argv, environ=CPU).communicate(SLOW)
            assert (folder / "DONE").exists(), printed
        return folder

    def reference(self, variant: str, **options: Any) -> Result:
        """The run that nobody disturbs."""
        key = (variant, repr(sorted(options.items())))
        if key not in self._references:
            run = Disturbed(self, variant, f"undisturbed-{len(self._references)}", **options)
            problem = run.finish()
            assert not problem, problem
            self._references[key] = run.result()
        return self._references[key]


def pack(corpus: SmallCorpus, out: Path, *more: str) -> subprocess.Popen[str]:
    """The packing command, as a user starts it."""
    command = [sys.executable, "-m", "simdist.pack", *corpus.arguments(out, "--min-samples=5120", *more)]
    return subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True
    )


def _children(pid: int) -> list[int]:
    path = Path(f"/proc/{pid}/task/{pid}/children")
    try:
        return [int(child) for child in path.read_text().split()]
    except (FileNotFoundError, ProcessLookupError):
        return []


def _flat(result: Result) -> list[tuple[int, int, int, str]]:
    return [(*place, key) for place, keys in result.batches.items() for key in keys]
