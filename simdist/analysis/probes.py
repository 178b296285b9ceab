"""The probes that simdist.probe has trained on a module, found by label, with their weights."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors.torch import load_file
from torch import Tensor

from simdist.analysis.outcome import ModuleError
from simdist.analysis.subject import Subject
from simdist.errors import InputError
from simdist.models.probes import Probe
from simdist.probing.results import RESULT, read_result
from simdist.probing.settings import names_in


@dataclass(frozen=True)
class TrainedProbe:
    """A finished probe of one module."""

    folder: Path
    result: dict[str, Any]

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def label(self) -> str:
        return self.result["label"]

    @property
    def classes(self) -> list[str]:
        return self.result["classes"]

    def tensors(self) -> dict[str, Tensor]:
        """What `probe.safetensors` holds."""
        return load_file(self.folder / "probe.safetensors")

    def load(self) -> Probe:
        """The probe itself, in eval mode on the CPU."""
        state = self.tensors()
        hidden = len(state["hidden.bias"]) if "hidden.bias" in state else None
        probe = Probe(len(state["mean"]), len(state["output.weight"]), hidden, "output.bias" in state)
        probe.load_state_dict(state)
        return probe.eval()

    def weights(self) -> npt.NDArray[np.float64]:
        """(K, C) weights of a linear probe; of standardised features where the probe standardises."""
        return self.tensors()["output.weight"].double().numpy()


def probes_of(subject: Subject, module: int) -> list[TrainedProbe]:
    """All finished probes of this very encoder's module, the newest first; few-label ones keep no weights."""
    found = []
    for path in subject.run.folder.glob(f"probes/*/{RESULT}"):
        result = read_result(path.parent)
        source = result["source"]
        same = source["kind"] == "trained" and source["weights"] == subject.source.identity
        if same and source["module"] == module and "test" in result:
            found.append(TrainedProbe(path.parent, result))
    return sorted(found, key=lambda probe: probe.result["finished"], reverse=True)


def is_plain(probe: TrainedProbe) -> bool:
    """Linear, without bias, one weight a latent dimension: what the weight analysis reads."""
    return probe.result["probe"]["bias"] is False and has_one_weight_a_dimension(probe)


def has_one_weight_a_dimension(probe: TrainedProbe) -> bool:
    """Whether a probe is linear and reads pooled or single frames, not frames side by side."""
    result = probe.result
    return result["probe"]["probe"] != "mlp" and result["view"]["pooling"] != "flatten"


def named_probe(subject: Subject, module: int, name: str) -> TrainedProbe:
    """The probe in RUN/probes/NAME.

    Raises:
        InputError: there is none, or it is of another module or encoder.
    """
    probes = probes_of(subject, module)
    for probe in probes:
        if probe.name == name:
            return probe
    there = f"it has {', '.join(probe.name for probe in probes)}" if probes else "it has none"
    where = f"module {module} of {subject.run.folder} at step {subject.step}"
    raise ModuleError(f"{where} has no probe {name!r}; {there}")


def newest_by_label(
    subject: Subject, module: int, labels: str, probes: list[TrainedProbe], options: str = ""
) -> dict[str, TrainedProbe]:
    """For each label asked for (empty: for each there is) its newest probe.

    Args:
        probes: those that fit, the newest first.
        options: of the command that would make one, for the message.

    Raises:
        InputError: a label has none.
    """
    newest: dict[str, TrainedProbe] = {}
    for probe in probes:
        newest.setdefault(probe.label, probe)
    wanted = names_in(labels) or list(newest)
    missing = [label for label in wanted if label not in newest] or ([] if wanted else ["LABEL"])
    if missing:
        run = subject.run.folder
        raise ModuleError(
            f"{run} has no {'fitting ' if options else ''}probe of {missing[0]} at module {module}, step "
            f"{subject.step}; make one: accelerate launch -m simdist.probe --run {run} --label {missing[0]} "
            f"--module {module}{options}"
        )
    return {label: newest[label] for label in wanted}


def check_same_classes(first: TrainedProbe, second: TrainedProbe) -> None:
    """Raise an InputError if two probes of one label do not tell the same classes apart."""
    if first.classes != second.classes:
        raise InputError(f"{first.folder} and {second.folder} have other classes; compare runs of one corpus")
