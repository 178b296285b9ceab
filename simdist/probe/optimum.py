"""The exact optimum of a linear probe: multinomial logistic regression by L-BFGS.

It minimizes the mean cross-entropy over all training vectors plus l2 / 2 times the squared weights (not the bias), on
standardized features, in double precision. The penalty makes the optimum unique, so the result says what the features
hold, and nothing about a learning rate or a number of epochs. Equal to scikit-learn's `LogisticRegression(C=1 / (N *
l2))` on the same features.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from simdist.models.probes import Probe
from simdist.probe.examples import Examples
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


class Objective:
    """Loss and gradient over all training vectors, a part at a time.

    Args:
        probe: linear; its weights are the parameters, in double precision.
        examples: read once each evaluation.
        l2: penalty.
    """

    def __init__(self, probe: Probe, examples: Examples, l2: float) -> None:
        self._probe, self._examples, self._l2 = probe, examples, l2
        self._count = sum(len(batch.classes) for batch in examples.everything())
        self._held = list(examples.everything()) if self._count * examples.dimensions < 2**25 else None

    def __call__(self) -> Tensor:
        weight = self._probe.output.weight
        loss = 0.5 * self._l2 * weight.square().sum()
        loss.backward()
        for batch in self._held or self._examples.everything():
            part = F.cross_entropy(self._probe(batch.features.double()), batch.classes, reduction="sum") / self._count
            part.backward()
            loss = loss.detach() + part.detach()
        return loss.detach()


def fit_optimum(probe: Probe, examples: Examples, settings: ProbeSettings, progress: ProbeProgress) -> Optimum:
    """Bring a linear probe to its optimum, in place.

    A fit that was stopped resumes with all of L-BFGS's state, so its result is bitwise that of an undisturbed one.

    Raises:
        StoppedError: a signal came; the state is saved.
    """
    torch.nn.init.zeros_(probe.output.weight)
    if probe.output.bias is not None:
        torch.nn.init.zeros_(probe.output.bias)
    probe.double()
    objective = Objective(probe, examples, settings.l2)
    optimizer = torch.optim.LBFGS(
        probe.output.parameters(),
        max_iter=STRIDE,
        max_eval=4 * STRIDE,
        tolerance_grad=settings.tolerance,
        tolerance_change=0.0,
        history_size=HISTORY,
        line_search_fn="strong_wolfe",
    )

    def closure() -> Tensor:
        optimizer.zero_grad(set_to_none=True)
        return objective()

    optimum, ended = _restore(probe, optimizer, progress)
    while not ended and optimum.iterations < settings.max_iterations:
        optimizer.step(closure)
        loss, gradient = float(closure()), _largest_gradient(probe)
        converged = gradient <= settings.tolerance
        ended = converged or not loss < optimum.loss  # no double-precision step lowers it any more
        optimum = Optimum(loss, gradient, optimum.iterations + STRIDE, converged)
        reached = {"optimum": asdict(optimum), "ended": ended}
        progress.after_step(
            lambda reached=reached: {"weights": probe.state_dict(), "optimizer": optimizer.state_dict(), **reached}
        )
    optimizer.zero_grad(set_to_none=True)
    probe.float()
    return optimum


def _restore(probe: Probe, optimizer: torch.optim.Optimizer, progress: ProbeProgress) -> tuple[Optimum, bool]:
    """Load a saved state if there is one; returns the state of the fit, and whether it has ended."""
    saved = progress.load()
    if saved is None or "optimizer" not in saved:  # versions that saved weights alone could not resume exactly
        return Optimum(float("inf"), float("inf"), 0, False), False
    probe.load_state_dict(saved["weights"])
    optimizer.load_state_dict(saved["optimizer"])
    return Optimum(**saved["optimum"]), saved["ended"]


def _largest_gradient(probe: Probe) -> float:
    return max(float(p.grad.abs().max()) for p in probe.output.parameters() if p.grad is not None)
