"""A run from start to exit: its lease, signals, resuming, requeueing, and the events that record them."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

from simdist.config.schema import identity_values
from simdist.core.errors import EXIT_OK, InputError, PeerLostError
from simdist.core.requeue import requeue
from simdist.core.signals import SignalHandler, StoppedError, exit_code, ignore_signals
from simdist.runs.folder import SLOW_PRECISION, Run
from simdist.runs.lease import Lease
from simdist.training.agreement import check_equal, together
from simdist.training.distributed import CpuGroup, Process, build_accelerator, slow_precision
from simdist.training.hardware import no_gpu
from simdist.training.trainer import Trainer
from simdist.training.watchdog import Watchdog


def build_process(run: Run[Any], stop: SignalHandler, wanted: str = "auto") -> Process:
    """This process in the world that trains `run`.

    Args:
        run: with a resolved precision.
        stop: receives stop signals.
        wanted: `train.precision` as it was requested.

    Raises:
        InputError: ranks have different configurations, or `auto` became different precisions on different nodes.
    """
    settings = run.config.train
    accelerator = build_accelerator(settings.precision)
    cpu_group = CpuGroup()
    with together(cpu_group):
        pass  # all have come this far; one that has not says why here
    precisions = sorted(set(cpu_group.gather(settings.precision)))
    if len(precisions) > 1:
        raise InputError(
            f"train.precision 'auto' became {' and '.join(precisions)} on different nodes, because some CPUs emulate "
            "bf16. Set --train.precision no or bf16"
        )
    check_equal(cpu_group, "configurations", identity_values(run.config))
    why_cpu = no_gpu(os.environ, accelerator.device.type)
    slow = slow_precision(settings.precision, wanted)
    if accelerator.is_main_process:  # before a large corpus is opened
        for warning in filter(None, (why_cpu, slow)):
            print(f"warning: {warning}", flush=True)
    watchdog = Watchdog(settings.hang_timeout, run.folder, accelerator.process_index, accelerator.num_processes)
    return Process(accelerator, cpu_group, stop, watchdog, why_cpu, slow)


LOST = re.compile(r"[Cc]onnection (was )?(closed|reset|refused)|[Bb]roken pipe|remote process exited")
"""How gloo and NCCL describe a peer that has gone; torch raises plain RuntimeErrors, as for errors of a program."""


@contextmanager
def naming_a_lost_peer(num_ranks: int) -> Iterator[None]:
    """Turn the error of a collective whose peer has ended into a `PeerLostError`."""
    try:
        yield
    except RuntimeError as error:
        if num_ranks == 1 or not LOST.search(str(error)):
            raise
        reason = re.sub(r"^\[.*?\] ", "", str(error)).splitlines()[0].partition(". ")[0]
        raise PeerLostError(
            f"another rank has ended ({reason}); its own output says why. Stopping; the same command resumes from the "
            "last checkpoint"
        ) from error


@dataclass
class RunEnding:
    """How a run ended."""

    exit_code: int = EXIT_OK


@contextmanager
def lifecycle(trainer: Trainer, process: Process) -> Iterator[RunEnding]:
    """Run the body, which trains, between resuming and recording how the run ended.

    A `StoppedError` in the body sets the exit code and, after a preemption, requeues the SLURM job.

    Raises:
        InputError: the run cannot continue. Its last checkpoint is safe.
    """
    accelerator, run, ending, signal_number = process.accelerator, trainer.run, RunEnding(), 0
    writing = Lease(run.folder) if accelerator.is_main_process else nullcontext()
    with process.watchdog.watching(), naming_a_lost_peer(accelerator.num_processes):
        with writing as lease, process.stop.installed():
            trainer.lease = lease
            _start(trainer, process)
            try:
                yield ending
            except StoppedError as stopped:
                signal_number = stopped.signal_number
                ending.exit_code = exit_code(signal_number)
            if accelerator.is_main_process:
                run.event("stopped" if signal_number else "finished", step=trainer.step, signal=signal_number)
                if not signal_number:
                    run.finish(trainer.step)
        process.watchdog.progress("ending")
        if signal_number:
            _leave(trainer, process, signal_number)
        else:
            accelerator.wait_for_everyone()  # rank 0 hosts the store and leaves last
            accelerator.end_training()


def _start(trainer: Trainer, process: Process) -> None:
    """Resume from the newest checkpoint, if there is one, and record the start."""
    accelerator, run, log = process.accelerator, trainer.run, trainer.metrics.log
    *lines, last = trainer.task.describe()
    for line in (*lines, f"{last}, {trainer.schedule.describe()}"):
        log(line)
    step = trainer.resume()
    if accelerator.is_main_process:
        for sentence in run.damaged_events():
            log(sentence)
        run.write()
        run.reopen()
        run.event("resumed" if step else "start", step=step, world_size=accelerator.num_processes)
        if process.no_gpu is not None:
            run.event("no_gpu", text=process.no_gpu)
        if process.slow_precision is not None:
            run.event(SLOW_PRECISION, text=process.slow_precision)
    accelerator.wait_for_everyone()
    log(f"{f'resuming at step {step} in' if run.has_begun else 'writing to'} {run.folder}")


def _leave(trainer: Trainer, process: Process, signal_number: int) -> None:
    """Report that everything is saved, and requeue the job unless a person stopped it."""
    run, log = trainer.run, trainer.metrics.log
    log(f"stopped at step {trainer.step}, everything is saved; the same command resumes")
    if not process.accelerator.is_main_process or signal_number == signal.SIGINT:
        return
    ignore_signals()  # SLURM ends a requeued job immediately, before that could be recorded
    asked, sentence = requeue(os.environ, run.count("requeued"), run.config.train.max_requeues)
    if asked:
        run.event("requeued", step=trainer.step)
    if sentence:
        log(sentence)
