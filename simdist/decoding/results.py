"""Results of decoders: on disk, and as a table.

`RUN/decoders/NAME/result.json`, format version 1:

    name, module, loss, latents     latents: sampled or mean
    encoder      untrained, step, weights (hash)
    decoder      width, parameters, steps
    data         train, test: split, fingerprint, clips; crop in samples
    quality      decoder, mean_signal: for each figure value (mean over test clips), interval (95 %, bootstrap over
                 clips), clips (for which it is defined)
    beats        mean_signal, untrained: for each figure true or false; untrained is null until that decoder is trained
    seconds      of measuring
    finished, environment           unix time; versions of simdist and torch, host
"""

from __future__ import annotations

import json
import socket
import time
from importlib import metadata
from pathlib import Path
from typing import Any

from rich.table import Table

from simdist.decoding.quality import BETTER_HIGH, UNITS, is_better
from simdist.decoding.settings import DECODERS, LOSS_NAMES, folder_name
from simdist.durable import write_json

FORMAT_VERSION = 1
RESULT = "result.json"


def write_result(folder: Path, result: dict[str, Any]) -> None:
    """Write a decoder's result, and bring the comparison of trained and untrained up to date."""
    packages = {name: metadata.version(name) for name in ("simdist", "torch")}
    environment = {"host": socket.gethostname(), "packages": packages}
    whole = {"format_version": FORMAT_VERSION, "name": folder.name, **result}
    ours = whole["quality"]["decoder"]
    whole["beats"] = {"mean_signal": _beats(ours, whole["quality"]["mean_signal"]), "untrained": None}
    write_json(folder / RESULT, whole | {"finished": time.time(), "environment": environment})
    _compare(folder.parent, result["module"], result["loss"])


def read_result(folder: Path) -> dict[str, Any] | None:
    """A decoder's result; None if it has none yet."""
    path = folder / RESULT
    return json.loads(path.read_text()) if path.exists() else None


def results_of(run: Path, module: int) -> list[dict[str, Any]]:
    """All finished decoders of a module, trained before untrained."""
    folders = [folder_name(module, loss, untrained) for loss in LOSS_NAMES for untrained in (False, True)]
    return [result for name in folders if (result := read_result(run / DECODERS / name)) is not None]


def _compare(decoders: Path, module: int, loss: str) -> None:
    """Where both are there, write into the trained decoder's result whether it beats the untrained one's."""
    trained, untrained = (read_result(decoders / folder_name(module, loss, which)) for which in (False, True))
    if trained is not None and untrained is not None:
        trained["beats"]["untrained"] = _beats(trained["quality"]["decoder"], untrained["quality"]["decoder"])
        write_json(decoders / trained["name"] / RESULT, trained)


def _beats(ours: dict[str, Any], theirs: dict[str, Any]) -> dict[str, bool | None]:
    return {name: is_better(name, ours[name]["value"], theirs[name]["value"]) for name in UNITS}


def as_table(results: list[dict[str, Any]]) -> Table:
    """One row a decoder of a module, and one for the mean signal."""
    clips = results[0]["data"]["test"]["clips"]
    table = Table(
        title=f"module {results[0]['module']}: decoded test clips ({clips}), mean with 95 % interval",
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
