"""Print what a sweep would do: its graph, batch scripts and GPU-hours. Writes nothing."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.tree import Tree

from simdist.cluster.choice import Choice, chosen_profile
from simdist.cluster.discovery import Limits
from simdist.cluster.profile import Profile
from simdist.config.schema import Config
from simdist.core.errors import counted

from .estimate import StageCost, measure, stage_costs
from .naming import CODE
from .options import ON_THIS_MACHINE
from .plan import Job, Plan
from .records import Records
from .scheduler import JobArray, JobId, arrays, parts, shares
from .snapshot import CODE_COPIES, left_out
from .states import ALIVE, JobState, done_jobs, find_states
from .submit import what_is_missing

SHOWN_RUNS = 3
USUAL = Limits()


def show(
    plan: Plan, configs: Mapping[str, Config], cluster: str, console: Console, choice: Choice | None = None
) -> None:
    """Print the plan without running it.

    Args:
        plan: the graph.
        configs: of its runs.
        cluster: `local`, `debug`, `slurm`, a profile's name or file.
        console: for the user.
        choice: what jobs request, and the limits of the cluster; None finds it by `cluster`.

    Raises:
        InputError: the cluster's profile or a stage's resources cannot be.
    """
    done, records = done_jobs(plan), Records(plan.folder).latest()
    states = find_states(plan, done, records)
    console.print(_graph(plan, states))
    profiles = None
    if cluster not in ON_THIS_MACHINE:
        from .batch_scripts import stage_profiles  # submitit takes half a second to import

        choice = choice or chosen_profile(cluster)
        profile, limits = choice.profile, choice.limits
        profiles = stage_profiles(plan, profile)
        wanted = what_is_missing(plan, states, records)
        for line in left_out(CODE, plan.folder / CODE_COPIES) if wanted.submit else ():
            console.print(line, markup=False)
        _show_scripts(plan, profile, planned_arrays(plan, wanted.submit, profile.array_throttle, limits), console)
    runs = next(iter(plan.runs.values())).folder.parent
    left = [job for job in plan.jobs.values() if states[job.name].status != "done"]
    costs = stage_costs(plan, configs, left, profiles, measure(runs))
    console.print(_costs(plan, costs, states))
    console.print(_sum(costs))


def _graph(plan: Plan, states: Mapping[str, JobState]) -> Tree:
    """Packing and the first runs; the others have the same stages."""
    tree = Tree(f"{plan.name}: {counted(len(plan.runs), 'run')}, {counted(len(plan.jobs), 'job')}")
    for job in plan.jobs.values():
        if job.kind == "pack":
            tree.add(_line(job, states))
    for run in list(plan.runs)[:SHOWN_RUNS]:
        own = [job for job in plan.jobs.values() if job.run == run]
        varied = ", ".join(f"{key} {value}" for key, value in plan.runs[run].varied.items())
        branch = tree.add(_line(own[0], states) + (f"  {varied}" if varied else ""))
        for job in own[1:]:
            branch.add(_line(job, states))
    if len(plan.runs) > SHOWN_RUNS:
        tree.add(f"… and {counted(len(plan.runs) - SHOWN_RUNS, 'more run')} with the same stages")
    for job in plan.jobs.values():
        if job.kind == "report":
            tree.add(_line(job, states) + f"  after {counted(len(job.parents), 'job')}")
    return tree


def _line(job: Job, states: Mapping[str, JobState]) -> str:
    return f"{job.name}  [dim]{states[job.name].status}[/]"


def planned_arrays(plan: Plan, names: Iterable[str], throttle: int, limits: Limits = USUAL) -> list[JobArray]:
    """The arrays of a sweep, if none of these jobs is on its way; ids that only SLURM can give are named instead."""
    found: list[JobArray] = []
    ids: dict[str, JobId] = {}
    missing = parts(plan, names)
    for jobs, share in zip(missing, shares(missing, throttle), strict=True):
        made = arrays(jobs, ids, limits, share)
        for array in made:
            first = array.jobs[0]
            name = f"<{first.name if len(array.jobs) == 1 else first.name.replace(f'/{first.run}', '')}>"
            name = name.replace("_", "-")  # what follows an underscore is a task's index
            numbers = [f"{name}_{index}" for index in array.indices] or [name]
            ids |= {job.name: JobId(number) for job, number in zip(array.jobs, numbers, strict=True)}
        found += made
    return found


def _show_scripts(plan: Plan, profile: Profile, wanted: list[JobArray], console: Console) -> None:
    """The batch script of each stage; others of it differ in what they wait for."""
    shown: dict[str, int] = {}
    for array in wanted:
        shown[array.stage] = shown.get(array.stage, 0) + 1
        if shown[array.stage] == 1:
            console.rule(f"sbatch: {array.stage}, {counted(len(array.jobs), 'job')}")
            console.print(script(plan, array, profile), markup=False)
    for stage, number in shown.items():
        if number > 1:
            console.print(f"{stage}: {number - 1} submissions more like this one", markup=False)


def script(plan: Plan, array: JobArray, profile: Profile) -> str:
    """The text that `sbatch` will get for an array."""
    from .batch_scripts import BatchContext, batch_executor

    context = BatchContext(plan.name, plan.folder, profile, lambda: Path("<code>"))
    return batch_executor(context, array, "<id>").script()


def _costs(plan: Plan, costs: Mapping[str, StageCost], states: Mapping[str, JobState]) -> Table:
    table = Table(title=f"estimated cost of {plan.name}", title_justify="left")
    for column in ("stage", "jobs", "done", "on the way", "to do", "hours each", "GPU-hours"):
        table.add_column(column, justify="left" if column == "stage" else "right", no_wrap=True)
    for stage in dict.fromkeys(job.stage for job in plan.jobs.values()):
        words = [states[job.name].status for job in plan.jobs.values() if job.stage == stage]
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
        text += f", and {counted(unknown, 'job')} of unknown duration: no similar run was measured here"
    return text
