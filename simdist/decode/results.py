"""Results of decoders: on disk, and as a table.

`RUN/decoders/NAME/result.json`, format version 1:

    name, module, loss, latents     latents: sampled or deterministic; layer, where one inside the module is decoded
    encoder      untrained, step, weights (hash); calibration of an untrained encoder with BatchNorm: split,
                 fingerprint, clips, batches
    decoder      width, parameters, steps
    data         train, test: split, fingerprint, clips; crop in samples
    quality      decoder, mean_signal: for each figure value (mean over test clips), interval (95 %, bootstrap over
                 clips), clips (for which it is defined)
    against      mean_signal, untrained: for each figure the mean difference clip by clip, its interval (95 %), and
                 better: true or false where the interval leaves zero out, else null. untrained is null until that
                 decoder is trained
    seconds      of measuring
    finished, environment           unix time; versions of simdist and torch, host

`figures.csv` next to it has all figures of every clip, of the decoder and of the mean signal.
"""

from __future__ import annotations

import csv
import io
import json
import socket
import time
from importlib import metadata
from pathlib import Path
from typing import Any

from rich.table import Table

from simdist.config.decoder import DECODERS, LOSS_NAMES, folder_name
from simdist.config.schema import place_name
from simdist.core.files import write_json, write_text
from simdist.decode.measuring import MeasuredQuality
from simdist.decode.quality import BETTER_HIGH, UNITS, Clips, compare, summarize

FORMAT_VERSION = 1
RESULT, FIGURES = "result.json", "figures.csv"


def write_result(folder: Path, result: dict[str, Any], measured: MeasuredQuality) -> None:
    """Write a decoder's result, and bring the comparison of trained and untrained up to date."""
    _write_figures(folder / FIGURES, measured)
    packages = {name: metadata.version(name) for name in ("simdist", "torch")}
    environment = {"host": socket.gethostname(), "packages": packages}
    sides = {"decoder": summarize(measured.decoder), "mean_signal": summarize(measured.mean_signal)}
    whole = {
        "format_version": FORMAT_VERSION,
        "name": folder.name,
        **result,
        "quality": sides,
        "against": {"mean_signal": compare(measured.decoder, measured.mean_signal), "untrained": None},
        "finished": time.time(),
        "environment": environment,
    }
    write_json(folder / RESULT, whole)
    _compare_with_untrained(folder.parent, result["module"], result["loss"], result.get("layer"))


def _write_figures(path: Path, measured: MeasuredQuality) -> None:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["clip", *measured.decoder, *(f"mean_signal_{name}" for name in measured.mean_signal)])
    writer.writerows(zip(measured.keys, *measured.decoder.values(), *measured.mean_signal.values(), strict=True))
    write_text(path, text.getvalue())


def _read_figures(path: Path) -> tuple[list[str], Clips]:
    """Names of the clips, and the decoder's figures of them."""
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    return [row["clip"] for row in rows], {name: [float(row[name]) for row in rows] for name in UNITS}


def read_result(folder: Path) -> dict[str, Any] | None:
    """A decoder's result; None if it has none yet."""
    path = folder / RESULT
    return json.loads(path.read_text()) if path.exists() else None


def results_of(run: Path, module: int, layer: int | None = None) -> list[dict[str, Any]]:
    """All finished decoders of a module, or of a layer inside it, trained before untrained."""
    folders = [folder_name(module, loss, untrained, layer) for loss in LOSS_NAMES for untrained in (False, True)]
    return [result for name in folders if (result := read_result(run / DECODERS / name)) is not None]


def _compare_with_untrained(decoders: Path, module: int, loss: str, layer: int | None) -> None:
    """Where both were measured on the same clips, write into the trained decoder's result how it compares."""
    ours, theirs = (decoders / folder_name(module, loss, which, layer) for which in (False, True))
    trained = read_result(ours)
    if trained is None or read_result(theirs) is None:
        return
    (keys, figures), (other_keys, other_figures) = _read_figures(ours / FIGURES), _read_figures(theirs / FIGURES)
    if keys == other_keys:
        trained["against"]["untrained"] = compare(figures, other_figures)
        write_json(ours / RESULT, trained)


def as_table(results: list[dict[str, Any]]) -> Table:
    """One row a decoder of a module, and one for the mean signal."""
    clips, where = results[0]["data"]["test"]["clips"], place_name(results[0]["module"], results[0].get("layer"))
    table = Table(
        title=f"{where}: decoded test clips ({clips}), mean with 95 % interval",
        caption="↑ larger is better, ↓ smaller is better",
    )
    table.add_column("decoder", no_wrap=True)
    for name, unit in UNITS.items():
        heading = f"{name} {'↑' if name in BETTER_HIGH else '↓'}" + (f" {unit}" if unit else "")
        table.add_column(heading, justify="right")
    for result in results:
        quality = result["quality"]["decoder"]
        name = result["loss"] + ", untrained encoder" * result["encoder"]["untrained"]
        table.add_row(name, *(_cell(quality[figure]) for figure in UNITS))
    table.add_row("mean signal", *(_cell(results[0]["quality"]["mean_signal"][figure]) for figure in UNITS))
    return table


def _cell(score: dict[str, Any]) -> str:
    """`0.0151 [0.0142, 0.0160]`; a dash where it is not defined."""
    if score["value"] is None:
        return "–"
    low, high = score["interval"]
    return f"{score['value']:.3g}\n[{low:.3g}, {high:.3g}]"
