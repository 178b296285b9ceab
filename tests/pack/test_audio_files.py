"""What becomes of one audio file: decoded by its subtype, reported by its path, and never the end of the packing."""

from __future__ import annotations

import io
import json
import os
import struct
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import soundfile
from rich.console import Console

from simdist.core.signals import SignalHandler
from simdist.data import audio
from simdist.data.crops import CropReader
from simdist.data.splits import open_split
from simdist.pack.__main__ import main
from simdist.pack.artificial_speech import SYLLABLES, WORDS
from simdist.pack.corpora import Corpus, SplitPlan, Utterance, file_status
from simdist.pack.packing import Options, pack
from simdist.pack.verifying import verify
from tests.support.packing_cases import RATE, SmallCorpus, small_corpus

LENGTH = 24_000
Wave = npt.NDArray[np.float64]


@pytest.fixture
def corpus(tmp_path: Path) -> SmallCorpus:
    return small_corpus(tmp_path)


@pytest.fixture
def wave() -> Wave:
    """Noise on the grid of no integer subtype, with both ends of the full scale and more than that."""
    wave = 0.2 * np.random.default_rng(0).standard_normal(LENGTH)
    wave[:6] = (1, -1, 0.99999, 1.5, -1.5, -0.5 / 32768 + 1e-9)
    return wave


def write(path: Path, samples: npt.NDArray[Any], subtype: str = "PCM_16", kind: str = "WAV") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, samples, RATE, subtype=subtype, format=kind)
    return path


def artificial_speech_of(wave: Wave, source: Path, subtype: str) -> Path:
    """A corpus of two words and two syllables in train and in test."""
    for part in ("train", "test"):
        for number in (1, 2):
            write(source / WORDS / part / f"babidu_{number}.wav", wave, subtype)
            write(source / SYLLABLES / part / f"babidu_{number}_1_ba.wav", wave, subtype)
    return source


def planned(*paths: Path) -> Corpus:
    utterances = [
        Utterance(p.stem, str(p), file_status(p).size, file_status(p).mtime_ns, speaker="anna") for p in paths
    ]
    return Corpus("files", [SplitPlan("train", utterances)], {})


def packed(out: Path, *paths: Path, **options: Any) -> tuple[dict[str, npt.NDArray[np.int16]], list[dict[str, Any]]]:
    """Samples by key and the problems in the report, of a packing of these files."""
    pack(planned(*paths), out, Options(**options), Console(), SignalHandler())
    split = open_split(out, "train")
    reader = CropReader(split)
    problems = json.loads((out / "train" / "report.json").read_text())["problems"]
    return {key: reader.read_all(row) for row, key in enumerate(split.index.key.tolist())}, problems


def stored(samples: npt.NDArray[Any], subtype: str, kind: str) -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, RATE, subtype=subtype, format=kind)
    return buffer.getvalue()


def announcing(flac: bytes, num_samples: int) -> bytes:
    """A FLAC file whose header states another number of samples."""
    rate_and_bits = int.from_bytes(flac[18:26], "big") >> 36 << 36
    return flac[:18] + (rate_and_bits | num_samples).to_bytes(8, "big") + flac[26:]


# --- decoding ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("encoding", ["flac", "wav"])
@pytest.mark.parametrize("subtype", ["FLOAT", "DOUBLE"])
def test_float_samples_are_scaled_rounded_and_saturated(wave: Wave, tmp_path: Path, subtype: str, encoding: str):
    samples, _ = packed(tmp_path / "out", write(tmp_path / "a.wav", wave, subtype), encoding=encoding)
    exact = wave.astype(np.float32) if subtype == "FLOAT" else wave
    expected = [max(-32768, min(32767, round(float(x) * 32768))) for x in exact]
    assert samples["a"].tolist() == expected
    assert samples["a"][:6].tolist() == [32767, -32768, 32767, 32767, -32768, 0]


@pytest.mark.parametrize(
    ("kind", "subtype", "bits"),
    [
        ("WAV", "PCM_U8", 8),
        ("WAV", "PCM_16", 16),
        ("WAV", "PCM_24", 24),
        ("WAV", "PCM_32", 32),
        ("WAVEX", "PCM_24", 24),
        ("FLAC", "PCM_S8", 8),
        ("FLAC", "PCM_24", 24),
    ],
)
def test_integers_of_any_width_become_the_nearest_of_16_bits(tmp_path: Path, kind: str, subtype: str, bits: int):
    highest = 1 << bits - 1
    integers = np.random.default_rng(1).integers(-highest, highest, LENGTH)
    integers[:2] = (highest - 1, -highest)
    path = write(tmp_path / "a.wav", (integers << 32 - bits).astype(np.int32), subtype, kind)
    samples, _ = packed(tmp_path / "out", path)
    expected = np.minimum(np.rint(integers / highest * 32768), 32767)
    np.testing.assert_array_equal(samples["a"], expected)


