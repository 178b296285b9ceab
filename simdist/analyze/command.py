"""Run an analysis on each module of an encoder: plan it, skip finished results, print a summary."""

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

from simdist.analyze.encoder_under_test import EncoderUnderTest, analysis_folder, open_encoder
from simdist.analyze.registry import ANALYSES
from simdist.analyze.result_writer import (
    FORMAT_VERSION,
    RESULT,
    Analysis,
    AnalysisResult,
    ModuleError,
    ResultWriter,
    read_result,
)
from simdist.analyze.settings import PAPER, AnalysisSettings, definition_of, layer_of
from simdist.config.schema import place_name
from simdist.core.errors import InputError, counted
from simdist.core.files import write_json
from simdist.core.progress import progress
from simdist.core.signals import SignalHandler
from simdist.probe.settings import places_in
from simdist.runs.folder import Run
from simdist.training.hardware import warn_of_cpu


class AnalyzeCommand:
    """One call of `simdist.analyze`.

    Args:
        console: for messages and progress.
        stop: checked between units of work.
    """

    def __init__(self, console: Console, stop: SignalHandler) -> None:
        self.console, self._stop, self._warned = console, stop, False

    def work(self, which: str, settings: AnalysisSettings) -> list[Path]:
        """Analyze every requested module; returns the result folders.

        Raises:
            InputError: a module named by number cannot be analyzed, or none of `all` can.
            StoppedError: a signal arrived; the same command resumes.
        """
        encoder = open_encoder(settings)
        self.console.print(f"{which} of {escape(str(encoder.run.folder))}, step {encoder.step:,}, {encoder.device}")
        if not self._warned:  # once for several analyses
            warn_of_cpu(encoder.device.type, self._log, encoder.run.event, chosen=settings.device == "cpu")
            self._warned = True
        return [self._one(which, encoder, *planned) for planned in self._plan(which, encoder, settings)]

    def _log(self, text: str) -> None:
        self.console.print(text, markup=False)

    def check(self, which: str, settings: AnalysisSettings) -> None:
        """Raise the InputError that `work` would raise before it begins."""
        self._plan(which, open_encoder(settings), settings)

    def _plan(
        self, which: str, encoder: EncoderUnderTest, settings: AnalysisSettings
    ) -> list[tuple[int, AnalysisSettings, Analysis]]:
        """What to analyze, module by module or layer by layer; for `all`, that to which the analysis applies."""
        module_name, _, class_name = ANALYSES[which].implementation.partition(":")
        kind = getattr(importlib.import_module(module_name), class_name)
        layers, planned, reasons = getattr(settings, "layer", None), [], []
        for module, layer in places_in(settings.module, layers, encoder.run.config.model):
            one = settings if layer is None else dataclasses.replace(settings, layer=str(layer))
            try:
                planned.append((module, one, kind(encoder, module, one)))
            except ModuleError as error:
                if "all" not in (settings.module.strip(), (layers or "").strip()):
                    raise
                reasons.append(error)
        if not planned:
            raise reasons[0]
        for reason in reasons:
            self.console.print(f"skipped: {escape(str(reason))}")
        return planned

    def _one(
        self, which: str, encoder: EncoderUnderTest, module: int, settings: AnalysisSettings, found: Analysis
    ) -> Path:
        identity = _identity(which, encoder, module, settings, found)
        digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:8]
        inside = f"-layer{identity['layer']}" if "layer" in identity else ""
        inside += f"-{identity['definition']}" if "definition" in identity else ""
        folder = analysis_folder(encoder) / f"{which}-module{module}{inside}-step{encoder.step}-{digest}"
        if (folder / RESULT).exists() and not settings.force:
            self._tell(folder, "already done")
            return folder
        begin, is_new = time.monotonic(), not folder.exists()
        writer = self.writer(folder)
        try:
            result = found.work(writer)
        except InputError:
            if is_new:  # an earlier call's results are kept
                shutil.rmtree(folder)
            raise
        finish(writer, encoder.run, identity, result, time.monotonic() - begin)
        self._tell(folder, f"{time.monotonic() - begin:.1f} s")
        return folder

    def writer(self, folder: Path) -> ResultWriter:
        """A folder to write results to."""
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"{folder} cannot be written ({error.strerror}). Analyze a copy of the run") from error
        (folder / RESULT).unlink(missing_ok=True)
        return ResultWriter(folder, self._stop, self._bar)

    @contextmanager
    def _bar(self, what: str, total: int, unit: str) -> Iterator[Callable[[int], None]]:
        with progress(self.console, what, total, unit) as advance:
            yield advance

    def _tell(self, folder: Path, state: str) -> None:
        result = read_result(folder)
        self.console.print(f"{place_name(result['module'], result.get('layer'))} ({state}):")
        for line in result["summary"]:
            self.console.print(f"  {escape(line)}")
        self.console.print(f"  {counted(len(result['files']), 'file')} in {escape(str(folder))}")


def finish(writer: ResultWriter, run: Run, identity: dict[str, Any], result: AnalysisResult, seconds: float) -> None:
    """Write `result.json`: the analysis is done."""
    packages = {name: metadata.version(name) for name in ("simdist", "torch")}
    content = {
        "format_version": FORMAT_VERSION,
        "name": writer.folder.name,
        **identity,
        "values": result.values,
        "summary": result.summary,
        "files": writer.files,
        "seconds": seconds,
        "finished": time.time(),
        "environment": {"host": socket.gethostname(), "packages": packages},
    }
    write_json(writer.folder / RESULT, content)
    run.event("analyzed", analysis=writer.folder.name)


def _identity(
    which: str, encoder: EncoderUnderTest, module: int, settings: AnalysisSettings, found: Analysis
) -> dict[str, Any]:
    chosen = {
        item.name: getattr(settings, item.name)
        for item in dataclasses.fields(settings)
        if item.metadata.get("identity", True)
        and not (item.metadata.get("omitted") and getattr(settings, item.name) == item.default)
    }
    layer, definition = layer_of(settings), definition_of(settings)
    return {
        "analysis": which,
        "module": module,
        **({} if layer is None else {"layer": layer}),
        **({} if definition != PAPER else {"definition": definition}),
        "step": encoder.step,
        "weights": encoder.extractor.identity,
        "settings": chosen,
        "inputs": found.inputs,
    }
