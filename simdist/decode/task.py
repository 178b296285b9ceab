"""Training of a decoder on a frozen encoder: what the trainer's loop asks of it."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import nullcontext
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import DistributedType
from torch import Tensor

from simdist.config.decoder import DecodingConfig
from simdist.config.schema import Config, place_name
from simdist.core.errors import InputError
from simdist.data.crops import CropReader
from simdist.data.loader import Batch
from simdist.decode.audio import Example, write_examples
from simdist.decode.frozen import FrozenEncoder
from simdist.decode.measuring import Crops
from simdist.models.decoder import Decoder
from simdist.models.encoder import check_fit
from simdist.models.waveform_losses import WaveformLoss, check_reach
from simdist.runs.folder import Run
from simdist.training.data import TrainingData
from simdist.training.distributed import Process
from simdist.training.random_streams import RandomStreams
from simdist.training.step import NumberedModule, Step, StepOutcome, prepare_module, unreduced


class DecoderTask:
    """One decoder on a frozen encoder; see `TrainingTask`. It has a single stage, and one module: the decoder.

    Args:
        run: the decoder's own folder, with the resolved config.
        frozen: the encoder.
        model: the encoder's configuration.
        process: this process among the others.

    Raises:
        InputError: the data or the launcher does not fit.
    """

    def __init__(self, run: Run[DecodingConfig], frozen: FrozenEncoder, model: Config, process: Process) -> None:
        config, accelerator = run.config, process.accelerator
        if accelerator.distributed_type == DistributedType.DEEPSPEED:
            raise InputError("a decoder has one module and trains under DDP; launch it without --use_deepspeed")
        check_reach(config.loss, config.data.crop)
        self._run, self._config, self._process, self._accelerator = run, config, process, accelerator
        self._data = TrainingData(config, process)
        self._passes = self._data.groups.passes(config.train.groups_at_once)
        self._frozen, self._architecture = frozen, model.model
        frozen.prepare(accelerator.device)
        self.model = self._new_decoder().to(accelerator.device)
        self._loss = WaveformLoss(config.loss).to(accelerator.device)
        self._trainer = prepare_module(accelerator, 0, self.model, config.optim, config.train.compress_gradients)
        self._draws = RandomStreams(config.seed, accelerator.process_index, accelerator.device)

    @property
    def modules(self) -> Sequence[NumberedModule[Decoder]]:
        return [self._trainer]

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

    @cached_property
    def train_crops(self) -> Crops:
        """The training split's crops, for the mean signal."""
        return Crops(self._data.clips, self._config.data.crop, self._config.seed)

    @cached_property
    def test_crops(self) -> Crops:
        """The test split's crops, which quality is measured on."""
        return Crops(self._data.test_clips, self._config.data.crop, self._config.seed)

    def describe(self) -> list[str]:
        config = self._config
        encoder = "untrained encoder" if config.untrained else f"encoder of step {config.checkpoint:,}"
        parameters = sum(p.numel() for p in self.model.parameters())
        return [
            f"world size {self._data.world_size} on {self._accelerator.device.type}, "
            f"precision {config.train.precision}",
            self._data.describe(),
            f"{encoder}, frozen; {config.latents} latents of {place_name(config.module, config.layer)}",
            f"decoder with {len(self.model.stack)} layers, {parameters / 1e6:.2f} M parameters, loss {config.loss}",
        ]

    def learning(self, stage: int) -> Sequence[NumberedModule[Decoder]]:
        return self.modules

    def beginning(self) -> None:
        """A decoder starts from its initial weights."""
        return

    def batches(self, stage: int, first: int, last: int, log: Callable[[str], None]) -> Iterator[Batch]:
        self.model.train()
        return self._data.loader.batches(first, last)

    def step(self, stage: int, batch: Batch, step: Step) -> StepOutcome:
        trainer, parts = self._trainer, batch.inputs.chunk(self._passes)
        metrics: dict[str, Tensor] = {}
        for number, audio in enumerate(parts):  # (B / passes, T, 1)
            latent = self._latent(audio, self._draws, "train", step.number * len(parts) + number)
            with nullcontext() if number == len(parts) - 1 else unreduced(trainer.wrapped):
                metrics = self._losses(trainer.wrapped(latent, audio.shape[1]), audio)
                trainer.backward(metrics["loss"] / len(parts))
        norm, nonfinite = trainer.update(step.lr)
        measured = [{name: value.detach() for name, value in metrics.items()} | {"grad_norm": norm.float()}]
        return StepOutcome(measured if step.measure else [], nonfinite.unsqueeze(0))

    def validation(self, stage: int, step: Step) -> Generator[list[dict[str, Tensor]]]:
        self.model.eval()
        try:
            for number, batch in enumerate(self._data.test_loader.batches(0, self.validation_clips)):
                yield [self._tested(batch.inputs, number)]
        finally:
            self.model.train()

    def show(self, step: int) -> dict[str, Path]:
        """Decode the examples and write them as WAV; on rank 0, which they are for."""
        if not self._accelerator.is_main_process:
            return {}
        examples = self.examples()
        written = write_examples(self._run.folder, step, examples)
        return {example.key: path for example, path in zip(examples, written, strict=True)}

    def examples(self) -> list[Example]:
        """Some test clips, spread over the split, and what the decoder makes of them now."""
        crops, reader = self.test_crops, CropReader(self.test_crops.clips.split)
        count = min(self._config.examples, len(crops))
        found = []
        for number in [place * len(crops) // count for place in range(count)]:
            clip = crops.read(reader, number)
            if clip is not None:
                (audio, length), decoded = clip, self.decode(clip[0], number)
                found.append(Example(crops.key(number), audio[:length].numpy(), decoded[:length].numpy()))
        return found

    @torch.no_grad()
    def decode(self, audio: Tensor, number: int) -> Tensor:
        """Encode and decode test clip `number`, (T,), alike on every rank; float32 on the CPU."""
        was_training = self.model.training
        self.model.eval()
        batch = audio.to(self._accelerator.device)[None, :, None]  # (T,) -> (1, T, 1)
        draws = RandomStreams(self._config.seed, 0, self._accelerator.device)
        with self._accelerator.autocast():
            decoded = self.model(self._latent(batch, draws, "quality", number), len(audio))
        self.model.train(was_training)
        return decoded.float().cpu()[0, 0]

    def state(self) -> list[dict[str, Any]]:
        return [self._trainer.state()]

    def load(self, model: dict[str, Tensor], optimizer: list[dict[str, Any]]) -> None:
        check_fit(self.model, model, f"the checkpoint in {self._run.folder}")
        self.model.load_state_dict(model)
        if optimizer:
            self._trainer.load_state(optimizer[0])

    def load_module(self, number: int, model: dict[str, Tensor] | None, optimizer: dict[str, Any] | None) -> None:
        self.model.load_state_dict(self._new_decoder().state_dict() if model is None else model)
        if optimizer is None:
            self._trainer.optimizer.state.clear()
        else:
            self._trainer.load_state(optimizer)

    def _new_decoder(self) -> Decoder:
        config = self._config
        return Decoder(self._architecture, config.module, config.data.crop, config.width, config.seed, config.layer)

    def _latent(self, audio: Tensor, draws: RandomStreams, purpose: str, number: int) -> Tensor:
        with self._accelerator.autocast():
            return self._frozen.latent(audio, draws.noise(purpose, number, self._trainer))

    @torch.no_grad()
    def _tested(self, audio: Tensor, number: int) -> dict[str, Tensor]:
        """Losses of one (B, T, 1) batch of a validation."""
        latent = self._latent(audio, self._draws, "validation", number)
        with self._accelerator.autocast():
            return self._losses(self.model(latent, audio.shape[1]), audio)

    def _losses(self, decoded: Tensor, audio: Tensor) -> dict[str, Tensor]:
        """The loss and each of its terms, of (B, 1, T) against (B, T, 1)."""
        terms = self._loss.each(decoded, audio.transpose(1, 2))
        return {"loss": torch.stack(list(terms.values())).sum(), **terms}
