"""Every command in README and docs is understood by the program it calls, or a reason says why that is not tried.

Parsed by the real parsers, with files that exist: an option that is gone, a wrong value or a preset that was renamed
fails here. `test_newcomer.py` runs those that are cheap.
"""

from __future__ import annotations

import argparse
import functools
import importlib
import os
import re
import shlex
import sys
import tomllib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from simdist.__main__ import COMMANDS, LAUNCHER
from simdist.config import load
from simdist.config.decoder import DecodingConfig
from simdist.config.load import config_from, tree_from
from simdist.config.parser import Parser, fields_from
from simdist.config.schema import Config
from simdist.core.errors import InputError
from simdist.probe.settings import ProbeSettings
from tests.support import ROOT
from tests.support.pages import PAGES, Command, blocks, commands_of, inline_commands_of, main_module

NOT_TRIED = {
    "sinfo": "a program of SLURM",
    "squeue": "a program of SLURM",
    "sacct": "a program of SLURM",
    "cat": "shows a file",
    "python3": "makes the virtual environment, before there is a `python`",
    "source": "enters the virtual environment",
    "export": "sets a variable",
    "eval": "tests/slurm/ starts the testbed",
    "slurm/testbed/install": "installs Debian packages; .ci/run calls it",
    "slurm/testbed/up": "tests/slurm/ starts the testbed",
    "slurm/testbed/down": "tests/slurm/ stops the testbed",
}
STAND_INS = {  # files that an earlier command of the page makes, words for any of several; and what stands for them
    "WHICH": "weights",
    "PROFILE": "gpu",
    "COMMAND": "train",
    "five_modules.yaml": "configs/debug.yaml",  # test_adding_pages.py runs them with their own
    "wide_top.yaml": "configs/debug.yaml",
    "averaged.yaml": "configs/debug.yaml",
    "runs/imported/config.yaml": "configs/sim_librispeech.yaml",
    "slurm/profiles/mine.yaml": "slurm/profiles/gpu.yaml",
    "mine.yaml": "slurm/profiles/gpu.yaml",
    "configs/sweeps/mine.yaml": "configs/sweeps/smoke.yaml",
}
SLURM_OPTIONS = {  # of srun and sbatch, those that the pages use; and their values
    "--nodes": r"[1-9]\d*(-[1-9]\d*)?",
    "--ntasks": r"[1-9]\d*",
    "--ntasks-per-node": r"[1-9]\d*",
    "--gpus-per-node": r"([a-z]\w*:)?\d+",
    "--mpi": "none|pmi2|pmix",
}

TITLED = {block.title for page in PAGES for block in blocks(page, "python", "yaml", "diff") if block.title}
"""Files that a page shows as a whole."""


class UnderstoodError(Exception):
    """A command's parser accepted its words."""

    def __init__(self, parser: argparse.ArgumentParser, parsed: Any) -> None:
        super().__init__()
        self.parser, self.parsed = parser, parsed


@contextmanager
def parsing_only() -> Iterator[None]:
    """Within this block a command that has parsed its words raises `UnderstoodError` instead of doing its work."""
    with pytest.MonkeyPatch.context() as patch:
        for kind in (Parser, argparse.ArgumentParser):
            patch.setattr(kind, "parse_args", _raising(kind.parse_args))
        yield


def _raising(original: Callable[..., Any]) -> Callable[..., Any]:
    def parse_args(self: Any, *args: Any, **kwargs: Any) -> Any:
        nonlocal depth
        depth += 1
        try:
            parsed = original(self, *args, **kwargs)
        finally:
            depth -= 1
        if depth:  # a subcommand's parser, within its parent's
            return parsed
        raise UnderstoodError(self, parsed)

    depth = 0
    return parse_args


# --- who understands what ---------------------------------------------------------------------------------------------


