"""Several real processes: resumed bit for bit, on another number of them, ended together by what one of them met."""

from __future__ import annotations

import ctypes
import itertools
import os
import re
import shutil
import signal
import subprocess
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from simdist.core.errors import InputError
from simdist.core.files import read_json_lines
from simdist.pack.synthetic import ensure
from simdist.training.checkpoint import load_checkpoint
from tests.support.forked import Ranks, Zygote, free_port
from tests.support.training import short_training


def weights(folder: Path, step: int) -> dict[str, torch.Tensor]:
    return load_file(folder / "checkpoints" / f"step_{step:08d}" / "model.safetensors")


def losses(folder: Path) -> dict[int, list[float]]:
    recorded = read_json_lines(folder / "metrics.jsonl")
    return {line["step"]: [m["loss"] for m in line["modules"]] for line in recorded if line["kind"] == "train"}


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def is_alive(pid: int) -> bool:
    """Whether a process runs; one that nobody has waited for does not."""
    stat = Path(f"/proc/{pid}/stat")
    return stat.exists() and stat.read_text().rpartition(")")[2].split()[0] != "Z"


def wait_for_lines(ranks: Ranks, folder: Path, count: int) -> None:
    while len(read_json_lines(folder / "metrics.jsonl")) < count:
        assert all(process.poll() is None for process in ranks.processes), ranks.end()
        time.sleep(0.05)


def test_stopped_by_a_signal_to_one_rank_and_resumed(speech: Path, tmp_path: Path, zygote: Zygote) -> None:
    """SIGUSR2 to rank 1 alone; then on two processes bit for bit as if never stopped, and on one with the same data."""
    argv = short_training(speech, tmp_path / "run", "--train.max_steps=40")
    ranks = Ranks(zygote, "simdist.train", 2, *argv)
    wait_for_lines(ranks, tmp_path / "run", 4)
    ranks.processes[1].send_signal(signal.SIGUSR2)
    codes, printed = ranks.end()
    assert codes == [75, 75], printed
    found = re.search(r"stopped at step (\d+), everything is saved", printed)
    assert found, printed
    step = int(found[1])
    assert 0 < step < 40
    shutil.copytree(tmp_path / "run", tmp_path / "alone")
    assert Ranks(zygote, "simdist.train", 2, *argv).end()[0] == [0, 0]
    rest = ("--train.max_steps=40", "--data.num_workers=0")  # which changes no number
    whole, alone = (
        Ranks(zygote, "simdist.train", 2 - n, *short_training(speech, tmp_path / ("whole", "alone")[n], *rest))
        for n in range(2)
    )
    assert whole.end()[0] == [0, 0]
    assert alone.end()[0] == [0]
    expected, resumed = weights(tmp_path / "whole", 40), weights(tmp_path / "run", 40)
    assert all(torch.equal(expected[name], resumed[name]) for name in expected)
    assert losses(tmp_path / "run") == losses(tmp_path / "whole")
    elastic = losses(tmp_path / "alone")
    assert sorted(elastic) == list(range(1, 41))
    for number in range(step + 1, 41):  # other negatives and batch statistics, the same clips and the same curve
        assert elastic[number] == pytest.approx(losses(tmp_path / "whole")[number], rel=0.3)
    last = tmp_path / "alone" / "checkpoints" / "step_00000040"
    assert load_checkpoint(last).consumed == load_checkpoint(tmp_path / "whole" / "checkpoints" / last.name).consumed


def test_four_ranks_resume_bit_for_bit(speech: Path, tmp_path: Path, zygote: Zygote) -> None:
    """With more than two ranks, the order in which gradients are added depends on how DDP arranges its buckets."""

    def train(name: str, steps: int) -> dict[str, torch.Tensor]:
        argv = short_training(speech, tmp_path / name, "--data.num_workers=0", "--train.validate_every=0", "--force")
        codes, printed = Ranks(zygote, "simdist.train", 4, *argv, f"--train.max_steps={steps}").end()
        assert codes == [0] * 4, printed
        return weights(tmp_path / name, steps)

    train("stopped", 3)
    resumed, whole = train("stopped", 6), train("whole", 6)
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_no_process_outlives_a_training_that_was_killed(speech: Path, tmp_path: Path, zygote: Zygote) -> None:
    argv = short_training(
        speech, tmp_path / "run", "--data.num_workers=2", "--train.max_steps=3000", "--train.validate_every=0"
    )
    training = zygote.command("simdist.train", *argv)
    while len(read_json_lines(tmp_path / "run" / "metrics.jsonl")) < 3:
        assert training.poll() is None, training.communicate()
        time.sleep(0.05)
    left = {process for child in children(training.pid) for process in (child, *children(child))}
    assert len(left) == 5  # a fork server, two workers, the tracker of shared memory, and who watches for hangs
    training.kill()
    end = time.monotonic() + 20
    while left and time.monotonic() < end:
        left = {pid for pid in left if is_alive(pid)}
        time.sleep(0.1)
    assert not left


