"""Audio and figures as parts of the page: data URIs, sliders of traversals and interpolations, and reconstructions."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import soundfile
from PIL import Image

from simdist.analyze.registry import ANALYSES
from simdist.core.files import open_regular
from simdist.report.collect import RunContent
from simdist.report.files import SHAPELESS, UnreadableFile, read_table, reason_of
from simdist.report.measurements import ModuleResult

COLUMNS = 120  # of a drawn waveform
HEIGHT = 40  # of its drawing, in its own units
WIDEST = 1100  # pixels of a picture
LONGEST = 30.0  # seconds of a sound; a longer one is cut
QUALITY = 82  # of WebP


@dataclass(frozen=True)
class Sound:
    """One sound that can be played."""

    name: str
    value: str
    """What the slider says at this sound: the value of the traversed dimension, or a share."""
    uri: str
    """FLAC, which has the very samples of the file."""
    outline: str
    """The waveform as an SVG path, `COLUMNS` wide and `HEIGHT` high; full height is the loudest of its set."""
    seconds: float
    peak: float
    """Largest magnitude; 1 is full scale."""


Samples = npt.NDArray[np.float32]


def read_audio(path: Path, problems: list[UnreadableFile]) -> tuple[Samples, int] | None:
    """Samples (T,) and their rate in Hz; None, and a problem, of a file that is none."""
    try:
        with open_regular(path) as file:
            audio, rate = soundfile.read(file, dtype="float32", always_2d=True)
        if len(audio):
            return np.asarray(audio[: int(LONGEST * rate), 0], dtype=np.float32), rate
        problems.append(UnreadableFile(path, "holds no samples"))
    except (OSError, RuntimeError, ValueError) as error:  # soundfile's own errors are RuntimeErrors
        problems.append(UnreadableFile(path, f"is no audio that can be read ({reason_of(error)})"))
    return None


def make_sound(name: str, value: str, audio: Samples, rate: int, loudest: float) -> Sound:
    """Encode a sound.

    Args:
        name: what it is.
        value: what the slider says.
        audio: (T,) in [-1, 1].
        rate: Hz.
        loudest: magnitude that is drawn at full height.
    """
    file = io.BytesIO()
    soundfile.write(file, audio, rate, format="FLAC", subtype="PCM_16")
    peak = float(np.abs(audio).max())
    return Sound(name, value, _uri("audio/flac", file.getvalue()), outline(audio, loudest), len(audio) / rate, peak)


def outline(audio: Samples, loudest: float) -> str:
    """The waveform's extremes in each of `COLUMNS` columns, as a closed SVG path."""
    parts = np.array_split(audio, min(COLUMNS, len(audio)))
    scale = (HEIGHT / 2) / max(loudest, 1e-9)
    top = [HEIGHT / 2 - scale * float(part.max()) for part in parts]
    bottom = [HEIGHT / 2 - scale * float(part.min()) + 0.4 for part in parts]
    points = [(x, y) for x, y in enumerate(top)] + [(x, bottom[x]) for x in reversed(range(len(bottom)))]
    return "M" + "L".join(f"{x} {y:.1f}" for x, y in points) + "Z"


def picture(path: Path, problems: list[UnreadableFile]) -> str | None:
    """A figure as a WebP data URI, at most `WIDEST` pixels wide; None, and a problem, of a file that is none."""
    try:
        with open_regular(path) as opened, Image.open(opened) as image:
            image.thumbnail((WIDEST, 4 * WIDEST))
            file = io.BytesIO()
            image.convert("RGB").save(file, format="WEBP", quality=QUALITY, method=2)
            return _uri("image/webp", file.getvalue())
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:  # torn files raise any of these
        problems.append(UnreadableFile(path, f"is no picture that can be read ({reason_of(error)})"))
        return None


