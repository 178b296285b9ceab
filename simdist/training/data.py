"""The data of a training: clips, this rank's batches of them, and the test clips of a validation."""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property

from simdist.config.schema import DataConfig, Experiment
from simdist.core.errors import InputError
from simdist.data.loader import BatchLoader, Clips, open_clips
from simdist.training.agreement import check_equal, together
from simdist.training.distributed import Process
from simdist.training.groups import Groups


class TrainingData:
    """Training and test clips of an experiment, split over the ranks.

    Args:
        config: the experiment.
        process: this process in its world.
        validate: whether the test split is needed.

    Raises:
        InputError: a split cannot be opened on any rank, ranks see different data, or the batch size does not fit the
            number of ranks.
    """

    def __init__(self, config: Experiment, process: Process, validate: bool = True) -> None:
        self._config, self._process = config, process
        self.world_size = process.accelerator.num_processes
        with together(process.cpu_group):
            self.clips = open_clips(config.data, config.data.train_split)
            self._test_clips = self._open_test_clips() if validate else None
            self._check_groups()
            self._check_audio()
        manifests = [clips.split.manifest for clips in (self.clips, self._test_clips) if clips is not None]
        fingerprints = {f"the fingerprint of split {each.split}": each.fingerprint[:12] for each in manifests}
        check_equal(process.cpu_group, f"data in {config.data.root}", fingerprints)
        self.loader = self.load(self.clips, config.data)

    @property
    def fingerprint(self) -> str:
        """Fingerprint of the training split."""
        return self.clips.split.manifest.fingerprint

    @property
    def test_fingerprint(self) -> str:
        """Fingerprint of the test split; empty without validation."""
        return "" if self._test_clips is None else self._test_clips.split.manifest.fingerprint

    @property
    def test_clips(self) -> Clips:
        assert self._test_clips is not None
        return self._test_clips

    @property
    def validation_clips(self) -> int:
        """Number of clips of one validation, in complete global batches."""
        batch_size = self._validation_batch_size
        available = len(self.test_clips) // batch_size
        return batch_size * min(available, self._config.train.validate_batches or available)

    @cached_property
    def test_loader(self) -> BatchLoader:
        """Batches of the test split. Opened once, because it may cache the decoded split."""
        return self.load(
            self.test_clips, replace(self._config.data, batch_size=self._validation_batch_size, group=None)
        )

    def load(self, clips: Clips, data: DataConfig) -> BatchLoader:
        """This rank's batches of any clips."""
        accelerator = self._process.accelerator
        return BatchLoader(
            clips, data, self._config.seed, accelerator.process_index, self.world_size, accelerator.device
        )

    def describe(self) -> str:
        """The training split and the batch, for the terminal."""
        data, manifest = self._config.data, self.clips.split.manifest
        short = f", {self.clips.num_short} shorter than a crop: {data.short_clips}" if self.clips.num_short else ""
        used = data.epoch_size(len(self.clips))
        part = f" ({used} of them in each epoch)" if used < len(self.clips) else ""
        group = f", groups of {data.group}" if data.group else ", each rank's clips a group" * (self.world_size > 1)
        return (
            f"{manifest.corpus} {manifest.split}: {len(self.clips)} clips{part}, {manifest.num_seconds / 3600:.2f} h"
            f"{short}; "
            f"batch {data.batch_size} = {self.world_size} x {data.batch_size // self.world_size}{group}"
        )

    @property
    def _validation_batch_size(self) -> int:
        """Never larger than the test split, so that no batch is partly filled, and of whole groups."""
        share = min(self._config.data.batch_size, len(self.test_clips)) // self.world_size
        group = self.groups.size
        return (share // group * group if share > group else share) * self.world_size

    @property
    def groups(self) -> Groups:
        """Which clips of a global batch see each other, and which of them are this rank's."""
        return Groups.of(self._config.data, self._process.accelerator.process_index, self.world_size)

    @property
    def validation_groups(self) -> Groups:
        """The same of a validation's batch."""
        return self.groups.of_fewer(self._validation_batch_size // self.world_size)

    def _check_groups(self) -> None:
        self.groups.passes(self._config.train.groups_at_once)

    def _check_audio(self) -> None:
        for clips in filter(None, (self.clips, self._test_clips)):
            if clips.split.manifest.encoding == "npy":
                raise InputError(f"{clips.split.folder} contains latents, not audio. Set --data.root to packed audio")

    def _open_test_clips(self) -> Clips:
        clips = open_clips(self._config.data, self._config.data.test_split)
        if len(clips) < self.world_size:
            raise InputError(
                f"{clips.split.folder} has {len(clips)} clips for the validation on {self.world_size} ranks. "
                "Set --train.validate_every 0, or use fewer processes"
            )
        return clips
