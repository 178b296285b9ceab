"""Sounds and pictures as parts of the page: data URIs, with a drawing of each sound's waveform."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import soundfile
from PIL import Image

from simdist.report.files import Problem, reason_of

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


def read_audio(path: Path, problems: list[Problem]) -> tuple[Samples, int] | None:
    """Samples (T,) and their rate in Hz; None, and a problem, of a file that is none."""
    try:
        audio, rate = soundfile.read(path, dtype="float32", always_2d=True)
        if len(audio):
            return np.asarray(audio[: int(LONGEST * rate), 0], dtype=np.float32), rate
        problems.append(Problem(path, "holds no samples"))
    except (OSError, RuntimeError, ValueError) as error:  # soundfile's own errors are RuntimeErrors
        problems.append(Problem(path, f"is no audio that can be read ({reason_of(error)})"))
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


def picture(path: Path, problems: list[Problem]) -> str | None:
    """A figure as a WebP data URI, at most `WIDEST` pixels wide; None, and a problem, of a file that is none."""
    try:
        with Image.open(path) as image:
            image.thumbnail((WIDEST, 4 * WIDEST))
            file = io.BytesIO()
            image.convert("RGB").save(file, format="WEBP", quality=QUALITY, method=2)
            return _uri("image/webp", file.getvalue())
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:  # torn files raise any of these
        problems.append(Problem(path, f"is no picture that can be read ({reason_of(error)})"))
        return None


def _uri(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"
