"""Training of an encoder's greedy modules: all in every step (`joint`), or one after the other (`stagewise`)."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from accelerate.utils import broadcast
from torch import Tensor

from simdist.config.schema import DataConfig
from simdist.data.loader import Batch, BatchLoader, Clips, open_clips
from simdist.models.encoder import GreedyEncoder, check_fit
from simdist.runs.folder import Run
from simdist.training.accelerator import Process
from simdist.training.engines import build_engine
from simdist.training.latents import LatentCache, sampled
from simdist.training.shares import check_parts, load_share, open_test_clips, validation_data
from simdist.training.step import NumberedModule, RandomStreams, Step, StepOutcome, frozen_latent, validation_step


@dataclass(frozen=True)
class Source:
    """Where training inputs come from."""

    loader: BatchLoader
    first_module: int
    """The module that takes these inputs: 0 for audio."""
    skipped: tuple[str, ...] = ()
    """Why utterances are missing in cached latents."""


class EncoderTask:
    """The encoder of one run; see `Task`.

    Args:
        run: the folder, with the resolved config.
        process: this process among the others.

    Raises:
        InputError: the data does not fit the config.
    """

    def __init__(self, run: Run, process: Process) -> None:
        config = run.config
        self._run, self._config, self._process = run, config, process
        self._accelerator = process.accelerator
        self._clips = open_clips(config.data, config.data.train_split)
        world = self._accelerator.num_processes
        self._test_clips = open_test_clips(config, world) if config.train.validate_every else None
        self._source = Source(self._load(self._clips, config.data), 0)
        check_parts(config, world)
        self.model = GreedyEncoder(config.model, config.loss, config.seed).to(self._accelerator.device)
        self._frames = config.model.num_frames(config.data.crop)
        self._engine = build_engine(self._accelerator, self.model, config)
        self._draws = RandomStreams(config.seed, self._accelerator.process_index, self._accelerator.device)

    @property
    def modules(self) -> Sequence[NumberedModule]:
        return self._engine.modules

    @property
    def num_clips(self) -> int:
        return len(self._clips)

    @property
    def fingerprint(self) -> str:
        return self._clips.split.manifest.fingerprint

    @property
    def validation_clips(self) -> int:
        data, batches = self._validation_shape()
        return data.batch_size * batches

    @cached_property
    def _test_loader(self) -> BatchLoader:
        """Opened once: it may hold the decoded split."""
        assert self._test_clips is not None
        return self._load(self._test_clips, self._validation_shape()[0])

    def describe(self) -> list[str]:
        config, clips, world = self._config, self._clips, self._accelerator.num_processes
        parameters = sum(p.numel() for p in self.model.parameters())
        manifest = clips.split.manifest
        short = f", {clips.num_short} shorter than a crop: {config.data.short_clips}" if clips.num_short else ""
        rest = f", {self._engine.name}" if self._engine.name else ""
        return [
            f"world size {world} on {self._accelerator.device.type}{rest}, precision {config.train.precision}",
            f"{manifest.corpus} {manifest.split}: {len(clips)} clips, {manifest.num_seconds / 3600:.2f} h{short}; "
            f"batch {config.data.batch_size} = {world} x {config.data.batch_size // world}",
            f"{len(self._engine.modules)} greedy modules, {parameters / 1e6:.2f} M parameters",
        ]

    def learning(self, stage: int) -> Sequence[NumberedModule]:
        return self._engine.modules[stage : stage + 1] if self._is_stagewise else self._engine.modules

    def batches(self, stage: int, first: int, last: int, log: Callable[[str], None]) -> Iterator[Batch] | None:
        source = self._open_source(stage, log)
        if source is None:
            return None
        self._source = source
        self._set_modes(stage)
        return _telling(source.loader.batches(first, last), source.skipped)

    def step(self, stage: int, batch: Batch, step: Step) -> StepOutcome:
        x = self._through_frozen(stage, batch.inputs, step.number)
        return self._engine.step(self.learning(stage), x, self._frames, step, self._draws)

    def validation(self, stage: int, step: Step) -> Generator[list[dict[str, Tensor]]]:
        self._share_buffers()
        self.model.eval()
        try:
            for number, batch in enumerate(self._test_loader.batches(0, self.validation_clips)):
                with self._accelerator.autocast():
                    x = frozen_latent(self._frozen(stage), batch.inputs, number, self._draws)
                yield validation_step(self.learning(stage), x, self._frames, number, self._draws, step.beta)
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
            model = GreedyEncoder(self._config.model, self._config.loss, self._config.seed).state_dict()
        prefix = f"greedy.{number}."
        self._engine.modules[number].module.load_state_dict(
            {name.removeprefix(prefix): tensor for name, tensor in model.items() if name.startswith(prefix)}
        )
        self._engine.load_module(number, optimizer)

    @property
    def _is_stagewise(self) -> bool:
        return self._config.train.schedule == "stagewise"

    def _frozen(self, stage: int) -> Sequence[NumberedModule]:
        """The modules below those that learn, which learn no more."""
        return self._engine.modules[:stage] if self._is_stagewise else []

    def _set_modes(self, stage: int) -> None:
        """Modules that learn are in train mode, frozen ones normalise by their running statistics."""
        self.model.eval()
        for trainer in self.learning(stage):
            trainer.module.train()

    def _open_source(self, stage: int, log: Callable[[str], None]) -> Source | None:
        """Where a stage's inputs come from: audio, or cached latents; None if a stop request came while caching."""
        frozen = self._frozen(stage)
        if not (frozen and self._config.train.cache_latents):
            return (
                self._source
                if self._source.first_module == 0
                else Source(self._load(self._clips, self._config.data), 0)
            )
        self._share_buffers()
        self.model.eval()
        folder = self._run.folder / "latents" / f"module_{frozen[-1].number}"
        data = self._config.data
        log(f"latents of module {frozen[-1].number}: {folder}")
        seed = self._config.seed
        cache = LatentCache(folder / data.train_split, frozen, self._clips, data.crop, seed, data.retry_seconds)
        if not cache.write(self._process):
            return None
        latents = replace(data, root=str(folder), crop=self._frames[stage - 1], short_clips="pad", cache="none")
        return Source(self._load(open_clips(latents, data.train_split), latents), stage, cache.skipped)

    def _through_frozen(self, stage: int, inputs: Tensor, step: int) -> Tensor:
        """The input of the lowest module that learns."""
        first_module = self._source.first_module
        if first_module:  # cached latents: only their noise is missing
            below = self._engine.modules[first_module - 1]
            return sampled(inputs, below, self._draws.noise("frozen", step, below))
        with self._accelerator.autocast():
            return frozen_latent(self._frozen(stage), inputs, step, self._draws)

    def _load(self, clips: Clips, data: DataConfig) -> BatchLoader:
        return load_share(clips, data, self._config.seed, self._process)

    def _validation_shape(self) -> tuple[DataConfig, int]:
        assert self._test_clips is not None
        return validation_data(self._test_clips, self._config, self._accelerator.num_processes)

    def _share_buffers(self) -> None:
        """Send rank 0's BatchNorm statistics to all ranks, where they are about to be read."""
        if self._accelerator.num_processes > 1:
            for buffer in self.model.buffers():
                broadcast(buffer)


def _telling(batches: Iterator[Batch], skipped: tuple[str, ...]) -> Iterator[Batch]:
    """The same batches, of which the first also tells of what was skipped before."""
    for batch in batches:
        yield replace(batch, skipped=batch.skipped + skipped)
        skipped = ()
