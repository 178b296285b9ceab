"""The training loop: one object that knows where a run is, and takes it to its end."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any, cast

import torch
from accelerate import Accelerator
from torch import Tensor

from simdist.config import Config
from simdist.data.loader import BatchLoader, Clips, open_clips
from simdist.engine.accelerator import HostGroup
from simdist.engine.checkpoint import Checkpoint, latest_checkpoint, load_checkpoint, save_checkpoint
from simdist.engine.metrics import MetricsLog
from simdist.engine.run import Run
from simdist.engine.step import DrawSource, ModuleTrainer, train_step, validation_step
from simdist.engine.timetable import Timetable
from simdist.errors import InputError
from simdist.models.encoder import GreedyEncoder, check_fit
from simdist.stopping import Stop


class Trainer:
    """Trains the encoder of one run with the `joint` schedule: every module in every step.

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
        self._train_clips = open_clips(config.data, config.data.train_split)
        self._loader = self._load(self._train_clips, config)
        self._validation = self._open_validation()
        self.encoder = GreedyEncoder(config.model, config.loss, config.seed).to(accelerator.device)
        self._frames = config.model.num_frames(config.data.crop)
        self._trainers = [self._prepare(module) for module in self.encoder.stack]
        self._draws = DrawSource(config.seed, accelerator.process_index, accelerator.device)
        self.timetable = Timetable(config, len(self._train_clips))
        self.metrics = MetricsLog(run, self.timetable.total_steps, accelerator.is_main_process)
        self._hosts = HostGroup()
        self.step = 0
        self._meter = Meter(config)

    def fit(self) -> int:
        """Train to the end, or until a stop request; returns the signal that stopped it, 0 if it is finished."""
        self.encoder.train()
        self.metrics.rewind(self.step)
        self._meter.reset(self.step)
        first, last = self.timetable.consumed(self.step), self.timetable.consumed(self.timetable.total_steps)
        with self.metrics.reporting(self.step):
            stopped = self._catch_up()
            batches = self._meter.waiting(self._loader.batches(first, last))
            while not stopped and self.step < self.timetable.total_steps:
                self._take_step(next(batches).audio)
                stopped = self._hosts.maximum(self._stop.signal_number)
                if not stopped and self.timetable.validates(self.step):
                    stopped = self._validate()
                if stopped or self.timetable.saves(self.step):
                    self.save()
        return stopped

    def resume(self) -> int:
        """Go back to the newest complete checkpoint, if there is one; returns the step."""
        report = self.metrics.say
        found = latest_checkpoint(self.run.checkpoints, report)
        if found is not None:
            checkpoint = load_checkpoint(found)
            self._restore(checkpoint)
            self.step = checkpoint.step
        return self.step

    def save(self) -> None:
        """Write a checkpoint of this step."""
        if self._accelerator.is_main_process:
            checkpoint = Checkpoint(
                step=self.step,
                consumed=self.timetable.consumed(self.step),
                fingerprint=self._train_clips.split.manifest.fingerprint,
                model=self.encoder.state_dict(),
                optimizer=[trainer.state() for trainer in self._trainers],
            )
            save_checkpoint(self.run.checkpoints, checkpoint, self.config.train.keep_last)
        self._accelerator.wait_for_everyone()

    def describe(self) -> list[str]:
        """What is about to happen, for the terminal."""
        config, accelerator = self.config, self._accelerator
        clips, world = self._train_clips, accelerator.num_processes
        parameters = sum(p.numel() for p in self.encoder.parameters())
        manifest = clips.split.manifest
        short = f", {clips.num_short} shorter than a crop: {config.data.short_clips}" if clips.num_short else ""
        rest = f", {accelerator.distributed_type.value}" if world > 1 else ""
        return [
            f"world size {world} on {accelerator.device.type}{rest}, precision {accelerator.mixed_precision}",
            f"{manifest.corpus} {manifest.split}: {len(clips)} clips, {manifest.num_seconds / 3600:.2f} h{short}; "
            f"batch {config.data.batch_size} = {world} x {config.data.batch_size // world}",
            f"{len(self._trainers)} greedy modules, {parameters / 1e6:.2f} M parameters, "
            f"{self.timetable.total_steps} steps = {self.timetable.epoch(self.timetable.total_steps):.4g} epochs",
        ]

    def _load(self, clips: Clips, config: Config) -> BatchLoader:
        accelerator = self._accelerator
        rank, world = accelerator.process_index, accelerator.num_processes
        return BatchLoader(clips, config.data, config.seed, rank, world, accelerator.device)

    def _open_validation(self) -> tuple[BatchLoader, int] | None:
        """The test split's loader and how many samples of it are looked at; a batch is never partly filled."""
        config = self.config
        if config.train.validate_every == 0:
            return None
        clips = open_clips(config.data, config.data.test_split)
        world = self._accelerator.num_processes
        size = min(config.data.batch_size, len(clips) // world * world)
        if size == 0:
            raise InputError(
                f"{clips.split.folder} has {len(clips)} clips for {world} ranks to validate on; "
                "set --train.validate_every 0, or use fewer processes"
            )
        batches = min(len(clips) // size, self.config.train.validate_batches or len(clips))
        return self._load(clips, replace(config, data=replace(config.data, batch_size=size))), batches * size

    def _prepare(self, module: Any) -> ModuleTrainer:
        optim = self.config.optim
        wrapped = self._accelerator.prepare_model(module)
        optimizer = torch.optim.AdamW(module.parameters(), lr=optim.lr, weight_decay=optim.weight_decay, fused=True)
        device = self._accelerator.device.type
        scaler = torch.amp.GradScaler(device, enabled=self._accelerator.mixed_precision == "fp16")  # pyright: ignore[reportPrivateImportUsage]
        return ModuleTrainer(module, wrapped, optimizer, scaler, optim.clip_grad_norm)

    def _restore(self, checkpoint: Checkpoint) -> None:
        check_fit(self.encoder, checkpoint.model, f"the checkpoint of step {checkpoint.step} in {self.run.folder}")
        fingerprint = self._train_clips.split.manifest.fingerprint
        if checkpoint.fingerprint not in ("", fingerprint):
            raise InputError(
                f"{self._train_clips.split.folder} holds other data than the run in {self.run.folder} was trained on "
                f"(fingerprint {fingerprint[:12]}, was {checkpoint.fingerprint[:12]}); restore it, or start a new --run"
            )
        self.encoder.load_state_dict(checkpoint.model)
        if checkpoint.optimizer:  # none in a run that began with weights from elsewhere
            for trainer, state in zip(self._trainers, checkpoint.optimizer, strict=True):
                trainer.load_state(state)

    def _take_step(self, audio: Tensor) -> None:
        lr, beta, number = self.timetable.lr(self.step), self.timetable.beta(self.step), self.step + 1
        measure = self.timetable.logs(number)
        outcome = train_step(
            self._trainers, audio, self._frames, self.step, self._draws, lr=lr, beta=beta, measure=measure
        )
        self.step = number
        if measure:
            extra = {"lr": lr, "beta": beta, **self._meter.read(number)}
            self._record("train", [outcome], extra)
        self.metrics.advance(number)

    def _catch_up(self) -> int:
        """A run that was stopped during a validation does it first."""
        done = {line["step"] for line in self.metrics.lines("validation")}
        due = self.timetable.validates(self.step) and self.step not in done
        return self._validate() if self._hosts.maximum(int(due)) else 0

    def _validate(self) -> int:
        """Metrics on the test split; returns the signal that cut it short, 0 if it was completed."""
        assert self._validation is not None
        loader, num_samples = self._validation
        self.encoder.eval()
        outcomes, stopped, beta = [], 0, self.timetable.beta(self.step)
        for number, batch in enumerate(loader.batches(0, num_samples)):
            outcome = validation_step(self.encoder.stack, batch.audio, self._frames, number, self._draws, beta)
            outcomes.append(outcome)
            stopped = self._hosts.maximum(self._stop.signal_number)
            if stopped:
                break
        self.encoder.train()
        if not stopped:
            self._record("validation", outcomes, {"clips": num_samples})
        self._meter.reset(self.step)
        return stopped

    def _record(self, kind: str, outcomes: list[list[dict[str, Tensor]]], extra: dict[str, Any]) -> None:
        """Average over batches and ranks, and write the line."""
        names = [list(module) for module in outcomes[0]]
        values = torch.stack(
            [torch.cat([torch.stack(list(module.values())) for module in batch]) for batch in outcomes]
        )
        means = iter(cast("Tensor", self._accelerator.reduce(values.mean(dim=0), "mean")).tolist())
        modules = [{name: next(means) for name in module} for module in names]
        epoch = self.timetable.epoch(self.step)
        self.metrics.record({"kind": kind, "step": self.step, "epoch": epoch, "modules": modules, **extra})


class Meter:
    """Throughput since the last reading, and the share of that time spent waiting for data."""

    def __init__(self, config: Config) -> None:
        self._batch, self._seconds = config.data.batch_size, config.data.crop / 16_000
        self._waited, self._since, self._step = 0.0, time.perf_counter(), 0

    def waiting(self, batches: Any) -> Any:
        """Pass `batches` on, measuring how long each took to arrive."""
        while True:
            start = time.perf_counter()
            try:
                batch = next(batches)
            except StopIteration:
                return
            self._waited += time.perf_counter() - start
            yield batch

    def reset(self, step: int) -> None:
        """Begin a new measurement at `step`."""
        self._waited, self._since, self._step = 0.0, time.perf_counter(), step

    def read(self, step: int) -> dict[str, float]:
        """Clips and seconds of audio per second of all ranks, share of time waiting; begins anew."""
        elapsed = time.perf_counter() - self._since
        rate = (step - self._step) * self._batch / elapsed
        share = self._waited / elapsed
        self.reset(step)
        return {"samples_per_s": rate, "audio_s_per_s": rate * self._seconds, "data_wait": share}
