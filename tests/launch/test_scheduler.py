"""Jobs as arrays: which are one, what they wait for, and what SLURM is told of that."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import pytest

from launch.batch_scripts import dependency
from launch.plan import Plan
from launch.scheduler import JobArray, JobId, arrays, parts, throttles
from simdist.cluster.discovery import Limits
from tests.support.sweeps import of_kind, small_plan


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    return small_plan(tmp_path, grid={}, seeds=[0, 1])


def submitted_arrays(plan: Plan, names: Iterable[str], ids: Mapping[str, JobId] | None = None) -> list[JobArray]:
    """The arrays of these jobs, numbered from 17 on as they are submitted."""
    found: list[JobArray] = []
    numbers = dict(ids or {})
    for jobs in parts(plan, names):
        for array in arrays(jobs, numbers, Limits(), 16):
            number = str(17 + len(found))
            of_tasks = [f"{number}_{index}" for index in array.indices] or [number]
            numbers |= {job.name: JobId(task) for job, task in zip(array.jobs, of_tasks, strict=True)}
            found.append(array)
    return found


def test_each_part_of_a_stage_is_one_array_over_all_runs_whose_tasks_follow_each_other(plan: Plan) -> None:
    pack, train, *probes, report = submitted_arrays(plan, plan.jobs)
    assert (pack.indices, dependency(pack)) == ((), "")
    assert (train.indices, dependency(train)) == ((0, 1), "afterok:17")
    assert [(len(probe.jobs), probe.indices, dependency(probe)) for probe in probes] == [
        (2, (0, 1), "aftercorr:18")
    ] * 4
    assert dependency(report) == "afterany:17:18:19:20:21:22"
    for probe in probes:
        assert [job.run for job in probe.jobs] == [job.run for job in train.jobs]


def test_the_sweep_of_the_issue_takes_few_submissions() -> None:
    stages = {
        "probe": {"labels": ["speaker", "phone"], "modules": "all"},
        "decode": {"modules": [0, 1]},
        "analyze": {"which": ["robustness", "embedding"]},
        "report": None,
    }
    plan = small_plan(grid={}, seeds=list(range(60)), stages=stages)
    assert len(plan.jobs) == 421
    made = submitted_arrays(plan, plan.jobs)
    assert len(made) == 8
    analyses = [array for array in made if array.stage == "analyze"]
    assert [dependency(array) for array in analyses] == ["aftercorr:17:18:19:20:21"] * 2


def test_a_run_that_is_submitted_again_keeps_its_children_at_its_side(plan: Plan) -> None:
    first, second = of_kind(plan, "train")
    below = [name for name in of_kind(plan, "probe") if first in plan.jobs[name].parents]
    again = submitted_arrays(plan, [first, *below])
    assert [(array.indices, dependency(array)) for array in again] == [((), ""), ((0, 1, 2, 3), "afterok:17")]
    on_its_way = submitted_arrays(plan, of_kind(plan, "probe"), {first: JobId("9_3"), second: JobId("9_5")})
    assert [(array.indices, dependency(array)) for array in on_its_way] == [((3, 5), "aftercorr:9")] * 4
    apart = submitted_arrays(plan, of_kind(plan, "probe")[:1], {first: JobId("9_3")})
    assert [(array.indices, dependency(array)) for array in apart] == [((3,), "aftercorr:9")]
    together = submitted_arrays(plan, below, {first: JobId("9_3")})  # four jobs cannot have one index
    assert [(array.indices, dependency(array)) for array in together] == [((0, 1, 2, 3), "afterok:9_3")]


@pytest.mark.parametrize(("size", "sizes"), [(1000, [1000, 3]), (4, [4] * 250 + [3])])
def test_an_array_has_no_more_tasks_and_no_larger_index_than_slurm_allows(size: int, sizes: list[int]) -> None:
    plan = small_plan(grid={}, seeds=list(range(1003)))
    jobs = [plan.jobs[name] for name in of_kind(plan, "train")]
    made = arrays(jobs, {}, Limits(max_array_size=size), 16)
    assert [len(array.jobs) for array in made] == sizes
    assert max(index for array in made for index in array.indices) < size
    assert all(len(set(array.indices)) == len(array.jobs) for array in made if array.indices)


def test_a_stage_keeps_its_throttle_when_it_is_several_arrays() -> None:
    assert throttles(16, 6) == [3, 3, 3, 3, 2, 2]
    assert throttles(2, 3) == [1, 1, 1]
