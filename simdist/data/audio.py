"""Audio files as 16-bit mono at 16 kHz, and bytes to store; a file that cannot be trusted raises `AudioError`.

libsndfile reads past damage in silence, so what it returns is checked: the number of samples against the file's own
header, and for FLAC the MD5 of the samples that its encoder stored (STREAMINFO).
"""

from __future__ import annotations

import hashlib
import io
import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import soundfile

from simdist.config.schema import SAMPLE_RATE
from simdist.core.files import read_regular
from simdist.data.splits import WAV_HEADER

Pcm = npt.NDArray[np.int16]  # (num_samples,)
BLOCK_SAMPLES = 1 << 22  # decoded at once: a header can announce any number of samples
CLIPPED_SHARE = 0.001  # of samples at full scale; the worst of 636 utterances of LibriSpeech has 0.00002
_FULL_SCALE = 1 << 15
_UNKNOWN = (1 << 63) - 1  # libsndfile's number of samples where a header states none


class AudioError(Exception):
    """The file cannot be packed; the message is the reason, for the report."""


@dataclass(frozen=True)
class Decoded:
    """The samples of a whole file, at its own sample rate."""

    pcm: Pcm
    sample_rate: int
    clipping: str = ""
    """How many samples are clipped; empty if few or none."""


@dataclass(frozen=True)
class Audio:
    """A file's audio at 16 kHz."""

    pcm: Pcm
    warnings: dict[str, str]
    """`short`, `silent` or `clipped`, each with a sentence for the report."""
    flac: bytes | None
    """The file itself, if it is FLAC with exactly these samples."""

    def stored_as(self, encoding: str) -> bytes:
        """A whole file in `encoding`, `flac` or `wav`. FLAC files that need no change keep their own bytes."""
        return self.flac if encoding == "flac" and self.flac else encode(self.pcm, encoding)


def read(path: str, min_samples: int = 0, may_resample: bool = False, exact_length: int | None = None) -> Audio:
    """Read a file as 16-bit audio at 16 kHz.

    Args:
        path: of an audio file.
        min_samples: warn about fewer samples at 16 kHz.
        may_resample: convert other sample rates; otherwise they are refused.
        exact_length: cut or pad with zeros to so many samples.

    Raises:
        AudioError: the file cannot be read, is damaged, or is not what was asked for.
    """
    try:
        stored = read_regular(Path(path), None)
    except OSError as error:
        raise AudioError(f"cannot be read: {error.strerror}") from error
    except MemoryError as error:
        raise AudioError("cannot be read: it is larger than memory") from error
    decoded = decode(stored)
    rate, pcm = decoded.sample_rate, decoded.pcm
    if rate != SAMPLE_RATE and not may_resample:
        raise AudioError(f"its sample rate is {rate:,} Hz; {SAMPLE_RATE:,} Hz is needed")
    if rate != SAMPLE_RATE:
        from simdist.data.resample import resample  # imports torch, which takes seconds and is seldom needed

        pcm = resample(pcm, rate)
    short = len(pcm) < min_samples
    if exact_length is not None:
        pcm = fitted(pcm, exact_length)
    unchanged = pcm is decoded.pcm and stored.startswith(b"fLaC") and _bits(stored) == 16
    return Audio(pcm, _warnings(pcm, decoded, min_samples if short else 0), stored if unchanged else None)


def _warnings(pcm: Pcm, decoded: Decoded, wanted: int) -> dict[str, str]:
    warnings: dict[str, str] = {}
    if wanted:
        warnings["short"] = (
            f"is shorter than a crop ({len(pcm):,} of {wanted:,} samples); "
            "the loader pads or skips it as data.short_clips says"
        )
    if not pcm.any() or decoded.pcm.min() == decoded.pcm.max():  # a constant has no energy, either
        warnings["silent"] = f"is silent: all of its {len(pcm):,} samples are equal"
    elif decoded.clipping:
        warnings["clipped"] = decoded.clipping
    return warnings


