"""Decoded clips as WAV files with their originals, to be listened to over training.

audio/KEY/original.wav   audio/KEY/step_00001200.wav
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from simdist.core.files import replacing
from simdist.data.audio import encode

AUDIO, ORIGINAL = "audio", "original.wav"


@dataclass(frozen=True)
class Example:
    """A test clip and what became of it."""

    key: str
    original: npt.NDArray[np.float32]
    """(T,) in [-1, 1] at 16 kHz."""
    decoded: npt.NDArray[np.float32]
    """(T,) not clipped."""


def write_examples(folder: Path, step: int, examples: list[Example]) -> list[Path]:
    """Write what was decoded at a step, and the originals where they are not there yet; returns the new files."""
    written = []
    for example in examples:
        place = folder / AUDIO / example.key.replace("/", "_")
        place.mkdir(parents=True, exist_ok=True)
        if not (place / ORIGINAL).exists():
            _write(place / ORIGINAL, example.original)
        path = place / f"step_{step:08d}.wav"
        _write(path, example.decoded)
        written.append(path)
    return written


def _write(path: Path, audio: npt.NDArray[np.float32]) -> None:
    pcm = np.round(np.clip(audio * 32768.0, -32768, 32767)).astype(np.int16)
    with replacing(path) as temporary:
        temporary.write_bytes(encode(pcm, "wav"))
