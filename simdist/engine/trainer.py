"""The training loop: one object that knows where a run is, and takes it to its end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast
from torch import Tensor

from simdist.config import DataConfig
from simdist.data.loader import BatchLoader, Clips, open_clips
from simdist.engine.accelerator import HostGroup
from simdist.engine.checkpoint import Checkpoint, latest_checkpoint, load_checkpoint, save_checkpoint
from simdist.engine.engines import build_engine
from simdist.engine.latents import LatentCache, sampled
from simdist.engine.lease import Lease
from simdist.engine.meter import Meter
from simdist.engine.metrics import MetricsLog
from simdist.engine.run import Run
from simdist.engine.step import DrawSource, NumberedModule, frozen_latent, validation_step
from simdist.engine.timetable import Timetable
from simdist.errors import InputError
from simdist.models.encoder import GreedyEncoder, check_fit
from simdist.stopping import Stop


@dataclass(frozen=True)
class Source:
    """Where training inputs come from."""

    loader: BatchLoader
    first_module: int
    """The module that takes these inputs: 0 for audio."""


class Trainer:
    """Trains the encoder of one run: all modules in every step (`joint`), or one after the other (`stagewise`).

    Args:
        run: the folder, with the resolved config.
        accelerator: from `build_accelerator`.
        stop: asked after every step.

    Raises:
        InputError: the data or the run's checkpoints do not fit the config.
    """

    def __init__(self, run: Run, accelerator: Accelerator, stop: Stop) -> None:
        config = run.config
        self.run, self.config, self._accelerator, self._stop = run, config, accelerator, stop
        self._clips = open_clips(config.data, config.data.train_split)
        self._test_clips = self._open_validation()
        self._loader = self._load(self._clips, config.data)
        self._check_parts()
        self.encoder = GreedyEncoder(config.model, config.loss, config.seed).to(accelerator.device)
        self._frames = config.model.num_frames(config.data.crop)
        self._engine = build_engine(accelerator, self.encoder, config)
        self._draws = DrawSource(config.seed, accelerator.process_index, accelerator.device)
        self.timetable = Timetable(config, len(self._clips))
        self.metrics = MetricsLog(run, self.timetable.total_steps, accelerator.is_main_process)
        self._hosts = HostGroup()
        self.lease: Lease | None = None
        """Rank 0's right to write the run; None where there is no other process to fear."""
        self.step = 0
        self._meter = Meter(config)

    def fit(self) -> int:
        """Train to the end, or until a stop request; returns the signal that stopped it, 0 if it is finished."""
        self.metrics.rewind(self.step)
        with self.metrics.reporting(self.step):
            stopped = self._catch_up()
            while not stopped and self.step < self.timetable.total_steps:
                stopped = self._run_stage(self.timetable.stage(self.step))
        return stopped

    def _run_stage(self, stage: int) -> int:
        """Train one stage to its end, or until a stop request."""
        source = self._source(stage)
        if source is None:
            return self._hosts.maximum(self._stop.signal_number)
        end = (stage + 1) * self.timetable.stage_steps
        first = self.timetable.consumed(self.step)
        last = first + (end - self.step) * self.config.data.batch_size
        self._set_modes(stage)
        self._meter.reset(self.step)
        batches = self._meter.waiting(source.loader.batches(first, last))
        stopped = 0
        while not stopped and self.step < end:
            self._take_step(stage, source.first_module, next(batches).inputs)
            stopped = self._hosts.maximum(self._stop.signal_number)
            if not stopped and self.timetable.validates(self.step):
                stopped = self._validate()
            if stopped or self.timetable.saves(self.step):
                self.save()
        return stopped

    def _learning(self, stage: int) -> Sequence[NumberedModule]:
        """The modules that learn in a stage."""
        return self._engine.modules if self.timetable.stages == 1 else self._engine.modules[stage : stage + 1]

    def _frozen(self, stage: int) -> Sequence[NumberedModule]:
        """The modules below them, which learn no more."""
        return [] if self.timetable.stages == 1 else self._engine.modules[:stage]

    def _set_modes(self, stage: int) -> None:
        """Modules that learn are in train mode, frozen ones normalise by their running statistics."""
        self.encoder.eval()
        for trainer in self._learning(stage):
            trainer.module.train()

    def _source(self, stage: int) -> Source | None:
        """Where a stage's inputs come from: audio, or cached latents; None if a stop request came while caching."""
        frozen = self._frozen(stage)
        if not (frozen and self.config.train.cache_latents):
            return Source(self._loader, 0)
        self._share_buffers()
        self.encoder.eval()
        folder = self.run.folder / "latents" / f"module_{frozen[-1].number}"
        data = self.config.data
        self.metrics.say(f"latents of module {frozen[-1].number}: {folder}")
        seed = self.config.seed
        cache = LatentCache(folder / data.train_split, frozen, self._clips, data.crop, seed, data.retry_seconds)
        if not cache.write(self._accelerator, self._hosts, self._stop):
            return None
        latents = replace(data, root=str(folder), crop=self._frames[stage - 1], short_clips="pad", cache="none")
        return Source(self._load(open_clips(latents, data.train_split), latents), stage)

    def resume(self) -> int:
        """Go back to the newest complete checkpoint, if there is one; returns the step."""
        report = self.metrics.say
        found = latest_checkpoint(self.run.checkpoints, report)
        if found is not None:
            checkpoint = load_checkpoint(found)
            self._restore(checkpoint)
            self.step = checkpoint.step
        elif self.run.has_begun:
            raise InputError(
                f"{self.run.folder} has no complete checkpoint left to go on from; restore one below "
                f"{self.run.checkpoints}, or begin anew in another folder with --run"
            )
        return self.step

    def save(self) -> None:
        """Write a checkpoint of this step."""
        optimizer = self._engine.state()
        if self._accelerator.is_main_process:
            checkpoint = Checkpoint(
                step=self.step,
                consumed=self.timetable.consumed(self.step),
                fingerprint=self._clips.split.manifest.fingerprint,
                model=self.encoder.state_dict(),
                optimizer=optimizer,
            )
            save_checkpoint(self.run.checkpoints, checkpoint, self.config.train.keep_last)
        self._accelerator.wait_for_everyone()

    def describe(self) -> list[str]:
        """What is about to happen, for the terminal."""
        config, accelerator = self.config, self._accelerator
        clips, world = self._clips, accelerator.num_processes
        parameters = sum(p.numel() for p in self.encoder.parameters())
        manifest = clips.split.manifest
        short = f", {clips.num_short} shorter than a crop: {config.data.short_clips}" if clips.num_short else ""
        rest = f", {self._engine.name}" if self._engine.name else ""
        return [
            f"world size {world} on {accelerator.device.type}{rest}, precision {config.train.precision}",
            f"{manifest.corpus} {manifest.split}: {len(clips)} clips, {manifest.num_seconds / 3600:.2f} h{short}; "
            f"batch {config.data.batch_size} = {world} x {config.data.batch_size // world}",
            f"{len(self._engine.modules)} greedy modules, {parameters / 1e6:.2f} M parameters, {self._course()}",
        ]

    def _course(self) -> str:
        """How long the run is."""
        table = self.timetable
        epochs = f"{table.epoch_after(table.total_steps):.4g} epochs"
        if table.stages == 1:
            return f"{table.total_steps} steps = {epochs}"
        return f"{table.total_steps} steps: {table.stages} stages of {table.stage_steps} steps = {epochs}"

    def _load(self, clips: Clips, data: DataConfig) -> BatchLoader:
        rank, world = self._accelerator.process_index, self._accelerator.num_processes
        return BatchLoader(clips, data, self.config.seed, rank, world, self._accelerator.device)

    def _check_parts(self) -> None:
        parts, share = self.config.train.accumulate, self.config.data.batch_size // self._accelerator.num_processes
        if share % parts:
            raise InputError(
                f"train.accumulate is {parts}, into which a rank's {share} clips of data.batch_size "
                f"{self.config.data.batch_size} cannot be divided; take a divisor of {share}"
            )

    def _open_validation(self) -> Clips | None:
        """The test split's clips; None where no validation is wanted."""
        config, world = self.config, self._accelerator.num_processes
        if config.train.validate_every == 0:
            return None
        clips = open_clips(config.data, config.data.test_split)
        if len(clips) < world:
            raise InputError(
                f"{clips.split.folder} has {len(clips)} clips for {world} ranks to validate on; "
                "set --train.validate_every 0, or use fewer processes"
            )
        return clips

    def _share_buffers(self) -> None:
        """Send rank 0's BatchNorm statistics to all ranks, where they are about to be read."""
        if self._accelerator.num_processes > 1:
            for buffer in self.encoder.buffers():
                broadcast(buffer)

    def _restore(self, checkpoint: Checkpoint) -> None:
        check_fit(self.encoder, checkpoint.model, f"the checkpoint of step {checkpoint.step} in {self.run.folder}")
        fingerprint = self._clips.split.manifest.fingerprint
        if checkpoint.fingerprint not in ("", fingerprint):
            raise InputError(
                f"{self._clips.split.folder} holds other data than the run in {self.run.folder} was trained on "
                f"(fingerprint {fingerprint[:12]}, was {checkpoint.fingerprint[:12]}); restore it, or start a new --run"
            )
        self.encoder.load_state_dict(checkpoint.model)
        self._engine.load_state(checkpoint.optimizer)

    def _take_step(self, stage: int, first_module: int, inputs: Tensor) -> None:
        lr, beta, number = self.timetable.lr(self.step), self.timetable.beta(self.step), self.step + 1
        measure = self.timetable.logs(number)
        outcome = self._engine.step(
            self._learning(stage),
            self._through_frozen(stage, first_module, inputs),
            self._frames,
            self.step,
            self._draws,
            lr=lr,
            beta=beta,
            measure=measure,
        )
        self.step = number
        if self.lease is not None:
            self.lease.check()
        if measure:
            self._record("train", [outcome], {"lr": lr, "beta": beta, **self._meter.read(number)})
        self.metrics.advance(number)

    def _through_frozen(self, stage: int, first_module: int, inputs: Tensor) -> Tensor:
        """The input of the lowest module that learns."""
        if first_module:  # cached latents: only their noise is missing
            below = self._engine.modules[first_module - 1]
            return sampled(inputs, below, self._draws.noise("frozen", self.step, below))
        with self._accelerator.autocast():
            return frozen_latent(self._frozen(stage), inputs, self.step, self._draws)

    def _catch_up(self) -> int:
        """A run that was stopped during a validation does it first."""
        done = {line["step"] for line in self.metrics.lines("validation")}
        due = self.timetable.validates(self.step) and self.step not in done
        return self._validate() if self._hosts.maximum(int(due)) else 0

    def _validate(self) -> int:
        """Metrics on the test split; returns the signal that cut it short, 0 if it was completed."""
        clips = self._test_clips
        assert clips is not None
        world, data = self._accelerator.num_processes, self.config.data
        size = min(data.batch_size, len(clips) // world * world)  # never a batch that is partly filled
        batches = min(len(clips) // size, self.config.train.validate_batches or len(clips))
        loader = self._load(clips, replace(data, batch_size=size))
        stage, beta = self.timetable.stage(self.step - 1), self.timetable.beta(self.step - 1)
        self._share_buffers()
        self.encoder.eval()
        outcomes, stopped = [], 0
        for number, batch in enumerate(loader.batches(0, batches * size)):
            with self._accelerator.autocast():
                x = frozen_latent(self._frozen(stage), batch.inputs, number, self._draws)
            outcomes.append(validation_step(self._learning(stage), x, self._frames, number, self._draws, beta))
            stopped = self._hosts.maximum(self._stop.signal_number)
            if stopped:
                break
        self._set_modes(stage)
        if not stopped:
            self._record("validation", outcomes, {"clips": batches * size})
        self._meter.reset(self.step)
        return stopped

    def _record(self, kind: str, outcomes: list[list[dict[str, Tensor]]], extra: dict[str, Any]) -> None:
        """Average over batches and ranks, and write the line."""
        names = [list(module) for module in outcomes[0]]
        values = torch.stack(
            [torch.cat([torch.stack(list(module.values())) for module in batch]) for batch in outcomes]
        )
        means = iter(cast("Tensor", self._accelerator.reduce(values.mean(dim=0), "mean")).tolist())
        stage = self.timetable.stage(self.step - 1)
        learning = self._learning(stage)
        modules = [
            {"module": trainer.number, **{name: next(means) for name in module}}
            for trainer, module in zip(learning, names, strict=True)
        ]
        where = {"stage": stage} if self.timetable.stages > 1 else {}
        line = {"kind": kind, "step": self.step, "epoch": self.timetable.epoch_after(self.step), **where}
        self.metrics.record({**line, "modules": modules, **extra})
