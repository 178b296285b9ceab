"""Runs of a sweep that agree on their lower modules train these once: stages of `train.schedule stagewise`.

A stage depends on the settings of its module and of those below it. So a run with the lower modules alone, in
`runs/trunks/`, comes to what every run would come to by itself that begins with them, and those take its stages over.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from simdist.config.schema import Config, identity

FOLDER = "trunks"  # in the folder of all runs


def shared_stages(configs: Mapping[str, Config]) -> tuple[dict[str, Config], dict[str, str]]:
    """The runs of shared modules, and from which run a run takes stages over.

    Args:
        configs: the sweep's runs, by name.

    Returns:
        Configurations of the runs of shared modules by name, parents before their children; and, by the name of a run
        of either kind, the one whose stages it takes over, if any.
    """
    stagewise = {
        run: config
        for run, config in configs.items()
        if config.train.schedule == "stagewise" and not config.train.trunk
    }
    runs_with: dict[str, list[str]] = {}
    lower: dict[str, Config] = {}
    for run, config in stagewise.items():
        for count in range(1, len(config.model.modules)):
            name, part = _lower_modules(config, count)
            lower[name] = part
            runs_with.setdefault(name, []).append(run)
    shared: dict[str, Config] = {}
    sources: dict[str, str] = {}
    for name, part in sorted(lower.items(), key=lambda item: len(item[1].model.modules)):
        if _is_branching(part, [stagewise[run] for run in runs_with[name]]):
            shared[name] = part
    for run, config in {**shared, **stagewise}.items():
        for count in range(1, len(config.model.modules)):
            name, _ = _lower_modules(config, count)
            if name in shared:
                sources[run] = name  # the last one is the longest
    return shared, sources


def _lower_modules(config: Config, count: int) -> tuple[str, Config]:
    """Name and configuration of the run of the lowest modules of a run."""
    part = replace(config, name=FOLDER, model=replace(config.model, modules=config.model.modules[:count]))
    modules = "module_0" if count == 1 else f"modules_0-{count - 1}"
    return f"{FOLDER}/{modules}-{identity(part)[:8]}", part


def _is_branching(part: Config, configs: list[Config]) -> bool:
    """Whether runs that begin with the modules of `part` go on differently."""
    count = len(part.model.modules)
    return len({config.model.modules[: count + 1] for config in configs}) > 1