def understand(words: Sequence[str]) -> str:
    """Raise unless a command's own parser takes these words; returns who did, or why that was not tried."""
    program, rest = words[0], list(words[1:])
    if program in NOT_TRIED:
        return NOT_TRIED[program]
    if program == "accelerate":
        return launched(rest)
    if program == "torchrun":
        return run_by_torch(rest)
    if program == "srun":
        return understand(run_by_slurm(rest))
    if program == "sbatch":
        job, *arguments = run_by_slurm(rest)
        assert (ROOT / job).is_file(), job
        return module(f"simdist.{Path(job).stem}", arguments)
    if program == "make":
        return made(rest)
    if program == "pip":
        return installed(rest)
    if program == "git":
        assert rest[0] == "apply"
        assert rest[1] in TITLED
        return "test_adding_pages.py applies it"
    if program == "cp":
        assert (ROOT / rest[0]).is_file()
        return "copies a file that is there"
    if program == "simdist":
        assert rest[0] in COMMANDS | LAUNCHER
        package = "launch" if rest[0] in LAUNCHER else "simdist"
        return parsed_by(f"{package}.{rest[0]}", rest[1:])
    assert program == "python", f"nobody here knows {program}: teach `understand`, or give a reason in NOT_TRIED"
    if rest[0] == "-m":
        return module(rest[1], rest[2:])
    return script(rest[0], rest[1:])


def launched(words: list[str]) -> str:
    from accelerate.commands.launch import launch_command_parser

    parsed = launch_command_parser().parse_args(words[1:])
    assert words[0] == "launch"
    assert parsed.module, f"accelerate launch starts {parsed.training_script} as a file, not with -m"
    for file in (parsed.config_file, parsed.deepspeed_config_file):
        assert file is None or (ROOT / file).is_file(), file
    return module(parsed.training_script, parsed.training_script_args)


def run_by_torch(words: list[str]) -> str:
    from torch.distributed.run import get_args_parser

    parsed = get_args_parser().parse_args(words)
    assert parsed.module, f"torchrun starts {parsed.training_script} as a file, not with -m"
    return module(parsed.training_script, parsed.training_script_args)


def run_by_slurm(words: list[str]) -> list[str]:
    """What `srun` or `sbatch` would start; their own options are checked here: without a SLURM, neither parses any."""
    parser = argparse.ArgumentParser("srun or sbatch", allow_abbrev=False)
    for option, allowed in SLURM_OPTIONS.items():
        parser.add_argument(option, type=_matching(allowed))
    parser.add_argument("program")
    parser.add_argument("arguments", nargs=argparse.REMAINDER)
    parsed = parser.parse_args(words)
    return [parsed.program, *parsed.arguments]


def _matching(allowed: str) -> Callable[[str], str]:
    def value(text: str) -> str:
        if not re.fullmatch(allowed, text):
            raise argparse.ArgumentTypeError(f"{text!r} does not match {allowed}")
        return text

    return value


def module(name: str, words: list[str]) -> str:
    if not name.startswith("simdist."):
        assert name.split(".")[0] in ("benchmarks", "tests"), name
        return parsed_by(name, words)
    command = name.removeprefix("simdist.")
    assert command in COMMANDS
    return parsed_by(name, words)


def script(path: str, words: list[str]) -> str:
    if path in TITLED:
        return "test_adding_pages.py runs it"
    assert (ROOT / path).is_file(), path
    return parsed_by(path.removesuffix(".py").replace("/", "."), words)


def parsed_by(name: str, words: list[str]) -> str:
    """Call a module's `main` as its command line would, until it has parsed these words."""
    return _parsed_by(name, tuple(words))


@functools.cache  # pages repeat commands, and launchers pass the same words on: building a parser takes longest
def _parsed_by(name: str, words: tuple[str, ...]) -> str:
    with pytest.MonkeyPatch.context() as patch, parsing_only():
        patch.setattr(sys, "argv", [name, *words])
        try:
            importlib.import_module(main_module(name)).main()
        except UnderstoodError as understood:
            parser, parsed = understood.parser, understood.parsed
        except SystemExit as ended:
            if ended.code != 0:
                raise
            return f"{name} --help"
        else:
            raise AssertionError(f"{name} never parsed its command line")
    checked(name, parser, parsed, list(words))
    return name


