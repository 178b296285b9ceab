"""Training of an encoder's greedy modules: all in every step (`joint`) or one after the other (`stagewise`).

With a trunk, this is about the modules above it.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from simdist.core.file_locks import SharedLock
from simdist.core.random_streams import stream_seed
from simdist.data.loader import Batch, BatchLoader, open_clips
from simdist.models.encoder import GreedyEncoder, check_fit
from simdist.runs.folder import Run
from simdist.train.trunk import read_stages, read_trunk, shared_source
from simdist.training.agreement import together
from simdist.training.data import TrainingData
from simdist.training.distributed import Process
from simdist.training.engines import build_engine
from simdist.training.latents import LatentCache, identity_of, sampled
from simdist.training.random_streams import RandomStreams
from simdist.training.step import NumberedModule, Step, StepOutcome, frozen_latent, validation_step
from simdist.training.task import Beginning


@dataclass(frozen=True)
class InputSource:
    """Where training inputs come from."""

    loader: BatchLoader
    first_module: int
    """The module that reads these inputs: 0 for audio."""
    skipped: tuple[str, ...] = ()
    """Why clips are missing in cached latents."""


class EncoderTask:
    """The encoder of one run; see `TrainingTask`.

    Args:
        run: the run folder, with the resolved config.
        process: this process in its world.
        stages_from: a run that has trained the lower modules; see `read_stages`.

    Raises:
        InputError: the data does not fit the config.
    """

    def __init__(self, run: Run, process: Process, stages_from: Path | None = None) -> None:
        config = run.config
        self._run, self._config, self._process = run, config, process
        self._accelerator = process.accelerator
        self._data = TrainingData(config, process, validate=config.train.validate_every > 0)
        self._source = InputSource(self._data.loader, 0)
        self.model = GreedyEncoder.from_config(config).to(self._accelerator.device)
        self._stages_from = stages_from
        self._frames = config.model.num_frames(config.data.crop)
        rank, device = self._accelerator.process_index, self._accelerator.device
        self._streams = RandomStreams(config.seed, rank, device, self._data.groups)
        self._engine = build_engine(self._accelerator, self.model, config, self._streams)
        self._is_stagewise = config.train.schedule == "stagewise"

    @property
    def modules(self) -> Sequence[NumberedModule]:
        return self._engine.modules

    @property
    def num_clips(self) -> int:
        return len(self._data.clips)

    @property
    def fingerprint(self) -> str:
        return self._data.fingerprint

    @property
    def test_fingerprint(self) -> str:
        return self._data.test_fingerprint

    @property
    def validation_clips(self) -> int:
        return self._data.validation_clips

    def describe(self) -> list[str]:
        parameters = sum(p.numel() for p in self.model.parameters())
        engine = f", {self._engine.name}" if self._engine.name else ""
        count, trunk = self._config.train.trunk_modules, self._config.train.trunk
        frozen = f" ({count} of {trunk}, frozen)" if trunk is not None else ""
        return [
            f"world size {self._data.world_size} on {self._accelerator.device.type}{engine}, "
            f"precision {self._config.train.precision}",
            self._data.describe(),
            f"{len(self.modules)} greedy modules{frozen}, {parameters / 1e6:.2f} M parameters",
        ]

    def learning(self, stage: int) -> Sequence[NumberedModule]:
        first = len(self._frozen(stage))
        return self.modules[first : first + 1] if self._is_stagewise else self.modules[first:]

    def beginning(self) -> Beginning | None:
        if self._config.train.trunk is not None:
            return read_trunk(self._config, self, self._process)
        if self._stages_from is not None:
            return read_stages(self._config, self._stages_from, self, self._process)
        return None

    def batches(self, stage: int, first: int, last: int, log: Callable[[str], None]) -> Iterator[Batch]:
        self._source = self._open_source(stage, log)
        self._set_modes(stage)
        return _with_skipped(self._source.loader.batches(first, last), self._source.skipped)

    def step(self, stage: int, batch: Batch, step: Step) -> StepOutcome:
        inputs = self._through_frozen(stage, self._with_noise(batch.inputs, step.number), step.number)
        return self._engine.step(self.learning(stage), inputs, step)

    def validation(self, stage: int, step: Step) -> Generator[list[dict[str, Tensor]]]:
        self.model.eval()
        rank, device = self._accelerator.process_index, self._accelerator.device
        streams = RandomStreams(self._config.seed, rank, device, self._data.validation_groups)
        try:
            for number, batch in enumerate(self._data.test_loader.batches(0, self.validation_clips)):
                with self._accelerator.autocast():
                    x = frozen_latent(self._frozen(stage), batch.inputs, number, streams)
                yield validation_step(self.learning(stage), x, self._frames, number, streams, step)
        finally:
            self._set_modes(stage)

    def show(self, step: int) -> dict[str, Path]:
        return {}

    def state(self) -> list[dict[str, Any]]:
        return self._engine.state()

    def load(self, model: dict[str, Tensor], optimizer: list[dict[str, Any]]) -> None:
        check_fit(self.model, model, f"the checkpoint in {self._run.folder}")
        self.model.load_state_dict(model)
        self._engine.load_state(optimizer)

    def load_module(self, number: int, model: dict[str, Tensor] | None, optimizer: dict[str, Any] | None) -> None:
        if model is None:
            model = GreedyEncoder.from_config(self._config).state_dict()
        prefix = f"greedy.{number}."
        self.modules[number].module.load_state_dict(
            {name.removeprefix(prefix): tensor for name, tensor in model.items() if name.startswith(prefix)}
        )
        self._engine.load_module(number, optimizer)

    def _frozen(self, stage: int) -> Sequence[NumberedModule]:
        """The trained modules below those that learn."""
        return self.modules[: self._config.train.trunk_modules + (stage if self._is_stagewise else 0)]

    def _set_modes(self, stage: int) -> None:
        """Put modules that learn in train mode; frozen ones normalize by their running statistics."""
        self.model.eval()
        for trainer in self.learning(stage):
            trainer.module.train()

    def _open_source(self, stage: int, log: Callable[[str], None]) -> InputSource:
        """The source of a stage's inputs: audio, or the cached latents of the module below."""
        frozen = self._frozen(stage)
        if not (frozen and self._config.train.cache_latents):
            return InputSource(self._data.loader, 0)
        self.model.eval()
        data, seed = self._config.data, self._config.seed
        name = f"module_{frozen[-1].number}"
        shared = self._shared_latents(frozen, name)
        folder = shared or self._run.folder / "latents" / name
        log(f"latents of module {frozen[-1].number}: {folder}")
        cache = LatentCache(folder / data.train_split, frozen, self._data.clips, data.crop, seed, data.retry_seconds)
        with nullcontext() if shared is None else self._alone_in(shared, log):
            cache.write(self._process, log)
        crop = self._frames[len(frozen) - 1]
        latents = replace(data, root=str(folder), crop=crop, short_clips="pad", cache="none")
        loader = self._data.load(open_clips(latents, data.train_split), latents)
        return InputSource(loader, len(frozen), cache.skipped)

    def _shared_latents(self, frozen: Sequence[NumberedModule], name: str) -> Path | None:
        """Where the latents of modules of another run are, in its folder, for all runs that have them from it."""
        folder, source = None, shared_source(self._config, self._stages_from, len(frozen))
        if source is not None and os.access(source, os.W_OK):
            words = (identity_of(frozen, self._data.clips), self._config.seed, self._config.data.crop)
            folder = source / "latents" / f"{name}-{stream_seed(*words):016x}"
        return self._process.cpu_group.gather(folder)[0]

    @contextmanager
    def _alone_in(self, folder: Path, log: Callable[[str], None]) -> Iterator[None]:
        """Keep other runs from writing to a folder of latents; wait while one does, until asked to stop."""
        process, waiting = self._process, False
        lock = SharedLock(folder.with_name(f".{folder.name}.lock"))
        try:
            while True:
                with together(process.cpu_group):
                    is_free = lock.acquire() if self._accelerator.is_main_process else False
                if process.cpu_group.all_reduce_max(int(is_free))[0]:
                    break
                if not waiting:
                    log("another run is writing them; waiting")
                waiting = True
                process.watchdog.progress("waiting for the latents of another run")
                process.check_stop()
                time.sleep(1.0)
            yield
        finally:
            lock.release()

    def _with_noise(self, audio: Tensor, step: int) -> Tensor:
        """(B, T, 1) audio with the white noise of `data.noise`, of each step its own."""
        if not self._config.data.noise:
            return audio
        return audio + self._config.data.noise * self._streams.normal("audio", step, self.modules[0], audio.shape)

    def _through_frozen(self, stage: int, inputs: Tensor, step: int) -> Tensor:
        """The input of the lowest module that learns."""
        first_module = self._source.first_module
        if first_module:  # cached latents, without their noise
            below = self.modules[first_module - 1]
            return sampled(inputs, below, partial(self._streams.normal, "frozen", step, below))
        with self._accelerator.autocast():
            return frozen_latent(self._frozen(stage), inputs, step, self._streams)


def _with_skipped(batches: Iterator[Batch], skipped: tuple[str, ...]) -> Iterator[Batch]:
    """Batches of which the first also reports what was skipped before."""
    for batch in batches:
        yield replace(batch, skipped=batch.skipped + skipped)
        skipped = ()
