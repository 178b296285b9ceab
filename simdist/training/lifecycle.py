"""From a trainer to an exit code: the lease, resuming, signals, the queue, and what is written down about the end."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

from simdist.core.errors import EXIT_OK, InputError
from simdist.core.requeue import requeue
from simdist.core.signals import SignalHandler, exit_code, ignore_signals
from simdist.runs.folder import SLOW_PRECISION, Run
from simdist.runs.lease import Lease
from simdist.training.accelerator import CpuGroup, Process, build_accelerator, slow_precision
from simdist.training.hardware import no_gpu
from simdist.training.trainer import Trainer
from simdist.training.watchdog import Watchdog


def build_process(run: Run[Any], stop: SignalHandler, wanted: str = "auto") -> Process:
    """This process among the others that train `run`.

    Args:
        run: its precision is resolved.
        stop: how the process is asked to end.
        wanted: the precision that was asked for.
    """
    settings = run.config.train
    accelerator = build_accelerator(settings.precision)
    hosts = CpuGroup()
    precisions = hosts.gather(settings.precision)  # CPUs of nodes may differ, and with them what `auto` took
    if len(set(precisions)) > 1:
        raise InputError(
            f"train.precision 'auto' became {' and '.join(sorted(set(precisions)))} on different nodes, because some "
            "CPUs emulate bf16. Set --train.precision no or bf16"
        )
    stacks = run.folder / f"stacks-rank{accelerator.process_index}.txt"
    why_cpu = no_gpu(os.environ, accelerator.device.type)
    slow = slow_precision(settings.precision, wanted)
    if accelerator.is_main_process:  # at once: opening a large corpus takes a while
        for warning in filter(None, (why_cpu, slow)):
            print(f"warning: {warning}", flush=True)
    return Process(accelerator, hosts, stop, Watchdog(settings.hang_timeout, stacks), why_cpu, slow)


def complete(trainer: Trainer, process: Process, finish: Callable[[], int] = lambda: 0) -> int:
    """Take a run from where it is to its end, or to a stop request; returns the exit code.

    Args:
        trainer: of the run.
        process: this process among the others.
        finish: what is left to do on all ranks after the last step; returns the signal that cut it short, or 0.

    Raises:
        InputError: it cannot go on; the last checkpoint is safe.
    """
    accelerator, run = process.accelerator, trainer.run
    with Lease(run.folder) if accelerator.is_main_process else nullcontext() as lease, process.stop.installed():
        trainer.lease = lease
        signal_number = _train(trainer, process, finish)
        if accelerator.is_main_process and not signal_number:
            run.finish(trainer.step)
    if signal_number:
        _leave(trainer, process, signal_number)
        return exit_code(signal_number)
    accelerator.wait_for_everyone()  # the rank that hosts the store leaves last
    accelerator.end_training()
    return EXIT_OK


def _train(trainer: Trainer, process: Process, finish: Callable[[], int]) -> int:
    """Resume and train; returns the signal that stopped it, or 0."""
    accelerator, run, log = process.accelerator, trainer.run, trainer.metrics.log
    for line in trainer.describe():
        log(line)
    step = trainer.resume()
    if accelerator.is_main_process:
        run.write()
        run.event("resumed" if step else "start", step=step, world_size=accelerator.num_processes)
        if process.no_gpu is not None:
            run.event("no_gpu", text=process.no_gpu)
        if process.slow_precision is not None:
            run.event(SLOW_PRECISION, text=process.slow_precision)
    accelerator.wait_for_everyone()
    log(f"{f'continuing at step {step} in' if run.has_begun else 'writing to'} {run.folder}")
    signal_number = trainer.fit() or finish()
    if accelerator.is_main_process:
        run.event("stopped" if signal_number else "finished", step=trainer.step, signal=signal_number)
    return signal_number


def _leave(trainer: Trainer, process: Process, signal_number: int) -> None:
    """Say that everything is saved, and ask for the job to be run again if it was not a person who ended it."""
    run, log = trainer.run, trainer.metrics.log
    log(f"stopped at step {trainer.step}, everything is saved; the same command continues")
    if not process.accelerator.is_main_process or signal_number == signal.SIGINT:
        return
    ignore_signals()  # SLURM ends the job as soon as it is back in the queue, before that could be written down
    asked, sentence = requeue(os.environ, run.count("requeued"), run.config.train.max_requeues)
    if asked:
        run.event("requeued", step=trainer.step)
    if sentence:
        log(sentence)
