"""Crops a second and CPU time a crop, against decoding whole files and cutting crops out of them, as upstream does.

    python -m benchmarks.loader [--source LIBRISPEECH] [--crops 2000]

`--source` is a folder in LibriSpeech's layout, of which its train-clean-100 is taken if it is there: clips of another
length give another ratio. It is packed twice, as FLAC and as WAV. Without it, ten minutes of speech are synthesized.
All is read from the page cache, so this measures the processor, not the disk; on one thread, for threads of torch that
wait for work count as processor time.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import soundfile
import torch

from benchmarks.outcomes import Outcome, show
from simdist.config.schema import DataConfig
from simdist.data.loader import BatchLoader, open_clips
from simdist.pack.__main__ import main as pack

BATCH, SEED = 8, 0
ONE_WORKER = 2_000  # crops a second from WAV shards


@dataclass(frozen=True)
class Speed:
    """Of one way to get crops."""

    crops_per_s: float
    cpu_us: float
    """Microseconds of this process's processor time for a crop; workers' are not in it."""

    @property
    def text(self) -> str:
        """For the table."""
        return f"{self.crops_per_s:,.0f} crops/s, {self.cpu_us:,.0f} µs of CPU a crop"


def speed_of(take: Callable[[], Iterator[object]], crops: int) -> Speed:
    """Time batches of `BATCH` crops, after a first batch."""
    batches = take()
    next(batches)
    wall, cpu = time.perf_counter(), time.process_time()
    for _ in range(crops // BATCH):
        next(batches)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    return Speed(crops / wall, cpu / crops * 1e6)


def loaded(root: Path, crop: int, crops: int, cache: str = "none", workers: int = 0) -> Speed:
    """simdist's loader."""
    config = DataConfig(str(root), crop=crop, batch_size=BATCH, num_workers=workers, cache=cache)  # pyright: ignore
    with contextlib.redirect_stdout(io.StringIO()):  # the progress bar of decoding into memory
        loader = BatchLoader(open_clips(config, "train"), config, SEED, 0, 1, torch.device("cpu"))
    return speed_of(lambda: loader.batches(0, crops + 100 * BATCH), crops)


def whole_files(files: list[Path], crop: int, crops: int) -> Speed:
    """Each file decoded from its beginning to its end, one crop of it kept, batches stacked."""
    chance = random.Random(SEED)

    def batches() -> Iterator[torch.Tensor]:
        while True:
            clips = []
            for path in chance.choices(files, k=BATCH):
                samples = torch.from_numpy(soundfile.read(path, dtype="float32")[0])
                start = chance.randrange(max(1, len(samples) - crop + 1))
                clip = samples[start : start + crop]
                clips.append(torch.nn.functional.pad(clip, (0, crop - len(clip))))
            yield torch.stack(clips)[:, None]

    return speed_of(batches, crops)


def measure(source: Path | None, crops: int, crop: int = 20_480) -> list[Outcome]:
    """Pack, then time every way, on one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return _measure(source, crops, crop)
    finally:
        torch.set_num_threads(threads)


def _measure(source: Path | None, crops: int, crop: int) -> list[Outcome]:
    subset = ["--subsets", "train-clean-100"] if source and (source / "train-clean-100").is_dir() else []
    with TemporaryDirectory() as folder:
        roots = {}
        for encoding in ("flac", "wav"):
            roots[encoding] = Path(folder, encoding)
            made = Path(folder, "made")
            corpus = ["librispeech", str(source)] if source else ["synthetic", str(made)]
            size = subset if source else ["--speakers", "8", "--minutes", "10"]
            with contextlib.redirect_stdout(io.StringIO()):
                pack([*corpus, str(roots[encoding]), *size, "--encoding", encoding])
        files = sorted(Path(source or made, *subset[1:]).rglob("*.flac"))
        whole = whole_files(files, crop, crops)
        flac, wav = (loaded(roots[encoding], crop, crops) for encoding in ("flac", "wav"))
        memory, device = (loaded(roots["flac"], crop, crops, cache) for cache in ("memory", "device"))
        worker = loaded(roots["wav"], crop, crops, workers=1)
    seconds = sum(soundfile.info(path).duration for path in files) / len(files)
    return [
        Outcome("loader, FLAC / whole files", whole.cpu_us / flac.cpu_us, 3, detail=flac.text),
        Outcome("loader, WAV / whole files", whole.cpu_us / wav.cpu_us, 20, detail=wav.text),
        Outcome("loader, cache in memory / whole files", whole.cpu_us / memory.cpu_us, detail=memory.text),
        Outcome("loader, cache on device (CPU) / whole files", whole.cpu_us / device.cpu_us, detail=device.text),
        Outcome("loader, one worker, WAV", worker.crops_per_s, ONE_WORKER, unit="crops/s", detail=worker.text),
        Outcome("whole files", whole.crops_per_s, unit="crops/s", detail=f"{whole.text}; {seconds:.1f} s a file"),
    ]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", type=Path, help="a folder in LibriSpeech's layout")
    parser.add_argument("--crops", type=int, default=2000, help="of each kind")
    arguments = parser.parse_args()
    show("20,480 samples a crop, one thread", measure(arguments.extractor, arguments.crops))


if __name__ == "__main__":
    main()
