"""The synthetic corpus: the same from the same seed, labeled exactly, and made once."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile
from rich.console import Console

from simdist.core.errors import InputError
from simdist.core.signals import SignalHandler
from simdist.data.labels import PHONES
from simdist.data.splits import open_split
from simdist.pack import espeak, synthetic
from simdist.pack.mnemonics import classes_of, frame_classes
from simdist.pack.synthetic import ACCENTS, VARIANTS, Parameters, draw_speakers, ensure, generate, planned

pytestmark = pytest.mark.skipif(not espeak.is_installed(), reason="espeakng_loader is not installed")

SMALL = Parameters(speakers=3, minutes=0.5, seed=3)


def made(source: Path, parameters: Parameters = SMALL, workers: int = 2) -> Path:
    generate(source, parameters, workers, Console(quiet=True), SignalHandler())
    return source


def contents(folder: Path) -> dict[str, str]:
    files = sorted(p for p in folder.rglob("*") if p.is_file() and not p.name.endswith(".lock"))
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made(tmp_path_factory.mktemp("synthetic"))


def labels(corpus: Path) -> dict[str, np.ndarray]:
    lines = (corpus / "labels" / "converted_aligned_phones.txt").read_text().splitlines()
    return {key: np.array(classes.split(), dtype=int) for key, _, classes in (line.partition(" ") for line in lines)}


def audio(corpus: Path, key: str) -> np.ndarray:
    speaker, chapter, _ = key.split("-")
    wave, rate = soundfile.read(corpus / "LibriSpeech" / "synthetic" / speaker / chapter / f"{key}.flac")
    assert rate == 16_000
    return wave


def test_the_same_parameters_give_the_same_bytes_with_any_number_of_workers(corpus: Path, tmp_path: Path):
    assert contents(made(tmp_path, workers=1)) == contents(corpus)


@pytest.mark.parametrize("variant", VARIANTS)
def test_no_voice_depends_on_what_memory_held_before(variant: str, monkeypatch: pytest.MonkeyPatch):
    """glibc fills what malloc returns with the byte asked for; elsewhere this compares two runs, no more."""
    spoken = []
    for byte in ("1", "170"):
        monkeypatch.setenv("MALLOC_PERTURB_", byte)
        with espeak.Voice(f"en+{variant}", 50, 160) as voice:
            spoken.append((voice.log("The thick thief measured the sea."), voice.log("She did.")))
    assert spoken[0] == spoken[1]


def test_another_seed_gives_other_speakers_and_sentences(corpus: Path, tmp_path: Path):
    other = made(tmp_path, Parameters(SMALL.speakers, SMALL.minutes, SMALL.seed + 1))
    transcript = "LibriSpeech/synthetic/1001/1/1001-1.trans.txt"
    assert (other / transcript).read_text() != (corpus / transcript).read_text()
    assert draw_speakers(Parameters(seed=3)) != draw_speakers(Parameters(seed=4))


def test_speakers_differ_in_accent_or_variant():
    speakers = draw_speakers(Parameters(speakers=len(ACCENTS) * len(VARIANTS)))
    assert len({s.voice for s in speakers}) == len(speakers)
    few = draw_speakers(Parameters(speakers=5))
    assert [s.voice for s in few] == [s.voice for s in speakers[:5]]


def test_each_utterance_has_its_labels_and_each_speaker_is_in_both_splits(corpus: Path):
    classes = labels(corpus)
    train, test = ((corpus / "labels" / f"{name}_split.txt").read_text().split() for name in ("train", "test"))
    assert sorted(train + test) == sorted(classes)
    assert {key.split("-")[0] for key in train} == {key.split("-")[0] for key in test} == {"1001", "1002", "1003"}
    seconds = 0.0
    for key, expected in classes.items():
        num_samples = len(audio(corpus, key))
        assert len(expected) == 1 + (num_samples - 400) // 160
        assert 2 * 16_000 < num_samples < 13 * 16_000
        seconds += num_samples / 16_000
    assert 60 * SMALL.minutes <= seconds < 60 * SMALL.minutes + 13 * SMALL.speakers


def test_labels_lie_on_the_sounds_they_name(corpus: Path):
    """Silence is quiet, vowels are loud, and voiceless hiss crosses zero far more often than vowels and nasals."""
    decibels: dict[str, list[float]] = {}
    crossings: dict[str, list[float]] = {}
    for key, classes in labels(corpus).items():
        wave = audio(corpus, key)
        for i, number in enumerate(classes):
            frame = wave[160 * i : 160 * i + 400]
            decibels.setdefault(PHONES[number], []).append(10 * np.log10(np.mean(frame**2) + 1e-12))
            crossings.setdefault(PHONES[number], []).append(float(np.mean(np.diff(np.sign(frame)) != 0)))
    vowels = ("AA", "AE", "AH", "AO", "EH", "IY", "OW")
    loud = np.concatenate([decibels[v] for v in vowels])
    assert np.median(loud) - np.median(decibels["SIL"]) > 30
    assert np.percentile(loud, 5) > np.percentile(decibels["SIL"], 75)
    assert np.median(crossings["S"]) > 2 * np.median(np.concatenate([crossings[v] for v in (*vowels, "N", "M")]))


def test_all_mnemonics_are_known_in_every_accent(tmp_path: Path):
    numbers: list[np.ndarray] = []
    for accent in ACCENTS:
        with espeak.Voice(f"{accent}+m1", 50, 160) as voice:
            for utterance in range(25):
                speech = voice.log(synthetic.sentence(np.random.default_rng([9, utterance])))
                times = [(m, s * 16_000 / espeak.RATE) for m, s in speech.phonemes]
                numbers.append(frame_classes(times, len(speech.pcm) * 16_000 // (2 * espeak.RATE)))
    counts = np.bincount(np.concatenate(numbers), minlength=len(PHONES))
    assert counts[PHONES.index("SPN")] < 0.01 * counts.sum()
    missing = [name for name, count in zip(PHONES, counts, strict=True) if count == 0 and name != "SPN"]
    assert missing == []


def test_frames_take_the_class_in_the_middle_of_their_window():
    times = [("t", 1000.0), ("'e@", 2000.0), ("_:", 4000.0)]
    names = [PHONES[n] for n in frame_classes(times, 6000)]
    expected = []
    for middle in range(200, 200 + 160 * (1 + (6000 - 400) // 160), 160):
        segments = [("SIL", 0), ("T", 1000), ("EH", 2000), ("R", 3000), ("SIL", 4000)]
        expected.append([name for name, begin in segments if begin <= middle][-1])
    assert names == expected
    assert classes_of("qqq") == ("SPN",)


def test_an_interrupted_generation_continues_to_the_same_corpus(corpus: Path, tmp_path: Path):
    source, out = tmp_path / "source", tmp_path / "out"
    options = ["--speakers", "3", "--minutes", "0.5", "--seed", "3", "--workers", "1"]
    process = subprocess.Popen([sys.executable, "-m", "simdist.pack", "synthetic", str(source), str(out), *options])
    deadline = time.monotonic() + 30
    while not (source / "LibriSpeech" / "synthetic" / "1001").is_dir() and time.monotonic() < deadline:
        time.sleep(0.002)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not (source / "synthetic.json").exists(), "killed too late to test anything"
    assert contents(made(source)) == contents(corpus)


def test_another_corpus_in_the_same_folder_is_refused(corpus: Path, tmp_path: Path):
    with pytest.raises(InputError, match=r"holds the synthetic corpus of --speakers 3 .* not of --speakers 4 "):
        made(corpus, Parameters(speakers=4, minutes=0.5, seed=3))
    (tmp_path / "LibriSpeech").mkdir()
    with pytest.raises(InputError, match="holds LibriSpeech/, but no corpus that was generated; choose a new or empty"):
        made(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["LibriSpeech"]


def test_a_note_says_when_two_sentences_of_each_speaker_are_more_than_was_asked_for(corpus: Path):
    assert planned(corpus, SMALL).notes == []
    (note,) = planned(corpus, Parameters(speakers=3, minutes=0.01, seed=3)).notes
    assert re.fullmatch(r"--minutes 0.01 became 0\.\d: each speaker says at least two sentences, .*", note)


def test_without_espeak_the_package_to_install_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(espeak, "is_installed", lambda: False)
    with pytest.raises(InputError, match="needs espeakng_loader: pip install espeakng-loader"):
        made(tmp_path)


def test_ensure_refuses_folders_of_others_before_it_makes_anything(tmp_path: Path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.pdf").touch()
    for source, message in (("source", "holds thesis.pdf"), ("out/source", "lie one inside the other")):
        with pytest.raises(InputError, match=message):
            ensure(tmp_path / source, tmp_path / "out", progress=False)
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["out", "thesis.pdf"]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"speakers": 0}, "--speakers is 0; it must be 1 to 160"),
        ({"minutes": 0}, "--minutes is 0; it must be more than 0"),
        ({"seed": -1}, "--seed is -1; it must be 0 or more"),
    ],
)
def test_impossible_parameters_are_named(wrong: dict, message: str):
    with pytest.raises(InputError, match=message):
        Parameters(**wrong)


def test_ensure_by_two_processes_at_once_makes_one_corpus_and_then_returns_at_once(tmp_path: Path):
    arguments = (tmp_path / "source", tmp_path / "out", 2, 0.2, 0, False)
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=ensure, args=arguments) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0]
    split = open_split(tmp_path / "out", "train")
    assert split.manifest.corpus == "synthetic"
    assert split.manifest.labels["speaker"] == ["1001", "1002"]
    before = contents(tmp_path)
    begin = time.perf_counter()
    ensure(*arguments)
    assert time.perf_counter() - begin < 0.5
    assert contents(tmp_path) == before
    with pytest.raises(InputError, match="holds the synthetic corpus"):
        ensure(tmp_path / "source", tmp_path / "out", 3, 0.2, 0, False)
