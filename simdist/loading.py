"""`load_encoder` and `load_decoder`: models in eval mode from a run, a checkpoint, or a reference checkpoint."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor, nn

from simdist.config.decoder import DECODERS, DEFAULT_LOSS, LOSS_NAMES, DecodingConfig, decoder_command, folder_name
from simdist.config.load import CONFIGS, read_config, read_tree
from simdist.config.schema import Config, place_name
from simdist.core.errors import InputError
from simdist.models.decoder import Decoder, mirrored
from simdist.models.encoder import GreedyEncoder, check_fit
from simdist.models.reference_checkpoints import load_reference_checkpoint
from simdist.runs.checkpoints import MODEL, CheckpointGoneError, load_chosen, verify_checkpoint
from simdist.runs.folder import CONFIG, existing_run
from simdist.training.checkpoint import load_checkpoint


def load_encoder(source: str | Path, config: str | Path | Config | None = None) -> GreedyEncoder:
    """Load a trained encoder, ready to `encode(audio, module=…)`.

    Args:
        source: a run folder (its newest complete checkpoint), a checkpoint folder `step_…` of a run, or a
            checkpoint file of the reference implementation (`model_N.ckpt`).
        config: for a reference checkpoint the name of a preset (`sim_librispeech`), a YAML file or a `Config`; widths
            are read off the tensors. For a run it is known.

    Returns:
        The encoder in eval mode, on the CPU, in float32.

    Raises:
        InputError: nothing there that can be loaded; or it does not fit, naming the first tensor that differs.
    """
    source = Path(source)
    if not source.exists():
        if source.name.startswith("step_"):
            raise CheckpointGoneError(source)
        raise InputError(f"{source} does not exist; name a run folder, a checkpoint in one, or a reference checkpoint")
    if not source.is_dir():
        if source.name in (MODEL, CONFIG):
            raise InputError(f"{source} is a part of a run; name the run folder, or its checkpoint folder step_…")
        if config is None:
            raise InputError(f"{source} does not say its architecture; name a preset: {', '.join(preset_names())}")
        return load_reference_checkpoint(source, as_config(config))[0].eval()
    if not source.name.startswith("step_"):
        if not (source / CONFIG).is_file():
            raise InputError(f"{source} is neither a run folder, nor a checkpoint of one, nor a reference checkpoint")
        settings = as_config(source / CONFIG if config is None else config)
        return load_chosen(source, None, lambda checkpoint: _encoder_of(checkpoint, settings))
    settings = as_config(source.resolve().parent.parent / CONFIG if config is None else config)
    problem = verify_checkpoint(source)
    if problem is not None:
        if not source.exists():
            raise CheckpointGoneError(source)
        raise InputError(f"checkpoint {source} is damaged: {problem}; take another of the same run")
    return _encoder_of(source, settings)


def _encoder_of(checkpoint: Path, config: Config) -> GreedyEncoder:
    encoder = GreedyEncoder.from_config(config)
    load_weights(encoder, load_checkpoint(checkpoint).model, str(checkpoint))
    return encoder.eval()


def load_decoder(
    run: str | Path, module: int, loss: str | None = None, untrained: bool = False, layer: int | None = None
) -> Decoder:
    """Load a decoder that `simdist.decode` trained, ready to `decode(latent)`.

    Args:
        run: the encoder's run folder.
        module: the greedy module whose latent it decodes.
        loss: what it was trained with; None takes the only one there is, or `mse` of several.
        untrained: the one of the untrained encoder, the baseline.
        layer: the layer inside the module whose output it decodes; None is the module's latent.

    Returns:
        The decoder in eval mode, on the CPU, in float32: (B, L, C) -> (B, 1, T) at 16 kHz.

    Raises:
        InputError: no such run, module, layer, loss or decoder; the last with the command that makes it.
    """
    run = Path(run)
    config = existing_run(run).config
    if loss is not None and loss not in LOSS_NAMES:
        raise InputError(f"there is no decoder loss {loss!r}; the losses are {', '.join(LOSS_NAMES)}")
    mirrored(config.model, module, layer)
    folder = find_decoder(run, module, loss, untrained, layer)
    settings = read_tree(DecodingConfig, folder / CONFIG)
    decoder = Decoder(config.model, module, settings.data.crop, settings.width, settings.seed, layer)
    load_chosen(folder, None, lambda found: load_weights(decoder, load_checkpoint(found).model, str(found)))
    return decoder.eval()


def find_decoder(run: Path, module: int, loss: str | None, untrained: bool, layer: int | None = None) -> Path:
    """The folder of the decoder that `load_decoder` means, whose arguments and errors these are."""
    there, where = decoder_losses(run, module, untrained, layer), place_name(module, layer)
    if loss is None and there:
        loss = DEFAULT_LOSS if DEFAULT_LOSS in there else there[0]
        if len(there) > 1 and loss != DEFAULT_LOSS:
            raise InputError(f"run {run} has several decoders of {where}; name the loss of one: {', '.join(there)}")
    if loss not in there:
        others = f" (it has one with {', '.join(there)})" if there else ""
        which = f"of {where}" + (f" with loss {loss}" if loss else "")
        which += " on the untrained encoder" * untrained
        command = decoder_command(run, module, loss or DEFAULT_LOSS, untrained, layer)
        raise InputError(f"run {run} has no decoder {which}{others}; make it with `{command}`")
    return run / DECODERS / folder_name(module, loss, untrained, layer)


def decoder_losses(run: Path, module: int, untrained: bool = False, layer: int | None = None) -> list[str]:
    """Losses that a module, or a layer inside it, has a decoder of."""
    names = {name: run / DECODERS / folder_name(module, name, untrained, layer) for name in LOSS_NAMES}
    return [name for name, folder in names.items() if (folder / CONFIG).is_file()]


def load_weights(model: nn.Module, state: dict[str, Tensor], source: str) -> None:
    """Load a state dict that must fit; the first tensor that does not is named."""
    check_fit(model, state, source)
    model.load_state_dict(state)


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
