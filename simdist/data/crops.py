"""Read a crop of an utterance straight out of its tar: as few bytes as the encoding allows.

WAV members are canonical PCM16, so a crop is one `pread`. FLAC members are handed to libsndfile through a window on the
tar; it seeks inside the FLAC and reads only the blocks around the crop. Cached latents (NPY) are read like WAV.
"""

from __future__ import annotations

import io
import os
from concurrent.futures import ThreadPoolExecutor
from typing import Any, BinaryIO, cast

import numpy as np
import numpy.typing as npt
import soundfile

from simdist.data.splits import Split
from simdist.errors import InputError

WAV_HEADER = 44  # bytes before the first sample of the WAV files that simdist.pack writes
NPY_HEADER = 128  # bytes before the first value of a two-dimensional array in .npy


class CorruptSampleError(InputError):
    """A sample of a shard does not decode."""


class _TarMember(io.RawIOBase):
    """Bytes [offset, offset + size) of an open file, as a seekable file of its own."""

    def __init__(self, descriptor: int, offset: int, size: int) -> None:
        self._descriptor, self._offset, self._size, self._place = descriptor, offset, size, 0

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
        content = os.pread(self._descriptor, count, self._offset + self._place)
        buffer[: len(content)] = content
        self._place += len(content)
        return len(content)


class CropReader:
    """Reads crops of one split; opens each tar once a process, and survives fork.

    Args:
        split: an opened split.
    """

    def __init__(self, split: Split) -> None:
        self._split = split
        self._files: dict[int, int] = {}
        self._owner = os.getpid()
        self._decoders = {"wav": self._decode_wav, "flac": self._decode_flac, "npy": self._decode_npy}

    def read(self, row: int, start: int, count: int) -> npt.NDArray[Any]:
        """Samples [start, start + count) of the utterance in index row `row`, zero-padded at its end.

        Returns:
            (count,) int16 audio, or (count, channels) float16 latents.

        Raises:
            CorruptSampleError: the member does not decode, or ends too early.
            InputError: the tar cannot be opened.
        """
        index = self._split.index
        available = min(count, int(index.num_samples[row]) - start)
        try:
            decoded = self._decoders[self._split.manifest.encoding](row, start, available)
        except (OSError, RuntimeError, ValueError) as error:
            raise CorruptSampleError(self._describe(row, str(error))) from error
        if len(decoded) != available:
            raise CorruptSampleError(self._describe(row, f"it ends {available - len(decoded)} samples too early"))
        if available == count:
            return decoded
        crop = np.zeros((count, *decoded.shape[1:]), dtype=decoded.dtype)
        crop[:available] = decoded
        return crop

    def read_all(self, row: int) -> npt.NDArray[np.int16]:
        """The whole utterance, (num_samples,) int16."""
        return self.read(row, 0, int(self._split.index.num_samples[row]))

    def _decode_wav(self, row: int, start: int, count: int) -> npt.NDArray[np.int16]:
        offset = int(self._split.index.offset[row]) + WAV_HEADER + 2 * start
        return np.frombuffer(os.pread(self._file(row), 2 * count, offset), dtype="<i2")

    def _decode_npy(self, row: int, start: int, count: int) -> npt.NDArray[np.float16]:
        index = self._split.index
        frame = (int(index.size[row]) - NPY_HEADER) // int(index.num_samples[row])  # bytes
        content = os.pread(self._file(row), count * frame, int(index.offset[row]) + NPY_HEADER + start * frame)
        return np.frombuffer(content, dtype="<f2").reshape(-1, frame // 2)

    def _decode_flac(self, row: int, start: int, count: int) -> npt.NDArray[np.int16]:
        index = self._split.index
        member = _TarMember(self._file(row), int(index.offset[row]), int(index.size[row]))
        with soundfile.SoundFile(cast("BinaryIO", member)) as sound:
            sound.seek(start)
            return np.asarray(sound.read(count, dtype="int16"), dtype=np.int16)

    def _file(self, row: int) -> int:
        if self._owner != os.getpid():  # a forked worker opens its own
            self._files, self._owner = {}, os.getpid()
        shard = int(self._split.index.shard[row])
        if shard not in self._files:
            path = self._split.shard_path(shard)
            try:
                self._files[shard] = os.open(path, os.O_RDONLY)
            except OSError as error:
                raise InputError(
                    f"shard {path} cannot be opened ({error.strerror}); restore it, or pack again with --overwrite"
                ) from error
        return self._files[shard]

    def _describe(self, row: int, reason: str) -> str:
        index = self._split.index
        path = self._split.shard_path(int(index.shard[row]))
        return (
            f"sample {index.key[row]} in {path} does not decode: {reason}; check the shards with simdist.pack --verify"
        )


def read_corpus(split: Split, progress: bool = False) -> tuple[npt.NDArray[np.int16], npt.NDArray[np.int64]]:
    """Decode a whole split into memory.

    Returns:
        (total,) int16 samples of all utterances one after the other, and (N,) int64 where each begins.
    """
    from rich.progress import track

    lengths = split.index.num_samples
    starts = np.concatenate([[0], np.cumsum(lengths)[:-1]]).astype(np.int64)
    samples = np.empty(int(lengths.sum()), dtype=np.int16)
    reader = CropReader(split)

    def load(row: int) -> None:
        samples[starts[row] : starts[row] + lengths[row]] = reader.read_all(row)

    with ThreadPoolExecutor(os.cpu_count()) as pool:  # libsndfile decodes outside the GIL
        done = pool.map(load, range(len(lengths)))
        for _ in track(done, "decoding the corpus", total=len(lengths), disable=not progress):
            pass
    return samples, starts
