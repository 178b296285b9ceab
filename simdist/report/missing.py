"""Missing results of runs, and the exact commands that add them.

Expected of every run: an end, probes, few labels, a decoder of every module with layers, and the analyses. Where other
runs on the same corpus have a probe with certain settings, the same is expected here; where none has any, the plain
command is given.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from simdist.analyze.registry import ANALYSES, RegisteredAnalysis
from simdist.config.decoder import DEFAULT_LOSS, decoder_command
from simdist.probe.settings import FRAME_LABEL, PROTOCOLS, ProbeSettings, for_label
from simdist.report.collect import RunContent
from simdist.report.measurements import LAYER

SIZES = (1, 2, 4, 8, 16, 32, 64, 128)
SETTINGS = ("bias", "epochs", "lr", "batch_size", "drop_last", "weight_decay", "clip_grad_norm", "hidden", "l2")
SETTINGS += ("tolerance", "max_iterations", "unseen", "bootstrap")
OFF = ("drop_last", "weight_decay", "clip_grad_norm")  # in a result only where they are on


@dataclass(frozen=True)
class Piece:
    """Something that some runs lack."""

    name: str
    commands: list[tuple[str, str]] = field(default_factory=list)
    """A run and the command that makes it, to be typed where the report was made."""
    of: int = 0
    """Runs of which it is expected."""
    section: str = ""
    """The part of the page that lacks it."""


def missing_pieces(runs: Sequence[RunContent]) -> list[Piece]:
    """Every piece that some run lacks, in the order of the page."""
    pieces = [
        _piece("the end of training", "losses", runs, lambda run: [] if run.record.finished else [train_command(run)]),
        *_probes(runs),
    ]
    losses = {module: _losses(runs, module) for module in _all_modules(runs, _can_be_decoded)}
    for module, wanted in losses.items():
        name = f"a decoder of module {module}"
        pieces.append(_piece(name, "reconstructions", runs, lambda run, m=module, w=wanted: _decoder(run, m, w)))
    for entry in (entry for entry in ANALYSES.values() if entry.heading):
        pieces.append(_piece(entry.name, entry.name, runs, lambda run, e=entry: _analysis(run, e, losses)))
    return [piece for piece in pieces if piece.commands]


def _piece(name: str, section: str, runs: Sequence[RunContent], commands: Any) -> Piece:
    """Asks `commands` for each run: None where nothing is expected, [] where nothing is missing."""
    asked = [(run.record.name, commands(run)) for run in runs]
    expected = [(name, found) for name, found in asked if found is not None]
    lacking = [(name, command) for name, found in expected for command in found]
    return Piece(name, lacking, len(expected), section)


def _words(*words: object) -> str:
    return shlex.join(str(word) for word in words)


def train_command(run: RunContent) -> str:
    """What continues a run."""
    folder = run.record.folder
    return "accelerate launch -m simdist.train " + _words("--config", folder / "config.yaml", "--run-dir", folder)


def _modules(run: RunContent) -> list[dict[str, Any]]:
    """The encoder's modules, as far as the configuration says."""
    found = run.record.config.get("model.modules")
    return [module for module in found if isinstance(module, dict)] if isinstance(found, list) else []


def _can_be_decoded(run: RunContent, module: int) -> bool:
    modules = _modules(run)
    return module < len(modules) and bool(modules[module].get("layers"))


def _all_modules(runs: Sequence[RunContent], fits: Any) -> list[int]:
    most = max((len(_modules(run)) for run in runs), default=0)
    return [module for module in range(most) if any(fits(run, module) for run in runs)]


def _probes(runs: Sequence[RunContent]) -> Iterator[Piece]:
    """Probes and few labels that others have; of what nobody has, the plain command."""
    for family, name, plain in (("probe", "probes", _all_probes), ("few-labels", "few-label curves", _plain_curves)):
        section = "probes" if family == "probe" else family
        have: dict[str, dict[str, set[int | None]]] = {}
        for run in runs:
            for item in run.measurements:
                if item.family == family and item.what["features"] == "trained":
                    said = {key: value for key, value in item.what.items() if key != "examples"}
                    of_run = have.setdefault(json.dumps(said, sort_keys=True), {})
                    of_run.setdefault(item.run, set()).add(item.module)
        if not have:
            yield _piece(name, section, runs, plain)
        for what, found in have.items():
            said, wanted = json.loads(what), set().union(*found.values())
            corpora = {run.record.config.get("data.root") for run in runs if run.record.name in found}
            title = f"{'few labels' if family == 'few-labels' else 'probe'}: {_probe_title(said)}"
            yield _piece(
                title,
                section,
                runs,
                lambda run, s=said, f=found, w=wanted, c=corpora: (
                    _probe(run, s, w - f.get(run.record.name, set()))
                    if run.record.config.get("data.root") in c
                    else None
                ),
            )


def _plain_probe(run: RunContent, *options: object) -> str:
    return f"accelerate launch -m simdist.probe {_words('--run-dir', run.record.folder, *options)}"


def _all_probes(run: RunContent) -> list[str]:
    return [_plain_probe(run, "--all")]


def _plain_curves(run: RunContent) -> list[str] | None:
    """Few labels of every label that was probed, with as many examples per class as there are; None before a probe."""
    sizes = {label: [size for size in SIZES if size <= most] for label, most in run.examples.items()}
    return [
        _plain_probe(run, "--label", label, "--examples-per-class", ",".join(map(str, own)))
        for label, own in sizes.items()
        if len(own) > 1
    ] or None


def _probe_title(said: dict[str, Any]) -> str:
    words = [said["label"], said.get("probe.probe"), said.get("view.pooling")]
    words += [f"layer {said[LAYER]}"] if LAYER in said else []
    return ", ".join(str(word) for word in words if word) + (", no bias" if said.get("probe.bias") is False else "")


