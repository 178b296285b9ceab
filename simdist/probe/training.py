"""Train a probe with Adam, as the reference implementation does, and test it.

An epoch visits every utterance once, in an order given by seed and epoch, `batch_size` utterances per step (with
`drop_last`, those that fill their batch). So an
interrupted training continues with the next step, from the state that `progress` saves.
"""

from __future__ import annotations

import pickle
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from simdist.config.schema import epoch_size
from simdist.core.errors import InputError
from simdist.core.files import replacing
from simdist.core.signals import SignalHandler
from simdist.models.probes import Probe
from simdist.probe.examples import ExampleBatch, Examples
from simdist.probe.settings import ProbeSettings

SAVE_SECONDS = 120.0  # between two saves of a running training: the most that a kill without warning costs


@dataclass(frozen=True)
class Evaluation:
    """A probe's answers to all test vectors, by utterance. U utterances, K classes."""

    correct: npt.NDArray[np.int64]
    """(U, K) vectors of each true class that were recognized."""
    total: npt.NDArray[np.int64]
    """(U, K) vectors of each true class."""
    confusion: npt.NDArray[np.int64]
    """(K, K) vectors of true class (row) that were taken for (column)."""
    loss: float
    """Mean cross-entropy, in nats."""


class ProbeProgress:
    """The state of an unfinished training on disk; removed when it finishes.

    Args:
        path: file, None keeps nothing.
        stop: asked after every step.
    """

    def __init__(self, path: Path | None, stop: SignalHandler) -> None:
        self._path, self._stop, self._saved = path, stop, time.monotonic()

    def load(self) -> dict[str, Any] | None:
        """The saved state, or None; an unreadable file is ignored."""
        if self._path is None or not self._path.exists():
            return None
        try:
            return torch.load(self._path, map_location="cpu", weights_only=True)
        except (RuntimeError, OSError, EOFError, ValueError, pickle.UnpicklingError):
            return None

    def after_step(self, state: Callable[[], dict[str, Any]]) -> None:
        """Save periodically, and when a signal has arrived.

        Raises:
            StoppedError: a signal came.
        """
        due = time.monotonic() - self._saved > SAVE_SECONDS
        if self._path is not None and (due or self._stop.signal_number):
            with replacing(self._path) as temporary:
                torch.save(state(), temporary)
            self._saved = time.monotonic()
        self._stop.check()

    def done(self) -> None:
        """Remove the saved state."""
        if self._path is not None:
            self._path.unlink(missing_ok=True)


def train_with_adam(
    probe: Probe,
    examples: Examples,
    settings: ProbeSettings,
    progress: ProbeProgress,
    encoder: nn.Module | None = None,
    advance: Callable[[int], None] = lambda steps: None,
) -> float:
    """Train a probe in place for `settings.epochs`; returns the mean loss of the last epoch.

    Args:
        probe: on the examples' device.
        encoder: is trained together with the probe, in training mode (the supervised baseline).
        advance: told of every step.

    Raises:
        StoppedError: a signal came; the state is saved.
    """
    assert settings.epochs is not None
    assert settings.batch_size is not None
    trained = nn.ModuleList([probe] if encoder is None else [probe, encoder])
    trained.train()
    optimizer = torch.optim.Adam(
        [p for p in trained.parameters() if p.requires_grad],
        lr=settings.lr or 1e-3,
        weight_decay=settings.weight_decay or 0.0,
        fused=True,
    )
    size = utterances_per_epoch(examples.num_utterances, settings)
    epoch, first, total, count = 0, 0, torch.zeros_like(probe.mean[0]), 0
    saved = progress.load()
    if saved is not None:
        trained.load_state_dict(saved["weights"])
        optimizer.load_state_dict(saved["optimizer"])
        epoch, first, count, total = saved["epoch"], saved["place"], saved["count"], saved["loss"].to(total)
    while epoch < settings.epochs:
        order = examples.order(settings.seed, epoch)[:size]
        for place in range(first, len(order), settings.batch_size):
            if place == 0:
                total, count = torch.zeros_like(probe.mean[0]), 0
            batch = examples.batch(order[place : place + settings.batch_size].tolist(), epoch)
            total, count = total + _step(probe, optimizer, batch, settings.clip_grad_norm), count + 1
            following = place + settings.batch_size
            at = (epoch, following) if following < len(order) else (epoch + 1, 0)
            sums = (total, count)
            progress.after_step(lambda at=at, sums=sums: _state(trained, optimizer, at, sums))
            advance(1)
        epoch, first = epoch + 1, 0
    trained.eval()
    return float(total) / max(1, count)


