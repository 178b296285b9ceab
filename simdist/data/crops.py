"""Read a crop of an utterance straight out of its tar: as few bytes as the encoding allows.

WAV members are canonical PCM16, so a crop is one `pread`. FLAC members are handed to libsndfile through a window on the
tar; it seeks inside the FLAC and reads only the blocks around the crop. Cached latents (NPY) are read like WAV.

Bytes that cannot be read are an `InputError`, at the end of `ShardFiles`' patience; bytes that are read and do not
decode are a `CorruptSampleError`, which the loader passes over.
"""

from __future__ import annotations

import io
import os
import struct
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any, BinaryIO, cast

import numpy as np
import numpy.typing as npt
import soundfile

from simdist.config.schema import SAMPLE_RATE
from simdist.core.errors import InputError
from simdist.data.shard_files import RETRY_SECONDS, Clock, ShardFiles
from simdist.data.splits import NPY_HEADER, WAV_HEADER, Split

MAGNITUDE = 0x7FFF  # the bits of a float16 without its sign: as integers they sort like the magnitudes, NaN last


class CorruptSampleError(InputError):
    """A sample of a shard cannot be decoded. The message is the same for every crop of the sample."""


class _TarMember(io.RawIOBase):
    """Bytes [offset, offset + size) of a tar, as a seekable file of its own.

    libsndfile calls it from C, where an exception would be printed and forgotten: it is kept in `failure` instead.
    """

    def __init__(self, read: Callable[[int, int], bytes], offset: int, size: int) -> None:
        self._read, self._offset, self._size, self._place = read, offset, size, 0
        self.failure: InputError | None = None

    def seekable(self) -> bool:
        return True

    def readable(self) -> bool:
        return True

    def seek(self, place: int, whence: int = os.SEEK_SET) -> int:
        origin = {os.SEEK_SET: 0, os.SEEK_CUR: self._place, os.SEEK_END: self._size}[whence]
        self._place = origin + place
        return self._place

    def tell(self) -> int:
        return self._place

    def readinto(self, buffer: memoryview) -> int:  # pyright: ignore[reportIncompatibleMethodOverride]
        count = max(0, min(len(buffer), self._size - self._place))
        if self.failure is not None or count == 0:
            return 0
        try:
            buffer[:count] = self._read(count, self._offset + self._place)
        except InputError as error:
            self.failure = error
            return 0
        self._place += count
        return count


