"""The exact optimum of a linear probe: multinomial logistic regression by L-BFGS.

It minimizes the mean cross-entropy over all training vectors plus l2 / 2 times the squared weights (not the bias), on
standardized features, in double precision. The penalty makes the optimum unique, so the result says what the features
hold, and nothing about a learning rate or a number of epochs. Equal to scikit-learn's `LogisticRegression(C=1 / (N *
l2))` on the same features.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from simdist.models.probes import Probe
from simdist.probe.examples import Examples, Readable
from simdist.probe.settings import ProbeSettings
from simdist.probe.training import ProbeProgress

HISTORY = 20  # gradients that L-BFGS remembers
STRIDE = 10  # iterations between two looks at the gradient and the stop flag


@dataclass(frozen=True)
class Optimum:
    """The result of L-BFGS."""

    loss: float
    """Mean cross-entropy plus penalty, in nats."""
    gradient: float
    """Largest entry of its gradient."""
    iterations: int
    converged: bool


NOTHING = Optimum(float("inf"), float("inf"), 0, False)


class Objective:
    """Loss and gradient over all training vectors, a part at a time, in the precision of the probe's weights.

    Args:
        probe: linear; its weights are the parameters.
        examples: read once each evaluation, or kept standardized if they are few.
        l2: penalty.
    """

    def __init__(self, probe: Probe, examples: Readable, l2: float) -> None:
        self._probe, self._examples, self._l2 = probe, examples, l2
        self._count = sum(len(batch.classes) for batch in examples.everything())
        self._held = list(self._parts()) if self._count * examples.dimensions < 2**25 else None

    def __call__(self) -> Tensor:
        weight = self._probe.output.weight
        loss = 0.5 * self._l2 * weight.square().sum()
        loss.backward()
        for features, classes in self._held or self._parts():
            part = F.cross_entropy(self._probe.output(features), classes, reduction="sum") / self._count
            part.backward()
            loss = loss.detach() + part.detach()
        return loss.detach()

    def _parts(self) -> Iterator[tuple[Tensor, Tensor]]:
        for batch in self._examples.everything():
            yield self._probe.standardized(batch.features.to(self._probe.output.weight.dtype)), batch.classes


Round = Callable[[Optimum, torch.optim.Optimizer, bool], None]
"""Told after some iterations of what was reached, of the optimizer, and whether it has ended."""


def descend(
    probe: Probe,
    objective: Objective,
    tolerance: float,
    max_iterations: int,
    after_round: Round,
    begin: Callable[[torch.optim.Optimizer], tuple[Optimum, bool]] = lambda optimizer: (NOTHING, False),
) -> Optimum:
    """Minimize by L-BFGS from the probe's weights, in their precision.

    Args:
        tolerance: of the largest entry of the gradient.
        begin: loads an earlier state into the optimizer; returns what it had reached, and whether it has ended.
    """
    optimizer = torch.optim.LBFGS(
        probe.output.parameters(),
        max_iter=STRIDE,
        max_eval=4 * STRIDE,
        tolerance_grad=tolerance,
        tolerance_change=0.0,
        history_size=HISTORY,
        line_search_fn="strong_wolfe",
    )

    def closure() -> Tensor:
        optimizer.zero_grad(set_to_none=True)
        return objective()

    optimum, ended = begin(optimizer)
    while not ended and optimum.iterations < max_iterations:
        optimizer.step(closure)
        loss, gradient = float(closure()), _largest_gradient(probe)
        converged = gradient <= tolerance
        ended = converged or not loss < optimum.loss  # no step lowers it any more
        optimum = Optimum(loss, gradient, optimum.iterations + STRIDE, converged)
        after_round(optimum, optimizer, ended)
    optimizer.zero_grad(set_to_none=True)
    return optimum


def fit_optimum(
    probe: Probe,
    examples: Examples,
    settings: ProbeSettings,
    progress: ProbeProgress,
    kept: Mapping[str, Any] | None = None,
) -> Optimum:
    """Bring a linear probe to its optimum for the penalty `settings.l2`, in place.

    A fit that was stopped resumes with all of L-BFGS's state, so its result is bitwise that of an undisturbed one.

    Args:
        kept: what else to save with the state.

    Raises:
        StoppedError: a signal came; the state is saved.
    """
    assert settings.l2 is not None
    torch.nn.init.zeros_(probe.output.weight)
    if probe.output.bias is not None:
        torch.nn.init.zeros_(probe.output.bias)
    probe.double()

    def save(optimum: Optimum, optimizer: torch.optim.Optimizer, ended: bool) -> None:
        reached = {**(kept or {}), "optimum": asdict(optimum), "ended": ended}
        progress.after_step(lambda: {"weights": probe.state_dict(), "optimizer": optimizer.state_dict(), **reached})

    optimum = descend(
        probe,
        Objective(probe, examples, settings.l2),
        settings.tolerance,
        settings.max_iterations,
        save,
        lambda optimizer: _restore(probe, optimizer, progress),
    )
    probe.float()
    return optimum


def _restore(probe: Probe, optimizer: torch.optim.Optimizer, progress: ProbeProgress) -> tuple[Optimum, bool]:
    """Load a saved state if there is one; returns the state of the fit, and whether it has ended."""
    saved = progress.load()
    if saved is None or "optimizer" not in saved:  # versions that saved weights alone could not resume exactly
        return NOTHING, False
    probe.load_state_dict(saved["weights"])
    optimizer.load_state_dict(saved["optimizer"])
    return Optimum(**saved["optimum"]), saved["ended"]


def _largest_gradient(probe: Probe) -> float:
    return max(float(p.grad.abs().max()) for p in probe.output.parameters() if p.grad is not None)
