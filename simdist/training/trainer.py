"""The training loop: one object that knows where a run is, and takes it to its end."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict
from itertools import islice
from typing import Any, cast

import torch
from torch import Tensor

from simdist.core.errors import EXIT_FAILED, FailedError, InputError
from simdist.data.loader import Batch
from simdist.runs.folder import Run
from simdist.runs.lease import Lease
from simdist.runs.metrics import MetricsLog
from simdist.runs.schedule import Schedule
from simdist.runs.throughput import Throughput
from simdist.training.accelerator import Process
from simdist.training.bad_steps import BadSteps
from simdist.training.checkpoint import (
    Checkpoint,
    Retention,
    good_checkpoints,
    latest_checkpoint,
    load_checkpoint,
    remove_unfinished,
)
from simdist.training.profiler import StepProfile
from simdist.training.saving import AsyncCheckpointer
from simdist.training.step import Course, Step
from simdist.training.task import Task


class Trainer:
    """Trains one task in one run folder.

    What goes wrong on one rank (a disk, a shard, a lost lease) is kept until the ranks next agree, between two steps;
    then all of them end with its message, and none waits in a collective for one that is gone.

    Args:
        run: the folder, with the resolved config.
        task: what is trained.
        process: this process among the others.

    Raises:
        InputError: the run's checkpoints do not fit.
    """

    def __init__(self, run: Run[Any], task: Task, process: Process) -> None:
        config = run.config
        self.run, self.config, self.task, self._process = run, config, task, process
        self._accelerator = process.accelerator
        self._is_main = self._accelerator.is_main_process
        self.schedule = Schedule(config, task.num_clips)
        self.metrics = MetricsLog(run, self.schedule.total_steps, self._is_main)
        self.lease: Lease | None = None
        """Rank 0's right to write the run; None where there is no other process to fear."""
        self.profile: StepProfile | None = None
        """Watches the first steps, if it is wanted."""
        self.step = 0
        self._consumed = 0
        self._failure: InputError | None = None
        self._bad_steps = BadSteps(len(task.modules), self._accelerator.device)
        self._bad_samples: set[str] = set()
        self._news: set[str] = set()
        retention = Retention(config.train.keep_last, config.train.keep_every)
        self._saver = AsyncCheckpointer(run.checkpoints, retention, self._check_lease)
        self._meter = Throughput(config)

    def fit(self) -> int:
        """Train to the end, or until a stop request; returns the signal that stopped it, 0 if it is finished.

        Raises:
            InputError: it cannot go on, on this or another rank. Everything up to the last checkpoint is safe.
        """
        if self._is_main:
            self.metrics.rewind(self.step)
        with self._process.watchdog.watching(), self.metrics.reporting(self.step):
            try:
                stopped = self._catch_up()
                while not stopped and self.step < self.schedule.total_steps:
                    stopped = self._run_stage(self.schedule.stage(self.step))
            except InputError:
                self._save()  # what is in memory is good: only the next step cannot be taken
                raise
            finally:
                with self._held():
                    self._saver.finish()
            self._agree()
        return stopped

    def resume(self) -> int:
        """Go back to the newest complete checkpoint, if there is one; returns the step."""
        if self._is_main:
            remove_unfinished(self.run.checkpoints)
        self._accelerator.wait_for_everyone()
        found = latest_checkpoint(self.run.checkpoints, self.metrics.log)
        if found is not None:
            self._restore(load_checkpoint(found))
        elif self.run.has_begun:
            raise InputError(
                f"{self.run.folder} has no complete checkpoint left to go on from; restore one below "
                f"{self.run.checkpoints}, or start in another folder with --run-dir"
            )
        return self.step

    def describe(self) -> list[str]:
        """What is about to happen, for the terminal."""
        *lines, last = self.task.describe()
        return [*lines, f"{last}, {self._course()}"]

    def _course(self) -> str:
        """How long the run is."""
        table = self.schedule
        epochs = f"{table.epoch_after(table.total_steps):.4g} epochs"
        if table.stages == 1:
            return f"{table.total_steps} steps = {epochs}"
        return f"{table.total_steps} steps: {table.stages} stages of {table.stage_steps} steps = {epochs}"

    def _run_stage(self, stage: int) -> int:
        """Train one stage to its end, or until a stop request."""
        end = (stage + 1) * self.schedule.stage_steps
        last = self._consumed + (end - self.step) * self.config.data.batch_size
        batches = self.task.batches(stage, self._consumed, last, self.metrics.log)
        if batches is None:
            return self._process.stopped()
        if self.profile is not None:
            batches = self.profile.watched(batches)
        self._meter.reset(self.step)
        stopped = 0
        while not stopped and self.step < end:
            batch = self._fetch(batches)
            stopped = self._agree()
            if batch is not None and not stopped:
                self._take_step(stage, batch)
                if self.profile is not None:
                    self.profile.step_taken()
                if self.schedule.validates(self.step):
                    stopped = self._validate()
            if stopped or self.schedule.saves(self.step):
                self._agree(everything=True)
                self._save()
        return stopped

    def _fetch(self, batches: Iterator[Batch]) -> Batch | None:
        """The next batch; None if there is none to be had, which the next agreement tells all ranks."""
        with self._held(), self._meter.waiting():
            batch = next(batches)
            self._news.update(set(batch.skipped) - self._bad_samples)
            return batch
        return None

    def _take_step(self, stage: int, batch: Batch) -> None:
        table, number = self.schedule, self.step + 1
        measure = table.logs(number)
        step = Step(self.step, table.lr(self.step), table.beta(self.step), measure)
        outcome = self.task.step(stage, batch, step)
        self.step = number
        self._consumed = 0 if table.ends_stage(number) and number < table.total_steps else batch.consumed
        self._bad_steps.push(self.task.learning(stage), outcome.bad)
        self._process.watchdog.progress()
        if measure:
            self._record("train", [outcome.metrics], {"lr": step.lr, "beta": step.beta, **self._meter.read(number)})
        self.metrics.advance(number)

    def _agree(self, everything: bool = False) -> int:
        """All ranks hear of each other's signals, failures and skipped steps; returns the signal to stop for, or 0."""
        with self._held():
            self._check_lease()
            self._saver.check()
        arrived = self._bad_steps.arrived(everything)
        flags = [flag for step in arrived for flag in step]
        signal_number, failed, news, *flags = self._process.hosts.maximum(
            self._process.stop.signal_number, int(self._failure is not None), int(bool(self._news)), *flags
        )
        if news:
            self._pass_over_samples()
        if failed:
            self._fail()
        width = len(self._bad_steps.in_a_row)
        for first in range(0, len(flags), width):
            self._count_bad_step(flags[first : first + width])
        return signal_number

    def _fail(self) -> None:
        """Raise the first rank's failure on all of them."""
        told = None if self._failure is None else (str(self._failure), self._failure.exit_code)
        message, code = next(each for each in self._process.hosts.gather(told) if each is not None)
        raise (FailedError if code == EXIT_FAILED else InputError)(message) from self._failure

    def _pass_over_samples(self) -> None:
        """Some rank met samples that do not decode: write down which, and end if they are too many."""
        new = set().union(*self._process.hosts.gather(self._news)) - self._bad_samples
        self._bad_samples |= new
        self._news = set()
        for reason in sorted(new):
            self.metrics.log(f"passed over: {reason}")
            self._event("bad_sample", step=self.step, reason=reason)
        limit = self.config.data.max_bad_samples
        if len(self._bad_samples) > limit:
            raise FailedError(
                f"{len(self._bad_samples)} samples do not decode, more than data.max_bad_samples {limit}: "
                f"{sorted(self._bad_samples)[0]}; the others are in {self.run.folder / 'events.jsonl'}"
            )

    def _count_bad_step(self, flags: list[int]) -> None:
        """A step has been skipped by some modules, or by none; the one to blame may have to go back."""
        for module, flag in zip(self.task.modules, flags, strict=True):
            module.course.fruitless *= flag
        blamed = self._bad_steps.count(flags)
        if blamed is None:
            return
        in_a_row = self._bad_steps.in_a_row[blamed]
        if in_a_row == 1:
            self.metrics.log(f"module {blamed} skips a step before step {self.step}: loss or gradient is not finite")
            self._event("bad_step", step=self.step, module=blamed)
        if in_a_row >= self.config.train.max_nonfinite_steps:
            self._roll_back(blamed, in_a_row)

    def _roll_back(self, number: int, in_a_row: int) -> None:
        """Take one module, and only that one, back to the last checkpoint, and let it go on differently."""
        settings, course = self.config.train, self.task.modules[number].course
        why = f"module {number} had no finite loss and gradient in {in_a_row} steps in a row up to step {self.step}"
        if course.rollbacks >= settings.max_rollbacks:
            raise FailedError(
                f"{why}, and was rolled back {course.rollbacks} times before (train.max_rollbacks); "
                "look at its losses in metrics.jsonl and begin anew with a lower --optim.lr or --optim.clip_grad_norm 1"
            )
        with self._held():
            self._saver.finish()
            self._saver.forget()
        self._accelerator.wait_for_everyone()
        saved = map(load_checkpoint, good_checkpoints(self.run.checkpoints, self.metrics.log))
        # the newest, unless the module has been there in vain
        checkpoint = next(islice((each for each in saved if _took_steps(each, number)), course.fruitless, None), None)
        if checkpoint is None or not checkpoint.optimizer:
            self.task.load_module(number, checkpoint and checkpoint.model, None)
        else:
            self.task.load_module(number, checkpoint.model, checkpoint.optimizer[number])
        self._bad_steps.in_a_row[number] = 0
        course.rollbacks += 1
        course.fruitless += 1
        if settings.after_rollback == "lr":
            course.lr_scale /= 2
            change = f"its learning rate times {course.lr_scale:g}"
        else:
            course.reseeds += 1
            change = "other noise and negatives"
        to = checkpoint.step if checkpoint else 0
        self.metrics.log(f"{why}: it goes back to its weights of step {to}, with {change}; the others go on")
        self._event("rolled_back", step=self.step, module=number, to_step=to, **asdict(course))

    def _save(self) -> None:
        """Begin to write a checkpoint of this step."""
        optimizer, courses = self.task.state(), [module.course for module in self.task.modules]
        if not self._is_main:
            return
        checkpoint = Checkpoint(
            step=self.step,
            consumed=self._consumed,
            fingerprint=self.task.fingerprint,
            model=self.task.model.state_dict(),
            optimizer=optimizer,
            courses=[asdict(course) for course in courses] if any(course != Course() for course in courses) else [],
            bad_steps=list(self._bad_steps.in_a_row) if any(self._bad_steps.in_a_row) else [],
            bad_samples=sorted(self._bad_samples),
        )
        with self._held():
            self._saver.save(checkpoint)

    def _restore(self, checkpoint: Checkpoint) -> None:
        if checkpoint.fingerprint not in ("", self.task.fingerprint):
            raise InputError(
                f"the training split holds other data than the run in {self.run.folder} was trained on (fingerprint "
                f"{self.task.fingerprint[:12]}, was {checkpoint.fingerprint[:12]}); restore it, or name a new --run-dir"
            )
        self.task.load(checkpoint.model, checkpoint.optimizer)
        self.step, self._consumed = checkpoint.step, checkpoint.consumed
        self._bad_samples = set(checkpoint.bad_samples)
        self._bad_steps.in_a_row = checkpoint.bad_steps or self._bad_steps.in_a_row
        for module, course in zip(self.task.modules, checkpoint.courses, strict=False):
            module.course = Course(**course)

    def _check_lease(self) -> None:
        if self.lease is not None:
            self.lease.check()

    @contextmanager
    def _held(self) -> Iterator[None]:
        """Keep a failure until the ranks next agree."""
        try:
            yield
        except InputError as error:
            self._failure = self._failure or error

    def _event(self, name: str, **fields: Any) -> None:
        if self._is_main:
            with self._held():
                self._check_lease()
                self.run.event(name, **fields)

    def _catch_up(self) -> int:
        """A run that was stopped during a validation does it first."""
        done = {line["step"] for line in self.metrics.lines("validation")}
        due = self.schedule.validates(self.step) and self.step not in done
        return self._validate() if self._process.hosts.maximum(int(due))[0] else 0

    def _validate(self) -> int:
        """Metrics on the test split; returns the signal that cut it short, 0 if it was completed."""
        last = self.step - 1
        step = Step(self.step, self.schedule.lr(last), self.schedule.beta(last))
        outcomes: list[list[dict[str, Tensor]]] = []
        stopped = self._agree()
        with closing(self.task.validation(self.schedule.stage(last), step)) as measured:
            while not stopped:
                outcome = self._next_outcome(measured)
                if outcome is None and self._failure is None:  # on all ranks: they look at equally many batches
                    break
                outcomes.append(outcome or [])
                stopped = self._agree()
                self._process.watchdog.progress()
        if not stopped:
            self._record("validation", outcomes, {"clips": self.task.validation_clips})
            with self._held():
                self.metrics.show(self.step, self.task.show(self.step))
        self._meter.reset(self.step)
        return stopped

    def _next_outcome(self, measured: Iterator[list[dict[str, Tensor]]]) -> list[dict[str, Tensor]] | None:
        with self._held():
            return next(measured, None)
        return None

    def _record(self, kind: str, outcomes: list[list[dict[str, Tensor]]], extra: dict[str, Any]) -> None:
        """Average over batches and ranks, and write the line."""
        names = [list(module) for module in outcomes[0]]
        values = torch.stack(
            [torch.cat([torch.stack(list(module.values())) for module in batch]) for batch in outcomes]
        )
        means = iter(cast("Tensor", self._accelerator.reduce(values.mean(dim=0), "mean")).tolist())
        stage = self.schedule.stage(self.step - 1)
        modules = [
            {"module": trainer.number, **{name: next(means) for name in module}}
            for trainer, module in zip(self.task.learning(stage), names, strict=True)
        ]
        where = {"stage": stage} if self.schedule.stages > 1 else {}
        line = {"kind": kind, "step": self.step, "epoch": self.schedule.epoch_after(self.step), **where}
        with self._held():
            self._check_lease()
            self.metrics.record({**line, "modules": modules, **extra})


def _took_steps(checkpoint: Checkpoint, number: int) -> bool:
    """Whether a module took the step before; else it holds the weights with which it could not."""
    skipped = checkpoint.bad_steps[number] if checkpoint.bad_steps else 0
    return not skipped and not (checkpoint.courses and checkpoint.courses[number].get("fruitless"))
