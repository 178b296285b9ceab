"""Each launcher passes our commands on as they were typed, and starts one training of all its ranks.

`srun` is tested on a real SLURM, in tests/slurm/test_launchers_on_slurm.py.
"""

from __future__ import annotations

import argparse
import importlib.util
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from simdist.__main__ import COMMANDS
from simdist.analyze import __main__ as analyze_command
from simdist.config.parser import Parser, _option
from simdist.probe import __main__ as probe_command
from tests.support.launching import (
    STEPS,
    Trained,
    analyzed,
    analyzing,
    decoded,
    decoding,
    probed,
    probing,
    run,
    trained,
    training,
)


class SeenError(Exception):
    """A command has built its parser."""

    def __init__(self, parser: argparse.ArgumentParser) -> None:
        super().__init__()
        self.parser = parser


def torchrun() -> argparse.ArgumentParser:
    from torch.distributed.run import get_args_parser

    return get_args_parser()


def accelerate_launch() -> argparse.ArgumentParser:
    from accelerate.commands.launch import launch_command_parser

    return launch_command_parser()


def parser_of(command: str, monkeypatch: pytest.MonkeyPatch) -> argparse.ArgumentParser:
    def parse_args(self: argparse.ArgumentParser, *args: object, **kwargs: object) -> None:
        raise SeenError(self)

    monkeypatch.setattr(Parser, "parse_args", parse_args)
    with pytest.raises(SeenError) as seen:
        importlib.import_module(f"simdist.{command}.__main__").main([])
    monkeypatch.undo()
    return seen.value.parser


def options_of(parser: argparse.ArgumentParser) -> Iterator[str]:
    """The documented name of every option, those of subcommands too; aliases of old commands are left out."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for subparser in action.choices.values():
                yield from options_of(subparser)
        elif action.option_strings and action.dest != "help":
            yield _option(action)


@pytest.mark.parametrize("launcher", [torchrun, accelerate_launch])
@pytest.mark.parametrize("command", [name for name in COMMANDS if importlib.util.find_spec(f"simdist.{name}")])
def test_no_launcher_refuses_or_swallows_an_option(
    command: str, launcher: Callable[[], argparse.ArgumentParser], monkeypatch: pytest.MonkeyPatch
) -> None:
    options, parser, refused = list(dict.fromkeys(options_of(parser_of(command, monkeypatch)))), launcher(), []
    assert len(options) > 1
    for option in options:
        for words in ([option, "value"], [f"{option}=value"], ["POSITIONAL", option]):
            try:
                parsed = parser.parse_args(["-m", f"simdist.{command}", *words])
            except SystemExit:
                refused.append(option)
                continue
            assert parsed.module
            assert parsed.training_script == f"simdist.{command}"
            assert parsed.training_script_args == words
    assert not refused, f"refused: {refused}"


def test_the_old_name_of_run_dir_still_works(monkeypatch: pytest.MonkeyPatch) -> None:
    for command in ("train", "probe", "decode"):
        parser = parser_of(command, monkeypatch)
        for words in (["--run-dir", "runs/a"], ["--run-dir=runs/a"], ["--run", "runs/a"], ["--run=runs/a"]):
            assert str(parser.parse_args(words).run) == "runs/a"
    words = ["model.ckpt", "--run", "runs/a"]
    assert str(parser_of("import_reference", monkeypatch).parse_args(words).run) == "runs/a"
    parsed = parser_of("analyze", monkeypatch).parse_args(["traversal", "--run", "runs/a", "--start", "clip"])
    assert (str(parsed.traversal.run), parsed.traversal.start) == ("runs/a", "clip")


def test_errors_and_help_name_the_new_option(capsys: pytest.CaptureFixture[str]) -> None:
    from simdist.import_reference import __main__ as import_reference_command

    with pytest.raises(SystemExit):
        import_reference_command.main(["model.ckpt"])
    assert "missing: --run-dir (all options" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        probe_command.main(["--run-di=x"])
    assert "did you mean 'run-dir'?" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        probe_command.main(["--help"])
    assert "--run-dir RUN" in capsys.readouterr().out


# --- real runs --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def alone(speech: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that `python -m` trained."""
    folder = tmp_path_factory.mktemp("python") / "run"
    run("python", 1, *training(speech, folder))
    return folder


@pytest.fixture(scope="module")
def pair(speech: Path, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """What two ranks of torchrun came to."""
    folder = tmp_path_factory.mktemp("torchrun") / "run"
    run("torchrun", 2, *training(speech, folder))
    return trained(folder)


@pytest.mark.parametrize("launcher", ["accelerate", "torchrun"])
def test_one_process_trains_as_python_alone_does(launcher: str, alone: Path, speech: Path, tmp_path: Path) -> None:
    run(launcher, 1, *training(speech, tmp_path / "run"))
    assert trained(tmp_path / "run") == trained(alone)
    assert trained(alone).world_size == 1
    assert len(trained(alone).losses) == STEPS


@pytest.mark.parametrize("launcher", ["accelerate", "mpiexec"])
def test_two_processes_are_one_training_whoever_starts_them(
    launcher: str, pair: Trained, alone: Path, speech: Path, tmp_path: Path
) -> None:
    run(launcher, 2, *training(speech, tmp_path / "run"))
    assert trained(tmp_path / "run") == pair
    assert pair.world_size == 2
    assert pair.losses[0] != trained(alone).losses[0]  # each rank draws its negatives from its own share


@pytest.mark.parametrize("launcher", ["accelerate", "torchrun"])
def test_probes_are_the_same_whoever_starts_them(launcher: str, alone: Path, tmp_path: Path) -> None:
    if not probed(alone):
        probe_command.main(probing(alone)[1:])
    shutil.copytree(alone, tmp_path / "run", ignore=shutil.ignore_patterns("probes"))
    assert "world size 2 on cpu" in run(launcher, 2, *probing(tmp_path / "run"))
    assert len(probed(alone)) == 2
    assert probed(tmp_path / "run") == probed(alone)


def test_decoders_and_analyses_are_the_same_whoever_starts_them(alone: Path, tmp_path: Path) -> None:
    folders = {launcher: tmp_path / launcher for launcher in ("accelerate", "torchrun")}
    for launcher, folder in folders.items():
        shutil.copytree(alone, folder, ignore=shutil.ignore_patterns("probes"))
        assert "world size 2 on cpu" in run(launcher, 2, *decoding(folder))
    ours, theirs = folders.values()
    assert decoded(ours) == decoded(theirs)
    assert "module 0 (" in run("accelerate", 1, *analyzing(ours))
    analyze_command.main(analyzing(theirs)[1:])
    assert analyzed(ours) == analyzed(theirs)