def _probe(run: RunContent, said: dict[str, Any], lacking: set[int | None]) -> list[str]:
    """The command for the modules that lack this probe."""
    modules, layer = _modules(run), said.get(LAYER)
    there = sorted(m for m in lacking if m is not None and m < max(len(modules), 1))
    if layer is not None:
        there = [m for m in there if m < len(modules) and layer < len(modules[m].get("layers") or ())]
    return [probe_command(run, said, there)] if there else []


def probe_command(run: RunContent, said: dict[str, Any], modules: Sequence[int]) -> str:
    """`simdist.probe` with the options that give a probe these settings.

    Args:
        run: the run that is probed.
        said: the flat settings of a probe's result, as `Measurement.what` has them.
        modules: from 0.
    """
    label = said["label"]
    words = ["--run-dir", run.record.folder, "--label", label, "--module", ",".join(map(str, modules))]
    words += ["--layer", said[LAYER]] if LAYER in said else []
    words += _splits(run, said.get("split"))
    probe = {key.removeprefix("probe."): value for key, value in said.items() if key.startswith("probe.")}
    named: Any = said.get("protocol", "").partition(",")[0]
    protocol = named if label in PROTOCOLS.get(named, {}) else None
    sizes = probe.get("examples_per_class")
    few = ",".join(map(str, sizes)) if sizes else None
    usual: Any = for_label(ProbeSettings(protocol=protocol, probe=probe["probe"], examples_per_class=few), label)
    if protocol:
        words += ["--protocol", protocol]
    if probe["probe"] != "linear":
        words += ["--probe", probe["probe"]]
    if label != FRAME_LABEL and said.get("view.pooling", "mean") not in (None, usual.pooling):
        words += ["--pooling", said["view.pooling"]]
    sampled = "resampled" if said.get("view.resampled") else "sampled"
    latents = sampled if said.get("view.sampled") else "deterministic"
    if latents != usual.latents:
        words += ["--latents", latents]
    if said.get("view.crop") not in (None, run.record.config.get("data.crop")):
        words += ["--crop", said["view.crop"]]
    for name in SETTINGS:
        value = probe.get(name, 0.0 if name in OFF else getattr(usual, name))
        if value != getattr(usual, name):
            words += [f"--{name.replace('_', '-')}", str(value).lower()]
    if "standardize" in probe and probe["standardize"] != (probe["probe"] == "lbfgs"):
        words += ["--standardize", str(probe["standardize"]).lower()]
    if few:
        words += ["--examples-per-class", few]
    if probe.get("repetitions", usual.repetitions) != usual.repetitions:
        words += ["--repetitions", probe["repetitions"]]
    return "accelerate launch -m simdist.probe " + _words(*words)


def _splits(run: RunContent, test: str | None) -> list[str]:
    """The options that name the splits of a probe, unless they are the run's own; `test` is the one to test on."""
    pairs = {"test": "train", "validation": "fit"}
    ending = next((ending for ending in pairs if test is not None and test.endswith(ending)), None)
    if test is None or ending is None or test == run.record.config.get("data.test_split"):
        return []
    return ["--train-split", test.removesuffix(ending) + pairs[ending], "--test-split", test]


def _decoder(run: RunContent, module: int, losses: Sequence[str]) -> list[str] | None:
    """The commands for the losses that the run lacks."""
    if not _can_be_decoded(run, module):
        return None
    own = _decoded(run).get(module, [])
    return [decoder_command(_quoted(run), module, loss) for loss in losses if loss not in own]


def _losses(runs: Sequence[RunContent], module: int) -> list[str]:
    """Of the decoders that any run has of a module; where none has, of other modules."""
    by_module: dict[int, list[str]] = {}
    for run in runs:
        for m, losses in _decoded(run).items():
            by_module.setdefault(m, []).extend(losses)
    found = by_module.get(module) or [loss for losses in by_module.values() for loss in losses]
    return list(dict.fromkeys(found)) or [DEFAULT_LOSS]


def _decoded(run: RunContent) -> dict[int, list[str]]:
    """Losses of the trained encoder's decoders of whole modules, by module."""
    found: dict[int, list[str]] = {}
    for finding in run.findings:
        if finding.kind == "decoder" and not finding.is_untrained and finding.layer is None:
            found.setdefault(finding.module, []).append(finding.loss)
    return found


def _quoted(run: RunContent) -> Any:
    return shlex.quote(str(run.record.folder))


def _analysis(run: RunContent, entry: RegisteredAnalysis, losses: Mapping[int, Sequence[str]]) -> list[str] | None:
    """The command for a run that has no such analysis of any module, with what must come before it."""
    if "prior" in entry.needs and run.record.config.get("model.head") != "variational":
        return None
    if any(finding.kind == entry.name for finding in run.findings):
        return []
    command = f"python -m simdist.analyze {entry.name} --run-dir {_quoted(run)}"
    unbiased = [m for m in run.measurements if m.what.get("probe.bias") is False and LAYER not in m.what]
    if "unbiased probe" in entry.needs and not unbiased:
        return [f"{_plain_probe(run, '--all', '--bias', 'false')} && {command}"]
    if "decoder" not in entry.needs:
        return [command]
    decoded = _decoded(run)
    modules = [m for m in range(len(_modules(run))) if _can_be_decoded(run, m)]
    if not decoded and not modules:
        return None
    if not decoded:
        decoder = decoder_command(_quoted(run), modules[0], losses[modules[0]][0])
        return [f"{decoder} && {command} --module {modules[0]}"]
    module, own = min(decoded.items())
    return [f"{command} --module {module}" + f" --loss {own[0]}" * (len(own) > 1)]
