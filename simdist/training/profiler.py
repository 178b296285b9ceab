"""Profile of a training step by module: a table from timers, then a trace from torch's profiler.

A profile wraps timers around methods of the modules and removes them afterwards, so that a run without a profile has no
overhead. Timers synchronize the GPU, so that times add up but hide overlap, which the trace of other steps shows.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch.profiler import ProfilerActivity, profile, record_function

from simdist.core.files import TEMPORARY
from simdist.data.loader import Batch
from simdist.training.step import ModuleTrainer, NumberedModule

PARTS = ("draws", "forward", "loss", "backward", "optimizer", "communication")
"""Parts of a module's step: random inputs; layers, heads and KL; InfoNCE; ...; waiting for communication."""
WARM_UP, TIMED, TRACED = 3, 5, 2  # steps
Key = tuple[str, int | None]


@dataclass
class Times:
    """Seconds of some steps."""

    parts: dict[Key, float] = field(default_factory=lambda: defaultdict(float))
    """By (part, module), without nested parts. ("data", None) is the wait for a batch."""
    whole: float = 0.0
    """From requesting a batch to the end of the step."""
    steps: int = 0

    def table(self) -> Table:
        """Milliseconds per step: one row per module, then data, other, and the whole step."""
        table = Table(title=f"milliseconds per step, mean of {self.steps}")
        for name in ("module", *PARTS, "all", "share"):
            table.add_column(name, justify="right")
        modules = sorted({module for _, module in self.parts if module is not None})
        for module in modules:
            self._add(table, str(module), [self.parts.get((part, module), 0.0) for part in PARTS])
        data = self.parts.get(("data", None), 0.0)
        self._add(table, "data", [], data)
        self._add(table, "other", [], self.whole - sum(self.parts.values()))
        table.add_section()
        columns = [sum(self.parts.get((part, module), 0.0) for module in modules) for part in PARTS]
        self._add(table, "step", columns, self.whole)
        return table

    def _add(self, table: Table, name: str, seconds: list[float], total: float | None = None) -> None:
        total = sum(seconds) if total is None else total
        cells = [f"{1e3 * value / self.steps:.1f}" for value in seconds] or [""] * len(PARTS)
        table.add_row(name, *cells, f"{1e3 * total / self.steps:.1f}", f"{total / self.whole:.0%}")


class StepProfile:
    """Measures the first steps of a training and then removes itself.

    Args:
        folder: for `trace.json` and `table.txt`.
        modules: what is trained.
        device: of the training.
        log: prints a line.
        trace: whether to trace two steps and write both files, instead of only measuring `times`.
    """

    def __init__(
        self,
        folder: Path,
        modules: Sequence[NumberedModule],
        device: torch.device,
        log: Callable[[str], None],
        trace: bool = True,
    ) -> None:
        self._folder, self._modules, self._device, self._log = folder, modules, device, log
        self._traces = TRACED if trace else 0
        self.times = Times()
        self._open: list[float] = []
        self._undo: list[Callable[[], None]] = []
        self._profiler: profile | None = None
        self._count, self._since = 0, 0.0
        self._last = WARM_UP + TIMED + self._traces

    def watched(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """The same batches, with timers around the wait for each."""
        while True:
            self._begin_step()
            with self._region("data", None):
                batch = next(batches, None)
            if batch is None:
                return
            yield batch

    def step_taken(self) -> None:
        """Count a step, and report after the last one."""
        if self._count >= self._last:
            return
        self._count += 1
        if WARM_UP < self._count <= WARM_UP + TIMED:
            self._wait()
            self.times.whole += time.perf_counter() - self._since
            self.times.steps += 1
        if self._count == self._last:
            self._report()

    def _begin_step(self) -> None:
        if self._count == WARM_UP and not self._undo:
            self._take_apart()
        elif self._count == WARM_UP + TIMED and self._traces and self._profiler is None:
            self._profiler = self._start_trace()
        self._wait()
        self._since = time.perf_counter()

    def _take_apart(self) -> None:
        """Wrap timers around the parts of each module."""
        for module in self._modules:
            number = module.number
            self._time(module.module, "draw", "draws", number)
            self._time(module.module, "forward", "forward", number)
            self._time(module.module, "score", "loss", number)
            if isinstance(module, ModuleTrainer):
                self._time(module, "backward", "backward", number)
                self._time(module, "update", "optimizer", number)
                if module.reduction is not None:
                    self._time(module.reduction, "wait", "communication", number)

    def _time(self, owner: Any, name: str, part: str, module: int) -> None:
        inner: Callable[..., Any] = getattr(owner, name)
        was_own = name in vars(owner)

        def timed(*args: Any, **kwargs: Any) -> Any:
            with self._region(part, module):
                return inner(*args, **kwargs)

        setattr(owner, name, timed)
        self._undo.append(lambda: setattr(owner, name, inner) if was_own else delattr(owner, name))

    def _region(self, part: str, module: int | None) -> AbstractContextManager[object]:
        name = part if module is None else f"{part} of module {module}"
        if self._profiler is not None:
            return record_function(name)
        return self._timer((part, module))

    @contextmanager
    def _timer(self, key: Key) -> Iterator[None]:
        """Add the time of the context, without nested timers, to `key`."""
        self._wait()
        start = time.perf_counter()
        self._open.append(0.0)
        try:
            yield
        finally:
            self._wait()
            elapsed = time.perf_counter() - start
            within = self._open.pop()
            if self._open:
                self._open[-1] += elapsed
            if WARM_UP <= self._count < WARM_UP + TIMED:
                self.times.parts[key] += elapsed - within

    def _wait(self) -> None:
        if self._device.type == "cuda" and self._profiler is None and self._count < WARM_UP + TIMED:
            torch.cuda.synchronize(self._device)

    def _start_trace(self) -> profile:
        activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (self._device.type == "cuda")
        profiler = profile(activities=activities)
        profiler.start()
        return profiler

    def _report(self) -> None:
        """Remove the timers, write the trace, print the table."""
        for undo in reversed(self._undo):
            undo()
        self._undo.clear()
        if self._profiler is None:
            return
        self._profiler.stop()
        self._folder.mkdir(parents=True, exist_ok=True)
        trace, unfinished = self._folder / "trace.json", self._folder / f"{TEMPORARY}trace.json"
        self._profiler.export_chrome_trace(str(unfinished))
        unfinished.rename(trace)
        console = Console(width=120)
        with console.capture() as capture:
            console.print(self.times.table())
        (self._folder / "table.txt").write_text(capture.get())
        for line in capture.get().splitlines():
            self._log(line)
        self._log(f"trace of {TRACED} steps: {trace} (open it in https://ui.perfetto.dev)")

    def close(self) -> None:
        """Log if the training ended too early for a report."""
        if self._count < self._last:
            if self._profiler is not None:
                self._profiler.stop()
            self._log(f"no profile: it needs {self._last} steps, and the run had {self._count}")
