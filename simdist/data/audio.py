"""Audio files as 16-bit mono at 16 kHz, and bytes to store; a file that cannot be trusted raises `AudioError`.

libsndfile reads past damage in silence, so what it returns is checked: the number of samples against the file's own
header, and for FLAC the MD5 of the samples that its encoder stored (STREAMINFO).
"""

from __future__ import annotations

import hashlib
import io
import struct
from pathlib import Path

import numpy as np
import numpy.typing as npt
import soundfile

from simdist.config.schema import SAMPLE_RATE

Pcm = npt.NDArray[np.int16]  # (num_samples,)
BLOCK = 1 << 20  # samples that are decoded at once
WAV_HEADER = 44  # bytes before the first sample of a WAV that `encode` wrote


class AudioError(Exception):
    """The file cannot be packed; the message is the reason, for the report."""


def read(
    path: str, encoding: str, min_samples: int = 0, may_resample: bool = False, exact_length: int | None = None
) -> tuple[Pcm, bytes, bool]:
    """A file's samples at 16 kHz, its bytes in `encoding`, and whether it is shorter than `min_samples`.

    FLAC files that need no change keep their own bytes.

    Args:
        path: of an audio file.
        encoding: `flac` or `wav`.
        min_samples: see above.
        may_resample: convert other sample rates; otherwise they are refused.
        exact_length: cut or pad with zeros to so many samples.

    Raises:
        AudioError: the file is damaged, or is not what was asked for.
    """
    try:
        stored = Path(path).read_bytes()
    except OSError as error:
        raise AudioError(f"cannot be read: {error.strerror}") from error
    pcm, rate = decode(stored)
    if rate != SAMPLE_RATE and not may_resample:
        raise AudioError(f"its sample rate is {rate:,} Hz; {SAMPLE_RATE:,} Hz is needed")
    original = pcm
    if rate != SAMPLE_RATE:
        from simdist.data.resample import resample  # imports torch, which takes seconds and is seldom needed

        pcm = resample(pcm, rate)
    short = len(pcm) < min_samples
    if exact_length is not None:
        pcm = fitted(pcm, exact_length)
    if encoding == "flac" and pcm is original and stored.startswith(b"fLaC") and _bits(stored) == 16:
        return pcm, stored, short
    return pcm, encode(pcm, encoding), short


def decode(stored: bytes) -> tuple[Pcm, int]:
    """Samples and sample rate of a whole FLAC or WAV file, checked to be complete and mono.

    Raises:
        AudioError: it is empty, damaged, cut off or not mono.
    """
    if not stored:
        raise AudioError("is empty (0 bytes)")
    try:
        with soundfile.SoundFile(io.BytesIO(stored)) as file:
            if file.channels != 1:
                raise AudioError(f"has {file.channels} channels; mono is needed")
            rate, announced = file.samplerate, file.frames
            pcm = _samples(file)
    except (soundfile.LibsndfileError, RuntimeError) as error:
        reason = getattr(error, "error_string", str(error)).strip().rstrip(".")
        raise AudioError(f"cannot be decoded ({reason}): truncated or corrupt") from error
    if stored.startswith(b"fLaC"):
        announced = _check_streaminfo(stored, pcm)
    elif stored.startswith(b"RIFF"):
        announced = _wav_frames(stored) or announced
    if len(pcm) != announced:
        raise AudioError(f"is truncated: {len(pcm):,} of {announced:,} samples")
    if len(pcm) == 0:
        raise AudioError("is empty (0 samples)")
    return pcm, rate


def _samples(file: soundfile.SoundFile) -> Pcm:
    """All samples. Read in blocks, because a header may announce any number of them."""
    is_float = file.subtype in ("FLOAT", "DOUBLE")  # libsndfile would not scale these to 16 bits
    blocks: list[Pcm] = []
    while not blocks or len(blocks[-1]) == BLOCK:
        if is_float:
            blocks.append(_quantized(np.asarray(file.read(BLOCK), dtype=np.float64)))
        else:
            blocks.append(np.asarray(file.read(BLOCK, dtype="int16"), dtype=np.int16))
    return np.concatenate(blocks)


def _quantized(block: npt.NDArray[np.float64]) -> Pcm:
    """Samples whose full scale is 1 as 16 bits, rounded and saturated."""
    if not np.isfinite(block).all():
        raise AudioError("contains samples that are not finite (NaN or infinity)")
    return np.clip(np.rint(block * 32768.0), -32768, 32767).astype(np.int16)


def encode(pcm: Pcm, encoding: str) -> bytes:
    """A whole `flac` or `wav` file of 16-bit samples at 16 kHz."""
    buffer = io.BytesIO()
    soundfile.write(buffer, pcm, SAMPLE_RATE, format=encoding.upper(), subtype="PCM_16")
    stored = buffer.getvalue()
    assert encoding != "wav" or len(stored) == WAV_HEADER + 2 * len(pcm), "the loader counts on a header of 44 bytes"
    return stored


def fitted(pcm: Pcm, length: int) -> Pcm:
    """`pcm` cut at the end, or padded with zeros, to (length,)."""
    return np.pad(pcm[:length], (0, max(0, length - len(pcm))))


def _bits(flac: bytes) -> int:
    packed = int.from_bytes(flac[18:26], "big")  # rate 20 bits, channels - 1: 3, bits - 1: 5, samples 36
    return (packed >> 36 & 0x1F) + 1


def _check_streaminfo(flac: bytes, pcm: Pcm) -> int:
    """Samples announced by STREAMINFO (or decoded, where it says 0 for unknown), after a check of the MD5."""
    announced = int.from_bytes(flac[18:26], "big") & (1 << 36) - 1
    md5 = flac[26:42]
    complete = announced in (0, len(pcm))
    if complete and any(md5) and _bits(flac) == 16 and hashlib.md5(pcm.astype("<i2").tobytes()).digest() != md5:
        raise AudioError("is corrupt: its samples do not have the MD5 that its FLAC header states")
    return announced or len(pcm)


def _wav_frames(wav: bytes) -> int | None:
    """Samples that a mono WAV's `data` chunk announces; None where it states no size, as streams do."""
    position, block = 12, 2
    while position + 8 <= len(wav):
        name, size = struct.unpack_from("<4sI", wav, position)
        if name == b"fmt ":
            block = struct.unpack_from("<H", wav, position + 20)[0]
        if name == b"data":
            return size // block if 0 < size < 0xFFFFFFFF else None
        position += 8 + size + size % 2
    return None
