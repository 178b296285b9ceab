"""Real processes, forked from one that has imported torch already, which saves three seconds of each.

`python -m tests.support.forked` is the process that forks. It reads one JSON line per request: `{"start": …}` forks,
and is answered by a pid; `{"ended": pid}` is answered by the exit code, or null while the process lives.
"""

from __future__ import annotations

import importlib
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.support import ROOT

PRELOAD = (
    *("torch", "torch._dynamo", "torch.distributed.tensor"),  # the last two are imported when an optimizer is made
    *("accelerate", "simdist.core.console", "simdist.data.loader", "simdist.training.lifecycle"),
    *("simdist.train.encoder_task", "simdist.decode.task", "simdist.probe.command"),
)


class Forked:
    """A process, with the methods of `subprocess.Popen` that tests use. It has a session of its own."""

    def __init__(self, zygote: Zygote, pid: int, output: Path) -> None:
        self._zygote, self.pid, self._output = zygote, pid, output
        self.returncode: int | None = None

    def poll(self) -> int | None:
        """The exit code, negative after a signal; None while it lives."""
        if self.returncode is None:
            self.returncode = self._zygote.ask({"ended": self.pid})
        return self.returncode

    def wait(self, timeout: float) -> int | None:
        """The exit code, or None if it still lives after `timeout` seconds."""
        end = time.monotonic() + timeout
        while self.poll() is None and time.monotonic() < end:
            time.sleep(0.02)
        return self.returncode

    def communicate(self, timeout: float = 300) -> tuple[str, None]:
        """What it printed until its end, on both streams."""
        if self.wait(timeout) is None:
            raise subprocess.TimeoutExpired(f"process {self.pid}", timeout, self._output.read_bytes())
        return self._output.read_text(), None

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(9)


class Zygote:
    """The process that forks all others."""

    def __init__(self, folder: Path) -> None:
        paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
        environ = os.environ | {"PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-m", "tests.support.forked"]
        self._process = subprocess.Popen(command, stdin=-1, stdout=-1, text=True, env=environ, cwd=ROOT)
        self._folder, self._number = folder, 0

    def ask(self, request: dict[str, Any]) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())

    def call(
        self, target: str, arguments: dict[str, Any], environ: dict[str, str], output: Path | None = None
    ) -> Forked:
        """Call `MODULE:FUNCTION` in a new process; what it prints is appended to `output`."""
        self._number += 1
        output = output or self._folder / f"output-{self._number}"
        request = {"target": target, "arguments": arguments, "environ": environ, "output": str(output)}
        return Forked(self, self.ask({"start": request | {"folder": os.getcwd()}}), output)

    def command(
        self,
        name: str,
        *argv: str,
        before: str | None = None,
        environ: dict[str, str] | None = None,
        output: Path | None = None,
    ) -> Forked:
        """Run `python -m NAME ARGUMENT…`, after the function `before`, given as `MODULE:FUNCTION`."""
        arguments = {"name": name, "argv": argv, "before": before}
        return self.call("tests.support.forked:command", arguments, environ or {}, output)


class Ranks:
    """A world of processes of one command, each of which can be signalled by itself.

    Args:
        zygote: forks them.
        name: of the command's package.
        size: number of processes.
        argv: arguments of all.
        last: further arguments of the last rank.
        before: see `Zygote.command`.
        more: environment variables.
    """

    def __init__(
        self,
        zygote: Zygote,
        name: str,
        size: int,
        *argv: str,
        last: Sequence[str] = (),
        before: str | None = None,
        **more: str,
    ) -> None:
        common = more | {"ACCELERATE_USE_CPU": "true"}
        if size > 1:
            common |= {"WORLD_SIZE": str(size), "LOCAL_WORLD_SIZE": str(size)}
            common |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
        ranks = [{"RANK": str(rank), "LOCAL_RANK": str(rank)} if size > 1 else {} for rank in range(size)]
        words = [argv] * (size - 1) + [(*argv, *last)]
        self.processes = [
            zygote.command(name, *line, before=before, environ=common | own)
            for line, own in zip(words, ranks, strict=True)
        ]

    def end(self) -> tuple[list[int | None], str]:
        """Exit codes, and what rank 0 printed."""
        printed = [process.communicate()[0] for process in self.processes]
        return [process.returncode for process in self.processes], printed[0]


@contextmanager
def zygote() -> Iterator[Zygote]:
    """A process to fork others from."""
    with tempfile.TemporaryDirectory() as folder:
        made = Zygote(Path(folder))
        try:
            yield made
        finally:
            made._process.communicate()


def free_port() -> int:
    """A port on which nothing listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def command(name: str, argv: list[str], before: str | None) -> None:
    """What a forked process does that runs a command of ours."""
    from simdist.core.console import run

    if before is not None:
        _named(before)()
    sys.argv = [name, *argv]
    module = importlib.import_module(name)
    is_package = hasattr(module, "__path__")
    run((importlib.import_module(f"{name}.__main__") if is_package else module).main, argv)


def _named(target: str) -> Any:
    module, _, name = target.partition(":")
    return getattr(importlib.import_module(module), name)


def _become(target: str, arguments: dict[str, Any], environ: dict[str, str], output: str, folder: str) -> None:
    """All that a forked process does; does not return."""
    os.setsid()
    os.chdir(folder)
    file = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(file, 1)
    os.dup2(file, 2)
    os.environ.update(environ)
    _named(target)(**arguments)
    sys.exit(0)


def main() -> None:
    """Fork until the pipe is closed."""
    for name in PRELOAD:
        importlib.import_module(name)
    while line := sys.stdin.readline():
        request = json.loads(line)
        if "start" in request:
            answer = os.fork()
            if answer == 0:
                _become(**request["start"])
        else:
            pid, status = os.waitpid(request["ended"], os.WNOHANG)
            answer = os.waitstatus_to_exitcode(status) if pid else None
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
