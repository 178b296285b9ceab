"""A small corpus in LibriSpeech's layout, written by the tests that pack it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import soundfile

from simdist.data.labels import num_phone_frames

RATE = 16_000


@dataclass(frozen=True)
class SmallCorpus:
    """Folders and lists of a corpus of noise; `pcm` is what each utterance must decode to."""

    source: Path
    train_split: Path
    test_split: Path
    phones: Path
    pcm: dict[str, npt.NDArray[np.int16]]
    classes: dict[str, list[int]]

    def path(self, key: str) -> Path:
        speaker, chapter, _ = key.split("-")
        return self.source / "small" / speaker / chapter / f"{key}.flac"

    def arguments(self, out: Path, *more: str) -> list[str]:
        """A command line that packs the corpus with its lists and phones, without other processes."""
        lists = ["--train-split", str(self.train_split), "--test-split", str(self.test_split)]
        plain = ["librispeech", str(self.source), str(out), *lists, "--phones", str(self.phones), "--workers", "1"]
        return [*plain, *more]


def small_corpus(
    folder: Path, speakers: int = 3, utterances: int = 4, num_samples: int = 24_000, seed: int = 0
) -> SmallCorpus:
    """Speakers 11, 12 … with one chapter each; the first utterance of each speaker is in the test list."""
    rng = np.random.default_rng(seed)
    pcm: dict[str, npt.NDArray[np.int16]] = {}
    classes: dict[str, list[int]] = {}
    for s in range(speakers):
        chapter = folder / "source" / "small" / str(11 + s) / "7"
        chapter.mkdir(parents=True)
        lines = []
        for u in range(utterances):
            key = f"{11 + s}-7-{u:04d}"
            length = num_samples + 80 * u
            pcm[key] = (3000 * rng.standard_normal(length)).astype(np.int16)
            classes[key] = rng.integers(0, 41, num_phone_frames(length)).tolist()
            soundfile.write(chapter / f"{key}.flac", pcm[key], RATE, subtype="PCM_16")
            lines.append(f"{key} WORDS OF {u}")
        (chapter / f"{11 + s}-7.trans.txt").write_text("\n".join(lines) + "\n")
    phones = _lines(folder / "phones.txt", [" ".join([key, *map(str, c)]) for key, c in classes.items()])
    test = _lines(folder / "test.txt", [key for key in pcm if key.endswith("-0000")])
    train = _lines(folder / "train.txt", [key for key in pcm if not key.endswith("-0000")])
    return SmallCorpus(folder / "source", train, test, phones, pcm, classes)


def _lines(path: Path, lines: list[str]) -> Path:
    path.write_text("\n".join(lines) + "\n")
    return path
