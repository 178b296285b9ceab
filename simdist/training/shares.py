"""How ranks share batches: what divides, and what a validation looks at. The same for whatever is trained."""

from __future__ import annotations

from dataclasses import replace

from simdist.config.schema import DataConfig, Experiment
from simdist.core.errors import InputError
from simdist.data.loader import BatchLoader, Clips, open_clips
from simdist.training.accelerator import Process


def load_share(clips: Clips, data: DataConfig, seed: int, process: Process) -> BatchLoader:
    """This rank's batches."""
    accelerator = process.accelerator
    return BatchLoader(clips, data, seed, accelerator.process_index, accelerator.num_processes, accelerator.device)


def check_parts(config: Experiment, world: int) -> None:
    """Raise an InputError if a rank's share of a batch cannot be divided into `train.accumulate` parts."""
    parts, share = config.train.accumulate, config.data.batch_size // world
    if share % parts:
        raise InputError(
            f"train.accumulate is {parts}, into which a rank's {share} clips of data.batch_size "
            f"{config.data.batch_size} cannot be divided; take a divisor of {share}"
        )


def open_test_clips(config: Experiment, world: int) -> Clips:
    """The test split's clips.

    Raises:
        InputError: it cannot be opened, or has fewer clips than there are ranks.
    """
    clips = open_clips(config.data, config.data.test_split)
    if len(clips) < world:
        raise InputError(
            f"{clips.split.folder} has {len(clips)} clips for {world} ranks to validate on; "
            "set --train.validate_every 0, or use fewer processes"
        )
    return clips


def validation_data(clips: Clips, config: Experiment, world: int) -> tuple[DataConfig, int]:
    """Data settings of a validation, and how many global batches it looks at."""
    size = min(config.data.batch_size, len(clips) // world * world)  # never a batch that is partly filled
    batches = min(len(clips) // size, config.train.validate_batches or len(clips))
    return replace(config.data, batch_size=size), batches
