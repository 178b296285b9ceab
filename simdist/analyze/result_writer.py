"""What an analysis leaves in its folder, and the contract between the command and an analysis.

`RUN/analysis/NAME/` holds, `result.json` written last:

    result.json     name, analysis, module, step, weights (hash), settings, inputs, values, summary, files, seconds, …
    *.csv           tables;  *.png and *.svg figures;  *.wav audio at 16 kHz
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import soundfile
from matplotlib.figure import Figure

from simdist.analyze import style
from simdist.config.schema import SAMPLE_RATE
from simdist.core.errors import InputError
from simdist.core.files import replacing, write_text
from simdist.core.signals import SignalHandler

RESULT = "result.json"
FORMAT_VERSION = 1

Bar = Callable[[str, int, str], AbstractContextManager[Callable[[int], None]]]
"""A progress bar of (what, how many, unit); the function that it yields is told how many more are done."""


@dataclass(frozen=True)
class AnalysisResult:
    """What an analysis found."""

    values: dict[str, Any]
    """Everything that a program may want, ready for JSON."""
    summary: list[str]
    """The same in a few lines for people."""


@dataclass
class ResultWriter:
    """The folder of one analysis; remembers what is written into it."""

    folder: Path
    stop: SignalHandler
    bar: Bar
    files: list[str] = field(default_factory=list)

    def figure(self, name: str, figure: Figure) -> None:
        """Write NAME.png and NAME.svg."""
        self.files += [path.name for path in style.save(figure, self.folder / name)]

    def table(self, name: str, rows: Sequence[dict[str, Any]]) -> None:
        """Write NAME.csv, one line per row; the first row's keys are the columns."""
        text = io.StringIO()
        writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows({key: _short(value) for key, value in row.items()} for row in rows)
        write_text(self.folder / f"{name}.csv", text.getvalue())
        self.files.append(f"{name}.csv")

    def sound(self, name: str, audio: npt.NDArray[np.floating]) -> None:
        """Write NAME.wav, 16 bit, of (T,) samples in [-1, 1]; louder ones are clipped."""
        path = self.folder / f"{name}.wav"
        with replacing(path) as temporary:
            soundfile.write(temporary, np.clip(audio, -1, 1), SAMPLE_RATE, subtype="PCM_16", format="WAV")
        self.files.append(path.name)


class ModuleError(InputError):
    """This module cannot be analyzed so; another one of the encoder may."""


class Analysis(Protocol):
    """One analysis of one module. Building it finds out whether it can be done at all.

    Its constructor takes (subject, module, settings) and raises ModuleError (it does not fit, or has no
    probe or decoder, with the command that makes one) or InputError.
    """

    inputs: list[str]
    """What its numbers depend on besides the encoder and the settings: fingerprints, names of probes, hashes."""

    def work(self, writer: ResultWriter) -> AnalysisResult:
        """Do it.

        Raises:
            StoppedError: a signal came.
        """
        ...


def read_result(folder: Path) -> dict[str, Any]:
    """The `result.json` of a finished analysis."""
    return json.loads((folder / RESULT).read_text())


def _short(value: Any) -> Any:
    return f"{value:.6g}" if isinstance(value, float) else value