def decode(stored: bytes) -> Decoded:
    """Decode a whole FLAC or WAV file, and check that it is complete and mono.

    Raises:
        AudioError: it is empty, damaged, cut off, not mono, or has samples that are not finite.
    """
    if not stored:
        raise AudioError("is empty (0 bytes)")
    announced = 0
    try:
        with soundfile.SoundFile(io.BytesIO(stored)) as file:
            if file.channels != 1:
                raise AudioError(f"has {file.channels} channels; mono is needed")
            announced = file.frames
            if announced == _UNKNOWN:
                raise AudioError("may be truncated: its header does not state how many samples it has; encode it again")
            rate = file.samplerate
            pcm, clipping = _decode_blocks(file)
    except (soundfile.LibsndfileError, RuntimeError) as error:
        reason = getattr(error, "error_string", str(error)).strip().rstrip(".")
        expected = f"; its header announces {announced:,} samples" if announced else ""
        raise AudioError(f"cannot be decoded ({reason}{expected}): truncated or corrupt") from error
    if stored.startswith(b"fLaC"):
        _check_md5(stored, pcm)
    elif stored.startswith((b"RIFF", b"RF64")):
        _check_data_chunk(stored)
    if len(pcm) != announced:
        raise AudioError(f"is truncated: {len(pcm):,} of {announced:,} samples")
    if len(pcm) == 0:
        raise AudioError("is empty (0 samples)")
    return Decoded(pcm, rate, clipping)


def _decode_blocks(file: soundfile.SoundFile) -> tuple[Pcm, str]:
    """All samples in 16 bits, and how many of them are clipped."""
    blocks: list[Pcm] = []
    num_samples, num_beyond, peak = 0, 0, 0.0
    # libsndfile truncates where it is asked for fewer bits, and does not scale float samples to integers
    dtype = "int16" if file.subtype == "PCM_16" else "float64"
    while len(block := file.read(BLOCK_SAMPLES, dtype=dtype)):
        if dtype == "float64":
            finite = np.isfinite(block)
            if not finite.all():
                raise AudioError(f"has NaN or infinite samples, the first at sample {num_samples + finite.argmin():,}")
            magnitude = np.abs(block)
            num_beyond += int((magnitude > 1).sum())
            peak = max(peak, float(magnitude.max()))
            block = np.rint(np.clip(block, -1, 1) * _FULL_SCALE).clip(-_FULL_SCALE, _FULL_SCALE - 1)
        blocks.append(block.astype(np.int16))
        num_samples += len(block)
    pcm = np.concatenate(blocks) if blocks else np.zeros(0, np.int16)
    return pcm, _clipping(pcm, num_beyond, peak)


def _clipping(pcm: Pcm, num_beyond: int, peak: float) -> str:
    if num_beyond:
        return f"is clipped: {num_beyond:,} of its {len(pcm):,} samples are beyond full scale (peak {peak:.4g})"
    num_full = int(((pcm == _FULL_SCALE - 1) | (pcm == -_FULL_SCALE)).sum())
    if num_full > CLIPPED_SHARE * len(pcm):
        return f"is clipped: {num_full:,} of its {len(pcm):,} samples are at full scale"
    return ""


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


def _check_md5(flac: bytes, pcm: Pcm) -> None:
    md5 = flac[26:42]
    if any(md5) and _bits(flac) == 16 and hashlib.md5(pcm.astype("<i2").tobytes()).digest() != md5:
        raise AudioError("is corrupt: its samples do not have the MD5 that its FLAC header states")


def _check_data_chunk(wav: bytes) -> None:
    """Raise AudioError if a WAV ends before its audio does: libsndfile then counts what is left."""
    position, long_size = 12, 0
    while position + 8 <= len(wav):
        name, size = struct.unpack_from("<4sI", wav, position)
        position += 8
        if name == b"ds64":  # of RF64: sizes beyond 4 GB
            long_size = int.from_bytes(wav[position + 8 : position + 16], "little")
        if name == b"data":
            size = long_size if size == 0xFFFFFFFF else size  # streams leave both, and state no size
            if len(wav) - position < size < _UNKNOWN:
                raise AudioError(f"is truncated: {len(wav) - position:,} of {size:,} bytes of audio")
            return
        position += size + size % 2