def checked(name: str, parser: Any, parsed: Any, words: list[str]) -> None:
    """What the command itself looks at next: values that cannot be, and the files of a sweep."""
    if name in ("simdist.train", "simdist.import_reference"):
        assert isinstance(config_from(parser, parsed), Config)
    elif name == "simdist.decode":
        assert isinstance(tree_from(parser, parsed, DecodingConfig), DecodingConfig)
    elif name == "simdist.probe":
        assert isinstance(fields_from(ProbeSettings, parser, parsed), ProbeSettings)
    elif name == "simdist.analyze":
        from simdist.analyze.registry import ANALYSES
        from simdist.analyze.settings import CompareSettings

        kind = CompareSettings if parsed.which == "compare" else ANALYSES[parsed.which].settings
        kind(**{key: value for key, value in parsed[parsed.which].items() if key not in ("RUN_A", "RUN_B", "config")})
    elif name == "simdist.doctor" and parsed.cluster and parsed.cluster != "slurm":
        from simdist.cluster.profile import load_profile

        load_profile(parsed.cluster)
    elif name == "launch.sweep":
        from launch.options import default_sweep
        from launch.sweep_file import read_sweep
        from simdist.cluster.profile import load_profile

        overrides = [word for word in words if re.match(r"[A-Za-z_][\w.]*=", word)]
        read_sweep(parsed.SWEEP or default_sweep(overrides).file, overrides)
        if parsed.cluster not in (None, "local", "debug", "slurm"):
            load_profile(parsed.cluster)


def made(words: list[str]) -> str:
    makefile = (ROOT / "Makefile").read_text()
    for word in words:
        name, is_variable, value = word.partition("=")
        if is_variable:
            asked = {"BENCH": "benchmarks", "CHAOS": "tests.chaos"}[name]
            module(asked, shlex.split(value))
        else:
            assert re.search(rf"^{name}:", makefile, re.MULTILINE), f"Makefile has no target {name}"
    return "Makefile"


def installed(words: list[str]) -> str:
    known = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for word in words:
        extras = re.fullmatch(r"\.\[(.*)\]", word)
        assert not extras or set(extras[1].split(",")) <= set(known), word
    return "pip"


# --- the tests --------------------------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def at_the_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.syspath_prepend(str(ROOT))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_of_a_page_is_understood(page: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wrong = []
    for command in [*commands_of(page), *inline_commands_of(page)]:
        try:
            understand([STAND_INS.get(word, word) for word in command.words])
        except (AssertionError, SystemExit, InputError, ValueError) as error:
            last = (capsys.readouterr().err.strip().splitlines() or [""])[-1]
            wrong.append(f"{command.id}\n    {error}\n    {last}")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("launcher", ["python -m", "accelerate launch -m", "torchrun -m", "srun --ntasks 2 python -m"])
def test_every_command_of_the_first_pages_is_understood_under_each_launcher(launcher: str) -> None:
    pages = [ROOT / "README.md", *sorted((ROOT / "docs" / "get_started").glob("*.md"))]
    commands = [[STAND_INS.get(w, w) for w in c.words] for page in pages for c in commands_of(page)]
    ours = [words[i:] for words in commands for i, word in enumerate(words) if word.startswith("simdist.")]
    assert {words[0] for words in ours} >= {"simdist.train", "simdist.probe", "simdist.decode", "simdist.analyze"}
    for words in ours:
        assert understand([*launcher.split(), *words]).removesuffix(" --help") == words[0]


def test_the_table_of_launchers_shows_options_that_they_have() -> None:
    rows = [
        line.split("|")[1:-1]
        for line in (ROOT / "docs" / "tasks" / "launchers.md").read_text().splitlines()
        if "| `" in line
    ]
    tried = 0
    for launcher in ("accelerate launch", "torchrun", "srun"):
        (cells,) = (cells for name, *cells in rows if f"`{launcher}`" in name)
        for options in re.findall(r"`(--[^`]*)`", " ".join(cells)):
            python = ["python"] if launcher == "srun" else []
            assert understand([*launcher.split(), *options.split(), *python, "-m", "simdist.train"]) == "simdist.train"
            tried += 1
    assert tried == 6


