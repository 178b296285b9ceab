"""Resampling to 16 kHz, the same on every machine and with any number of threads.

It is computed in float64 on one thread: then sums in another order differ far below one step of 16-bit audio, and
packing with one worker or twenty gives equal bytes. Importing this module imports torch (seconds); do it when needed.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import numpy.typing as npt
import torch

from simdist.config.schema import SAMPLE_RATE
from simdist.core.torchaudio_import import torchaudio


def resample(pcm: npt.NDArray[np.int16], rate: int) -> npt.NDArray[np.int16]:
    """Audio of `rate` Hz as audio of 16 kHz; (N,) -> (ceil(N * 16000 / rate),), both 16-bit."""
    if rate == SAMPLE_RATE:
        return pcm
    with _one_thread():
        wave = _resampler(rate)(torch.from_numpy(pcm.astype(np.float64)))
    return wave.round().clamp(-32768, 32767).to(torch.int16).numpy()


@functools.cache
def _resampler(rate: int) -> torch.nn.Module:
    """The filter, which takes longer to design than a short clip takes to filter."""
    return torchaudio.transforms.Resample(rate, SAMPLE_RATE, dtype=torch.float64)


@contextmanager
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
