"""Results of probes on disk, on the terminal and in Weights & Biases.

`RUN/probes/NAME/` holds, `result.json` written last:

    result.json         see below
    probe.safetensors   the probe: output.weight (num_classes, D), output.bias, hidden.*, mean and scale of the features
    confusion.png       confusion matrix, each row a true class
    per_class.tsv       vectors, recall, precision, F1 of every class

`result.json`, format version 1:

    name, label, classes            classes in the order of their numbers
    source       kind (trained, untrained, mfcc, supervised), module, layer where one inside the module was probed,
                 step, weights (hash), dimensions of a vector; calibration of an untrained encoder with BatchNorm:
                 split, fingerprint, clips, batches
    view         kind (pooled: a vector a clip; frames: a vector each 10 ms), pooling, crop in samples (null: whole
                 utterance), crops of an utterance, align, sampled, seed; resampled where each batch draws latents anew;
                 layer: module and layer, where one was probed
    protocol     thesis or paper where the settings are those, with what deviates from the one that was asked for
                 ("thesis, but epochs 50"); else null
    probe        kind and every setting that can change a number; drop_last, weight_decay and clip_grad_norm where on
    data         train, test: split, fingerprint, utterances, labels; test: unseen_classes_left_out
    warnings     sentences on what makes the numbers doubtful
    chance       1 / classes in training;  majority: class, accuracy of always answering with it
    train        loss in nats; with L-BFGS also gradient (largest entry), iterations, converged, dimensions, examples
                 (vectors), accuracy (of training), l2, and cross_validation where l2 was chosen: path (l2, loss and
                 accuracy held out), held_out (recordings or utterances), num_groups, num_examples
    test         accuracy, balanced_accuracy: value, interval (95 %, bootstrap over utterances); loss; per_class;
                 confusion (row: true class, column: answer; counts of vectors); for phones without_silence
    curve        instead of train and test with few labels: a list of examples_per_class, accuracy (value, interval:
                 95 % of the mean over repetitions, Student's t), accuracies, balanced_accuracies, batch_size,
                 classes_with_fewer
    seconds      training_and_testing
    finished, environment           unix time; versions of simdist and torch, host
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import socket
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table
from safetensors.torch import save_file

from simdist.config.schema import identity, place_name, to_dict
from simdist.core.files import replacing, write_json, write_text
from simdist.models.probes import Probe
from simdist.probe.plots import plot_confusion
from simdist.runs.folder import Run
from simdist.runs.wandb_run import WandbRun

FORMAT_VERSION = 1
RESULT = "result.json"
WANDB_ID_LENGTH = 64
COLUMNS = {
    "label": "",
    "features": "",
    "probe": "",
    "accuracy": "",
    "balanced": "mean of the classes' own accuracies",
    "without silence": "accuracy where the true phone is not silence",
    "chance": "1 / classes",
    "majority": "accuracy of always answering the most frequent class",
}
"""Of the table on the terminal, with what a heading does not say."""


def write_result(folder: Path, result: dict[str, Any], probe: Probe | None) -> None:
    """Write a task's folder; without a probe (few labels) only `result.json`."""
    if probe is not None:
        with replacing(folder / "probe.safetensors") as temporary:
            save_file({name: tensor.cpu().contiguous() for name, tensor in probe.state_dict().items()}, temporary)
        write_text(folder / "per_class.tsv", _as_tsv(result["test"]["per_class"]))
        with replacing(folder / "confusion.png") as temporary:
            title = describe_features(result)
            plot_confusion(np.array(result["test"]["confusion"]), result["classes"], result["label"], title, temporary)
    packages = {name: metadata.version(name) for name in ("simdist", "torch")}
    environment = {"host": socket.gethostname(), "packages": packages}
    write_json(folder / RESULT, result | {"finished": time.time(), "environment": environment})


def read_result(folder: Path) -> dict[str, Any]:
    """The `result.json` of a finished task."""
    return json.loads((folder / RESULT).read_text())


def describe_features(result: dict[str, Any]) -> str:
    """What was probed, for people: `module 3, step 1,975`, or `module 0, layer 3, step 1,975`."""
    extractor = result["source"]
    if extractor["kind"] == "mfcc":
        return "MFCC"
    where = place_name(extractor["module"], extractor.get("layer"))
    return f"{where}, step {extractor['step']:,}" if extractor["kind"] == "trained" else f"{extractor['kind']} {where}"


def describe_optimum(result: dict[str, Any]) -> str:
    """What an L-BFGS probe was fitted to: `speaker, module 3, step 9: 256 features, 800 examples, l2 0.01, …`."""
    train, chosen = result["train"], result["train"]["cross_validation"]
    how = f" (cross-validated over {chosen['num_groups']:,} {chosen['held_out']})" if chosen else ""
    return (
        f"{result['label']}, {describe_features(result)}: {train['dimensions']:,} features, {train['examples']:,} "
        f"examples, training accuracy {100 * train['accuracy']:.1f} %, l2 {train['l2']:.3g}{how}"
    )


