"""A small CPC: one module with all convolutions and the GRU inside, whose layers tests look at."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from simdist.config.load import CONFIGS, read_config
from simdist.config.schema import Config

LAYERS = 5
STRIDES = (5, 20, 40, 80, 160)  # samples per frame of each layer


def small_cpc(speech: Path, width: int = 16, steps: int = 30) -> Config:
    """CPC with BatchNorm that trains on synthetic speech in seconds."""
    config = read_config(CONFIGS / "cpc_librispeech.yaml")
    train = replace(config.train, max_steps=steps, checkpoint_every=100, validate_every=0, precision="no")
    return replace(
        config,
        data=replace(config.data, root=str(speech), crop=5120, batch_size=8, num_workers=0, cache="memory"),
        model=replace(config.model, width=width, context_width=width),
        loss=replace(config.loss, prediction_steps=4),
        optim=replace(config.optim, lr=3e-3),
        train=train,
    )
