"""Plan the probes, encode their input once, train what is missing, and print the results."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

from accelerate import Accelerator
from rich.console import Console

from simdist.config.schema import place_name
from simdist.core.errors import InputError
from simdist.core.files import replacing
from simdist.core.progress import progress
from simdist.core.signals import SignalHandler
from simdist.models.encoder import GreedyEncoder
from simdist.probe import plots
from simdist.probe.cache import CacheEntry, FeatureCache, Features
from simdist.probe.feature_extractors import (
    FeatureExtractor,
    mfcc_extractor,
    trained_extractor,
    untrained_extractor,
)
from simdist.probe.feature_spec import check_lengths, grid_alignment, spec_for
from simdist.probe.few_labels import check_sizes, run_few_labels
from simdist.probe.labels import SplitPair, different_sessions, drop_unseen, find_splits, read_targets
from simdist.probe.probe_task import ProbeContext, ProbeData, ProbeTask, run_task
from simdist.probe.results import (
    RESULT,
    as_table,
    by_probe,
    curve_table,
    describe_features,
    describe_optimum,
    mirror,
    read_result,
)
from simdist.probe.settings import (
    Place,
    ProbeSettings,
    checkpoints_of,
    feature_kinds,
    few_label_sizes,
    for_label,
    places_in,
)
from simdist.probe.training import utterances_per_epoch
from simdist.probe.work_sharing import share
from simdist.runs.folder import existing_run
from simdist.training.calibration import calibrated, split_for

PROBES = "probes"
LOG_COLUMNS = 160  # width of a table in a log file


class ProbeCommand:
    """One call of `simdist.probe`. Building it checks everything that can be checked before any work.

    Args:
        settings: what the user asked for.
        accelerator: device and rank.
        stop: checked between units of work.

    Raises:
        InputError: a request that cannot be fulfilled.
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
        self._kinds = feature_kinds(settings)
        self._places = places_in("all" if settings.all else settings.module, settings.layer, config.model)
        self._sizes = tuple(few_label_sizes(settings))
        self._check_combinations()
        wanted = find_splits(settings, config)
        self._checkpoints = checkpoints_of(settings, self.run.folder) if "trained" in self._kinds else []
        self._data = [self._read(label, pair) for label, pair in wanted.items()]
        self._warned = set(filter(None, map(different_sessions, wanted.values())))
        for warning in sorted(self._warned):
            self.console.print(f"warning: {warning}", markup=False)
        self._context = ProbeContext(self.run.folder / PROBES, self._device, stop, self._bar)
        self._cache = FeatureCache(settings.cache or self._context.folder / "features", settings.cache_gb, stop)

    def _check_combinations(self) -> None:
        settings = self._settings
        if settings.all and (settings.label or settings.module != "all"):
            raise InputError("--all means every label at every module. Remove --label and --module")
        if self._sizes and (not settings.cached or "supervised" in self._kinds):
            raise InputError("--examples-per-class needs cached features. Remove supervised and --cached false")
        if "supervised" in self._kinds and settings.probe == "lbfgs":
            raise InputError("--probe lbfgs needs frozen features. Train the supervised baseline with linear or mlp")
        if settings.probe == "lbfgs" and not settings.cached:
            raise InputError("--probe lbfgs reads all features repeatedly. Remove --cached false")
        if settings.probe == "lbfgs" and (settings.repetitions or 1) > 1 and not self._sizes:
            raise InputError("--probe lbfgs has a single optimum, so its repetitions are equal. Remove --repetitions")

    def _read(self, label: str, pair: SplitPair) -> ProbeData:
        settings = self._settings
        spec = spec_for(settings, self.run.config, label, pair)
        if spec.resampled and settings.probe == "lbfgs":
            raise InputError("--probe lbfgs needs fixed features. Use --latents deterministic or sampled")
        check_lengths(self.run.config, spec, pair, "mfcc" in self._kinds)
        train, test = read_targets(pair.train, label), read_targets(pair.test, label)
        test, unseen = drop_unseen(train, test, label, settings.unseen)
        if unseen:
            self.console.print(f"{label}: {', '.join(unseen)} dropped from the test: no training examples")
        return ProbeData(label, pair, spec, train, test, unseen)

    def work(self) -> list[ProbeTask]:
        """Train what is missing, together with all ranks and jobs on the same run; returns all probes."""
        tasks: list[ProbeTask] = []
        for extractor in self._extractors():
            these = self._tasks(extractor)
            for task in these:
                check_sizes(task)
                if task.settings.probe != "lbfgs" and task.settings.batch_size:
                    utterances_per_epoch(len(task.data.train.rows), task.settings)
            self._work_on(extractor, these)
            tasks += these
        return tasks

    def _extractors(self) -> Iterator[FeatureExtractor]:
        config = self.run.config
        for kind in self._kinds:
            if kind == "trained":
                for checkpoint in self._checkpoints:
                    yield trained_extractor(checkpoint, config)
            elif kind == "mfcc":
                yield mfcc_extractor()
            elif kind == "untrained":
                yield self._untrained()
            else:
                yield untrained_extractor(config, kind)

    def _untrained(self) -> FeatureExtractor:
        """The untrained encoder, with BatchNorm calibrated on the run's training split, or if missing on a probe's."""
        config, extractor = self.run.config, untrained_extractor(self.run.config)
        split = split_for(config, self._settings.data_root or config.data.root, lambda: self._data[0].pair.train)
        assert isinstance(extractor.network, GreedyEncoder)
        found = calibrated(extractor.network, config, split, self._device)
        if found is None:
            return extractor
        return replace(extractor, identity=found.identity(extractor.identity), calibration=found.as_dict())

    def _tasks(self, extractor: FeatureExtractor) -> list[ProbeTask]:
        places: list[Place] = [(0, None)] if extractor.kind == "mfcc" else self._places
        tasks = []
        for data in self._data:
            settings, of_modules = for_label(self._settings, data.label), data.spec.for_extractor(extractor)
            for module, layer in places:
                spec = of_modules if layer is None else of_modules.of_layer(module, layer)
                if spec.kind == "frames":
                    grid_alignment(spec, extractor, module)
                tasks += [
                    ProbeTask(extractor, module, replace(data, spec=spec), replace(settings, seed=seed), self._sizes)
                    for seed in self._seeds(settings)
                ]
        return tasks

    def _seeds(self, settings: ProbeSettings) -> range:
        """The seeds of a probe's repetitions; few labels are repeated within their task."""
        assert settings.repetitions is not None
        return range(settings.seed, settings.seed + (1 if self._sizes else settings.repetitions))

    def _work_on(self, extractor: FeatureExtractor, tasks: list[ProbeTask]) -> None:
        missing = [task for task in tasks if self._settings.force or not self._context.is_done(task)]
        if self._settings.force and self._is_main:
            for task in missing:
                (self._context.folder / task.name / RESULT).unlink(missing_ok=True)
        done = len(tasks) - len(missing)
        if done:
            self.console.print(f"{done} of {len(tasks)} probes of {_called(extractor)} are already done")
        if not missing:
            return
        if not missing[0].needs_features:
            self._share(missing, {})
            return
        entries = _entries(missing)
        utterances = sum(len(split.index) for split in {id(e.split): e.split for e in entries}.values())
        with ExitStack() as stack:
            with progress(self.console, f"encoding with {_called(extractor)}", utterances) as advance:
                features = stack.enter_context(self._cache.opened(entries, self._device, advance, self._first))
            self._share(missing, {entry.key: found for entry, found in zip(entries, features, strict=True)})

    def _share(self, tasks: list[ProbeTask], features: dict[str, Features]) -> None:
        def do(task: ProbeTask) -> None:
            if not features:
                run_task(task, self._context, None)
                return
            place = (0, None) if task.data.spec.resampled else (task.module, task.layer)
            train, test = (features[entry.key].of_module(*place) for entry in _entries([task]))
            (run_few_labels if task.sizes else run_task)(task, self._context, (train, test))

        share(tasks, self._context.is_done, self._context.lock, do, self._stop, int(self._first * len(tasks)))

    @contextmanager
    def _bar(self, what: str, total: int) -> Iterator[Callable[[int], None]]:
        with progress(self.console, what, total, "steps") as advance:
            yield advance

    # --- what is shown ------------------------------------------------------------------------------------------------

    def show(self, tasks: list[ProbeTask]) -> None:
        """Print the table, draw comparisons, and log to wandb; on one rank."""
        results = [read_result(self._context.folder / task.name) for task in tasks]
        self.console.print((curve_table if self._sizes else as_table)(results))
        for result in results:
            if "l2" in result.get("train", {}):
                self.console.print(describe_optimum(result), markup=False)
            if result.get("train", {}).get("converged") is False:
                reached = f"ended with a gradient of {result['train']['gradient']:.2g}"
                self.console.print(f"{result['name']} {reached}, above --tolerance. Increase --max-iterations")
        for warning in dict.fromkeys(warning for result in results for warning in result["warnings"]):
            if warning not in self._warned:
                self.console.print(f"warning: {warning}", markup=False)
        drawn = self._draw_curves(results) if self._sizes else self._draw_trajectories(results)
        for path in drawn:
            self.console.print(f"plot: {path}")
        self.console.print(f"results: {self._context.folder}/NAME/{RESULT}")
        mirror(self.run, results, drawn, functools.partial(self.console.print, markup=False))
        self.run.event("probed", probes=[task.name for task in tasks])

    def _draw_curves(self, results: list[dict]) -> list[Path]:
        paths = []
        for label in dict.fromkeys(result["label"] for result in results):
            these = [result for result in results if result["label"] == label]
            path = self._comparison("few-labels", label, these) / "curve.png"
            with replacing(path) as temporary:
                lines = [(describe_features(result), result["curve"]) for result in these]
                plots.plot_curves(lines, label, these[0]["chance"], temporary)
            paths.append(path)
        return paths

    def _draw_trajectories(self, results: list[dict]) -> list[Path]:
        if len(self._checkpoints) < 2:
            return []
        paths = []
        for label in dict.fromkeys(result["label"] for result in results):
            these = [own[0] for own in by_probe(results) if own[0]["label"] == label]  # of repetitions the first
            of_kind: dict[tuple[str, Place], list[dict]] = {}
            for found in these:
                source = found["source"]
                of_kind.setdefault((source["kind"], (source["module"], source.get("layer"))), []).append(found)
            lines = [
                (place_name(*place), of_kind.get(("untrained", place), []) + of_kind.get(("trained", place), []))
                for place in self._places  # untrained: step 0
            ]
            path = self._comparison("trajectory", label, these) / "trajectory.png"
            with replacing(path) as temporary:
                plots.plot_trajectory(lines, label, these[0]["majority"]["accuracy"], temporary)
            paths.append(path)
        return paths

    def _comparison(self, kind: str, label: str, results: list[dict]) -> Path:
        names = "/".join(result["name"] for result in results)
        digest = hashlib.sha256(names.encode()).hexdigest()[:8]
        folder = self._context.folder / f"{kind}-{label}-{digest}"
        folder.mkdir(parents=True, exist_ok=True)
        return folder


def _entries(tasks: list[ProbeTask]) -> list[CacheEntry]:
    """The entries that these tasks of one extractor read: training and test split, for each feature spec."""
    found: dict[str, CacheEntry] = {}
    for task in tasks:
        for split in (task.data.pair.train, task.data.pair.test):
            entry = CacheEntry(task.extractor, split, task.data.spec.stored())
            found.setdefault(entry.key, entry)
    return list(found.values())


def _called(extractor: FeatureExtractor) -> str:
    return f"the encoder of step {extractor.step:,}" if extractor.kind == "trained" else f"{extractor.kind} features"
