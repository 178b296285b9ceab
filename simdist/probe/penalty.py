"""The L2 penalty of an L-BFGS probe, chosen by cross-validation over recordings.

Without a good penalty the optimum says little: 1,408 features of 2,181 syllables can be told apart perfectly. The
examples of one recording (a word, a chapter) share its sound, so they are held out together: five folds of recordings,
each held out once, for penalties from strong to weak. Every fit starts from the last one's optimum. The penalty with
the smallest held-out cross-entropy is taken; two weaker ones in a row that are worse end the search.

A corpus of many frames is represented by some, drawn at random from all recordings. The best penalty is proportional to
1 / examples (a Gaussian prior's weight against the mean loss), by which the one found is scaled.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from simdist.core.errors import InputError
from simdist.models.probes import Probe
from simdist.probe.examples import ExampleBatch, Examples, HeldExamples
from simdist.probe.optimum import Objective, descend
from simdist.probe.settings import ProbeSettings
from simdist.probe.training import ProbeProgress

NUM_FOLDS = 5
PATH = tuple(10 ** (1 - step / 2) for step in range(15))  # 10, 3.2, … 1e-6
PATIENCE = 2  # penalties without improvement that end the search
TOLERANCE = 1e-3  # of the gradient: enough for three digits of held-out losses near the best penalty
MOST_NUMBERS = 2**22  # of the features that are cross-validated


@dataclass(frozen=True)
class Tried:
    """One penalty, on all held-out examples."""

    l2: float
    loss: float
    """Mean cross-entropy, in nats."""
    accuracy: float


@dataclass(frozen=True)
class Penalty:
    """The penalty that was chosen."""

    l2: float
    path: list[Tried]
    """Those that were tried, from strong to weak, scaled to the number of training examples."""
    held_out: str
    """What was held out together: `recordings`, or `utterances` where classes have too few recordings."""
    num_groups: int
    """Number of these."""
    num_examples: int
    """Vectors that were cross-validated."""


@dataclass(frozen=True)
class Part:
    """Vectors to cross-validate on. N vectors of D standardized features."""

    features: Tensor
    """(N, D) float32."""
    classes: Tensor
    """(N,) int64."""
    owner: Tensor
    """(N,) int64: utterance of each."""
    share: float
    """Of all training vectors."""

    def only(self, kept: Tensor) -> HeldExamples:
        return HeldExamples(ExampleBatch(self.features[kept], self.classes[kept], self.owner[kept]))


@dataclass
class Search:
    """The state of a search, as it is saved: the fits of each fold and what they reached so far."""

    folds: list[dict[str, Tensor]]
    """The weights of each fold's probe."""
    sums: list[list[tuple[float, float]]] = field(default_factory=list)
    """For each penalty and fold: loss and number of correct answers, summed over held-out vectors."""


def choose_penalty(
    probe: Probe,
    examples: Examples,
    recordings: npt.NDArray[np.int64],
    settings: ProbeSettings,
    progress: ProbeProgress,
) -> Penalty:
    """Cross-validate penalties for a linear probe.

    Args:
        probe: gives shape, bias, and the features' mean and scale; is not changed.
        examples: of training.
        recordings: (U,) the recording of each utterance.
        settings: tolerance, iterations and seed.
        progress: keeps what was fitted.

    Raises:
        InputError: no class has two utterances.
        StoppedError: a signal came; the state is saved.
    """
    saved = progress.load() or {}
    if "penalty" in saved:
        found = saved["penalty"]
        return Penalty(**{**found, "path": [Tried(**tried) for tried in found["path"]]})
    part = _part(probe, examples, settings.seed)
    held_out, folds, scored = _grouped(part, recordings, settings.seed)
    num_scored = sum(int(mask.sum()) for mask in scored)
    search = Search(**saved["search"]) if "search" in saved else Search([_zeros(probe)] * len(folds))
    losses: list[float] = []
    for place, l2 in enumerate(PATH):
        if place == len(search.sums):
            search.sums.append([])
        for number in range(len(search.sums[place]), len(folds)):
            _fit_fold(search, number, l2, part, folds[number], scored[number], probe, settings, progress)
        losses.append(sum(loss for loss, _ in search.sums[place]) / num_scored)
        if len(losses) - 1 - int(np.argmin(losses)) >= PATIENCE:
            break
    path = [
        Tried(l2 * part.share, loss, sum(correct for _, correct in sums) / num_scored)
        for l2, loss, sums in zip(PATH, losses, search.sums, strict=False)
    ]
    groups = recordings if held_out == "recordings" else np.arange(len(recordings))
    return Penalty(path[int(np.argmin(losses))].l2, path, held_out, len(np.unique(groups)), len(part.classes))