def test_audio_is_decoded_in_blocks_of_bounded_size(wave: Wave, monkeypatch: pytest.MonkeyPatch):
    for subtype, kind in (("FLOAT", "WAV"), ("PCM_24", "FLAC"), ("PCM_16", "FLAC")):
        content = stored(wave.clip(-1, 1), subtype, kind)
        whole = audio.decode(content).pcm
        with monkeypatch.context() as patched:
            patched.setattr(audio, "BLOCK_SAMPLES", 7_000)
            np.testing.assert_array_equal(audio.decode(content).pcm, whole)


# --- samples that are no speech ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_file_with_a_sample_that_is_not_finite_is_left_out_by_path(wave: Wave, tmp_path: Path, value: float):
    good = write(tmp_path / "good.wav", wave / 10, "FLOAT")
    wave[1_234] = value
    bad = write(tmp_path / "bad.wav", wave, "FLOAT")
    samples, problems = packed(tmp_path / "out", good, bad)
    assert set(samples) == {"good"}
    reason = "has NaN or infinite samples, the first at sample 1,234"
    assert problems == [{"path": str(bad), "reason": reason, "packed": False, "kind": ""}]


def test_silent_and_clipped_files_are_packed_and_reported_by_path(
    wave: Wave, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    loud = np.clip(8 * wave, -1, 1)
    once = wave.clip(-0.9, 0.9)
    once[::5_000] = 1
    files = {
        "zeros": write(tmp_path / "zeros.wav", np.zeros(LENGTH)),
        "constant": write(tmp_path / "constant.wav", np.full(LENGTH, 0.25), "FLOAT"),
        "faint": write(tmp_path / "faint.wav", 1e-6 * wave, "FLOAT"),
        "loud": write(tmp_path / "loud.wav", loud),
        "beyond": write(tmp_path / "beyond.wav", wave, "FLOAT"),
        "once": write(tmp_path / "once.wav", once),
    }
    samples, problems = packed(tmp_path / "out", *files.values())
    assert set(samples) == set(files)
    assert {Path(p["path"]).stem: p["kind"] for p in problems} == {
        "beyond": "clipped",
        "constant": "silent",
        "faint": "silent",
        "loud": "clipped",
        "zeros": "silent",
    }
    assert all(p["packed"] for p in problems)
    num_full = int((np.abs(np.rint(loud * 32768)) >= 32767).sum())
    reasons = {Path(p["path"]).stem: p["reason"] for p in problems}
    assert reasons["zeros"] == "is silent: all of its 24,000 samples are equal"
    assert reasons["loud"] == f"is clipped: {num_full:,} of its 24,000 samples are at full scale"
    assert reasons["beyond"] == "is clipped: 2 of its 24,000 samples are beyond full scale (peak 1.5)"
    said = capsys.readouterr().out.replace("\n", "")
    names = ", ".join(str(files[name]) for name in ("constant", "faint", "zeros"))
    assert f"warning: 3 utterances are silent, packed all the same: {names}" in said
    assert f"warning: 2 utterances are clipped, packed all the same: {files['beyond']}, {files['loud']}" in said


# --- headers that lie -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_samples", [0, LENGTH - 1, LENGTH + 1, 2**35])
def test_a_flac_header_with_another_number_of_samples_is_a_problem_of_that_file(
    corpus: SmallCorpus, tmp_path: Path, num_samples: int, capsys: pytest.CaptureFixture[str]
):
    bad = corpus.path("11-7-0001")
    bad.write_bytes(announcing(stored(np.ones(LENGTH), "PCM_16", "FLAC"), num_samples))
    assert main(corpus.arguments(tmp_path / "out")) == 0
    assert "1 problem: 1 left out, 0 packed all the same" in capsys.readouterr().out
    (problem,) = json.loads((tmp_path / "out" / "train" / "report.json").read_text())["problems"]
    assert problem["path"] == str(bad)
    assert not problem["packed"]
    if num_samples > LENGTH:
        assert f"its header announces {num_samples:,} samples" in problem["reason"]


@pytest.mark.parametrize(("kind", "subtype"), [("WAV", "FLOAT"), ("RF64", "PCM_16"), ("WAV", "GSM610")])
def test_a_wav_is_packed_when_whole_and_a_problem_when_cut_off(wave: Wave, kind: str, subtype: str):
    content = stored(wave / 10, subtype, kind)
    assert len(audio.decode(content).pcm) >= LENGTH
    with pytest.raises(audio.AudioError, match=r"is truncated: [\d,]+ of [\d,]+ bytes of audio"):
        audio.decode(content[:-1000])


@pytest.mark.parametrize(("kind", "subtype"), [("WAV", "PCM_16"), ("WAV", "FLOAT"), ("FLAC", "PCM_16")])
def test_no_byte_of_a_header_causes_anything_but_a_problem_of_that_file(wave: Wave, kind: str, subtype: str):
    content = stored(wave[:500].clip(-1, 1), subtype, kind)
    for position in range(60):
        for value in (0, 1, 0x7F, 0xFF):
            try:
                decoded = audio.decode(content[:position] + struct.pack("B", value) + content[position + 1 :])
            except audio.AudioError:
                continue
            assert 0 < len(decoded.pcm) <= 4 * 500


# --- what is no file --------------------------------------------------------------------------------------------------


def replace(path: Path, what: str) -> None:
    path.unlink()
    if what == "link":
        path.symlink_to("nowhere")
    elif what == "loop":
        path.symlink_to(path)
    elif what == "folder":
        path.mkdir()
    elif what == "fifo":
        os.mkfifo(path)
    elif what == "empty":
        path.touch()
    elif what == "unreadable":
        path.touch(0)


@pytest.mark.parametrize(
    ("what", "reason"),
    [
        ("link", "cannot be read: No such file or directory"),
        ("loop", "cannot be read: Too many levels of symbolic links"),
        ("folder", "cannot be read: it is not a regular file"),
        ("fifo", "cannot be read: it is not a regular file"),
        ("empty", "is empty (0 bytes)"),
        pytest.param(
            "unreadable",
            "cannot be read: Permission denied",
            marks=pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything"),
        ),
    ],
)
def test_a_path_that_cannot_be_read_is_a_problem_of_that_path(
    corpus: SmallCorpus, tmp_path: Path, what: str, reason: str
):
    bad = corpus.path("11-7-0001")
    replace(bad, what)
    assert main(corpus.arguments(tmp_path / "out", "--verify")) == 0
    report = json.loads((tmp_path / "out" / "train" / "report.json").read_text())
    assert report["problems"] == [{"path": str(bad), "reason": reason, "packed": False, "kind": ""}]
    assert report["packed"] == 8


@pytest.mark.parametrize("what", ["link", "fifo"])
def test_a_wav_of_the_artificial_speech_that_cannot_be_read_is_a_problem(wave: Wave, tmp_path: Path, what: str):
    source = artificial_speech_of(wave, tmp_path / "source", "PCM_16")
    bad = source / WORDS / "train" / "babidu_1.wav"
    replace(bad, what)
    assert main(["artificial-speech", str(source), str(tmp_path / "out"), "--workers", "1"]) == 0
    problems = json.loads((tmp_path / "out" / "train" / "report.json").read_text())["problems"]
    assert [p["path"] for p in problems if p["reason"].startswith("cannot be read: ")] == [str(bad)]


@pytest.mark.parametrize("what", ["link", "fifo"])
def test_transcripts_that_cannot_be_read_are_noted(
    corpus: SmallCorpus, tmp_path: Path, what: str, capsys: pytest.CaptureFixture[str]
):
    bad = corpus.path("11-7-0001").with_name("11-7.trans.txt")
    replace(bad, what)
    assert main(corpus.arguments(tmp_path / "out")) == 0
    assert f"note: {bad} cannot be read: " in capsys.readouterr().out


def test_a_name_that_is_not_utf_8_is_a_problem_that_can_be_printed(
    corpus: SmallCorpus, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    chapter = corpus.path("11-7-0001").parent
    (chapter / os.fsdecode(b"caf\xe9.flac")).touch()
    assert main(["librispeech", str(corpus.source), str(tmp_path / "out"), "--workers", "1"]) == 0
    (problem,) = json.loads((tmp_path / "out" / "train" / "report.json").read_text())["problems"]
    assert problem["path"] == str(chapter / "caf\\udce9.flac")
    assert problem["path"] in capsys.readouterr().out


# --- verification -----------------------------------------------------------------------------------------------------


def test_verify_compares_float_audio_with_its_source(wave: Wave, tmp_path: Path):
    source = write(tmp_path / "a.wav", wave, "FLOAT")
    packed(tmp_path / "out", source)
    plans = planned(source).splits

    def found() -> list[str]:
        problems = verify(tmp_path / "out", ["train"], 1, Console(quiet=True), SignalHandler(), plans)
        return [p.reason for p in problems]

    assert found() == []
    write(source, wave + 2e-3 * (np.arange(LENGTH) == 100), "FLOAT")
    assert found() == [f"differs from its source {source} by up to 66 of 32,768"]
    source.unlink()
    assert found() == [f"its source {source} cannot be read: No such file or directory"]


def test_the_command_names_samples_that_are_not_what_their_source_holds(
    wave: Wave, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    source = artificial_speech_of(wave, tmp_path / "source", "FLOAT")
    command = ["artificial-speech", str(source), str(tmp_path / "out"), "--workers", "1", "--verify"]
    assert main(command) == 0
    assert "every sample matches its source" in capsys.readouterr().out
    changed = write(source / WORDS / "train" / "babidu_1.wav", np.zeros(LENGTH), "FLOAT")
    assert main(command) == 1
    said = capsys.readouterr().out
    assert f"shard-000000.tar:babidu_1: differs from its source {changed} by up to 32,768 of 32,768" in said
    assert "1 problem" in said
