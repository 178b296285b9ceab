"""Run folders like those that training, probes, decoders and analyses leave, with made-up numbers, in milliseconds."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import soundfile
import yaml
from matplotlib.figure import Figure

from simdist.config.load import CONFIGS, read_config
from simdist.config.schema import SAMPLE_RATE, Config, to_dict
from simdist.core.files import write_json

WIDTH, STEP, SAMPLES = 16, 1000, 4096
SIZES = (1, 4, 16, 64)
REACH = 2.68


def thesis_config(preset: str = "vgim_thesis") -> Config:
    """Two modules with decoders; `preset` is `vgim_thesis` or `gim_thesis`, here with a head without a prior."""
    config = read_config(CONFIGS / f"{preset}.yaml")
    return replace(config, model=replace(config.model, head="mu")) if preset == "gim_thesis" else config


def write_run(folder: Path, config: Config, level: float, lines: int = 60, is_done: bool = True) -> Path:
    """A run with losses of two modules, probes for syllables and vowels, and few labels.

    Args:
        folder: to be made.
        config: of the run; its seed decides the numbers.
        level: accuracy of the probes, a share, give or take two points.
        lines: of metrics.
        is_done: whether it is finished.
    """
    generator = np.random.default_rng([config.seed, *config.name.encode()])
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(to_dict(config), sort_keys=False))
    write_metrics(folder, generator, lines)
    for label, classes in (("syllable", 9), ("vowel", 3)):
        for module in (0, 1):
            accuracy = float(level - 0.1 * module + generator.uniform(-0.02, 0.02))
            write_probe(folder, label, module, accuracy, classes)
    for module in (0, 1):
        curve = [float(level * size / 100 + generator.uniform(0, 0.02)) for size in SIZES]
        write_few_labels(folder, module, curve)
    if is_done:
        (folder / "DONE").touch()
    return folder


def write_metrics(folder: Path, generator: np.random.Generator, lines: int) -> None:
    """Falling losses of two modules."""
    with (folder / "metrics.jsonl").open("w") as file:
        for step in np.linspace(1, STEP, lines).astype(int).tolist():
            modules = []
            for module in (0, 1):
                nce = float(2.4 / (1 + step / 200) + 0.1 * module + 0.02 * generator.normal())
                kl = float(40 + 2 * generator.normal())
                measured = {
                    "loss": nce + 0.0035 * kl,
                    "nce": nce,
                    "kl": kl,
                    "active_units": float(generator.integers(10, 16)),
                    "grad_norm": 1.0,
                }
                modules.append(measured | {"accuracy": float(1 / (1 + nce))})
            line = {"kind": "train", "step": step, "epoch": step / 4, "modules": modules, "lr": 0.01, "beta": 0.0035}
            file.write(json.dumps(line | {"samples_per_s": 264.0, "audio_s_per_s": 169.0, "data_wait": 0.006}) + "\n")


def write_probe(folder: Path, label: str, module: int, accuracy: float, classes: int, **settings: Any) -> Path:
    """The result of a linear probe of the trained encoder."""
    score = {"value": accuracy, "interval": [accuracy - 0.05, accuracy + 0.05]}
    tested = {"accuracy": score, "balanced_accuracy": score, "loss": 1.0, "per_class": [], "confusion": []}
    return _write_result(folder, label, module, classes, settings, {"test": tested})


def write_few_labels(folder: Path, module: int, curve: Sequence[float]) -> Path:
    """Few labels at `SIZES` examples a class."""
    points = [
        {"examples_per_class": size, "accuracy": {"value": value, "interval": [value, value]}}
        for size, value in zip(SIZES, curve, strict=True)
    ]
    few = {"examples_per_class": list(SIZES), "repetitions": 5}
    return _write_result(folder, "syllable", module, 9, few, {"curve": points})


def _write_result(
    folder: Path, label: str, module: int, classes: int, settings: dict[str, Any], measured: dict[str, Any]
) -> Path:
    probe = {"probe": "linear", "bias": True, "epochs": 100, "lr": 0.001, "batch_size": 64, "standardize": False}
    few = "few-labels-" if "curve" in measured else ""
    path = folder / "probes" / f"{few}{label}-module{module}-{len(settings)}" / "result.json"
    path.parent.mkdir(parents=True)
    write_json(path, {
        "format_version": 1,
        "label": label,
        "source": {"kind": "trained", "module": module, "step": STEP},
        "view": {"kind": "pooled", "pooling": "flatten", "crop": None, "crops": 1, "sampled": False, "seed": 0},
        "probe": {**probe, "unseen": "fail", "bootstrap": 1000, "seed": 0} | settings,
        "chance": 1 / classes,
        **measured,
    })  # fmt: skip
    return path


def write_analyses(folder: Path, seed: int = 0) -> None:
    """A decoder of module 0 with reconstructed clips, and every analysis that the page has a part for."""
    generator = np.random.default_rng(seed)
    write_decoder(folder, generator)
    kl = generator.uniform(0, 3, WIDTH)
    rows = [{"dimension": d, "kl": float(value), "ks": 0.1} for d, value in enumerate(kl)]
    values = {"dimensions": WIDTH, "active_units": 14, "collapsed_dimensions": 2, "kl_nats_per_frame": float(kl.sum())}
    spread = {"smallest": 0.01, "median": 0.05, "largest": 0.3}
    write_analysis(folder, "distributions", values | {"ks_distance": spread}, {"dimensions.csv": rows})
    weights = generator.normal(size=(3, WIDTH)) / 3
    rows = [
        {"dimension": d} | {f"rescaled_{c}": float(w) for c, w in zip("aiu", ws, strict=True)}
        for d, ws in enumerate(weights.T)
    ]
    found = {"small_share": 0.3, "kurtosis": 1.5, "dimensions_for_90_percent": 9, "dimensions": WIDTH, "accuracy": 0.8}
    write_analysis(folder, "weights", {"labels": {"vowel": found}}, {"weights-vowel.csv": rows})
    curve = [
        {
            "dimensions": size,
            "median": (1 - size / WIDTH) ** (1 + seed % 3),
            "lower_quartile": 0.0,
            "upper_quartile": 1.0,
        }
        for size in (2, 4, 8, 16)
    ]
    write_analysis(folder, "contribution", {"curve": curve}, {"contribution.csv": curve})
    write_sounds(folder, generator)


def write_sounds(folder: Path, generator: np.random.Generator) -> None:
    """A traversal of two dimensions, an interpolation, and draws of the prior."""
    steps = np.linspace(-REACH, REACH, 5)
    sounds = {
        f"dimension-{d:03d}": [(f"dimension {d} = {value:+.2f}", tone(200 + 40 * d + 60 * value)) for value in steps]
        for d in (3, 9)
    }
    write_analysis(folder, "traversal", {"dimensions": [3, 9], "values": steps.tolist()}, {}, sounds)
    mixtures = [(f"{100 - share} % a, {share} % b", tone(300 + share)) for share in (0, 50, 100)]
    write_analysis(folder, "interpolation", {"keys": ["a", "b"]}, {}, {"interpolation": mixtures})
    draws = [(f"draw {n} of N(0, I)", 0.1 * generator.normal(size=SAMPLES)) for n in range(3)]
    write_analysis(folder, "samples", {"samples": 3}, {}, {"samples": draws})


def tone(frequency: float) -> npt.NDArray[np.float64]:
    """(SAMPLES,) a tone of so many Hz that grows louder."""
    time = np.arange(SAMPLES) / SAMPLE_RATE
    return np.linspace(0.1, 0.8, SAMPLES) * np.sin(2 * np.pi * frequency * time)


def write_analysis(
    folder: Path,
    kind: str,
    values: dict[str, Any],
    tables: dict[str, list[dict[str, Any]]],
    sounds: dict[str, list[tuple[str, npt.NDArray[np.float64]]]] | None = None,
) -> Path:
    """An analysis of module 0 with a figure."""
    path = folder / "analysis" / f"{kind}-module0-step{STEP}-00000000"
    path.mkdir(parents=True)
    for name, rows in tables.items():
        _write_table(path / name, rows)
    for name, own in (sounds or {}).items():
        listed = []
        for number, (called, audio) in enumerate(own):
            soundfile.write(path / f"{name}-{number:02d}.wav", audio, SAMPLE_RATE, subtype="PCM_16")
            listed.append({"file": f"{name}-{number:02d}.wav", "sound": called, "rms": 0.1, "peak": 0.8})
        _write_table(path / f"{name}-sounds.csv", listed)
    figure = Figure(figsize=(4, 2))
    figure.subplots().plot([0, 1], [0, 1])
    figure.savefig(path / f"{kind}.png", dpi=80)
    write_json(path / "result.json", {
        "format_version": 1, "name": path.name, "analysis": kind, "module": 0, "step": STEP, "settings": {},
        "values": values, "summary": [f"{kind} in a sentence"], "files": [], "finished": 1.0,
    })  # fmt: skip
    return path


def write_decoder(folder: Path, generator: np.random.Generator) -> Path:
    """A decoder of module 0 with two clips."""
    path = folder / "decoders" / "0-mse"
    for key in ("one", "two"):
        (path / "audio" / key).mkdir(parents=True)
        for name, loudness in (("original", 0.5), ("step_00000050", 0.1), ("step_00000100", 0.3)):
            audio = loudness * tone(250 + 100 * generator.uniform())
            soundfile.write(path / "audio" / key / f"{name}.wav", audio, SAMPLE_RATE, subtype="PCM_16")
    figures = {"mse": 0.0115, "mel": 134.0, "stft": 2.48, "fft": 3.14, "si_sdr": -14.0, "mcd": 8.73}
    score = {name: {"value": value, "interval": [value, value], "clips": 171} for name, value in figures.items()}
    write_json(path / "result.json", {
        "format_version": 1, "name": "0-mse", "module": 0, "loss": "mse", "latents": "sampled",
        "encoder": {"untrained": False, "step": STEP, "weights": ""},
        "quality": {"decoder": score, "mean_signal": score},
    })  # fmt: skip
    return path


def _write_table(path: Path, rows: list[dict[str, Any]]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def write_sweep(root: Path, num_groups: int, num_seeds: int, lines: int = 60, with_analyses: int = 0) -> list[Path]:
    """Runs that differ in beta and seed; the first `with_analyses` of them have a decoder and analyses."""
    folders = []
    base = thesis_config()
    for group in range(num_groups):
        for seed in range(num_seeds):
            loss = replace(base.loss, beta=0.001 * (group + 1))
            config = replace(base, seed=seed, loss=loss)
            folder = write_run(root / f"vgim-{group:03d}-{seed}", config, 0.3 + 0.3 * group / num_groups, lines)
            if len(folders) < with_analyses:
                write_analyses(folder, seed)
            folders.append(folder)
    return folders