def _fit_fold(
    search: Search,
    number: int,
    l2: float,
    part: Part,
    fold: Tensor,
    scored: Tensor,
    probe: Probe,
    settings: ProbeSettings,
    progress: ProbeProgress,
) -> None:
    """Fit one fold's probe from where the last penalty left it, and test it on what is held out."""
    fitted = Probe(part.features.shape[1], len(probe.output.weight), None, probe.output.bias is not None)
    fitted.to(part.features.device)
    fitted.output.load_state_dict(search.folds[number])
    before = {"search": {"folds": list(search.folds), "sums": [list(sums) for sums in search.sums]}}
    descend(
        fitted,
        Objective(fitted, part.only(~fold), l2),
        max(settings.tolerance, TOLERANCE),
        settings.max_iterations,
        lambda optimum, optimizer, ended: progress.after_step(lambda: before),
    )
    with torch.no_grad():
        logits, classes = fitted(part.features[scored]), part.classes[scored]
        loss = float(F.cross_entropy(logits, classes, reduction="sum"))
    search.folds[number] = {name: tensor.clone() for name, tensor in fitted.output.state_dict().items()}
    search.sums[-1].append((loss, float((logits.argmax(1) == classes).sum())))


def _zeros(probe: Probe) -> dict[str, Tensor]:
    return {name: torch.zeros_like(tensor, dtype=torch.float32) for name, tensor in probe.output.state_dict().items()}


def _part(probe: Probe, examples: Examples, seed: int) -> Part:
    """Standardized vectors, as many as `MOST_NUMBERS` allows, drawn from all."""
    total = sum(len(batch.classes) for batch in examples.everything())
    count = min(total, max(1, MOST_NUMBERS // examples.dimensions))
    bits = np.random.PCG64(np.random.SeedSequence([seed])).random_raw(total)
    chosen = np.sort(np.argsort(bits, kind="stable")[:count])
    found: list[ExampleBatch] = []
    first = 0
    for batch in examples.everything():
        where = chosen[(chosen >= first) & (chosen < first + len(batch.classes))] - first
        kept = torch.from_numpy(where).to(batch.classes.device)
        features = probe.standardized(batch.features[kept].float())
        found.append(ExampleBatch(features, batch.classes[kept], batch.owner[kept]))
        first += len(batch.classes)
    parts = zip(*((batch.features, batch.classes, batch.owner) for batch in found), strict=True)
    features, classes, owner = (torch.cat(tensors) for tensors in parts)
    return Part(features, classes, owner, count / total)


def _grouped(part: Part, recordings: npt.NDArray[np.int64], seed: int) -> tuple[str, list[Tensor], list[Tensor]]:
    """Folds of recordings; of utterances if most vectors are of classes that only their own fold has.

    Returns:
        What is held out together; for each fold, (N,) bool: which vectors are held out, and which of them are scored:
        those whose class the other folds have.
    """
    for name, groups in (("recordings", recordings), ("utterances", np.arange(len(recordings)))):
        folds = [
            torch.from_numpy(mask).to(part.owner.device) for mask in fold_masks(groups[part.owner.cpu().numpy()], seed)
        ]
        scored = [fold & torch.isin(part.classes, part.classes[~fold]) for fold in folds]
        share = sum(int(mask.sum()) for mask in scored) / len(part.classes)
        if share >= 0.5 or (name == "utterances" and share > 0):
            return name, folds, scored
    raise InputError("--l2 cannot be cross-validated: no class has two training utterances. Give it, such as --l2 1e-4")


def fold_masks(groups: npt.NDArray[np.int64], seed: int) -> list[npt.NDArray[np.bool_]]:
    """Spread groups over at most five folds of about equal size; (N,) for each fold, whether a vector is in it.

    Args:
        groups: (N,) of each vector.
        seed: decides between groups of one size.
    """
    names, sizes = np.unique(groups, return_counts=True)
    bits = np.random.PCG64(np.random.SeedSequence([seed, 1])).random_raw(len(names))
    filled = np.zeros(min(NUM_FOLDS, len(names)), np.int64)
    fold_of = np.zeros(len(names), np.int64)
    for place in np.lexsort((bits, -sizes)):  # the largest first, each into the emptiest fold
        fold_of[place] = int(filled.argmin())
        filled[fold_of[place]] += sizes[place]
    fold = fold_of[np.searchsorted(names, groups)]
    return [fold == number for number in range(len(filled))]