def _as_tsv(rows: list[dict[str, Any]]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), delimiter="\t", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def as_table(results: list[dict[str, Any]]) -> Table:
    """One row per probe and its repetitions, for the terminal, and below what its columns are."""
    has_phones = any("without_silence" in result["test"] for result in results)
    shown = {name: meaning for name, meaning in COLUMNS.items() if has_phones or name != "without silence"}
    meanings = "; ".join(f"{name}: {meaning}" for name, meaning in shown.items() if meaning)
    repeated = any(len(own) > 1 for own in by_probe(results))
    spread = ", or mean ± standard deviation over repetitions" if repeated else ""
    title = f"accuracy in %, with 95 % intervals over test utterances{spread}"
    table = Table(title=title, caption=meanings, caption_justify="left")
    for column in shown:
        table.add_column(column, justify="left" if column in ("label", "features", "probe") else "right", no_wrap=True)
    for own in by_probe(results):
        result, tests = own[0], [result["test"] for result in own]
        quiet = percent([test["without_silence"]["accuracy"] for test in tests if "without_silence" in test])
        table.add_row(
            result["label"],
            describe_features(result),
            result["probe"]["probe"],
            percent([test["accuracy"] for test in tests]),
            percent([test["balanced_accuracy"] for test in tests]),
            *([quiet] if has_phones else []),
            f"{100 * result['chance']:.1f}",
            f"{100 * result['majority']['accuracy']:.1f}",
        )
    return table


def curve_table(results: list[dict[str, Any]]) -> Table:
    """Few labels: one row per probe, one column per number of examples."""
    table = Table(title="accuracy in % by labeled examples per class, mean over repetitions")
    table.add_column("label")
    table.add_column("features", no_wrap=True)
    sizes = sorted({point["examples_per_class"] for result in results for point in result["curve"]})
    for size in sizes:
        table.add_column(str(size), justify="right")
    for result in results:
        values = {point["examples_per_class"]: point["accuracy"]["value"] for point in result["curve"]}
        cells = [f"{100 * values[size]:.1f}" if size in values else "" for size in sizes]
        table.add_row(result["label"], describe_features(result), *cells)
    return table


def by_probe(results: list[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    """Results of one command in groups that differ only in the probe's seed."""
    found: dict[Any, list[dict[str, Any]]] = {}
    for result in results:
        found.setdefault((result["label"], json.dumps(result["source"], sort_keys=True)), []).append(result)
    return list(found.values())


def percent(scores: list[dict[str, Any]]) -> str:
    """`61.2 [58.0, 64.4]`, of repetitions `61.2 ± 0.8`, and nothing of none."""
    if not scores:
        return ""
    if len(scores) > 1:
        values = [score["value"] for score in scores]
        return f"{100 * np.mean(values):.1f} ± {100 * np.std(values, ddof=1):.1f}"
    low, high = scores[0]["interval"]
    return f"{100 * scores[0]['value']:.1f} [{100 * low:.1f}, {100 * high:.1f}]"


def mirror(run: Run, results: list[dict[str, Any]], plots: list[Path], log: Callable[[str], None]) -> None:
    """Log results to wandb if the run's config enables it.

    A run of its own in the training run's group, with an id that the results decide: training may be going on.

    Args:
        run: the encoder's.
        results: of its probes.
        plots: their confusion matrices.
        log: prints a line.
    """
    name = run.folder.resolve().name
    digest = hashlib.sha256("/".join(sorted(result["name"] for result in results)).encode()).hexdigest()[:8]
    logged = WandbRun(
        run.config.wandb,
        log,
        {"probe/*": "probe/step"},
        group=name,
        job_type="probe",
        name=f"{name} probes",
        id=f"{name}-{identity(run.config)[:8]}-probe-{digest}"[-WANDB_ID_LENGTH:],
        dir=str(run.folder),
        config=to_dict(run.config),
    )
    by_step: dict[int, dict[str, Any]] = {}
    for own in by_probe(results):
        metrics = [_as_metrics(result) for result in own]
        means = {name: float(np.mean([found[name] for found in metrics])) for name in metrics[0]}
        by_step.setdefault(own[0]["source"]["step"] or 0, {}).update(means)
    for step, values in sorted(by_step.items()):
        logged.log({"probe/step": step, **values})
    logged.log({f"probe/plots/{path.parent.name}": path for path in plots})
    logged.finish()


def _as_metrics(result: dict[str, Any]) -> dict[str, float]:
    extractor = result["source"]
    where = extractor["kind"] if extractor["module"] is None else f"{extractor['kind']}/module_{extractor['module']}"
    where += f"/layer_{extractor['layer']}" if "layer" in extractor else ""
    prefix = f"probe/{result['label']}/{where}/{result['probe']['probe']}"
    if "curve" in result:
        points = result["curve"]
        return {f"{prefix}/{point['examples_per_class']}_a_class": point["accuracy"]["value"] for point in points}
    test = result["test"]
    return {f"{prefix}/{name}": test[name]["value"] for name in ("accuracy", "balanced_accuracy")}
