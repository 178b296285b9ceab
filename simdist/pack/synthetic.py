"""Synthesize a corpus in LibriSpeech's layout, with speakers and exact phone labels, in seconds.

It is what the demo and the continuous integration train on: no download, and every label is right. Each speaker is an
accent, a voice variant, a pitch and a rate of espeak-ng. The corpus depends on (speakers, minutes, seed) alone: a
speaker's sentences and silences are drawn from (seed, speaker, utterance), and its own process speaks them in order.

A speaker's folder appears complete or not at all, so a generation that was killed continues; `synthetic.json` comes
last.
"""

from __future__ import annotations

import json
import os
import shutil
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from rich.console import Console

from simdist.config.schema import SAMPLE_RATE
from simdist.core.errors import InputError
from simdist.core.file_locks import locked
from simdist.core.files import TEMPORARY, write_json, write_text
from simdist.core.progress import progress as show_progress
from simdist.core.signals import SignalHandler
from simdist.data import audio
from simdist.data.splits import MANIFEST
from simdist.pack import espeak, folders, packing
from simdist.pack.corpora import Corpus, held_out, some_names, visible
from simdist.pack.librispeech import SplitLists, librispeech
from simdist.pack.mnemonics import frame_classes
from simdist.pack.sentences import sentence
from simdist.pack.shards import DiskError

GENERATION = 1  # raise when the same parameters would give another corpus
ACCENTS = ["en", "en-us", "en-gb-scotland", "en-gb-x-rp", "en-gb-x-gbclan", "en-gb-x-gbcwmd", "en-029", "en-us-nyc"]
VARIANTS = [  # none with "breath": those voices read memory that espeak-ng never set, so they differ from run to run
    "f1", "f4", "Andrea", "Annie", "anika", "belinda", "linda", "steph",
    "m1", "m2", "m3", "m4", "m5", "m6", "m7", "m8", "Andy", "Gene", "Lee", "Michael",
]  # fmt: skip
FEMALE = set(VARIANTS[:8])
TEST_FRACTION = 0.2
BYTES_A_SECOND = 20_000  # of FLAC and phone labels, about
NOISE = 12.0  # standard deviation of the background, in steps of 16-bit audio: silence is quiet, not exactly zero
_MARKER = "synthetic.json"
_BEGUN = ".generating.json"
_PARTS = ".phones"


@dataclass(frozen=True)
class Parameters:
    """The parameters that determine the corpus, bit for bit."""

    speakers: int = 8
    minutes: float = 4.0
    """Of speech, over all speakers together."""
    seed: int = 0

    def __post_init__(self) -> None:
        most = len(ACCENTS) * len(VARIANTS)
        if not 1 <= self.speakers <= most:
            raise InputError(f"--speakers is {self.speakers}; it must be 1 to {most} ({most} different voices)")
        if not self.minutes > 0:
            raise InputError(f"--minutes is {self.minutes:g}; it must be more than 0")
        if self.seed < 0:
            raise InputError(f"--seed is {self.seed}; it must be 0 or more")

    def said(self) -> str:
        return f"--speakers {self.speakers} --minutes {self.minutes:g} --seed {self.seed}"


@dataclass(frozen=True)
class Speaker:
    """The voice of one speaker."""

    name: str
    voice: str
    pitch: int
    rate: int

    @property
    def sex(self) -> str:
        return "F" if self.voice.partition("+")[2] in FEMALE else "M"


def ensure(
    source: Path, out: Path, speakers: int = 8, minutes: float = 4.0, seed: int = 0, progress: bool = True
) -> None:
    """Generate the corpus into `source` and pack it into `out`, unless that is done; then return at once.

    Processes that call it at the same time wait for the first.

    Raises:
        InputError: `source` or `out` holds another corpus, or espeakng_loader is not installed.
    """
    parameters = Parameters(speakers, float(minutes), seed)
    if _is_packed(out, parameters):
        return
    console = Console(quiet=not progress, soft_wrap=True, highlight=False)
    folders.require_usable(source, out)
    with locked(out, ".ensure.lock", wait=True):
        if not _is_packed(out, parameters):
            generate(source, parameters, 1, console, SignalHandler())
            packing.pack(planned(source, parameters), out, packing.Options(), console, SignalHandler())


