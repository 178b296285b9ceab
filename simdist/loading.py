"""`load_encoder`: an encoder in eval mode from a run, a checkpoint of ours, or one of upstream's."""

from __future__ import annotations

from pathlib import Path

from simdist.cli import CONFIGS, read_config
from simdist.config import Config
from simdist.engine.checkpoint import MODEL, latest_checkpoint, load_checkpoint, verify_checkpoint
from simdist.errors import InputError
from simdist.models.encoder import GreedyEncoder, check_fit
from simdist.models.upstream import load_upstream


def load_encoder(source: str | Path, config: str | Path | Config | None = None) -> GreedyEncoder:
    """Load a trained encoder, ready to `encode(audio, module=…)`.

    Args:
        source: a run folder (its newest complete checkpoint), a checkpoint folder `step_…` of ours, or an upstream
            checkpoint file (`model_N.ckpt`).
        config: for an upstream checkpoint the name of a preset (`sim_librispeech`), a YAML file or a `Config`; widths
            are read off the tensors. For a run it is known.

    Returns:
        The encoder in eval mode, on the CPU, in float32.

    Raises:
        InputError: nothing there that can be loaded; or it does not fit, naming the first tensor that differs.
    """
    source = Path(source)
    if not source.exists():
        raise InputError(f"{source} does not exist; name a run folder, a checkpoint in one, or an upstream checkpoint")
    if source.is_file():
        if source.name in (MODEL, "config.yaml"):
            raise InputError(f"{source} is a part of a run; name the run folder, or its checkpoint folder step_…")
        if config is None:
            raise InputError(f"{source} does not say its architecture; name a preset: {', '.join(preset_names())}")
        return load_upstream(source, as_config(config))[0].eval()
    checkpoint, run = _find_checkpoint(source)
    settings = as_config(config if config is not None else run / "config.yaml")
    encoder = GreedyEncoder(settings.model, settings.loss, settings.seed)
    state = load_checkpoint(checkpoint).model
    check_fit(encoder, state, str(checkpoint))
    encoder.load_state_dict(state)
    return encoder.eval()


def as_config(config: str | Path | Config) -> Config:
    """A `Config` itself, the name of a preset, or a YAML file."""
    if isinstance(config, Config):
        return config
    preset = CONFIGS / f"{config}.yaml"
    if preset.is_file():
        return read_config(preset)
    if not Path(config).is_file():
        raise InputError(f"{config} is neither a file nor a preset; the presets are {', '.join(preset_names())}")
    return read_config(config)


def preset_names() -> list[str]:
    """Names of the presets in `configs/`."""
    return sorted(path.stem for path in CONFIGS.glob("*.yaml"))


def _find_checkpoint(source: Path) -> tuple[Path, Path]:
    """The verified checkpoint folder that `source` means, and the run that it belongs to."""
    if source.name.startswith("step_"):
        problem = verify_checkpoint(source)
        if problem is not None:
            raise InputError(f"checkpoint {source} is damaged: {problem}; take another of the same run")
        return source, source.resolve().parent.parent
    if not (source / "config.yaml").is_file():
        raise InputError(f"{source} is neither a run folder, nor a checkpoint of one, nor an upstream checkpoint file")
    damaged: list[str] = []
    found = latest_checkpoint(source / "checkpoints", damaged.append)
    if found is None:
        raise InputError("; ".join([f"run {source} has no complete checkpoint; train it first", *damaged]))
    return found, source
