"""What `simdist.probe` does: plan the probes, encode what they read once, train what is missing, and show it all."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from accelerate import Accelerator
from rich.console import Console

from simdist.core.errors import InputError
from simdist.core.files import replacing
from simdist.core.progress import progress
from simdist.core.signals import SignalHandler
from simdist.probe import plots
from simdist.probe.cache import Entry, FeatureCache, Features
from simdist.probe.claims import share
from simdist.probe.few_labels import check_sizes, do_few_labels
from simdist.probe.jobs import Data, Job, Workplace, do_job
from simdist.probe.labels import SplitPair, drop_unseen, find_splits, read_targets
from simdist.probe.results import RESULT, as_table, curve_table, describe_source, mirror, read_result
from simdist.probe.settings import ProbeSettings, few_label_sizes, for_label, modules_of, sources_of
from simdist.probe.sources import Source, choose_checkpoints, mfcc_source, trained_source, untrained_source
from simdist.probe.views import check_lengths, grid_alignment, view_for
from simdist.runs.folder import existing_run

PROBES = "probes"
LOG_COLUMNS = 160  # of a table in a log file, which has no width of its own


class Command:
    """One call of `simdist.probe`. Building it checks everything that can be checked before any work.

    Args:
        settings: what the user asked for.
        accelerator: device and rank.
        stop: asked between units of work.

    Raises:
        InputError: anything asked for that cannot be done.
    """

    def __init__(self, settings: ProbeSettings, accelerator: Accelerator, stop: SignalHandler) -> None:
        self.run = existing_run(settings.run)
        self._settings, self._stop, self._device = settings, stop, accelerator.device
        self._is_main, self._rank = accelerator.is_main_process, accelerator.process_index
        self._first = accelerator.process_index / accelerator.num_processes
        self.console = Console(soft_wrap=True, highlight=False, quiet=not self._is_main)
        if not self.console.is_terminal:
            self.console.width = LOG_COLUMNS
        config = self.run.config
        self._kinds = sources_of(settings)
        self._modules = modules_of(settings, len(config.model.modules))
        self._sizes = tuple(few_label_sizes(settings))
        self._check_combinations()
        wanted = find_splits(settings, config)
        self._checkpoints = (
            choose_checkpoints(self.run.folder, settings.checkpoints) if "trained" in self._kinds else []
        )
        self._data = [self._read(label, pair) for label, pair in wanted.items()]
        self._place = Workplace(self.run.folder / PROBES, self._device, stop, self._bar)
        self._cache = FeatureCache(settings.cache or self._place.folder / "features", settings.cache_gb, stop)

    def _check_combinations(self) -> None:
        settings = self._settings
        if settings.all and (settings.label or settings.module != "all"):
            raise InputError("--all is every label at every module; leave out --label and --module")
        if self._sizes and (not settings.cached or "supervised" in self._kinds):
            raise InputError("--examples-per-class draws from stored features; leave out supervised and --cached false")
        if "supervised" in self._kinds and settings.probe == "lbfgs":
            raise InputError("--probe lbfgs is for frozen features; train the supervised baseline with linear or mlp")
        if settings.probe == "lbfgs" and not settings.cached:
            raise InputError("--probe lbfgs reads all features many times; leave out --cached false")

    def _read(self, label: str, pair: SplitPair) -> Data:
        settings = self._settings
        view = view_for(settings, self.run.config, label, pair)
        check_lengths(self.run.config, view, pair, "mfcc" in self._kinds)
        train, test = read_targets(pair.train, label), read_targets(pair.test, label)
        test, unseen = drop_unseen(train, test, label, settings.unseen)
        if unseen:
            self.console.print(f"{label}: {', '.join(unseen)} left out of the test; training never shows them")
        return Data(label, pair, view, train, test, unseen)

    def work(self) -> list[Job]:
        """Do, together with all ranks and jobs that work on the same run, what is missing; returns all probes."""
        jobs: list[Job] = []
        for source in self._sources():
            these = self._jobs(source)
            for job in these:
                check_sizes(job)
            self._work_on(source, these)
            jobs += these
        return jobs

    def _sources(self) -> Iterator[Source]:
        config = self.run.config
        for kind in self._kinds:
            if kind == "trained":
                for checkpoint in self._checkpoints:
                    yield trained_source(checkpoint, config)
            elif kind == "mfcc":
                yield mfcc_source()
            else:
                yield untrained_source(config, kind)

    def _jobs(self, source: Source) -> list[Job]:
        modules = [0] if source.kind == "mfcc" else self._modules
        jobs = []
        for data in self._data:
            for module in modules:
                if data.view.kind == "frames":
                    grid_alignment(data.view, source, module)
                jobs.append(Job(source, module, data, for_label(self._settings, data.label), self._sizes))
        return jobs

    def _work_on(self, source: Source, jobs: list[Job]) -> None:
        missing = [job for job in jobs if self._settings.force or not self._place.is_done(job)]
        if self._settings.force and self._is_main:
            for job in missing:
                (self._place.folder / job.name / RESULT).unlink(missing_ok=True)
        done = len(jobs) - len(missing)
        if done:
            self.console.print(f"{done} of {len(jobs)} probes of {_called(source)} are done already")
        if not missing:
            return
        if not missing[0].needs_features:
            self._share(missing, {})
            return
        entries = _entries(missing)
        utterances = sum(len(split.index) for split in {id(e.split): e.split for e in entries}.values())
        with ExitStack() as stack:
            with progress(self.console, f"encoding with {_called(source)}", utterances) as advance:
                features = stack.enter_context(self._cache.opened(entries, self._device, advance, self._first))
            self._share(missing, {entry.key: found for entry, found in zip(entries, features, strict=True)})

    def _share(self, jobs: list[Job], features: dict[str, Features]) -> None:
        def do(job: Job) -> None:
            if not features:
                do_job(job, self._place, None)
                return
            train, test = (features[entry.key].of_module(job.module) for entry in _entries([job]))
            (do_few_labels if job.sizes else do_job)(job, self._place, (train, test))

        share(jobs, self._place.is_done, self._place.lock, do, self._stop, int(self._first * len(jobs)))

    @contextmanager
    def _bar(self, what: str, total: int) -> Iterator[Callable[[int], None]]:
        with progress(self.console, what, total, "steps") as advance:
            yield advance

    # --- what is shown ------------------------------------------------------------------------------------------------

    def show(self, jobs: list[Job]) -> None:
        """Print the table, draw what compares several probes, and mirror to wandb; on one rank."""
        results = [read_result(self._place.folder / job.name) for job in jobs]
        self.console.print((curve_table if self._sizes else as_table)(results))
        for result in results:
            if result.get("train", {}).get("converged") is False:
                reached = f"ended with a gradient of {result['train']['gradient']:.2g}"
                self.console.print(f"{result['name']} {reached}, above --tolerance; raise --max-iterations")
        drawn = self._draw_curves(results) if self._sizes else self._draw_trajectories(results)
        for path in drawn:
            self.console.print(f"plot: {path}")
        self.console.print(f"results: {self._place.folder}/NAME/{RESULT}")
        offline = mirror(self.run, results, drawn)
        if offline is not None:
            self.console.print(f"wandb wrote offline; on a machine with internet: wandb sync {offline}")
        self.run.event("probed", probes=[job.name for job in jobs])

    def _draw_curves(self, results: list[dict]) -> list[Path]:
        paths = []
        for label in dict.fromkeys(result["label"] for result in results):
            these = [result for result in results if result["label"] == label]
            path = self._comparison("few-labels", label, these) / "curve.png"
            with replacing(path) as temporary:
                lines = [(describe_source(result), result["curve"]) for result in these]
                plots.plot_curves(lines, label, these[0]["chance"], temporary)
            paths.append(path)
        return paths

    def _draw_trajectories(self, results: list[dict]) -> list[Path]:
        if len(self._checkpoints) < 2:
            return []
        paths = []
        for label in dict.fromkeys(result["label"] for result in results):
            these = [result for result in results if result["label"] == label]
            start = {r["source"]["module"]: [r] for r in these if r["source"]["kind"] == "untrained"}  # step 0
            lines = []
            for module in self._modules:
                trained = [r for r in these if r["source"]["kind"] == "trained" and r["source"]["module"] == module]
                lines.append((f"module {module}", start.get(module, []) + trained))
            path = self._comparison("trajectory", label, these) / "trajectory.png"
            with replacing(path) as temporary:
                plots.plot_trajectory(lines, label, these[0]["majority"]["accuracy"], temporary)
            paths.append(path)
        return paths

    def _comparison(self, kind: str, label: str, results: list[dict]) -> Path:
        names = "/".join(result["name"] for result in results)
        digest = hashlib.sha256(names.encode()).hexdigest()[:8]
        folder = self._place.folder / f"{kind}-{label}-{digest}"
        folder.mkdir(parents=True, exist_ok=True)
        return folder


def _entries(jobs: list[Job]) -> list[Entry]:
    """What these jobs of one source read, each entry once: training split, test split, for each view."""
    found: dict[str, Entry] = {}
    for job in jobs:
        for split in (job.data.pair.train, job.data.pair.test):
            entry = Entry(job.source, split, job.data.view)
            found.setdefault(entry.key, entry)
    return list(found.values())


def _called(source: Source) -> str:
    return f"the encoder of step {source.step:,}" if source.kind == "trained" else f"{source.kind} features"
