"""The probes that simdist.probe has trained on a module, found by label, with their weights."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors.torch import load_file
from torch import Tensor

from simdist.analyze.encoder_under_test import EncoderUnderTest
from simdist.analyze.result_writer import ModuleError
from simdist.config.schema import place_name
from simdist.core.errors import InputError
from simdist.models.probes import Probe
from simdist.probe.results import RESULT, read_result
from simdist.probe.settings import FRAME_LABEL, names_in


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
        """(K, C) weights of a linear probe; of standardized features where the probe standardizes."""
        return self.tensors()["output.weight"].double().numpy()


def probes_of(encoder: EncoderUnderTest, module: int, layer: int | None = None) -> list[TrainedProbe]:
    """All finished probes of this very encoder's module, or of a layer inside it, the newest first; few-label ones keep
    no weights."""
    found = []
    for path in encoder.run.folder.glob(f"probes/*/{RESULT}"):
        result = read_result(path.parent)
        source = result["source"]
        same = source["kind"] == "trained" and source["weights"] == encoder.extractor.identity
        if same and (source["module"], source.get("layer")) == (module, layer) and "test" in result:
            found.append(TrainedProbe(path.parent, result))
    return sorted(found, key=lambda probe: probe.result["finished"], reverse=True)


@dataclass(frozen=True)
class Wanted:
    """Which of a label's probes an analysis reads, so that two runs are compared by probes of one kind."""

    kind: str
    pooling: str
    bias: bool

    def fits(self, probe: TrainedProbe) -> bool:
        made, view = probe.result["probe"], probe.result["view"]
        pooled = view["kind"] == "frames" or view["pooling"] == self.pooling
        return made["probe"] == self.kind and made["bias"] is self.bias and pooled and not view["sampled"]

    def options(self, label: str) -> str:
        """What `simdist.probe` is to be told to train one."""
        options = "" if self.kind == "linear" else f" --probe {self.kind}"
        options += "" if self.pooling == "mean" or label == FRAME_LABEL else f" --pooling {self.pooling}"
        return options + ("" if self.bias else " --bias false")


def has_one_weight_a_dimension(probe: TrainedProbe) -> bool:
    """Whether a probe is linear and reads pooled or single frames, not frames side by side."""
    result = probe.result
    return result["probe"]["probe"] != "mlp" and result["view"]["pooling"] != "flatten"


def named_probe(encoder: EncoderUnderTest, module: int, name: str, layer: int | None = None) -> TrainedProbe:
    """The probe in RUN/probes/NAME.

    Raises:
        InputError: there is none, or it is of another module, layer or encoder.
    """
    probes = probes_of(encoder, module, layer)
    for probe in probes:
        if probe.name == name:
            return probe
    there = f"it has {', '.join(probe.name for probe in probes)}" if probes else "it has none"
    where = f"{place_name(module, layer)} of {encoder.run.folder} at step {encoder.step}"
    raise ModuleError(f"{where} has no probe {name!r}; {there}")


def newest_by_label(
    encoder: EncoderUnderTest, module: int, labels: str, wanted: Wanted, layer: int | None = None
) -> dict[str, TrainedProbe]:
    """For each label asked for (empty: for each there is) its newest probe that fits.

    Raises:
        ModuleError: a label has none; says which command makes it.
    """
    newest: dict[str, TrainedProbe] = {}
    for probe in probes_of(encoder, module, layer):
        if wanted.fits(probe):
            newest.setdefault(probe.label, probe)
    asked = names_in(labels) or list(newest)
    missing = [label for label in asked if label not in newest] or ([] if asked else ["LABEL"])
    if missing:
        run, label = encoder.run.folder, missing[0]
        bias = "with" if wanted.bias else "without"
        inside = "" if layer is None else f" --layer {layer}"
        raise ModuleError(
            f"{place_name(module, layer)} of {run} at step {encoder.step} has no {wanted.kind} probe of {label} "
            f"{bias} bias, {wanted.pooling}-pooled; make it: accelerate launch -m simdist.probe --run-dir {run} "
            f"--label {label} --module {module}{inside}{wanted.options(label)}"
        )
    return {label: newest[label] for label in asked}


def check_same_classes(first: TrainedProbe, second: TrainedProbe) -> None:
    """Raise an InputError if two probes of one label do not tell the same classes apart."""
    if first.classes != second.classes:
        raise InputError(f"{first.folder} and {second.folder} have other classes; compare runs of one corpus")
