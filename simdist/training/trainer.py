"""The training loop."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from typing import Any, cast

from torch import Tensor

from simdist.core.errors import InputError
from simdist.core.signals import StoppedError
from simdist.data.loader import Batch
from simdist.runs.folder import Run
from simdist.runs.lease import Lease
from simdist.runs.metrics import MetricsLog
from simdist.runs.schedule import Schedule
from simdist.training import shared_checkpoints
from simdist.training.agreement import Agreement
from simdist.training.checkpoint import AsyncCheckpointer, Checkpoint, Retention
from simdist.training.distributed import Process, mean_metrics
from simdist.training.profiler import StepProfile
from simdist.training.recovery import Recovery
from simdist.training.step import Step, StepOutcome
from simdist.training.stragglers import StragglerWatch
from simdist.training.task import TrainingTask, restore, snapshot
from simdist.training.throughput import Throughput


class Trainer:
    """Trains one task in one run folder.

    A failure on one rank (a full disk, an unreadable shard, a lost lease) is held until the next `Agreement`.

    Args:
        run: the run folder, with the resolved config.
        task: what is trained.
        process: this process in its world.

    Raises:
        InputError: the run's checkpoints do not fit.
    """

    def __init__(self, run: Run[Any], task: TrainingTask, process: Process) -> None:
        config = run.config
        self.run, self.config, self.task, self._process = run, config, task, process
        self._accelerator = process.accelerator
        self._is_main, self._watchdog = self._accelerator.is_main_process, process.watchdog
        self.schedule = Schedule(config, task.num_clips)
        self.metrics = MetricsLog(run, self.schedule.total_steps, self._is_main)
        self.lease: Lease | None = None
        """Rank 0's right to write the run."""
        self.profile: StepProfile | None = None
        """Measures the first steps, if set."""
        self.step = 0
        self._consumed = 0
        self._inherited: list[dict[str, Any]] = []
        self._ranks = Agreement(process, config.data.max_bad_samples, self._record_corrupt_sample)
        retention = Retention(config.train.keep_last, config.train.keep_every)
        self._checkpointer = AsyncCheckpointer(run.checkpoints, retention, self._check_lease)
        device = self._accelerator.device
        self._throughput = Throughput(config, device, self._accelerator.num_processes)
        self._stragglers = StragglerWatch(process.cpu_group, self.metrics.log, self._event)
        self._recovery = Recovery(task, config.train, device, self._checkpoints, self.metrics.log, self._event)

    def fit(self) -> None:
        """Train to the end.

        Raises:
            StoppedError: on all ranks, if any rank was asked to stop; everything is saved.
            InputError: on all ranks, if any rank cannot continue; everything up to the last step is saved.
        """
        if self._is_main:
            self.metrics.rewind(self.step, self._inherited)
        with self.metrics.reporting(self.step), self._saving_at_the_end():
            self._validate_if_interrupted()
            while self.step < self.schedule.total_steps:
                stage = self.schedule.stage(self.step)
                batches, stage_end = self._open(stage), (stage + 1) * self.schedule.stage_steps
                while self.step < stage_end:
                    batch = self._next(batches)
                    self._agree()
                    self._watchdog.progress("training", self.step)
                    step = Step.at(self.step, self.schedule)
                    with self._throughput.taking_step():
                        outcome = self.task.step(stage, batch, step)
                    self._complete(stage, batch, step, outcome)
                    if self.schedule.validates(self.step):
                        self._validate()
                    if self.schedule.saves(self.step):
                        self._settle(everything=True)
                        self._save()

    def resume(self) -> int:
        """Load the newest complete checkpoint, or what the task begins with, if there is either. Returns the step."""
        checkpoint = shared_checkpoints.newest(self.run, self._process, self.metrics.log)
        is_own = checkpoint is not None
        if checkpoint is None and (beginning := self.task.beginning()) is not None:
            checkpoint, self._inherited = beginning.checkpoint, beginning.records
        if checkpoint is not None:
            restore(self.task, checkpoint, self.run.folder)
            if self._is_main and is_own:
                self._checkpointer.prune(checkpoint.step)  # a process was killed before it came to that
            self.step, self._consumed = checkpoint.step, checkpoint.consumed
            self._ranks.corrupt = set(checkpoint.bad_samples)
            self._recovery.skipped = checkpoint.nonfinite_steps or self._recovery.skipped
        return self.step

    def _open(self, stage: int) -> Iterator[Batch]:
        """The batches from here to the end of a stage."""
        steps = (stage + 1) * self.schedule.stage_steps - self.step
        last = self._consumed + steps * self.config.data.batch_size
        batches = self.task.batches(stage, self._consumed, last, self.metrics.log)
        self._throughput.reset(self.step)
        self._stragglers.restart()
        return batches if self.profile is None else self.profile.watched(batches)

    def _next(self, batches: Iterator[Batch]) -> Batch:
        """The next batch. If there is none, the next agreement of the ranks raises the reason."""
        self._watchdog.progress("loading data", self.step)
        with self._ranks.held(), self._throughput.spending("data"):
            batch = next(batches)
            self._ranks.skip(batch.skipped)
            return batch
        return cast("Batch", None)

    def _complete(self, stage: int, batch: Batch, step: Step, outcome: StepOutcome) -> None:
        """Count a step, and record its metrics."""
        self.step += 1
        is_last_of_stage = self.schedule.ends_stage(self.step) and self.step < self.schedule.total_steps
        self._consumed = 0 if is_last_of_stage else batch.consumed
        self._recovery.push(self.task.learning(stage), outcome.nonfinite)
        self._watchdog.started()
        if step.measure:
            speed, times = self._throughput.read(self.step)
            with self._throughput.spending("saving"):
                ranks = self._stragglers.record(times, self.step)
                self._record("train", [outcome.metrics], {"lr": step.lr, "beta": step.beta, **speed, **ranks})
        self.metrics.advance(self.step)
        if self.profile is not None:
            self.profile.step_taken()

    def _agree(self) -> None:
        """Raise `StoppedError` on all ranks if any was asked to stop; see `_settle` for failures."""
        if signal_number := self._settle():
            raise StoppedError(signal_number)

    def _settle(self, everything: bool = False) -> int:
        """Act on failures, corrupt samples and skipped steps of all ranks. Returns the stop signal of any rank, or 0.

        Args:
            everything: wait for the flags of all steps, before a checkpoint.
        """
        self._watchdog.progress("agreeing with the other ranks")
        with self._ranks.held():
            self._check_lease()
            self._checkpointer.check()
        with self._throughput.spending("agreement"):
            signal_number, flags = self._ranks.reach(self._recovery.flags(everything))
        self._recovery.count(flags, self.step)
        return signal_number

    def _record_corrupt_sample(self, reason: str) -> None:
        self.metrics.log(f"skipping corrupt sample: {reason}")
        self._event("bad_sample", step=self.step, reason=reason)

    def _check_lease(self) -> None:
        if self.lease is not None:
            self.lease.check()

    def _event(self, name: str, **fields: Any) -> None:
        if self._is_main:
            with self._ranks.held():
                self._check_lease()
                self.run.event(name, **fields)

    @contextmanager
    def _saving_at_the_end(self) -> Iterator[None]:
        """Save when the body is stopped or fails, and wait until everything is on disk."""
        stopped = None
        try:
            try:
                yield
            except StoppedError as error:
                stopped = error
                self._settle(everything=True)
                self._save()
        except InputError:
            self._save()  # the step in memory is good; only the next one cannot be taken
            raise
        finally:
            with self._ranks.held():
                self._checkpointer.finish()
        self._settle()
        if stopped is not None:
            raise stopped

    def _save(self) -> None:
        """Start to write a checkpoint of this step."""
        self._watchdog.progress("saving")
        with self._throughput.spending("saving"):
            checkpoint = snapshot(self.task, self.step, self._consumed, self._recovery.skipped, self._ranks.corrupt)
            if self._is_main:
                with self._ranks.held():
                    self.metrics.flush()
                    self._checkpointer.save(checkpoint)

    def _checkpoints(self) -> Iterator[Checkpoint]:
        """All complete checkpoints, newest first, once none is being written."""
        with self._ranks.held():
            self._checkpointer.finish()
            self._checkpointer.forget()
        return shared_checkpoints.newest_first(self.run, self._process, self.metrics.log)

    def _validate_if_interrupted(self) -> None:
        """Complete a validation during which the run was stopped."""
        done = {record.step for record in self.metrics.records("validation")}
        due = self.schedule.validates(self.step) and self.step not in done
        if self._process.cpu_group.all_reduce_max(int(due))[0]:
            self._validate()

    def _validate(self) -> None:
        """Record the metrics of the test split."""
        last = self.step - 1
        step = replace(Step.at(last, self.schedule), number=self.step)
        outcomes: list[list[dict[str, Tensor]]] = []
        self._agree()
        with closing(self.task.validation(self.schedule.stage(last), step)) as batches:
            while True:
                outcome = None
                self._watchdog.progress("validating")
                with self._ranks.held():
                    outcome = next(batches, None)
                if outcome is None and self._ranks.failure is None:  # on all ranks, which have equally many batches
                    break
                outcomes.append(outcome or [])
                self._agree()
        self._record("validation", outcomes, {"clips": self.task.validation_clips})
        with self._ranks.held():
            self.metrics.show(self.step, self.task.show(self.step))
        self._throughput.reset(self.step)

    def _record(self, kind: str, outcomes: list[list[dict[str, Tensor]]], extra: dict[str, Any]) -> None:
        """Average metrics over batches and ranks, and write a record."""
        stage = self.schedule.stage(self.step - 1)
        numbers = [module.number for module in self.task.learning(stage)]
        means = mean_metrics(outcomes, self._accelerator)
        modules = [{"module": number, **metrics} for number, metrics in zip(numbers, means, strict=True)]
        where = {"stage": stage} if self.schedule.stages > 1 else {}
        record = {"kind": kind, "step": self.step, "epoch": self.schedule.epoch_after(self.step), **where}
        with self._ranks.held():
            self._check_lease()
            self.metrics.record({**record, "modules": modules, **extra})