def _step(probe: Probe, optimizer: torch.optim.Optimizer, batch: ExampleBatch, clip: float | None) -> Tensor:
    if not len(batch.classes):  # an utterance all of whose frames were dropped
        return torch.zeros(())
    loss = F.cross_entropy(probe(batch.features), batch.classes)
    loss.backward()
    if clip:
        nn.utils.clip_grad_norm_([p for group in optimizer.param_groups for p in group["params"]], clip)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return loss.detach()


def _state(
    trained: nn.Module, optimizer: torch.optim.Optimizer, at: tuple[int, int], sums: tuple[Tensor, int]
) -> dict[str, Any]:
    return {
        "weights": trained.state_dict(),
        "optimizer": optimizer.state_dict(),
        "epoch": at[0],
        "place": at[1],
        "loss": sums[0],
        "count": sums[1],
    }


@torch.no_grad()
def standardize(probe: Probe, examples: Examples) -> None:
    """Set the probe's shift and scale to the mean and standard deviation of all examples' features."""
    count, sums, squares = 0, 0.0, 0.0
    for batch in examples.everything():
        features = batch.features.double()
        count, sums, squares = count + len(features), sums + features.sum(0), squares + features.square().sum(0)
    assert isinstance(sums, Tensor)
    assert isinstance(squares, Tensor)
    mean = sums / count
    deviation = (squares / count - mean.square()).clamp(min=0).sqrt()
    probe.mean.copy_(mean)
    probe.scale.copy_(torch.where(deviation > 1e-6, deviation, torch.ones_like(deviation)))  # a dead dimension stays 0


@torch.no_grad()
def evaluate(probe: Probe, examples: Examples, num_classes: int, stop: SignalHandler) -> Evaluation:
    """Test a probe on all vectors of all utterances.

    Raises:
        StoppedError: a signal came.
    """
    probe.eval()
    shape = (examples.num_utterances, num_classes)
    correct, total = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
    confusion, loss = np.zeros((num_classes, num_classes), np.int64), 0.0
    for batch in examples.everything():
        stop.check()
        logits = probe(batch.features)
        loss += float(F.cross_entropy(logits.double(), batch.classes, reduction="sum"))
        said, true, owner = (t.cpu().numpy() for t in (logits.argmax(1), batch.classes, batch.owner))
        np.add.at(confusion, (true, said), 1)
        np.add.at(total, (owner, true), 1)
        np.add.at(correct, (owner, true), said == true)
    return Evaluation(correct, total, confusion, loss / max(1, int(total.sum())))


def num_steps(examples: Examples, settings: ProbeSettings) -> int:
    """Number of steps of `train_with_adam`."""
    assert settings.epochs is not None
    assert settings.batch_size is not None
    return settings.epochs * -(-utterances_per_epoch(examples.num_utterances, settings) // settings.batch_size)


def utterances_per_epoch(num_utterances: int, settings: ProbeSettings) -> int:
    """Training utterances that an epoch visits.

    Raises:
        InputError: none, because they do not fill a batch.
    """
    assert settings.batch_size is not None
    size = epoch_size(num_utterances, settings.batch_size, bool(settings.drop_last))
    if not size:
        raise InputError(
            f"--drop-last leaves no batch: there are {num_utterances} training utterances, fewer than "
            f"--batch-size {settings.batch_size}. Use --batch-size {num_utterances} or less"
        )
    return size
