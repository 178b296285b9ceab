"""Sets of sounds of one run and module: traversals and interpolations with a slider, reconstructions, prior samples."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from simdist.report.analyses import Finding
from simdist.report.collect import RunContent
from simdist.report.files import SHAPELESS, Problem, reason_of
from simdist.report.media import Sound, make_sound, read_audio

AUDIO, ORIGINAL = "audio", "original.wav"
MOST_CLIPS = 6  # reconstructed, of a module


@dataclass(frozen=True)
class Track:
    """Sounds along one slider."""

    name: str
    """`dimension 3`."""
    quantity: str
    """What the slider moves, with its unit."""
    sounds: list[Sound]


@dataclass(frozen=True)
class Player:
    """Tracks of one analysis."""

    kind: str
    """`traversal`, `interpolation` or `samples`."""
    run: str
    module: int
    tracks: list[Track]
    summary: list[str]


@dataclass(frozen=True)
class Reconstructions:
    """Test clips of one module: the original and what each decoder makes of it."""

    run: str
    module: int
    columns: list[str]
    """`original`, then the decoders."""
    rows: list[tuple[str, list[Sound | None]]]
    """A clip's key and its sounds, one a column."""


def players(runs: Sequence[RunContent], problems: list[Problem]) -> list[Player]:
    """Everything with a slider, of these runs."""
    made = []
    for run in runs:
        for finding in sorted(run.findings, key=lambda finding: finding.module):
            if finding.kind in ("traversal", "interpolation", "samples"):
                try:
                    tracks = [track for track in _tracks(finding, problems) if track.sounds]
                except (OSError, *SHAPELESS) as error:
                    problems.append(Problem(finding.folder, f"has sounds that cannot be listed ({reason_of(error)})"))
                    continue
                if tracks:
                    made.append(Player(finding.kind, run.record.name, finding.module, tracks, finding.summary))
    return made


def _tracks(finding: Finding, problems: list[Problem]) -> Iterator[Track]:
    for table in sorted(finding.folder.glob("*-sounds.csv")):
        with table.open(newline="", encoding="utf-8") as file:
            rows = [(row["file"], row["sound"]) for row in csv.DictReader(file)]
        stem = table.name.removesuffix("-sounds.csv")
        read = [(sound, read_audio(finding.folder / Path(name).name, problems)) for name, sound in rows]
        whole = [(sound, *audio) for sound, audio in read if audio is not None]
        loudest = max((float(abs(audio).max()) for _, audio, _ in whole), default=1.0)
        sounds = [
            make_sound(sound, value_of(finding.kind, sound), audio, rate, loudest) for sound, audio, rate in whole
        ]
        yield Track(_track_name(finding.kind, stem), _quantity(finding.kind), sounds)


def _track_name(kind: str, stem: str) -> str:
    number = re.search(r"(\d+)$", stem)
    return f"dimension {int(number[1])}" if kind == "traversal" and number else kind


def _quantity(kind: str) -> str:
    return {"traversal": "value (latent units)", "interpolation": "mixture"}.get(kind, "draw")


def value_of(kind: str, sound: str) -> str:
    """What the slider says: `-1.34` of `dimension 3 = -1.34`; the whole name where there is no such value."""
    return sound.rpartition("=")[2].strip() if kind == "traversal" and "=" in sound else sound


def reconstructions(runs: Sequence[RunContent], problems: list[Problem]) -> list[Reconstructions]:
    """Of each run and module the clips that its decoders wrote, at their last step."""
    made = []
    for run in runs:
        decoders = [finding for finding in run.findings if finding.kind == "decoder"]
        for module in sorted({finding.module for finding in decoders}):
            own = [finding for finding in decoders if finding.module == module]
            rows = list(_clips(own, problems))
            if rows:
                columns = ["original", *(_decoder_name(finding) for finding in own)]
                made.append(Reconstructions(run.record.name, module, columns, rows))
    return made


def _decoder_name(finding: Finding) -> str:
    untrained = finding.values["encoder"]["untrained"]
    return f"{finding.values['loss']}" + ", untrained encoder" * bool(untrained)


def _clips(decoders: Sequence[Finding], problems: list[Problem]) -> Iterator[tuple[str, list[Sound | None]]]:
    keys = sorted({path.parent.name for d in decoders for path in d.folder.glob(f"{AUDIO}/*/{ORIGINAL}")})
    for key in keys[:MOST_CLIPS]:
        folders = [decoder.folder / AUDIO / key for decoder in decoders]
        original = next(folder / ORIGINAL for folder in folders if (folder / ORIGINAL).exists())
        files = [original, *(max(folder.glob("step_*.wav"), default=None) for folder in folders)]
        read = [None if path is None else read_audio(path, problems) for path in files]
        loudest = max((float(abs(audio[0]).max()) for audio in read if audio is not None), default=1.0)
        names = [f"{key}, original", *(f"{key}, {_decoder_name(decoder)}" for decoder in decoders)]
        yield (
            key,
            [
                None if audio is None else make_sound(name, "", *audio, loudest)
                for name, audio in zip(names, read, strict=True)
            ],
        )
