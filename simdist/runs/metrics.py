"""Metrics: records in `metrics.jsonl`, which the terminal and wandb mirror.

A record is `{"kind": "train" | "validation", "step": …, "epoch": …, "modules": [{"module": 0, "loss": …, …}, …], …}`.
Those of a stagewise run contain the modules that learn in that stage. A run that resumes at step s first removes the
records after s, so that no step appears twice.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from simdist.config.schema import Config, identity, to_dict
from simdist.core.files import append_json, naming_the_disk, numbered_lines, patiently, replacing, sync, write_text
from simdist.runs.collapsed_modules import collapsed_modules, is_patience_over
from simdist.runs.folder import Run
from simdist.runs.records import MetricsRecord, RecordError, parse_json, read_lines
from simdist.runs.wandb_run import WandbRun

SHOWN = {"train": "train", "validation": "valid"}
_DEAD = "Its ReLUs may be dead. Stop it (Ctrl-C) and try a lower --optim.lr, --optim.warmup_epochs 1, or another --seed"
_REMEDY = {
    "variational": "Its posterior may have collapsed. Stop the run (Ctrl-C) and try --loss.beta_warmup_epochs, a lower "
    "--loss.beta, or a lower --optim.lr",
    "mu": _DEAD,
    "none": _DEAD,
}


class MetricsLog:
    """Writes metrics on rank 0 and does nothing on other ranks.

    Args:
        run: the run folder.
        total_steps: of the progress bar.
        is_main: whether this is rank 0.
    """

    def __init__(self, run: Run[Any], total_steps: int, is_main: bool) -> None:
        self._run, self._total, self._is_main = run, total_steps, is_main
        self._console = Console(soft_wrap=True, highlight=False, quiet=not is_main)
        self._bar: Progress | None = None
        self._wandb: WandbRun | None = None
        self._collapsed: set[int] = set()
        self._unwritten: list[dict[str, Any]] = []

    def log(self, text: str) -> None:
        """Print a line on the terminal."""
        self._console.print(text, markup=False)

    def rewind(self, step: int, inherited: Sequence[Mapping[str, Any]] = ()) -> None:
        """Remove records after `step`, whose steps are trained again.

        Lines that are no records are named and removed too; a copy of the file keeps them.

        Args:
            step: the last one that counts.
            inherited: records of the steps up to there, where another run has taken them.
        """
        if not self._is_main:
            return
        path, kept, damaged = self._run.metrics, [], False
        for line in numbered_lines(path, None):
            try:
                kept += [line.raw.decode() + "\n"] if parse_json(line.raw, MetricsRecord).step <= step else []
            except RecordError as error:
                if not line.is_torn:  # a killed process tears the last line, whose step is trained again
                    self.log(f"warning: {path} is damaged and read without line {line.number}: {error}")
                    damaged = True
        if damaged:
            self.log(f"warning: {path} is written again without these lines; {_keep_copy(path)} has them")
        write_text(path, "".join(json.dumps(line) + "\n" for line in inherited) or "".join(kept))

    def records(self, kind: str) -> list[MetricsRecord]:
        """All records of one kind."""
        return [record for record in read_lines(self._run.metrics, MetricsRecord)[0] if record.kind == kind]

    @contextmanager
    def reporting(self, step: int) -> Iterator[None]:
        """Show a progress bar on a terminal, and run wandb if enabled."""
        self._start_wandb()
        if self._console.is_terminal and self._is_main:
            columns = [TextColumn("step"), MofNCompleteColumn(), BarColumn(), TimeRemainingColumn()]
            self._bar = Progress(*columns, TextColumn("{task.fields[losses]}"), console=self._console, transient=True)
            self._bar.add_task("", total=self._total, completed=step, losses="")
            self._bar.start()
        try:
            yield
        finally:
            if self._bar is not None:
                self._bar.stop()
            if self._wandb is not None:
                self._wandb.finish()

    def advance(self, step: int) -> None:
        """Move the progress bar."""
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], completed=step)

    def record(self, line: dict[str, Any]) -> None:
        """Write a record to the file, wandb, and the terminal."""
        if not self._is_main:
            return
        self._unwritten.append(line)
        try:
            self._write()
        except OSError as error:
            if len(self._unwritten) == 1:
                self.log(
                    f"warning: {self._run.metrics} cannot be written ({error.strerror}); trying again at each record"
                )
        text = describe(line, self._total)
        if self._bar is not None and line["kind"] == "train":
            self._bar.update(self._bar.task_ids[0], losses=text.partition(" | ")[2])
        else:
            self._console.print(text, markup=False)
        if self._wandb is not None:
            self._wandb.log(flatten(line))
        self._warn_about_collapsed_modules(line)

    def flush(self) -> None:
        """Put all records on disk, before a checkpoint that follows them.

        Raises:
            FailedError: they cannot be written. A checkpoint would lose them for good.
        """
        if not self._is_main or not (self._unwritten or self._run.metrics.exists()):
            return
        steps = [line["step"] for line in self._unwritten]
        size = sum(len(json.dumps(line)) for line in self._unwritten)
        what = f"metrics of step {steps[0]}" if steps else "metrics"
        with naming_the_disk(what, self._run.folder, size):
            patiently(self._write)
            patiently(lambda: sync(self._run.metrics))

    def _write(self) -> None:
        while self._unwritten:
            append_json(self._run.metrics, self._unwritten[0])
            del self._unwritten[0]

    def show(self, step: int, sounds: dict[str, Path]) -> None:
        """Log WAV files to wandb."""
        if self._wandb is not None and sounds:
            self._wandb.log({"step": step, **{f"audio/{name}": path for name, path in sounds.items()}})

    def _warn_about_collapsed_modules(self, line: dict[str, Any]) -> None:
        """Warn once per module, on the terminal and in events.jsonl."""
        config = self._run.config
        if not isinstance(config, Config) or not is_patience_over(line["step"], self._total):
            return
        negatives = [config.loss.of(module).num_negatives for module in config.model.modules]
        for module in set(collapsed_modules(line, negatives)) - self._collapsed:
            self._collapsed.add(module)
            self._run.event("idle_module", module=module, step=line["step"])
            self.log(
                f"warning: module {module} has not learned anything in {line['step']} steps: no dimension is "
                f"active, and its InfoNCE is at chance, ln {negatives[module] + 1}. "
                f"{_REMEDY[config.model.head]}"
            )

    def _start_wandb(self) -> None:
        if not self._is_main:
            return
        config, name = self._run.config, self._run.name
        self._wandb = WandbRun(
            config.wandb,
            self.log,
            {"*": "step"},
            name=name,
            id=f"{name}-{identity(config)}"[-64:],
            dir=str(self._run.folder),
            config=to_dict(config),
        )


def _keep_copy(path: Path) -> Path:
    """Copy a file to a new name next to it."""
    number = 1
    while (copy := path.with_name(f"{path.name}.damaged-{number}")).exists():
        number += 1
    with replacing(copy) as temporary:
        shutil.copyfile(path, temporary)
    return copy


def describe(line: dict[str, Any], total_steps: int) -> str:
    """A record as one line for the terminal, with the losses of all modules."""
    modules = line["modules"]
    losses = " ".join(f"{module['loss']:.3f}" for module in modules)
    accuracy = " ".join(f"{module['accuracy']:.2f}" for module in modules if "accuracy" in module)
    stage = f"module {line['stage']} " if "stage" in line else ""
    text = f"{SHOWN[line['kind']]} step {line['step']}/{total_steps} {stage}epoch {line['epoch']:.2f} | "
    text += f"loss {losses}" + (f" | accuracy {accuracy}" if accuracy else "")
    if "samples_per_s" in line:
        text += f" | {line['samples_per_s']:.0f} clips/s, {line['data_wait']:.0%} waiting for data"
    return text


def flatten(line: dict[str, Any]) -> dict[str, float]:
    """A record with flat keys such as `train/module_0/loss`, for wandb."""
    plain = {"step": line["step"]}
    for key, value in line.items():
        if isinstance(value, int | float) and key != "step":
            plain[f"{line['kind']}/{key}"] = value
    for module in line["modules"]:
        prefix = f"{line['kind']}/module_{module['module']}"
        plain |= {f"{prefix}/{key}": value for key, value in module.items() if key != "module"}
    return plain
