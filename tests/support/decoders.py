"""Decoders of tiny runs that nobody trained."""

from __future__ import annotations

from pathlib import Path

import yaml

from simdist.config.decoder import DecoderLoss, DecodingConfig
from simdist.config.load import read_config
from simdist.config.schema import to_dict
from simdist.loading import load_encoder
from simdist.models.decoder import Decoder
from simdist.models.encoder import hash_weights
from simdist.runs.folder import DONE
from simdist.training.checkpoint import Checkpoint, Retention, save_checkpoint


def make_decoder(folder: Path, module: int, loss: DecoderLoss = "mse", layer: int | None = None) -> None:
    """A decoder as `simdist.decode` would have left it, with the weights that it begins with."""
    config, weights = read_config(folder / "config.yaml"), hash_weights(load_encoder(folder))[:16]
    settings = DecodingConfig(module, loss, checkpoint=10, encoder_weights=weights, data=config.data, layer=layer)
    place = folder / "decoders" / settings.folder_name
    place.mkdir(parents=True)
    (place / "config.yaml").write_text(yaml.safe_dump(to_dict(settings)))
    decoder = Decoder(config.model, module, config.data.crop, seed=module, layer=layer)
    save_checkpoint(place / "checkpoints", Checkpoint(1, 0, "", decoder.state_dict(), []), Retention(1))
    (place / DONE).touch()