def planned(source: Path, parameters: Parameters) -> Corpus:
    """The generated corpus, ready to be packed."""
    labels = source / "labels"
    lists = SplitLists(labels / "train_split.txt", labels / "test_split.txt")
    phones = labels / "converted_aligned_phones.txt"
    plan = librispeech(source, ["synthetic"], lists, phones=phones)
    minutes = phones.read_text().count(" ") / 6000  # a class each 10 ms
    if minutes > 1.5 * parameters.minutes:
        plan.notes.append(
            f"--minutes {parameters.minutes:g} became {minutes:.1f}: "
            "each speaker says at least two sentences, one to train on and one to test on"
        )
    return Corpus("synthetic", plan.splits, asdict(parameters), plan.notes)


def _is_packed(out: Path, parameters: Parameters) -> bool:
    for split in ("train", "test"):
        try:
            packed = json.loads((out / split / MANIFEST).read_text())["packed_with"]
        except (OSError, ValueError, KeyError):
            return False
        if {name: packed.get(name) for name in asdict(parameters)} != asdict(parameters):
            return False
    return True


# --- generation -------------------------------------------------------------------------------------------------------


def generate(source: Path, parameters: Parameters, workers: int, console: Console, stop: SignalHandler) -> None:
    """Write the corpus to `source`/LibriSpeech/synthetic and its lists to `source`/labels; nothing, if it is there.

    Raises:
        InputError: `source` holds something else, or espeakng_loader is not installed.
        StoppedError: a signal came; finished speakers are kept.
    """
    _require_ours(source)
    with locked(source):
        speakers = draw_speakers(parameters)
        try:
            if _begin(source, parameters):
                return
            _speak_missing(source, parameters, speakers, workers, console, stop)
            _write_lists(source, speakers)
            write_json(source / _MARKER, {"generation": GENERATION, **asdict(parameters)})
        except OSError as error:
            needed, free = int(60 * parameters.minutes * BYTES_A_SECOND), folders.free_bytes(source)
            raise DiskError(
                f"{error.filename or source} cannot be written: {error.strerror}; the corpus takes about {needed:,} "
                f"bytes and {free:,} are free there (finished speakers are kept: make room and run the same command "
                "again)"
            ) from error
        (source / _BEGUN).unlink(missing_ok=True)
        shutil.rmtree(source / _PARTS)


def _speak_missing(
    source: Path, parameters: Parameters, speakers: list[Speaker], workers: int, console: Console, stop: SignalHandler
) -> None:
    missing = [i for i, s in enumerate(speakers) if not (_subset(source) / s.name).is_dir()]
    with (
        show_progress(console, "speaking", len(missing), "speakers") as advance,
        ThreadPoolExecutor(workers) as threads,  # the work is in the voices' processes
    ):
        pending = {threads.submit(_speak, source, parameters, i, speakers[i], stop) for i in missing}
        try:
            while pending:
                done, pending = wait(pending, timeout=0.2, return_when=FIRST_COMPLETED)
                for future in done:
                    future.result()
                    advance(1)
        except BaseException:
            threads.shutdown(wait=False, cancel_futures=True)
            raise


def draw_speakers(parameters: Parameters) -> list[Speaker]:
    """The speakers of a corpus: all of different accent or variant."""
    rng = np.random.default_rng([parameters.seed, 0])
    voices = [f"{accent}+{variant}" for accent in ACCENTS for variant in VARIANTS]
    chosen = rng.permutation(len(voices))[: parameters.speakers]
    return [
        Speaker(str(1001 + i), voices[voice], int(rng.integers(25, 76)), int(rng.integers(140, 186)))
        for i, voice in enumerate(chosen)
    ]


def _subset(source: Path) -> Path:
    return source / "LibriSpeech" / "synthetic"


def _require_ours(source: Path) -> None:
    """Raise InputError unless `source` is new, empty or generated; nothing is written before."""
    try:
        generated = any((source / name).is_file() for name in (_BEGUN, _MARKER))
        if source.is_dir() and not generated and visible(source):
            raise InputError(
                f"SOURCE {source} holds {some_names(source)}, but no corpus that was generated; "
                "choose a new or empty folder"
            )
    except OSError as error:
        raise InputError(f"SOURCE {source} cannot be read: {error.strerror}; choose another folder") from error


