"""A slow rank is named with its node and the reason; equal ranks are not, and nothing else of a run changes."""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import mean
from typing import Any

import pytest
from rich.console import Console

from launch.overview import loose_runs
from launch.status import as_renderable
from simdist.core.files import read_json_lines
from simdist.training.stragglers import find_stragglers
from simdist.training.throughput import RankTimes
from tests.support.forked import Ranks, Zygote
from tests.support.training import short_training

STEPS, PAUSE = 10, 0.25
"""The window is 6 steps here, and pauses are far longer than the steps, also on a machine with other work."""

IN_MODELS = ("--data.group=4",)
"""Collectives inside of modules, where a rank then waits first."""


def with_a_short_window() -> None:
    from simdist.training import stragglers

    stragglers.WINDOW = 6
    if os.environ["RANK"] == "1":
        socket.gethostname = lambda: "node7"


def pausing(function: Callable[..., Any], seconds: float = PAUSE) -> Callable[..., Any]:
    def slow(*words: Any) -> Any:
        time.sleep(seconds)
        return function(*words)

    return slow


def pause_in_steps(ranks: tuple[str, ...]) -> None:
    from simdist.train.encoder_task import EncoderTask

    with_a_short_window()
    if os.environ["RANK"] in ranks:
        EncoderTask.step = pausing(EncoderTask.step)


def slow_compute() -> None:
    pause_in_steps(("1",))


def slow_everywhere() -> None:
    pause_in_steps(("0", "1"))


def slow_at_first() -> None:
    """Rank 0 is faster for the first `STEPS` steps."""
    from simdist.train.encoder_task import EncoderTask

    with_a_short_window()
    step = EncoderTask.step

    def slow(self: Any, stage: int, batch: Any, given: Any) -> Any:
        time.sleep(PAUSE if os.environ["RANK"] == "1" or given.number >= STEPS else 0)
        return step(self, stage, batch, given)

    EncoderTask.step = slow  # pyright: ignore[reportAttributeAccessIssue]


def slow_backward() -> None:
    from simdist.training.step import ModuleTrainer

    with_a_short_window()
    if os.environ["RANK"] == "1":
        ModuleTrainer.backward = pausing(ModuleTrainer.backward, PAUSE / 4)  # of four modules


def slow_data() -> None:
    from simdist.train.encoder_task import EncoderTask

    with_a_short_window()
    batches = EncoderTask.batches

    def slow(*words: Any) -> Iterator[Any]:
        return map(pausing(lambda batch: batch), batches(*words))

    if os.environ["RANK"] == "1":
        EncoderTask.batches = slow  # pyright: ignore[reportAttributeAccessIssue]


def trained(speech: Path, folder: Path, zygote: Zygote, hook: str, *more: str) -> tuple[str, list[dict], list[dict]]:
    """What rank 0 printed, the events about slow ranks, and the times of ranks."""
    argv = short_training(speech, folder, "--train.validate_every=0", "--data.num_workers=0", "--train.log_every=2")
    argv += [f"--train.max_steps={STEPS}", *more]
    ranks = Ranks(zygote, "simdist.train", 2, *argv, before=f"{__name__}:{hook}")
    codes, printed = ranks.end()
    assert codes == [0, 0], printed
    events = [event for event in read_json_lines(folder / "events.jsonl") if event["event"] == "stragglers"]
    return printed, events, [line["ranks"] for line in read_json_lines(folder / "metrics.jsonl")]