@pytest.mark.parametrize("killed", [0, 1])
def test_the_survivor_of_a_killed_rank_says_so_and_asks_to_be_run_again(
    killed: int, speech: Path, tmp_path: Path, zygote: Zygote
) -> None:
    argv = short_training(speech, tmp_path / "run", "--data.num_workers=0", "--train.max_steps=3000")
    ranks = Ranks(zygote, "simdist.train", 2, *argv)
    wait_for_lines(ranks, tmp_path / "run", 3)
    ranks.processes[killed].kill()
    survivor = ranks.processes[1 - killed]
    printed, _ = survivor.communicate()
    assert survivor.returncode == 75, printed
    assert "error: another rank has ended (" in printed
    assert "Traceback" not in printed


def test_a_rank_that_is_missing_in_a_hang_is_named(speech: Path, tmp_path: Path, zygote: Zygote) -> None:
    folder = tmp_path / "run"
    argv = short_training(speech, folder, "--train.max_steps=1000", "--train.hang_timeout=4")
    ranks = Ranks(zygote, "simdist.train", 2, *argv)
    wait_for_lines(ranks, folder, 2)
    ranks.processes[1].send_signal(signal.SIGSTOP)
    assert ranks.processes[0].wait(60) == 75
    ranks.processes[1].send_signal(signal.SIGCONT)
    codes, printed = ranks.end()
    assert codes == [75, 75], printed
    hang = r"no progress in 4 s \(train\.hang_timeout\) of rank 0 \(.*\): (.*), step \d+; no report of rank 1\."
    found = re.search(hang, printed)
    assert found, printed
    assert found[1] in ("agreeing with the other ranks", "training")
    assert "rank 1" not in (folder / "stacks-rank0.txt").read_text()


