"""Options that analyses share, as flat dataclasses: one option per field. Imports no torch.

Fields marked with `TUNING` say where or how fast; all others are part of a result's identity.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from simdist.config.schema import DATA_ROOT, RUN_DIR, TUNING
from simdist.core.errors import InputError, require_option

COMMAND = {"identity": False}  # which results are wanted; each result has its own value elsewhere


def numbers(option: str, text: str, kind: type = int) -> list[Any]:
    """The numbers in a comma-separated list; [] of an empty text.

    Raises:
        InputError: something else is in it.
    """
    try:
        return [kind(part) for part in text.strip().strip("[]").split(",") if part.strip()]
    except ValueError:
        example = "0,5,7" if kind is int else "20,10,0"
        raise InputError(f"{option} is {text!r}; it must be numbers such as {example}") from None


Definition = Literal["simdist", "paper"]
PAPER: Definition = "paper"


def definition_of(settings: AnalysisSettings) -> Definition:
    """Whose definition of a score is asked for; `simdist` where there is only one."""
    return getattr(settings, "definition", "simdist")


def layer_of(settings: AnalysisSettings) -> int | None:
    """The one layer that the settings name, as an analysis gets them; None for a module's output."""
    layer = getattr(settings, "layer", None)
    return None if layer is None else int(layer)


@dataclass(frozen=True)
class AnalysisSettings:
    """Options of every analysis."""

    run: Path | None = field(default=None, metadata={**COMMAND, "options": RUN_DIR, "required": True})
    """Run folder to analyze. Results go to its folder `analysis`."""
    module: str = field(default="all", metadata=COMMAND)
    """Greedy modules to analyze: numbers from 0, such as 0,2; -1 for the last; or all that the analysis applies to."""
    checkpoint: str = field(default="latest", metadata=COMMAND)
    """Checkpoint of the encoder: latest, or its step, such as 200."""
    data_root: Path | None = field(default=None, metadata={**TUNING, "options": DATA_ROOT})
    """Folder of the packed splits. Default: the run's."""
    seed: int = 0
    """Seed for the choice of clips and frames, and for all noise."""
    device: Literal["auto", "cpu", "cuda"] = field(default="auto", metadata=TUNING)
    """Device of the networks. `auto` uses a GPU if there is one."""
    force: bool = field(default=False, metadata=TUNING)
    """Repeat the analysis even if its result exists."""

    def __post_init__(self) -> None:
        require_option(self.seed >= 0, "seed", self.seed, "0 or more")


@dataclass(frozen=True)
class ClipSettings(AnalysisSettings):
    """Options of analyses that read clips without labels."""

    split: str | None = None
    """Split to read clips from. Default: the run's data.test_split."""
    clips: int = 200
    """Number of clips to read, drawn at random. If the split has fewer, all of them."""
    crop: int | None = None
    """Length of a clip in samples at 16 kHz. Default: the run's data.crop."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_option(self.clips > 0, "clips", self.clips, "at least 1")
        require_option(self.crop is None or self.crop > 0, "crop", self.crop, "positive")


@dataclass(frozen=True)
class DecodedSettings(ClipSettings):
    """Options of analyses that decode latents to audio."""

    loss: str | None = None
    """Which decoder of the module to use: the --loss it was trained with. Default: mse, or the only decoder."""
    layer: str | None = field(default=None, metadata=COMMAND)
    """Layers inside the modules, whose decoders to use: numbers from 0, such as 0,2; or all. Default: each module's
    latent."""


@dataclass(frozen=True)
class LabelSettings(AnalysisSettings):
    """Options of analyses that read vectors with labels."""

    label: str = ""
    """Labels, such as syllable,vowel. Default: every label of the shards with at least two classes."""
    examples: int = 1000
    """Number of vectors, drawn at random. A vector is a clip's latent averaged over time, or a single frame if `phone`
    is among the labels."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_option(self.examples > 1, "examples", self.examples, "at least 2")


@dataclass(frozen=True)
class CompareSettings:
    """Options of `compare`; every other option of the analyses it runs has its default."""

    module: str = "all"
    """Greedy modules to compare: numbers from 0, such as 0,2; -1 for the last; or all."""
    layer: str | None = None
    """Layers inside the modules whose weights and contribution curves to compare: numbers from 0, such as 0,2; or all.
    Default: each module's output."""
    label: str = ""
    """Labels whose probe weights are compared, such as syllable,vowel. Default: those that both runs have."""
    loss: str | None = None
    """Which decoders to compare the contribution curves of: the --loss they were trained with. Default: one that both
    runs have."""
    clips: int = 200
    """Number of clips to read, drawn at random. If the split has fewer, all of them."""
    data_root: Path | None = field(default=None, metadata={"options": DATA_ROOT})
    """Folder of the packed splits. Default: each run's."""
    seed: int = 0
    """Seed for the choice of clips and frames."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Device of the networks. `auto` uses a GPU if there is one."""

    def __post_init__(self) -> None:
        require_option(self.seed >= 0, "seed", self.seed, "0 or more")
        require_option(self.clips > 1, "clips", self.clips, "at least 2")