class CropReader:
    """Reads crops of one split; survives fork.

    Args:
        split: an opened split.
        retry_seconds: how long a tar that cannot be read is tried again.
        clock: tells and passes the time of waiting.
    """

    def __init__(self, split: Split, retry_seconds: float = RETRY_SECONDS, clock: Clock | None = None) -> None:
        self._split = split
        self._files = ShardFiles(split, retry_seconds, clock)
        self._good_headers: set[int] = set()
        self._decoders = {"wav": self._decode_wav, "flac": self._decode_flac, "npy": self._decode_npy}

    def read(self, row: int, start: int, count: int) -> npt.NDArray[Any]:
        """Samples [start, start + count) of the utterance in index row `row`, zero-padded at its end.

        Returns:
            (count,) int16 audio, or (count, channels) float16 latents.

        Raises:
            CorruptSampleError: the member cannot be decoded, or ends too early.
            InputError: the tar cannot be read, or latents are damaged.
        """
        index = self._split.index
        available = min(count, int(index.num_samples[row]) - start)
        try:
            decoded = self._decoders[self._split.manifest.encoding](row, start, available)
        except (OSError, RuntimeError, ValueError, MemoryError) as error:
            raise self._corrupt(row) from error
        if len(decoded) != available:
            raise self._corrupt(row)
        if available == count:
            return decoded
        crop = np.zeros((count, *decoded.shape[1:]), dtype=decoded.dtype)
        crop[:available] = decoded
        return crop

    def read_all(self, row: int) -> npt.NDArray[np.int16]:
        """The whole utterance, (num_samples,) int16."""
        return self.read(row, 0, int(self._split.index.num_samples[row]))

    def _bytes(self, row: int, count: int, offset: int) -> bytes:
        return self._files.read(int(self._split.index.shard[row]), count, offset)

    def _decode_wav(self, row: int, start: int, count: int) -> npt.NDArray[np.int16]:
        begin = int(self._split.index.offset[row])
        if row not in self._good_headers:
            if self._bytes(row, WAV_HEADER, begin) != wav_header(int(self._split.index.num_samples[row])):
                raise ValueError("it is not PCM16 at 16 kHz in one channel, or has another length")
            self._good_headers.add(row)
        offset = begin + WAV_HEADER + 2 * start
        return np.frombuffer(self._bytes(row, 2 * count, offset), dtype="<i2")

    def _decode_npy(self, row: int, start: int, count: int) -> npt.NDArray[np.float16]:
        index = self._split.index
        frame = (int(index.size[row]) - NPY_HEADER) // int(index.num_samples[row])  # bytes
        content = self._bytes(row, count * frame, int(index.offset[row]) + NPY_HEADER + start * frame)
        largest = np.float16(self._split.manifest.shards[int(index.shard[row])].get("largest", np.inf))
        if (np.frombuffer(content, dtype="<u2") & MAGNITUDE).max(initial=0) > largest.view(np.uint16):
            raise ValueError("a value is not finite, or larger than any that was written")
        return np.frombuffer(content, dtype="<f2").reshape(-1, frame // 2)

    def _decode_flac(self, row: int, start: int, count: int) -> npt.NDArray[np.int16]:
        index = self._split.index
        member = _TarMember(partial(self._bytes, row), int(index.offset[row]), int(index.size[row]))
        try:
            with soundfile.SoundFile(cast("BinaryIO", member)) as sound:
                if (sound.samplerate, sound.channels, sound.frames) != (SAMPLE_RATE, 1, int(index.num_samples[row])):
                    raise ValueError("it has another rate, several channels, or another length")
                sound.seek(start)
                return np.asarray(sound.read(count, dtype="int16"), dtype=np.int16)
        finally:
            if member.failure is not None:
                raise member.failure

    def _corrupt(self, row: int) -> InputError:
        index = self._split.index
        path = self._split.shard_path(int(index.shard[row]))
        if self._split.manifest.encoding == "npy":
            return InputError(
                f"the latents of {index.key[row]} in {path} are damaged. Run the same command again; "
                "it computes them again"
            )
        return CorruptSampleError(
            f"{index.key[row]} in {path} cannot be decoded. Check the shards with simdist.pack --verify"
        )


def wav_header(num_samples: int) -> bytes:
    """The first 44 bytes of a WAV that simdist.pack writes."""
    size, rate = 2 * num_samples, SAMPLE_RATE
    layout = "<4sI8sIHHIIHH4sI"
    return struct.pack(layout, b"RIFF", 36 + size, b"WAVEfmt ", 16, 1, 1, rate, 2 * rate, 2, 16, b"data", size)


@dataclass(frozen=True)
class DecodedCorpus:
    """A whole split in memory."""

    samples: npt.NDArray[np.int16]
    """(total,) all utterances one after the other."""
    starts: npt.NDArray[np.int64]
    """(N,) where each begins."""
    corrupt: frozenset[int]
    """Rows of utterances that cannot be decoded as a whole, though some of their crops may; they are silent here."""


def read_corpus(reader: CropReader, split: Split, progress: bool = False) -> DecodedCorpus:
    """Decode a whole split into memory.

    Raises:
        InputError: a tar cannot be read, or the split does not fit into memory.
    """
    from rich.progress import track

    lengths = split.index.num_samples
    starts = np.concatenate([[0], np.cumsum(lengths)[:-1]]).astype(np.int64)
    try:
        samples = np.zeros(int(lengths.sum()), dtype=np.int16)
    except MemoryError as error:
        raise InputError(
            f"{split.folder} takes {2 * int(lengths.sum()):,} bytes of memory when decoded, which cannot be had. "
            "Set --data.cache none"
        ) from error
    corrupt: set[int] = set()

    def load(row: int) -> None:
        try:
            samples[starts[row] : starts[row] + lengths[row]] = reader.read_all(row)
        except CorruptSampleError:
            corrupt.add(row)

    with ThreadPoolExecutor(os.cpu_count()) as pool:  # libsndfile decodes outside the GIL
        done = pool.map(load, range(len(lengths)))
        for _ in track(done, "decoding the corpus", total=len(lengths), disable=not progress):
            pass
    return DecodedCorpus(samples, starts, frozenset(corrupt))