def of_two_nodes(number: int, port: int) -> dict[str, str]:
    """The environment of the only rank of a node, of two."""
    numbers = {"RANK": number, "GROUP_RANK": number, "LOCAL_RANK": 0, "MASTER_PORT": port}
    sizes = {"WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 1, "GROUP_WORLD_SIZE": 2}
    texts = {name: str(value) for name, value in (numbers | sizes).items()}
    return texts | {"MASTER_ADDR": "127.0.0.1", "ACCELERATE_USE_CPU": "true"}


@pytest.mark.parametrize(
    ("rank", "wrong", "messages"),
    [
        (1, "--config=nowhere.yaml", ("(on rank 1, ", "--config nowhere.yaml does not exist")),
        (0, "--config=nowhere.yaml", ("--config nowhere.yaml does not exist", "")),
        (1, "--nonsense=1", ("the rank's own output says which (on rank 1, ", "unknown key 'nonsense'")),
    ],
)
def test_a_node_that_cannot_start_ends_the_others(
    rank: int, wrong: str, messages: tuple[str, str], speech: Path, tmp_path: Path, zygote: Zygote
) -> None:
    """They would wait for its ranks; only there is a file missing, or its clone is another version."""
    argv = short_training(speech, tmp_path / "run", "--train.max_steps=4", "--data.num_workers=0")
    port = free_port()
    nodes = [
        zygote.command("simdist.train", *argv, *([wrong] if number == rank else []), environ=of_two_nodes(number, port))
        for number in range(2)
    ]
    for node, message in zip(nodes, messages, strict=True):
        printed, _ = node.communicate(timeout=60)
        assert node.returncode == 2, printed
        assert message in printed
        assert "Traceback" not in printed
    assert not (tmp_path / "run").exists()


def test_a_node_that_cannot_start_says_so_although_the_other_never_comes(tmp_path: Path, zygote: Zygote) -> None:
    output = tmp_path / "output"
    output.touch()
    argv = ("--config=nowhere.yaml", f"--run-dir={tmp_path / 'run'}")
    node = zygote.command("simdist.train", *argv, environ=of_two_nodes(1, free_port()), output=output)
    end = time.monotonic() + 60
    while "--config nowhere.yaml does not exist" not in output.read_text():
        assert node.poll() is None, output.read_text()
        assert time.monotonic() < end
        time.sleep(0.05)
    node.kill()


def leave_little_shared_memory() -> None:
    """In a mount namespace of this process, as in a container that was started without --shm-size."""
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.unshare(0x20000) == 0  # CLONE_NEWNS
    assert libc.mount(b"none", b"/", None, 0x44000, None) == 0  # private, with all below it
    assert libc.mount(b"tmpfs", b"/dev/shm", b"tmpfs", 0, b"size=64k") == 0


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small file system needs root")
def test_workers_without_shared_memory_are_done_without(speech: Path, tmp_path: Path, zygote: Zygote) -> None:
    folder = tmp_path / "run"
    argv = short_training(speech, folder, "--train.max_steps=3", "--data.num_workers=2")
    training = zygote.command("simdist.train", *argv, before="tests.test_processes:leave_little_shared_memory")
    printed, _ = training.communicate(timeout=120)
    assert training.returncode == 0, printed
    assert "warning: /dev/shm has 65,536 bytes free, and 2 loader workers need 655,360, so the training" in printed


def lose_shards_on_rank_1() -> None:
    """Its reads fail after twenty."""
    from simdist.data.crops import CropReader

    read, reads = CropReader.read, itertools.count(1)

    def failing(self: CropReader, row: int, start: int, count: int) -> Any:
        if os.environ["RANK"] == "1" and next(reads) > 20:
            raise InputError("shard x cannot be opened")
        return read(self, row, start, count)

    CropReader.read = failing


def test_what_one_rank_cannot_read_ends_all_with_its_message(speech: Path, tmp_path: Path, zygote: Zygote) -> None:
    """Rank 1 finds the data folder's shards gone; rank 0 has them open, and would wait for it in a collective."""
    root = Path(shutil.copytree(speech, tmp_path / "shards"))
    argv = short_training(
        root, tmp_path / "run", "--train.max_steps=40", "--train.validate_every=0", "--data.num_workers=0"
    )
    codes, printed = Ranks(zygote, "simdist.train", 2, *argv, before=f"{__name__}:lose_shards_on_rank_1").end()
    assert codes == [2, 2], printed
    assert "error: shard x cannot be opened" in printed
    assert "Traceback" not in printed
    kept = [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()]
    assert kept == ["step_00000010"]  # 20 clips were read: what was trained on them is not lost


def see_old_checkpoints_on_rank_1() -> None:
    """A listing that is some seconds old, as a network file system shows it: another folder is mounted there."""
    if os.environ["RANK"] == "1":
        assert ctypes.CDLL(None).unshare(0x00020000) == 0  # CLONE_NEWNS
        subprocess.run(["mount", "--make-rprivate", "/"], check=True)
        subprocess.run(["mount", "--bind", os.environ["STALE"], os.environ["CHECKPOINTS"]], check=True)
        threading.Timer(4, subprocess.run, [["umount", os.environ["CHECKPOINTS"]]]).start()


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting takes root")
def test_ranks_resume_from_one_checkpoint_though_one_of_them_sees_an_old_listing(
    speech: Path, tmp_path: Path, zygote: Zygote
) -> None:
    argv = short_training(speech, tmp_path / "run", "--train.checkpoint_every=4", "--data.num_workers=0")
    assert Ranks(zygote, "simdist.train", 2, *argv, "--train.max_steps=8").end()[0] == [0, 0]
    shutil.copytree(tmp_path / "run", tmp_path / "whole")
    checkpoints = tmp_path / "run" / "checkpoints"
    shutil.copytree(checkpoints, tmp_path / "stale", ignore=shutil.ignore_patterns("step_00000008"))
    hook = {"before": f"{__name__}:see_old_checkpoints_on_rank_1"}
    hook |= {"STALE": str(tmp_path / "stale"), "CHECKPOINTS": str(checkpoints)}
    argv += ["--train.max_steps=12", "--force"]
    codes, printed = Ranks(zygote, "simdist.train", 2, *argv, **hook).end()
    assert codes == [0, 0], printed
    assert "resuming at step 8" in printed
    argv[argv.index(f"--run-dir={tmp_path / 'run'}")] = f"--run-dir={tmp_path / 'whole'}"
    assert Ranks(zygote, "simdist.train", 2, *argv).end()[0] == [0, 0]
    expected, resumed = weights(tmp_path / "whole", 12), weights(tmp_path / "run", 12)
    assert all(torch.equal(expected[name], resumed[name]) for name in expected)


@pytest.fixture(scope="module")
def other_speech(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("other")
    ensure(folder / "source", folder / "shards", speakers=4, minutes=2, seed=1, progress=False)
    return folder / "shards"


@pytest.mark.parametrize(
    ("last", "message"),
    [
        ("--optim.lr=0.5", "different configurations: optim.lr is 0.0002 on rank 0"),
        ("--seed=7", "different configurations: seed is 0 on rank 0"),
        ("--data.root={other}", "different data in {speech}: the fingerprint of split train is"),
        ("--data.root={tmp}/nowhere", "(on rank 1, "),
    ],
)
def test_ranks_that_were_started_differently_all_stop(
    last: str, message: str, speech: Path, other_speech: Path, tmp_path: Path, zygote: Zygote
) -> None:
    places = {"other": other_speech, "tmp": tmp_path, "speech": speech}
    argv = short_training(speech, tmp_path / "run", "--train.max_steps=4", "--data.num_workers=0")
    codes, printed = Ranks(zygote, "simdist.train", 2, *argv, last=[last.format(**places)]).end()
    assert codes == [2, 2], printed
    assert message.format(**places) in printed
    assert "Traceback" not in printed
    assert not (tmp_path / "run").exists()
