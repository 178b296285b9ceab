"""What a sweep would do: its graph, its batch scripts, and its GPU-hours. Writes nothing."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.tree import Tree

from simdist.config import Config

from .estimate import StageCost, measure, stage_costs
from .graph import done_jobs
from .plan import Job, Plan
from .profiles import Profile
from .records import Records
from .states import ALIVE, State, find_states
from .submission import Group, dependency, groups, what_is_missing

SHOWN_RUNS = 3
ON_THIS_MACHINE = ("local", "debug")


def show(
    plan: Plan, configs: Mapping[str, Config], cluster: str, console: Console, profile: Profile | None = None
) -> None:
    """Print everything that can be known before anything is done.

    Args:
        plan: the graph.
        configs: of its runs.
        cluster: `local`, `debug`, `slurm`, a profile's name or file.
        console: for the user.
        profile: what jobs request; None takes it from `cluster`.

    Raises:
        InputError: the cluster's profile or a stage's resources cannot be.
    """
    done, records = done_jobs(plan), Records(plan.folder).latest()
    states = find_states(plan, done, records)
    console.print(_graph(plan, states))
    profiles = None
    if cluster not in ON_THIS_MACHINE:
        from .profiles import parameters_of_all, profile_named

        profile = profile or profile_named(cluster)
        profiles = parameters_of_all(plan, profile)
        wanted = what_is_missing(plan, states, records)
        _show_scripts(plan, profile, groups(plan, wanted.submit, done), console)
    runs = next(iter(plan.runs.values())).folder.parent
    left = [job for job in plan.jobs.values() if states[job.name].word != "done"]
    costs = stage_costs(plan, configs, left, profiles, measure(runs))
    console.print(_costs(plan, costs, states))
    console.print(_sum(costs))


def _graph(plan: Plan, states: Mapping[str, State]) -> Tree:
    """Packing, then the first runs in full; the others look alike."""
    tree = Tree(f"{plan.name}: {len(plan.runs)} runs, {len(plan.jobs)} jobs")
    for job in plan.jobs.values():
        if job.kind == "pack":
            tree.add(_line(job, states))
    for run in list(plan.runs)[:SHOWN_RUNS]:
        own = [job for job in plan.jobs.values() if job.run == run]
        branch = tree.add(_line(own[0], states) + _said(plan.runs[run].varied))
        for job in own[1:]:
            branch.add(_line(job, states))
    if len(plan.runs) > SHOWN_RUNS:
        tree.add(f"… and {len(plan.runs) - SHOWN_RUNS} runs more, with the same stages")
    for job in plan.jobs.values():
        if job.kind == "report":
            tree.add(_line(job, states) + f"  after {len(job.parents)} jobs")
    return tree


def _line(job: Job, states: Mapping[str, State]) -> str:
    state = states[job.name]
    return f"{job.name}  [dim]{state.word}[/]"


def _said(varied: Mapping[str, object]) -> str:
    text = ", ".join(f"{key} {value}" for key, value in varied.items())
    return f"  {text}" if text else ""


def _show_scripts(plan: Plan, profile: Profile, wanted: list[Group], console: Console) -> None:
    """The batch script of each stage; others of it differ in what they wait for."""
    shown: dict[str, int] = {}
    for group in wanted:
        shown[group.stage] = shown.get(group.stage, 0) + 1
        if shown[group.stage] == 1:
            console.rule(f"sbatch: {group.stage}, {_counted(len(group.jobs), 'job')}")
            console.print(script(plan, group, profile), markup=False)
    for stage, number in shown.items():
        if number > 1:
            console.print(f"{stage}: {number - 1} submissions more like this one, each for another run", markup=False)


def script(plan: Plan, group: Group, profile: Profile) -> str:
    """The text that `sbatch` will get for a group; numbers that only SLURM can give are named instead."""
    from .batch_scripts import group_executor

    names = {parent: f"<{parent}>" for parent in group.parents}
    if group.takes_what_there_is:
        stages = dict.fromkeys(plan.jobs[parent].stage for parent in group.parents)
        names = {stage: f"<all of {stage}>" for stage in stages}
        group = Group(group.stage, group.jobs, tuple(stages))
    executor = group_executor(
        plan,
        group,
        profile,
        plan.folder / "slurm" / "<id>",
        Path("<code>"),
        "<id>",
        dependency(group, names),
    )
    if len(group.jobs) > 1:
        executor.parameters["map_count"] = len(group.jobs)  # what submitit does when it submits an array
    return executor._make_submission_file_text(executor._submitit_command_str, "")


def _costs(plan: Plan, costs: Mapping[str, StageCost], states: Mapping[str, State]) -> Table:
    table = Table(title=f"what {plan.name} will take", title_justify="left")
    for column in ("stage", "jobs", "done", "on the way", "to do", "hours each", "GPU-hours"):
        table.add_column(column, justify="left" if column == "stage" else "right", no_wrap=True)
    for stage in dict.fromkeys(job.stage for job in plan.jobs.values()):
        words = [states[job.name].word for job in plan.jobs.values() if job.stage == stage]
        done, alive = words.count("done"), sum(word in ALIVE for word in words)
        cost = costs.get(stage)
        each = "" if cost is None else "unknown" if cost.hours is None else f"{cost.hours:.2f}"
        total = "" if cost is None else _device_hours(cost)
        table.add_row(stage, str(len(words)), str(done), str(alive), str(len(words) - done - alive), each, total)
    return table


def _device_hours(cost: StageCost) -> str:
    if cost.hours is None:
        return "unknown"
    return f"{cost.device_hours:.2f}" if cost.uses_gpus else f"0 ({cost.device_hours:.2f} core-hours)"


def _sum(costs: Mapping[str, StageCost]) -> str:
    known = sum(cost.device_hours for cost in costs.values() if cost.uses_gpus)
    unknown = sum(cost.unknown for cost in costs.values())
    text = f"{known:.2f} GPU-hours"
    if unknown:
        text += f", and {_counted(unknown, 'job')} of unknown length: no earlier run of their kind was measured here"
    return text


def _counted(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'s' * (number != 1)}"