@pytest.mark.parametrize(
    ("hook", "cause", "sentence", "more"),
    [
        ("slow_compute", "compute", "mostly computing", ()),
        ("slow_compute", "compute", "mostly computing", IN_MODELS),
        ("slow_backward", "compute", "mostly computing", IN_MODELS),
        ("slow_data", "data", "mostly waiting for data", ()),
    ],
)
def test_a_slow_rank_is_named_with_its_node(
    hook: str, cause: str, sentence: str, more: tuple[str, ...], speech: Path, tmp_path: Path, zygote: Zygote
) -> None:
    folder = tmp_path / "runs" / "run"
    printed, (event,), times = trained(speech, folder, zygote, hook, *more)
    (slow,) = event["ranks"]
    assert (slow["rank"], slow["node"], slow["cause"]) == (1, "node7", cause)
    assert slow["ratio"] > 1.3
    text = f"rank 1 (node7) is {slow['ratio']:.2f} x slower than the median rank over the last 6 steps, {sentence}."
    assert printed.count("slower than") == printed.count(f"warning: {text}") == 1
    later = times[1:]  # the first step is unlike the others
    assert all(min(seconds["step"]) > PAUSE for seconds in later)
    fast, slowed = (mean(seconds["collective_wait"][rank] for seconds in later) for rank in (0, 1))
    assert fast - slowed > PAUSE / 2
    assert (mean(seconds["data_wait"][1] for seconds in later) > PAUSE) == (cause == "data")
    console = Console(width=240, soft_wrap=True)
    with console.capture() as capture:
        console.print(as_renderable(loose_runs(tmp_path / "runs", set())))
    assert f"run: {text}" in capture.get()


def test_equal_ranks_are_not_named(speech: Path, tmp_path: Path, zygote: Zygote) -> None:
    printed, events, times = trained(speech, tmp_path / "run", zygote, "slow_everywhere")
    assert not events, events
    assert "slower than" not in printed
    assert len(times) == 1 + STEPS // 2
    assert {len(column) for seconds in times for column in seconds.values()} == {2}


def test_a_rank_that_is_no_longer_slow_is_named_no_longer(speech: Path, tmp_path: Path, zygote: Zygote) -> None:
    more = f"--train.max_steps={2 * STEPS}"
    printed, events, _ = trained(speech, tmp_path / "runs" / "run", zygote, "slow_at_first", more)
    assert [[slow["rank"] for slow in event["ranks"]] for event in events] == [[1], []]
    assert printed.count("slower than") == printed.count("no rank is slow any more, at step") == 1
    assert loose_runs(tmp_path / "runs", set()).rows[0].progress.stragglers == ""


def test_a_single_process_compares_nothing(speech: Path, tmp_path: Path, zygote: Zygote) -> None:
    argv = short_training(speech, tmp_path / "run", "--train.max_steps=3", "--data.num_workers=0")
    assert Ranks(zygote, "simdist.train", 1, *argv).end()[0] == [0]
    assert "ranks" not in json.dumps(read_json_lines(tmp_path / "run" / "metrics.jsonl"))


NODES = ["n0", "n0", "n1", "n1"]


def window(*work: float, data: tuple[float, ...] = (0.0, 0.0, 0.0, 0.0)) -> list[list[RankTimes]]:
    """100 steps in which all ranks take 1 s, and each waits for the others after its own work."""
    return [[RankTimes(20, 1.0, wait, 1.0 - own) for own, wait in zip(work, data, strict=True)]] * 5


def test_a_rank_is_slow_from_1_3_times_the_median_and_until_1_2() -> None:
    assert not find_stragglers(window(0.5, 0.5, 0.5, 0.64), NODES, set())
    (slow,) = find_stragglers(window(0.5, 0.5, 0.5, 0.66), NODES, set())
    assert (slow.rank, slow.node, slow.ratio, slow.cause) == (3, "n1", 1.32, "compute")
    assert find_stragglers(window(0.5, 0.5, 0.5, 0.62), NODES, {3})
    assert not find_stragglers(window(0.5, 0.5, 0.5, 0.59), NODES, {3})


def test_two_slow_ranks_of_four_are_compared_with_the_fast_ones() -> None:
    slow = find_stragglers(window(0.5, 0.5, 0.8, 0.9, data=(0.1, 0.1, 0.35, 0.2)), NODES, set())
    assert [(each.rank, each.cause) for each in slow] == [(2, "data"), (3, "compute")]