def _begin(source: Path, parameters: Parameters) -> bool:
    """Whether the corpus is complete already; otherwise the folder is made ready."""
    wanted = {"generation": GENERATION, **asdict(parameters)}
    for marker in (source / _MARKER, source / _BEGUN):
        if marker.is_file():
            there = json.loads(marker.read_text())
            if there != wanted:
                said = Parameters(there["speakers"], there["minutes"], there["seed"]).said()
                raise InputError(
                    f"{source} holds the synthetic corpus of {said} (generation {there['generation']}), "
                    f"not of {parameters.said()} (generation {GENERATION}); choose another SOURCE, or remove that one"
                )
            if marker.name == _MARKER:
                return True
    if not espeak.is_installed():
        raise InputError("the synthetic corpus needs espeakng_loader: pip install espeakng-loader")
    for leftover in source.glob(f"{TEMPORARY}*"):
        shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()
    write_json(source / _BEGUN, wanted)  # first: it is by this that the folder is known to be ours
    for folder in (_subset(source), source / "labels", source / _PARTS):
        folder.mkdir(parents=True, exist_ok=True)
    return False


def _speak(source: Path, parameters: Parameters, number: int, speaker: Speaker, stop: SignalHandler) -> None:
    """Write one speaker's folder and its phone lines; the folder appears last."""
    temporary = source / f"{TEMPORARY}{os.getpid()}-{speaker.name}"
    lines: list[str] = []
    seconds, utterance = 0.0, 0
    with espeak.Voice(speaker.voice, speaker.pitch, speaker.rate) as voice:
        while seconds < 60 * parameters.minutes / parameters.speakers or utterance < 2:
            stop.check()
            rng = np.random.default_rng([parameters.seed, 1, number, utterance])
            text = sentence(rng)
            pcm, phones = _utterance(voice.log(text), rng)
            chapter = str(1 + utterance // 50)
            key = f"{speaker.name}-{chapter}-{utterance % 50:04d}"
            _write_utterance(temporary / chapter, key, pcm, text)
            lines.append(" ".join([key, *map(str, phones)]))
            seconds += len(pcm) / SAMPLE_RATE
            utterance += 1
    _write_lines(source / _PARTS / f"{speaker.name}.txt", lines)
    temporary.rename(_subset(source) / speaker.name)


def _utterance(speech: espeak.Speech, rng: np.random.Generator) -> tuple[npt.NDArray[np.int16], npt.NDArray[np.uint8]]:
    """A sentence at 16 kHz between two silences, over a quiet background, and its phone classes."""
    from simdist.data.resample import resample  # imports torch, which takes seconds and is not always needed

    spoken = resample(np.frombuffer(speech.pcm, dtype=np.int16), espeak.RATE)
    before, after = (int(n) for n in rng.integers(SAMPLE_RATE // 5, SAMPLE_RATE // 2, size=2))
    wave = np.pad(spoken.astype(np.float64), (before, after))
    wave += NOISE * rng.standard_normal(len(wave))
    times = [(m, before + s * SAMPLE_RATE / espeak.RATE) for m, s in speech.phonemes]
    times.append(("_", before + len(spoken)))
    return np.clip(np.rint(wave), -32768, 32767).astype(np.int16), frame_classes(times, len(wave))


# --- files ------------------------------------------------------------------------------------------------------------


def _write_utterance(chapter: Path, key: str, pcm: npt.NDArray[np.int16], text: str) -> None:
    chapter.mkdir(parents=True, exist_ok=True)
    (chapter / f"{key}.flac").write_bytes(audio.encode(pcm, "flac"))
    transcript = "".join(c for c in text.upper() if c.isalpha() or c == " ")
    with (chapter / f"{key.rpartition('-')[0]}.trans.txt").open("a") as file:
        file.write(f"{key} {transcript}\n")


def _write_lists(source: Path, speakers: list[Speaker]) -> None:
    """SPEAKERS.TXT, the phone labels of all speakers in one file, and the two lists of ids."""
    header = "; made by espeak-ng\n;ID  |SEX| SUBSET           |MINUTES| NAME"
    rows = [f"{s.name:5}| {s.sex} | {'synthetic':17}| {0:5.2f} | {s.voice} {s.pitch} {s.rate}" for s in speakers]
    _write_lines(source / "LibriSpeech" / "SPEAKERS.TXT", [header, *rows])
    phones = [line for s in speakers for line in (source / _PARTS / f"{s.name}.txt").read_text().splitlines()]
    _write_lines(source / "labels" / "converted_aligned_phones.txt", phones)
    keys = [line.partition(" ")[0] for line in phones]
    test = held_out(((key, key.partition("-")[0]) for key in keys), TEST_FRACTION)
    _write_lines(source / "labels" / "train_split.txt", [key for key in keys if key not in test])
    _write_lines(source / "labels" / "test_split.txt", [key for key in keys if key in test])


def _write_lines(path: Path, lines: list[str]) -> None:
    write_text(path, "\n".join(lines) + "\n")
