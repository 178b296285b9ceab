"""What `simdist.analyze` does: plan an analysis for each module, do what is missing, and say what was found."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib
import json
import shutil
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape

from simdist.analyze.outcome import FORMAT_VERSION, RESULT, Analysis, Findings, ModuleError, Outcome, read_result
from simdist.analyze.settings import AnalysisSettings
from simdist.analyze.subject import Subject, analysis_folder, open_subject
from simdist.core.errors import InputError
from simdist.core.files import write_json
from simdist.core.progress import progress
from simdist.core.signals import SignalHandler
from simdist.probe.settings import modules_in
from simdist.runs.folder import Run
from simdist.training.hardware import warn_of_cpu

CLASSES = {  # analysis -> module:class; another package may add its own, see docs/tasks/adding_an_analysis.md
    "weights": "simdist.analyze.weights:Weights",
    "contribution": "simdist.analyze.contribution:Contribution",
    "total-correlation": "simdist.analyze.total_correlation:TotalCorrelation",
    "distributions": "simdist.analyze.distributions:Distributions",
    "embedding": "simdist.analyze.embedding:Embedding",
    "scatter": "simdist.analyze.scatter:Scatter",
    "traversal": "simdist.analyze.traversal:Traversal",
    "interpolation": "simdist.analyze.interpolation:Interpolation",
    "samples": "simdist.analyze.samples:Samples",
    "disentanglement": "simdist.analyze.disentanglement:Disentanglement",
    "robustness": "simdist.analyze.robustness:Robustness",
}


class Command:
    """One call of `simdist.analyze`.

    Args:
        console: where it tells.
        stop: asked between units of work.
    """

    def __init__(self, console: Console, stop: SignalHandler) -> None:
        self.console, self._stop, self._warned = console, stop, False

    def work(self, which: str, settings: AnalysisSettings) -> list[Path]:
        """Analyse every module asked for; returns the folders of the results.

        Raises:
            InputError: a module asked for by number cannot be analysed, or none of all can.
            StoppedError: a signal came; the same command continues.
        """
        subject = open_subject(settings)
        self.console.print(f"{which} of {escape(str(subject.run.folder))}, step {subject.step:,}, {subject.device}")
        if not self._warned:  # once for several analyses
            warn_of_cpu(subject.device.type, self._log, subject.run.event, chosen=settings.device == "cpu")
            self._warned = True
        return [self._one(which, subject, m, settings, found) for m, found in self._plan(which, subject, settings)]

    def _log(self, text: str) -> None:
        self.console.print(text, markup=False)

    def check(self, which: str, settings: AnalysisSettings) -> None:
        """Raise the InputError that `work` would raise before it begins."""
        self._plan(which, open_subject(settings), settings)

    def _plan(self, which: str, subject: Subject, settings: AnalysisSettings) -> list[tuple[int, Analysis]]:
        """The modules to analyse; of `all`, those that the analysis fits."""
        module_name, _, class_name = CLASSES[which].partition(":")
        kind = getattr(importlib.import_module(module_name), class_name)
        wanted, planned, reasons = modules_in(settings.module, len(subject.encoder.stack)), [], []
        for module in wanted:
            try:
                planned.append((module, kind(subject, module, settings)))
            except ModuleError as error:
                if settings.module.strip() != "all":
                    raise
                reasons.append(error)
        if not planned:
            raise reasons[0]
        for reason in reasons:
            self.console.print(f"left out: {escape(str(reason))}")
        return planned

    def _one(self, which: str, subject: Subject, module: int, settings: AnalysisSettings, found: Analysis) -> Path:
        identity = _identity(which, subject, module, settings, found)
        digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:8]
        folder = analysis_folder(subject) / f"{which}-module{module}-step{subject.step}-{digest}"
        if (folder / RESULT).exists() and not settings.force:
            self._tell(folder, "done already")
            return folder
        begin, is_new = time.monotonic(), not folder.exists()
        outcome = self.outcome(folder)
        try:
            findings = found.work(outcome)
        except InputError:
            if is_new:  # nobody else's: what an earlier call left stays
                shutil.rmtree(folder)
            raise
        finish(outcome, subject.run, identity, findings, time.monotonic() - begin)
        self._tell(folder, f"{time.monotonic() - begin:.1f} s")
        return folder

    def outcome(self, folder: Path) -> Outcome:
        """A folder to write results to."""
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"{folder} cannot be written ({error.strerror}); analyse a copy of the run") from error
        (folder / RESULT).unlink(missing_ok=True)
        return Outcome(folder, self._stop, self._bar)

    @contextmanager
    def _bar(self, what: str, total: int, unit: str) -> Iterator[Callable[[int], None]]:
        with progress(self.console, what, total, unit) as advance:
            yield advance

    def _tell(self, folder: Path, state: str) -> None:
        result = read_result(folder)
        self.console.print(f"module {result['module']} ({state}):")
        for line in result["summary"]:
            self.console.print(f"  {escape(line)}")
        self.console.print(f"  {len(result['files'])} files in {escape(str(folder))}")


def finish(outcome: Outcome, run: Run, identity: dict[str, Any], findings: Findings, seconds: float) -> None:
    """Write `result.json`: the analysis is done."""
    packages = {name: metadata.version(name) for name in ("simdist", "torch")}
    content = {
        "format_version": FORMAT_VERSION,
        "name": outcome.folder.name,
        **identity,
        "values": findings.values,
        "summary": findings.summary,
        "files": outcome.files,
        "seconds": seconds,
        "finished": time.time(),
        "environment": {"host": socket.gethostname(), "packages": packages},
    }
    write_json(outcome.folder / RESULT, content)
    run.event("analysed", analysis=outcome.folder.name)


def _identity(which: str, subject: Subject, module: int, settings: AnalysisSettings, found: Analysis) -> dict[str, Any]:
    chosen = {
        item.name: getattr(settings, item.name)
        for item in dataclasses.fields(settings)
        if item.metadata.get("identity", True)
    }
    return {
        "analysis": which,
        "module": module,
        "step": subject.step,
        "weights": subject.source.identity,
        "settings": chosen,
        "inputs": found.inputs,
    }
