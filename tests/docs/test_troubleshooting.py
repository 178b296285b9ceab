"""Every message on the page is printed by the command that it is about, or stands in the source as it is quoted."""

from __future__ import annotations

import ast
import hashlib
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from simdist.analyze import __main__ as analyze
from simdist.config.load import CONFIGS, read_config
from simdist.core.console import run
from simdist.decode import __main__ as decode
from simdist.doctor import __main__ as doctor
from simdist.download import __main__ as download
from simdist.download.librispeech import MIRRORS, SUBSETS
from simdist.pack import __main__ as pack
from simdist.probe import __main__ as probe
from simdist.runs.folder import Run
from simdist.train import __main__ as train
from tests.support import ROOT
from tests.support.packing_cases import small_corpus
from tests.support.pages import blocks
from tests.support.published import COMMAND, published
from tests.support.web import web_server

MESSAGES = {
    block.title or block.text: block.text.strip() for block in blocks(ROOT / "docs/tasks/troubleshooting.md", "text")
}
PLACE = "/home/me/simdist"  # where the page has its clone
DEBUG = ["--config", str(CONFIGS / "sim_librispeech.yaml"), "--config", str(CONFIGS / "debug.yaml")]
SIM, TTS = ["--run-dir", "runs/sim"], ["--data.root", "data/tts"]


@pytest.fixture(scope="module")
def there(speech: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with packed speech in data/tts and a run of three steps in runs/sim."""
    folder = tmp_path_factory.mktemp("troubled")
    (folder / "data").mkdir()
    (folder / "data" / "tts").symlink_to(speech)
    config = read_config(CONFIGS / "sim_librispeech.yaml", CONFIGS / "debug.yaml")
    data = replace(config.data, root=str(folder / "data" / "tts"))
    settings = replace(config.train, max_steps=3, validate_every=0, precision="no")
    assert train.train(replace(config, data=data, train=settings), folder / "runs" / "sim") == 0
    (folder / "configs").symlink_to(CONFIGS)
    return folder


@pytest.fixture
def said(
    there: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], fresh_process: None
) -> Callable[..., str]:
    """Calls a command in that folder and returns its error."""
    del fresh_process
    monkeypatch.chdir(there)

    def call(main: Callable[..., int], *words: str) -> str:
        with pytest.raises(SystemExit) as ended:
            run(main, list(words))
        assert ended.value.code in (1, 2)
        error = capsys.readouterr().err
        return error[error.index("error: ") + 7 :].strip().replace(str(ROOT), PLACE)

    return call


def launch_sweep(argv: list[str]) -> int:
    from launch import sweep

    return sweep.main(argv)


@pytest.mark.parametrize(
    ("title", "main", "words"),
    [
        ("nothing-downloaded", pack.main, ["librispeech"]),
        ("out-is-a-run", pack.main, ["librispeech", "data/tts", "runs/sim"]),
        ("no-shards", train.main, DEBUG),
        ("unknown-key", train.main, [*DEBUG, "--optim.lrr", "1e-3"]),
        ("preset", train.main, ["--config", "sim_librispeech"]),
        ("crop", train.main, [*DEBUG, "--data.crop", "1000"]),
        ("no-run", probe.main, ["--run-dir", "runs/sym", "--label", "speaker"]),
        ("no-label", probe.main, [*SIM, "--data-root", "data/tts", "--label", "vowel"]),
        ("no-decoder-of-a-gru", decode.main, [*SIM, "--module", "3"]),
        ("no-decoder", analyze.main, ["traversal", *SIM, "--module", "0"]),
        ("no-probe", analyze.main, ["weights", *SIM]),
        ("no-profile", doctor.main, ["--cluster", "mine"]),
        ("no-sweep", launch_sweep, ["--cluster", "local", "configs/sweeps/beta.yaml"]),
    ],
)
def test_a_message_is_what_the_command_prints(
    said: Callable[..., str], title: str, main: Callable[..., int], words: list[str]
) -> None:
    assert said(main, *words) == MESSAGES[title]


def test_another_configuration(said: Callable[..., str], there: Path) -> None:
    stored = Run(there / "runs" / "sim", read_config(there / "runs" / "sim" / "config.yaml")).folder / "config.yaml"
    printed = said(train.main, "--config", str(stored), *SIM, "--optim.lr", "1e-3")
    assert printed == MESSAGES["another-configuration"]


def test_packed_otherwise(said: Callable[..., str], tmp_path: Path, there: Path) -> None:
    corpus = small_corpus(tmp_path)
    shutil.rmtree(there / "data" / "librispeech", ignore_errors=True)
    words = ["librispeech", str(corpus.source), "data/librispeech", "--workers", "1"]
    assert pack.main(words) == 0
    try:
        assert said(pack.main, *words, "--encoding", "wav") == MESSAGES["packed-otherwise"]
    finally:
        shutil.rmtree(there / "data" / "librispeech")


def test_no_server(said: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    with web_server() as web:
        pass
    monkeypatch.setitem(MIRRORS, "eu", web.url)
    printed = said(download.main, "librispeech", "--no-labels", "--mirror", "eu", "--retries", "0", "--to", "empty")
    assert printed.replace(web.url, "https://openslr.elda.org/resources/12") == MESSAGES["offline"]


def test_checksum(said: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The numbers are the page's own: what is not LibriSpeech has another one here."""
    with published(small_corpus(tmp_path), monkeypatch) as web:
        path, real = "/train-clean-100.tar.gz", SUBSETS["train-clean-100"]
        content = web.files[path]
        web.files[path] = content[:-1] + bytes([content[-1] ^ 1])
        came = hashlib.md5(web.files[path]).hexdigest()
        printed = said(download.main, *COMMAND, "--no-labels", "--to", "cheated")
        printed = printed.replace(web.url, "URL").replace(came, "a4ecb3a83e2cbcbe5cae3c07e0a9c2bd")
        assert printed.replace(real.md5, "2a93770f6d5c6c964bc36631d331a522") == MESSAGES["checksum"]


def test_room(said: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download.shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(0, 0, 4_000_000_000))
    assert said(download.main, "librispeech") == MESSAGES["room"]


# --- those that stand in the source -----------------------------------------------------------------------------------


def templates(path: Path) -> set[str]:
    """Every string in a file, with … for what is filled in."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.JoinedStr):
            parts = [part.value if isinstance(part, ast.Constant) else "…" for part in node.values]
            found.add("".join(map(str, parts)))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            found.add(node.value)
    return found


def test_every_other_message_stands_in_the_source() -> None:
    found = set().union(*(templates(path) for path in (ROOT / "simdist").rglob("*.py")))
    quoted = [message for title, message in MESSAGES.items() if title.strip() == message]
    assert len(quoted) == 4
    assert [message for message in quoted if message not in found] == []


def test_every_titled_message_is_tried() -> None:
    source = Path(__file__).read_text()
    titled = [title for title, message in MESSAGES.items() if title.strip() != message]
    assert len(titled) == 18
    assert [title for title in titled if f'"{title}"' not in source] == []
