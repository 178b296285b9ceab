"""What is printed cannot end the work."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import launch.status
import simdist.train.__main__
from simdist.core import console
from simdist.core.files import read_json_lines
from simdist.core.output import printable
from simdist.runs.checkpoints import latest_checkpoint, step_of
from tests.support import ROOT
from tests.support.forked import Zygote
from tests.support.training import short_training


def test_ctrl_c_saves_although_the_reader_of_the_pipe_has_left(speech: Path, tmp_path: Path, zygote: Zygote) -> None:
    """As with `python -m simdist.train | tee log`: the same Ctrl-C ends tee."""
    pipe, run = tmp_path / "pipe", tmp_path / "run"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    argv = short_training(speech, run, "--train.max_steps=3000", "--train.validate_every=0")
    training = zygote.command("simdist.train", *argv, output=pipe)
    while len(read_json_lines(run / "metrics.jsonl")) < 5:
        assert training.poll() is None
        time.sleep(0.05)
    os.close(reader)
    training.send_signal(signal.SIGINT)
    assert training.wait(60) == 130
    saved = latest_checkpoint(run / "checkpoints", pytest.fail)
    assert saved is not None
    assert step_of(saved) >= 5


def test_a_full_disk_under_the_log_changes_nothing(speech: Path, tmp_path: Path, zygote: Zygote) -> None:
    run = tmp_path / "run"
    argv = short_training(speech, run, "--train.max_steps=6", "--train.validate_every=0")
    assert zygote.command("simdist.train", *argv, output=Path("/dev/full")).wait(60) == 0
    assert [line["step"] for line in read_json_lines(run / "metrics.jsonl")] == list(range(1, 7))
    assert (run / "DONE").is_file()


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", ">&- 2>&-"])
def test_a_stream_that_was_closed_by_the_caller_is_done_without(closed: str, tmp_path: Path) -> None:
    words = f"{sys.executable} -m simdist.pack synthetic source out --speakers 2 --minutes 0.2"
    code = subprocess.run(f"{words} {closed}", shell=True, cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT)})
    assert code.returncode == 0
    assert (tmp_path / "out" / "train").is_dir()


def test_the_warning_is_said_once(tmp_path: Path) -> None:
    program = (
        "from simdist.core.console import run\nrun(lambda argv: [print('x' * 9999, flush=True) for _ in 'abc'] and 7)"
    )
    with Path("/dev/full").open("w") as full:
        ended = subprocess.run(
            [sys.executable, "-c", program], stdout=full, stderr=subprocess.PIPE, text=True, cwd=ROOT
        )
    assert ended.returncode == 7
    assert ended.stderr == (
        "warning: standard output cannot be written (No space left on device); the work continues without it\n"
    )


def test_a_viewer_ends_with_its_reader() -> None:
    """`launch/logs.py --follow | head -1` would go on for ever."""
    program = (
        "import time; from simdist.core.console import run\n"
        "def main(argv):\n"
        "    while True: print('line', flush=True); time.sleep(0.01)\n"
        "run(main, is_viewer=True)"
    )
    ended = subprocess.run(
        f'{sys.executable} -c "{program}" | head -1', shell=True, capture_output=True, text=True, cwd=ROOT, timeout=60
    )
    assert (ended.stdout, ended.stderr) == ("line\n", "")


@pytest.mark.parametrize(
    ("text", "printed"),
    [
        ("\x1b[1;31mred\x1b[0m \x1b[2K\x1b[1A\x1b[?25l\x1b[?1049h\r\n\té", None),
        ("\x1b]0;title\x07", "\\x1b]0;title\\x07"),
        ("\x1b[6n", "\\x1b[6n"),  # has the terminal type an answer
        ("\x1b[?1000h", "\\x1b[?1000h"),
        ("\x1bP$q\x1b\\\\", "\\x1bP$q\\x1b\\\\"),
        ("\x9b6n\x08\x0c\x00", "\\x9b6n\\x08\\x0c\\x00"),
        ("\x1b", "\\x1b"),
    ],
)
def test_only_colors_and_moves_reach_the_terminal(text: str, printed: str | None) -> None:
    assert printable(text) == (text if printed is None else printed)


def test_a_name_cannot_command_the_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Written by `status`, which shows what others have made in a shared folder, and by an error of a command."""
    (tmp_path / "runs" / "a\x1b]0;b\x07").mkdir(parents=True)
    (tmp_path / "runs" / "a\x1b]0;b\x07" / "config.yaml").write_text("{}")
    monkeypatch.chdir(tmp_path)
    for main, argv, is_viewer in (
        (launch.status.main, [], True),
        (simdist.train.__main__.main, ["--config=a\x1b]0;b\x07"], False),
    ):
        with pytest.raises(SystemExit):
            console.run(main, argv, is_viewer=is_viewer)
        printed = "".join(capsys.readouterr())
        assert "a\\x1b]0;b" in printed
        assert "\x1b" not in printed
