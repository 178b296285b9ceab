"""Recording sessions: a probe of which train and test are different ones says so, and so does the report."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile

from simdist.config.schema import Config
from simdist.core.errors import InputError
from simdist.data.splits import open_split
from simdist.pack.__main__ import main as pack
from simdist.probe.labels import SplitPair, different_sessions, find_splits
from simdist.probe.settings import ProbeSettings
from simdist.report.__main__ import report

APART = "syllables_train and syllables_test are different recording sessions (1 and 2)"


@pytest.fixture(scope="module")
def artificial(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Words and syllables in the layout of the artificial speech: tones, six words in each session."""
    root = tmp_path_factory.mktemp("artificial")
    pitches = {"ba": 200, "du": 300, "gi": 400}
    for number, part in enumerate(("train", "test"), 1):
        for first in pitches:
            for last in ("ba", "du"):
                word = f"{first}{last}gi"
                names = {f"reshuffledv2/{part}/{word}_{number}.wav": 200.0}
                for position, syllable in enumerate((first, last, "gi"), 1):
                    names[f"split up data padded/{part}/{word}_1_{position}_{syllable}.wav"] = pitches[syllable]
                for name, pitch in names.items():
                    (root / name).parent.mkdir(parents=True, exist_ok=True)
                    tone = 0.3 * number * np.sin(2 * np.pi * pitch * np.arange(12_000) / 22_050)
                    soundfile.write(root / name, tone, 22_050, subtype="PCM_16")
    out = tmp_path_factory.mktemp("packed") / "out"
    assert pack(["artificial-speech", str(root), str(out), "--workers", "1"]) == 0
    return out


def pair(root: Path, prefix: str) -> SplitPair:
    return SplitPair(open_split(root, f"{prefix}train"), open_split(root, f"{prefix}test"))


def test_published_splits_are_one_session_each_and_reshuffled_ones_have_both(artificial: Path) -> None:
    published = different_sessions(pair(artificial, "syllables_"))
    assert published is not None
    assert published.startswith(APART)
    reshuffled = pair(artificial, "syllables_reshuffled_")
    assert different_sessions(reshuffled) is None
    assert (len(reshuffled.train.index), len(reshuffled.test.index)) == (29, 7)


def test_a_corpus_without_sessions_is_not_doubted(speech: Path) -> None:
    assert different_sessions(pair(speech, "")) is None


def test_published_splits_are_the_default_and_sessions_are_probed_only_by_name(artificial: Path) -> None:
    def find(**options: str) -> dict[str, SplitPair]:
        settings = ProbeSettings(run=Path("run"), data_root=artificial, **options)  # pyright: ignore[reportArgumentType]
        return find_splits(settings, Config())

    assert find(label="syllable")["syllable"].test.folder.name == "syllables_test"
    assert set(find(all=True)) == {"syllable", "vowel"}  # pyright: ignore[reportArgumentType]
    with pytest.raises(InputError, match="label 'session' has the single class '1'"):
        find(label="session", train_split="syllables_train", test_split="syllables_test")
    splits = {"train_split": "syllables_reshuffled_train", "test_split": "syllables_reshuffled_test"}
    assert set(find(label="session", **splits)) == {"session"}


def test_the_command_its_result_and_the_report_say_it_once(
    probe: Callable[..., list[dict]], run_folder: Path, artificial: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ("--label=syllable,vowel", "--module=0", f"--data.root={artificial}", "--epochs=1")
    results = probe(*options)
    assert capsys.readouterr().out.count(f"warning: {APART}") == 1
    assert [result["warnings"][0].startswith(APART) for result in results] == [True, True]
    splits = ("--train-split=syllables_reshuffled_train", "--test-split=syllables_reshuffled_test")
    assert [result["warnings"] for result in probe(*options, *splits)] == [[], []]
    assert "warning" not in capsys.readouterr().out
    report([run_folder])
    printed = capsys.readouterr().out
    assert printed.count(APART) == 1
    rows = [line for line in printed.splitlines() if line.startswith("│ syllable")]
    assert sorted("syllables_reshuffled_test" in row for row in rows) == [False, True], printed