@pytest.mark.parametrize(
    "command",
    [
        "torchrun --gone 2 -m simdist.train",
        "torchrun -m simdist.train --gone",
        "python -m simdist.train --config configs/sim_librispeech.yaml --data.rot x",
        "python -m simdist.train --config configs/gone.yaml",
        "python -m simdist.train --optim.lr -1",
        "python -m simdist.probe --epochs 0",
        "python -m simdist.gone",
        "accelerate launch --mixed bf16 -m simdist.train",
        "accelerate launch --config_file configs/accelerate/gone.yaml -m simdist.train",
        "python -m simdist.analyze traversals --run-dir runs/sim",
        "python launch/sweep.py --cluster gone configs/sweeps/smoke.yaml",
        "python launch/sweep.py --cluster local configs/sweeps/smoke.yaml stages.gone=1",
        "python launch/gone.py",
        "simdist gone",
        "simdist sweep --gone",
        "sbatch slurm/train.sbatch --gone",
        "sbatch --node 2 slurm/train.sbatch",
        "srun --gone 2 python -m simdist.train",
        "srun --gone=2 python -m simdist.train",
        "srun --ntask-per-node 8 python -m simdist.train",
        "srun --ntasks-per-node eight python -m simdist.train",
        "srun --ntasks 2 python -m simdist.train --gone",
        "make gone",
        "make chaos CHAOS=--gone",
        "pip install -e '.[gone]'",
        "gone --help",
    ],
)
def test_what_does_not_exist_is_noticed(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises((AssertionError, SystemExit, InputError, ValueError)):
        understand(shlex.split(command))


def test_the_sweep_files_of_the_docs_are_some(tmp_path: Path) -> None:
    from launch.plan import build
    from launch.sweep_file import read_sweep
    from simdist.analyze.registry import ANALYSES

    sweeps = []
    for block in blocks(ROOT / "docs" / "tasks" / "sweeps.md", "yaml"):
        (tmp_path / "sweep.yaml").write_text(block.text)
        sweeps.append(read_sweep(str(tmp_path / "sweep.yaml"), []))
    first, shared = sweeps
    plan, _ = build(shared)
    trained = [job.run for job in plan.jobs.values() if job.kind == "train" and job.run is not None]
    assert (len(trained), sum("modules_0-2" in run for run in trained)) == (12, 3)
    analyses = [name for stage in first.stages.values() for name in stage.which]
    assert analyses
    assert set(analyses) <= set(ANALYSES)


def test_the_profile_of_the_docs_is_one(tmp_path: Path) -> None:
    from simdist.cluster.profile import load_profile

    (text,) = (block.text for block in blocks(ROOT / "docs" / "tasks" / "slurm.md", "yaml"))
    (tmp_path / "mine.yaml").write_text(text)
    profile = load_profile(tmp_path / "mine.yaml")
    assert profile.gpu_request == "a100:4"
    assert profile.srun_args
    assert run_by_slurm([*profile.srun_args, "python"]) == ["python"]


def test_every_reason_is_still_needed() -> None:
    programs = {command.words[0] for page in PAGES for command in commands_of(page)}
    slashed = {name for name in NOT_TRIED if "/" in name and any(name in p.read_text() for p in PAGES)}
    assert set(NOT_TRIED) <= programs | slashed


def test_words_are_those_of_a_shell() -> None:
    from tests.support.pages import simple_commands

    script = """a 'b c' "d" # it's a comment
OPTIONS="--x 1
    --y 2"
A=1 b $OPTIONS --z=3 \\
    last; c | d && e > file
f "g # h" i#j"""
    assert simple_commands(script) == [
        ("a", "b c", "d"),
        ("b", "--x", "1", "--y", "2", "--z=3", "last"),
        ("c",),
        ("d",),
        ("e",),
        ("f", "g # h", "i#j"),
    ]


def test_pages_have_commands_at_all() -> None:
    assert len([c for page in PAGES for c in commands_of(page)]) > 80
    assert os.path.samefile(ROOT, Path(load.__file__).parent.parent.parent)
    assert isinstance(commands_of(PAGES[0])[0], Command)
