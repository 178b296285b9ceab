"""Reference checkpoints that lie: one sentence each, no code run, no wait, no memory that the file does not have."""

from __future__ import annotations

import io
import os
import pickle
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from simdist.config.load import CONFIGS
from simdist.core.errors import InputError
from simdist.import_reference.__main__ import main
from simdist.loading import load_encoder

State = dict[Any, Any]
FIRST = "module.fullmodel.0.encoder.encoder.0.0.weight"
PREDICTOR = "module.fullmodel.0.loss.predictor.weight"
HUGE = 2**45
DEBUG = ["--config", str(CONFIGS / "sim_librispeech.yaml"), "--config", str(CONFIGS / "debug.yaml"), "--data.crop=8000"]


@pytest.fixture
def state(shared: Path) -> State:
    return dict(torch.load(shared / "golden" / "sim_reference.ckpt", weights_only=True))


@pytest.fixture
def golden(shared: Path) -> bytes:
    return (shared / "golden" / "sim_reference.ckpt").read_bytes()


def refused(path: Path, words: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Both ways to read it say the same sentence."""
    with pytest.raises(InputError, match=words) as raised:
        load_encoder(path, "sim_librispeech")
    assert "\n" not in str(raised.value)
    run = path.with_name("imported")
    with pytest.raises(InputError, match=words):
        main([str(path), *DEBUG, f"--run-dir={run}"])
    assert [each for each in path.parent.iterdir() if each != path] == []
    assert capsys.readouterr().out == ""


def changed(name: str, change: Callable[[Tensor], object]) -> Callable[[State], State]:
    return lambda state: state | {name: change(state[name])}


STATES: dict[str, tuple[Callable[[State], object], str]] = {
    "no dictionary": (lambda state: list(state.values()), "is not a checkpoint of the reference encoder"),
    "empty": (lambda state: {}, "is not a checkpoint of the reference encoder"),
    "a number for a name": (lambda state: state | {7: torch.zeros(1)}, "has a tensor named 7"),
    "a number for a tensor": (changed(FIRST, lambda tensor: 3), r"0\.0\.weight is not a tensor but int"),
    "a list for a tensor": (changed(FIRST, lambda tensor: tensor.tolist()), r"is not a tensor but list"),
    "none for a tensor": (changed(PREDICTOR, lambda tensor: None), r"is not a tensor but NoneType"),
    "a tensor missing": (
        lambda state: {k: v for k, v in state.items() if k != FIRST},
        r"has no tensor fullmodel\.0\.enc",
    ),
    "a tensor too many": (lambda state: state | {"module.fullmodel.9.x": torch.zeros(1)}, r"a tensor fullmodel\.9\.x"),
    "another shape": (changed(FIRST, lambda tensor: tensor[:, :, :3].clone()), r"has the shape \(\d+, 1, 3\)"),
    "a scalar": (changed(FIRST, lambda tensor: tensor.sum()), r"0\.0\.weight has the shape \(\)"),
    "no width": (changed(FIRST, lambda tensor: tensor[:0].clone()), r"0\.0\.weight has the shape \(0, 1, 10\)"),
    "a flat predictor": (changed(PREDICTOR, lambda tensor: tensor.sum()), r"predictor\.weight has the shape \(\)"),
    "an empty predictor": (changed(PREDICTOR, lambda tensor: tensor[:0].clone()), r"predictor\.weight has the shape"),
    "many prediction steps": (
        changed(PREDICTOR, lambda tensor: torch.zeros(500 * tensor.shape[1], *tensor.shape[1:])),
        "does not fit this config: module 0 predicts 500 steps ahead",
    ),
    "NaN": (changed(FIRST, lambda tensor: tensor / 0 * 0), r"0\.0\.weight has values that are NaN or infinite"),
    "one infinity": (
        changed(PREDICTOR, lambda tensor: tensor.clone().index_fill_(0, torch.tensor(1), float("-inf"))),
        r"predictor\.weight has values that are NaN or infinite",
    ),
    "complex": (changed(FIRST, lambda tensor: tensor.to(torch.complex64)), "is a tensor of complex64"),
    "integers": (changed(FIRST, lambda tensor: tensor.long()), "is a tensor of int64"),
    "sparse": (changed(FIRST, lambda tensor: tensor.to_sparse()), "is a tensor of another layout"),
    "on no device": (changed(FIRST, lambda tensor: tensor.to("meta")), "is a tensor without values"),
    "huge": (changed(FIRST, lambda tensor: tensor[:1].expand(HUGE, 1, 10)), "announces more values than the file has"),
    "huge predictor": (
        changed(PREDICTOR, lambda tensor: tensor[:1].expand(HUGE, *tensor.shape[1:])),
        "announces more values than the file has",
    ),
    "wide": (changed(FIRST, lambda tensor: torch.zeros(200_000, 1, 10)), r"has the shape \(.*, this config needs"),
}


@pytest.mark.parametrize("old_format", [False, True], ids=["zip", "legacy"])
@pytest.mark.parametrize("lie", STATES)
def test_lying_states(
    state: State, tmp_path: Path, lie: str, old_format: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    change, words = STATES[lie]
    torch.save(change(state), tmp_path / "model_1.ckpt", _use_new_zipfile_serialization=not old_format)
    refused(tmp_path / "model_1.ckpt", words, capsys)


@pytest.mark.parametrize("part", [0.001, 0.1, 0.5, 0.9, 0.999])
@pytest.mark.parametrize("old_format", [False, True], ids=["zip", "legacy"])
def test_truncated(
    state: State, tmp_path: Path, part: float, old_format: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "model_1.ckpt"
    torch.save(state, path, _use_new_zipfile_serialization=not old_format)
    os.truncate(path, int(part * path.stat().st_size))
    refused(path, "is not a checkpoint of tensors", capsys)


def packed(golden: bytes, change: Callable[[str, bytes], bytes | None], compression: int = zipfile.ZIP_STORED) -> bytes:
    """The archive with members changed."""
    written = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(golden)) as source, zipfile.ZipFile(written, "w", compression) as target:
        for name in source.namelist():
            content = change(name, source.read(name))
            if content is not None:
                target.writestr(name, content)
    return written.getvalue()


ARCHIVES: dict[str, Callable[[bytes], bytes]] = {
    "a storage missing": lambda golden: packed(golden, lambda name, content: None if "/data/0" in name else content),
    "a storage cut": lambda golden: packed(golden, lambda name, content: content[:9] if "/data/" in name else content),
    "no pickle": lambda golden: packed(golden, lambda name, content: None if "data.pkl" in name else content),
    "another pickle": lambda golden: packed(
        golden, lambda name, content: pickle.dumps(os.getcwd) if "data.pkl" in name else content
    ),
    "a deep pickle": lambda golden: packed(
        golden,
        lambda name, content: b"\x80\x02" + b"]" * 10**6 + b"a" * (10**6 - 1) + b"." if "data.pkl" in name else content,
    ),
    "compressed": lambda golden: packed(
        golden, lambda name, content: b"\0" * 10**8 if "/data/0" in name else content, zipfile.ZIP_DEFLATED
    ),
    "an archive of nothing": lambda golden: packed(golden, lambda name, content: None),
}


@pytest.mark.parametrize("lie", ARCHIVES)
def test_lying_archives(golden: bytes, tmp_path: Path, lie: str, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "model_1.ckpt").write_bytes(ARCHIVES[lie](golden))
    refused(tmp_path / "model_1.ckpt", "is not a checkpoint of", capsys)


@pytest.mark.parametrize("kind", ["fifo", "link to a fifo", "device", "folder", "nothing", "dangling", "sparse"])
def test_no_regular_file(tmp_path: Path, kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    path, words = tmp_path / "model_1.ckpt", "is not a regular file"
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "link to a fifo":
        os.mkfifo(tmp_path.parent / f"{tmp_path.name}-fifo")
        path.symlink_to(tmp_path.parent / f"{tmp_path.name}-fifo")
    elif kind == "device":
        path.symlink_to("/dev/zero")
    elif kind == "folder":
        path.mkdir()
        words = "is a folder|is neither a run folder"
    elif kind == "sparse":
        path.touch()
        os.truncate(path, 2**40)
        words = "it has 1,099,511,627,776 bytes, at most"
    else:
        words = "does not exist"
        if kind == "dangling":
            path.symlink_to(tmp_path / "gone")
    refused(path, words, capsys)


def test_the_memory_is_that_of_the_file(state: State, tmp_path: Path) -> None:
    """A file of some kilobytes that announces terabytes, in a process that has 3 GB to spare."""
    expanded = state | {name: state[name][:1].expand(HUGE, *state[name].shape[1:]) for name in (FIRST, PREDICTOR)}
    torch.save(expanded, tmp_path / "model_1.ckpt")
    code = (
        "import resource, torch, simdist\n"
        "used = int(open('/proc/self/statm').read().split()[0]) * resource.getpagesize()\n"
        "resource.setrlimit(resource.RLIMIT_AS, (used + 3 * 10**9, resource.getrlimit(resource.RLIMIT_AS)[1]))\n"
        "from simdist.core.console import run\n"
        "from simdist.import_reference.__main__ import main\n"
        f"run(main, {[str(tmp_path / 'model_1.ckpt'), *DEBUG, '--run-dir', str(tmp_path / 'run')]!r})\n"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert ended.returncode == 2, ended.stderr
    assert ended.stderr.count("\n") == 1
    assert "announces more values than the file has" in ended.stderr
