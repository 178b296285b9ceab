"""What a file's samples become, whatever format they are stored in."""

from __future__ import annotations

import io

import numpy as np
import pytest
import soundfile

from simdist.data.audio import AudioError, decode

WAVE = 0.5 * np.sin(2 * np.pi * 220 * np.arange(16_000) / 16_000)


def stored(wave: np.ndarray, subtype: str, kind: str = "WAV") -> bytes:
    file = io.BytesIO()
    soundfile.write(file, wave, 16_000, format=kind, subtype=subtype)
    return file.getvalue()


@pytest.mark.parametrize("subtype", ["FLOAT", "DOUBLE", "PCM_16", "PCM_24", "PCM_32", "PCM_U8"])
def test_full_scale_is_that_of_16_bits(subtype: str) -> None:
    pcm, rate = decode(stored(WAVE, subtype))
    assert rate == 16_000
    assert np.abs(pcm - WAVE * 32768).max() <= (256 if subtype == "PCM_U8" else 1)


def test_floats_beyond_full_scale_are_saturated() -> None:
    pcm, _ = decode(stored(np.array([-3.0, -1.0, 0.0, 1.0, 3.0]), "DOUBLE"))
    assert pcm.tolist() == [-32768, -32768, 0, 32767, 32767]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_refused(value: float) -> None:
    wave = WAVE.copy()
    wave[777] = value
    with pytest.raises(AudioError, match="not finite"):
        decode(stored(wave, "FLOAT"))


def test_a_header_that_announces_too_much_allocates_nothing() -> None:
    flac = bytearray(stored(WAVE, "PCM_16", "FLAC"))
    flac[21:26] = (int.from_bytes(flac[21:26], "big") & ~((1 << 36) - 1) | 1 << 35).to_bytes(5, "big")
    with pytest.raises(AudioError, match="truncated"):
        decode(bytes(flac))