def _uri(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


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
class AudioSet:
    """Tracks of one analysis."""

    kind: str
    """`traversal`, `interpolation` or `samples`."""
    section: str
    run: str
    where: str
    """The module, or the layer inside it."""
    tracks: list[Track]
    summary: list[str]


@dataclass(frozen=True)
class Reconstructions:
    """Test clips of one module or layer: the original and the output of each decoder."""

    run: str
    where: str
    """The module, or the layer inside it."""
    columns: list[str]
    """`original`, then the decoders."""
    rows: list[tuple[str, list[Sound | None]]]
    """A clip's key and its sounds, one per column."""


def audio_sets(runs: Sequence[RunContent], problems: list[UnreadableFile]) -> list[AudioSet]:
    """Audio of these runs' analyses."""
    made = []
    for run in runs:
        for finding in sorted(run.findings, key=lambda finding: finding.place):
            if any(finding.folder.glob("*-sounds.csv")):
                try:
                    tracks = [track for track in _tracks(finding, problems) if track.sounds]
                except (OSError, *SHAPELESS) as error:
                    problems.append(
                        UnreadableFile(finding.folder, f"has sounds that cannot be listed ({reason_of(error)})")
                    )
                    continue
                if tracks:
                    made.append(
                        AudioSet(
                            finding.kind,
                            section_of(finding.kind),
                            run.record.name,
                            finding.where,
                            tracks,
                            finding.summary,
                        )
                    )
    return made


def _tracks(finding: ModuleResult, problems: list[UnreadableFile]) -> Iterator[Track]:
    for table in sorted(finding.folder.glob("*-sounds.csv")):
        rows = [(row["file"], row["sound"]) for row in read_table(table)]
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


def reconstructions(runs: Sequence[RunContent], problems: list[UnreadableFile]) -> list[Reconstructions]:
    """Of each run and module or layer the clips that its decoders wrote, at their last step."""
    made = []
    for run in runs:
        decoders = [finding for finding in run.findings if finding.kind == "decoder"]
        for place in sorted({finding.place for finding in decoders}):
            own = [finding for finding in decoders if finding.place == place]
            rows = list(_clips(own, problems))
            if rows:
                columns = ["original", *(_decoder_name(finding) for finding in own)]
                made.append(Reconstructions(run.record.name, own[0].where, columns, rows))
    return made


def _decoder_name(finding: ModuleResult) -> str:
    return finding.loss + ", untrained encoder" * finding.is_untrained


def _clips(
    decoders: Sequence[ModuleResult], problems: list[UnreadableFile]
) -> Iterator[tuple[str, list[Sound | None]]]:
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


@dataclass(frozen=True)
class FigureSet:
    """Figures of one analysis."""

    kind: str
    section: str
    """The part of the page where it stands."""
    run: str
    where: str
    """The module, or the layer inside it."""
    pictures: list[tuple[str, str]]
    """Titles and data URIs."""


def figures(
    runs: Sequence[RunContent],
    problems: list[UnreadableFile],
    track: Callable[[Iterable[Any], str, int], Iterable[Any]],
) -> list[FigureSet]:
    """Every PNG of these runs' analyses."""
    findings = sorted(
        (finding for run in runs for finding in run.findings if finding.kind != "decoder"), key=lambda f: f.kind
    )
    files = [(finding, path) for finding in findings for path in sorted(finding.folder.glob("*.png"))]
    made: dict[Path, FigureSet] = {}
    for finding, path in track(files, "embedding figures", len(files)):
        uri = picture(path, problems)
        if uri is not None:
            made.setdefault(finding.folder, _figure_set(finding)).pictures.append((path.stem, uri))
    return list(made.values())


def section_of(kind: str) -> str:
    """The page's section of an analysis; those without one of their own share one."""
    return kind if kind in ANALYSES and ANALYSES[kind].heading else "others"


def _figure_set(finding: ModuleResult) -> FigureSet:
    section = section_of(finding.kind)
    return FigureSet(finding.kind, section, finding.run, finding.where, [])
